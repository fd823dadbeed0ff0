"""The results of the sweeps of `benchmarks.analysis`: their rows on disk, and the Markdown and the figure from them.

A row is one agent in one trial of one sweep:

    task, source    "learned", or "exact" if the problem is solved by dynamic programming
    sweep           "own": one agent's budget is varied and the others keep the even share; "total": d_tot is varied
    rule            allocation rule; own budgets are given, so their rule is "fixed"
    swept           the agent with the varied budget, empty if the total is varied
    seed, d_tot, agent
    allowed, spent  the agent's budget, and the KL divergence of its policy from the behaviour policy, nats
    alpha           its level, return per nat
    price           the least level that the price of a nat allows
    influence       m_i, return per nat
    return_mean, return_se
    steps           mean number of steps of an episode; on the ring discounted, 1 / (1 - gamma)

allowed, spent, alpha, price and influence are means over the last quarter of the updates. alpha, price and influence
are divided by the reward scale, so they are in the environment's units.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.integrate
import scipy.stats

from benchmarks.rows import read
from omcda_jax.files import replacing
from omcda_jax.metrics import standard_deviation
from omcda_jax.runner.tables import csv_text, markdown_table
from omcda_jax.types import ConfigError

TEXTS, COUNTS = ("task", "source", "sweep", "rule"), ("swept", "seed", "agent")
NUMBERS = ("d_tot", "allowed", "spent", "alpha", "price", "influence", "return_mean", "return_se", "steps")
FIELDS = (*TEXTS, "swept", "seed", "d_tot", "agent", *NUMBERS[1:])

Row = Mapping[str, Any]
Curve = dict[float, dict[int, float]]  # by budget, by seed


def store(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Write rows as CSV, atomically; numbers have six digits, and None is empty."""
    written = ({key: f"{row[key]:.6g}" if key in NUMBERS else row[key] for key in FIELDS} for row in rows)
    with replacing(path) as partial:
        partial.write_text(csv_text(FIELDS, written))


def load(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read what `store` wrote.

    Raises:
        ConfigError: it is not a file of this kind.
    """
    return read(path, FIELDS, _parsed)


def _parsed(row: Mapping[str, str]) -> dict[str, Any]:
    counts = {key: int(row[key]) if row[key] else None for key in COUNTS}
    return row | counts | {key: float(row[key]) for key in NUMBERS}


def agents_of(rows: Sequence[Row]) -> range:
    """Return the indices of the agents."""
    return range(1 + max(row["agent"] for row in rows))


def own(rows: Sequence[Row], agent: int, key: str, source: str = "learned") -> Curve:
    """Return `key` of an agent against its own budget, while the other agents have the even share."""
    chosen = {"source": source, "sweep": "own", "swept": agent, "agent": agent}
    return _curve(_where(rows, **chosen), "allowed", key)


def total(rows: Sequence[Row], rule: str, key: str, source: str = "learned") -> Curve:
    """Return `key` against d_tot under a rule: for `spent` the sum over agents, else the team's single value."""
    found = _where(rows, source=source, sweep="total", rule=rule)
    if key != "spent":
        return _curve([row for row in found if row["agent"] == 0], "d_tot", key)
    parts = [_curve([row for row in found if row["agent"] == agent], "d_tot", key) for agent in agents_of(rows)]
    return {x: {seed: sum(part[x][seed] for part in parts) for seed in parts[0][x]} for x in parts[0]}


def _where(rows: Sequence[Row], **values: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _curve(rows: Sequence[Row], x: str, y: str) -> Curve:
    curve: Curve = {}
    for row in sorted(rows, key=lambda row: row[x]):
        curve.setdefault(float(f"{row[x]:.4g}"), {})[row["seed"]] = row[y]
    return curve


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % t interval, which is nan for fewer than two values."""
    values = np.array(list(values), np.float64)
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, math.nan
    width = scipy.stats.t.ppf(0.975, len(values) - 1) * standard_deviation(values) / math.sqrt(len(values))
    return float(values.mean()), float(width)


def slopes(curve: Curve) -> list[float]:
    """Return the least-squares slope of every seed that has all points of the curve; none for a curve of one point."""
    budgets = np.array(list(curve))
    if len(budgets) < 2:
        return []
    return [float(np.polyfit(budgets, values, 1)[0]) for values in _by_seed(curve).values()]


def integrated(curve: Curve) -> Curve:
    """Return the integral of a curve: the return if influence were its slope."""
    budgets, by_seed = np.array(list(curve)), _by_seed(curve)
    sums = {seed: scipy.integrate.cumulative_trapezoid(values, budgets, initial=0) for seed, values in by_seed.items()}
    return {x: {seed: float(values[place]) for seed, values in sums.items()} for place, x in enumerate(curve)}


def _by_seed(curve: Curve) -> dict[int, np.ndarray]:
    seeds = set.intersection(*(set(values) for values in curve.values())) if curve else set()
    return {seed: np.array([values[seed] for values in curve.values()]) for seed in sorted(seeds)}


def markdown(rows: Sequence[Row]) -> str:
    """Return the results of one task's sweeps as tables and sentences; every number is from the rows."""
    tasks, seeds = sorted({row["task"] for row in rows}), sorted({row["seed"] for row in rows})
    words = f"{len(agents_of(rows))} agents, seeds {', '.join(map(str, seeds))}; ± half a 95 % t interval over seeds."
    return "\n\n".join([f"### {', '.join(tasks)}", words, *_own_section(rows), *_total_section(rows)])


def _own_section(rows: Sequence[Row]) -> list[str]:
    agents = [agent for agent in agents_of(rows) if own(rows, agent, "return_mean")]
    if not agents:
        return []
    is_exact = bool(_where(rows, source="exact"))
    header = ["agent", "return per nat", "influence", "spent of the largest budget", "bound by price"]
    body, slope, predicted = [], {}, {}
    for agent in agents:
        steps = _steps(rows, agent, "learned")
        slope[agent] = interval(x / steps for x in slopes(own(rows, agent, "return_mean")))
        predicted[agent] = interval(slopes(integrated(own(rows, agent, "influence"))))
        cells = [str(agent), _pm(*slope[agent]), _pm(*predicted[agent])]
        if is_exact:
            earned = np.mean(slopes(own(rows, agent, "return_mean", "exact"))) / _steps(rows, agent, "exact")
            derivative = np.mean(slopes(integrated(own(rows, agent, "influence", "exact"))))
            truth = (earned, derivative)
            cells[1:] = [f"{cell} (exact {value:.4g})" for cell, value in zip(cells[1:], truth, strict=True)]
        largest, spent = list(own(rows, agent, "spent").items())[-1]
        trials = _where(rows, source="learned", sweep="own", swept=agent, agent=agent)
        bound = np.mean([row["alpha"] <= 1.02 * row["price"] for row in trials])
        body.append([*cells, f"{interval(spent.values())[0] / largest:.0%}", f"{bound:.0%}"])
    order = lambda of: " > ".join(str(agent) for agent in sorted(agents, key=lambda agent: -of[agent][0]))
    gains = [str(agent) for agent in agents if slope[agent][0] - slope[agent][1] > 0]
    text = (
        "Return per nat: the slope of the return in an agent's own budget, the others' at the even share, for each "
        "step of an episode. Influence: what it would be if the influence measured were the derivative. By return the "
        f"agents' order is {order(slope)}, by influence {order(predicted)}. "
    )
    text += f"The return rises beyond the interval with the budget of {_listed(gains)}."
    return [markdown_table(header, body), text]


def _steps(rows: Sequence[Row], agent: int, source: str) -> float:
    """The mean length of an episode over an agent's own sweep."""
    return float(np.mean([step for values in own(rows, agent, "steps", source).values() for step in values.values()]))


def _listed(agents: Sequence[str]) -> str:
    if not agents:
        return "no agent"
    return f"agent {agents[0]}" if len(agents) == 1 else f"agents {', '.join(agents[:-1])} and {agents[-1]}"


def _total_section(rows: Sequence[Row]) -> list[str]:
    rules = list(dict.fromkeys(row["rule"] for row in rows if row["sweep"] == "total"))
    if not rules:
        return []
    curves = {rule: total(rows, rule, "return_mean") for rule in rules}
    exact = {rule: total(rows, rule, "return_mean", "exact") for rule in rules}
    others = [rule for rule in rules if rule != "uniform"] if "uniform" in rules else []
    body = []
    for x in sorted({x for curve in curves.values() for x in curve}):
        cells = [_pm(*interval(curves[rule].get(x, {}).values())) for rule in rules]
        if any(exact.values()):
            truth = [np.mean(list(exact[rule][x].values())) for rule in rules]
            cells = [f"{cell} (exact {value:.4g})" for cell, value in zip(cells, truth, strict=True)]
        gains = [_pm(*interval(_gain(curves[rule], curves["uniform"], x).values())) for rule in others]
        body.append([f"{x:g}", *cells, *gains])
    header = ["$d_\\text{tot}$", *rules, *(f"{rule} - uniform" for rule in others)]
    return [markdown_table(header, body), *(_verdict(rule, curves[rule], curves["uniform"]) for rule in others)]


def _gain(curve: Curve, reference: Curve, x: float) -> dict[int, float]:
    """The difference of two curves at a budget, by seed."""
    mine, theirs = curve.get(x, {}), reference.get(x, {})
    return {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}


def _verdict(rule: str, curve: Curve, reference: Curve) -> str:
    gains = {x: _gain(curve, reference, x) for x in curve if x in reference}
    intervals = {x: interval(gain.values()) for x, gain in gains.items()}
    above = [f"{x:g}" for x, (mean, width) in intervals.items() if mean - width > 0]
    below = [f"{x:g}" for x, (mean, width) in intervals.items() if mean + width < 0]
    seeds = set.intersection(*(set(gain) for gain in gains.values())) if gains else set()
    mean, width = interval(np.mean([gain[seed] for gain in gains.values()]) for seed in seeds)
    if len(seeds) < 2:
        return f"`{rule}` against `uniform`: {_pm(mean, width)} over all totals; fewer than two seeds have no interval."
    sign = "more than" if mean - width > 0 else "less than" if mean + width < 0 else "not distinguishable from"
    where = lambda found: f"at $d_\\text{{tot}}$ {', '.join(found)}" if found else "nowhere"
    return (
        f"`{rule}` against `uniform`, seed by seed: better beyond the interval {where(above)}, worse beyond it "
        f"{where(below)}; over all totals {_pm(mean, width)}, {sign} zero."
    )


def _pm(mean: float, width: float) -> str:
    return f"{mean:.4g} ± {width:.2g}" if math.isfinite(width) else f"{mean:.4g}"


def draw(path: str | os.PathLike, rows: Sequence[Row]) -> Path:
    """Save `figure` as a PNG file and return its path.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    drawn = figure(rows)
    with replacing(path) as partial:
        drawn.savefig(partial, dpi=80, format="png")
    return Path(path)


def figure(rows: Sequence[Row]) -> Any:
    """Return the figure of one task's sweeps: means and 95 % intervals over seeds; exact curves are dashed.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("no figure: matplotlib is not installed; pip install 'omcda-jax[plot]'") from None
    drawn = Figure(figsize=(15, 8.5), layout="constrained")
    (returns, alpha, influence), (by_total, spent, team) = drawn.subplots(2, 3)
    alpha.set_yscale("log")
    for agent in agents_of(rows):
        panels = ((returns, "return_mean"), (alpha, "alpha"), (influence, "influence"), (spent, "spent"))
        for axis, key in panels:
            _draw_curve(axis, own(rows, agent, key), f"C{agent}", f"agent {agent}")
            _draw_curve(axis, own(rows, agent, key, "exact"), f"C{agent}", None)
    for place, rule in enumerate(dict.fromkeys(row["rule"] for row in rows if row["sweep"] == "total")):
        for axis, key in ((by_total, "return_mean"), (team, "spent")):
            _draw_curve(axis, total(rows, rule, key), f"C{place}", rule)
            _draw_curve(axis, total(rows, rule, key, "exact"), f"C{place}", None)
    nats = "own budget, the others' at the even share (nats)"
    returns.set(title="return", xlabel=nats)
    alpha.set(title="level α (return per nat)", xlabel=nats)
    influence.set(title="influence (return per nat)", xlabel=nats)
    spent.set(title="KL spent (nats); dotted: allowed", xlabel=nats)
    by_total.set(title="return under each rule", xlabel="total budget (nats)")
    team.set(title="KL spent by the team (nats); dotted: allowed", xlabel="total budget (nats)")
    for axis in (spent, team):
        axis.axline((0, 0), slope=1, color="grey", linestyle=":", linewidth=1)
    for axis in drawn.axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    dashes = "; dashed: exact" if _where(rows, source="exact") else ""
    drawn.suptitle(f"{rows[0]['task']}: means and 95 % intervals over seeds{dashes}")
    return drawn


def _draw_curve(axis: Any, curve: Curve, color: str, label: str | None) -> None:
    """Draw means and intervals, of logarithms on a logarithmic axis; without a label, draw only dashed means."""
    if not curve:
        return
    there, back = (np.log, np.exp) if axis.get_yscale() == "log" else (np.asarray, np.asarray)
    budgets = list(curve)
    mean, width = np.array([interval(there(list(values.values()))) for values in curve.values()]).T
    if label is None:
        axis.plot(budgets, back(mean), "--", color=color)
        return
    axis.plot(budgets, back(mean), marker=".", color=color, label=label)
    axis.fill_between(budgets, back(mean - width), back(mean + width), color=color, alpha=0.2, linewidth=0)
