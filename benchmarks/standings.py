"""The results of the tuned comparison of `benchmarks.table`: its rows on disk, the rule that chooses, and Markdown.

A row is one evaluation of one trial:

    task, algorithm
    stage           "tuning" or "final"
    protocol        updates, batch size, widths, episodes, what else the command line set, and a digest of all settings
                    that are not tuned; after a change of the preset, its old rows no longer match
    settings        the tuned settings, as `alpha=1 learning_rate=0.0005`; all others are the preset's
    seed, step      the algorithm's seed, and updates done
    return_mean, return_sd, win_rate, episodes
    seconds         seconds of training and evaluations: the population's divided by its trials; only at the last step
    diverged        the first metric by name that was not finite, or a sentence if a whole population diverged; such
                    a trial has one row, without a return
    made_with       versions, device and commit; only at the last step
    returns         returns of every episode of a final policy; only at the last step
"""

import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rows import changing, read
from omcda_jax.config import ExperimentConfig, differences, to_dict
from omcda_jax.metrics import standard_deviation
from omcda_jax.runner.tables import RESAMPLES, bootstrap_interval, csv_text, interquartile_mean, markdown_table

KEY = ("task", "algorithm", "stage", "protocol", "settings", "seed", "step")
NUMBERS = ("return_mean", "return_sd", "win_rate", "episodes", "seconds")
FIELDS = (*KEY, *NUMBERS, "diverged", "made_with", "returns")
LAST = 5  # evaluations that the rule and the spread use

Row = Mapping[str, Any]


class Cell(NamedTuple):
    """A population of the comparison.

    Attributes:
        task, algorithm, stage, protocol: as the columns.
        settings: texts of the compared settings; a final cell has one.
        seeds: seeds of each setting.
        updates: updates of every trial.
    """

    task: str
    algorithm: str
    stage: str
    protocol: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    updates: int

    @property
    def trials(self) -> list[tuple[str, int]]:
        """The settings and the seed of every trial."""
        return [(settings, seed) for settings in self.settings for seed in self.seeds]


def text_of(settings: Mapping[str, float]) -> str:
    """Return settings as a text for the column."""
    return " ".join(f"{key}={value:g}" for key, value in settings.items())


def sizes_of(config: ExperimentConfig) -> str:
    """Return the text that every protocol begins with."""
    hidden = "-".join(map(str, config.algorithm.hidden_sizes))
    sizes = f"updates={config.learner.updates} batch={config.learner.batch_size} hidden={hidden}"
    return f"{sizes} episodes={config.evaluation.episodes}"


def digest(config: ExperimentConfig, without: Container[str]) -> str:
    """Return eight digits that depend on all settings of a configuration except those `without`, by dotted key."""
    values = {key: value for key, (_, value) in differences({}, to_dict(config)).items() if key not in without}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def load(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a file; none if it is missing.

    Raises:
        ConfigError: it is not a file of this comparison.
    """
    return read(path, FIELDS, _parsed)


def _parsed(row: Mapping[str, str]) -> dict[str, Any]:
    numbers = {key: float(row[key]) if row[key] else None for key in NUMBERS}
    returns = [float(word) for word in row["returns"].split()]
    return row | numbers | {"seed": int(row["seed"]), "step": int(row["step"]), "returns": returns}


def merge(path: str | Path, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Add rows to a file atomically, in place of rows with the same key. Return all rows as they are read.

    Args:
        path: the file, made if missing. Other processes may add to it at the same time.
        rows: the rows to add; numbers are kept to six digits.

    Raises:
        ConfigError: as in `load`.
    """
    with changing(path) as partial:
        kept = {_key(row): row for row in [*load(path), *rows]}
        partial.write_text(csv_text(FIELDS, (_written(kept[key]) for key in sorted(kept))))
    return load(path)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in KEY)


def _written(row: Row) -> dict[str, Any]:
    numbers = {key: "" if row[key] is None else f"{row[key]:.6g}" for key in NUMBERS}
    return {**row, **numbers, "returns": " ".join(f"{value:.6g}" for value in row["returns"])}


def rows_of(rows: Iterable[Row], cell: Cell) -> dict[tuple[str, int], dict[int, Row]]:
    """Return a cell's rows by trial and step."""
    found: dict[tuple[str, int], dict[int, Row]] = {trial: {} for trial in cell.trials}
    shared = (cell.task, cell.algorithm, cell.stage, cell.protocol)
    for row in rows:
        trial = (row["settings"], row["seed"])
        if tuple(row[key] for key in KEY[:4]) == shared and trial in found and row["step"] <= cell.updates:
            found[trial][row["step"]] = row
    return found


def is_finished(rows: Iterable[Row], cell: Cell) -> bool:
    """Return whether every trial of a cell was evaluated after its last update."""
    return all(cell.updates in by_step for by_step in rows_of(rows, cell).values())


def last_evaluations(by_step: Mapping[int, Row]) -> np.ndarray | None:
    """Return a trial's last mean returns, at most LAST; None for a trial that diverged."""
    if any(row["diverged"] for row in by_step.values()):
        return None
    return np.array([by_step[step]["return_mean"] for step in sorted(by_step)[-LAST:]])


def choose(rows: Iterable[Row], cell: Cell, preset: str) -> str | None:
    """Return the settings that a finished tuning cell chooses: the highest mean of the last LAST evaluations.

    Args:
        rows: all rows.
        cell: the cell with the settings to compare.
        preset: the preset's settings, which win a tie; a tie between other settings goes to the first.

    Returns:
        The text of the settings; None if every setting has a trial that diverged.
    """
    by_trial, scores = rows_of(rows, cell), {}
    for settings in cell.settings:
        seeds = [last_evaluations(by_trial[settings, seed]) for seed in cell.seeds]
        if all(returns is not None for returns in seeds):
            # rounded, so that ties do not depend on the order of the sum
            scores[settings] = float(f"{np.mean([returns.mean() for returns in seeds]):.6g}")
    return max(scores, key=lambda settings: (scores[settings], settings == preset), default=None)


class Standing(NamedTuple):
    """A finished algorithm on a task.

    Attributes:
        iqm, low, high: interquartile mean of all episodes and its 95 % interval; None if every seed diverged.
        mean, sd: mean and standard deviation over seeds.
        spread: for every seed, the largest minus the smallest of its last evaluations, relative to their mean.
        diverged: number of seeds that diverged; they count nowhere else.
        settings: the chosen settings.
    """

    iqm: float | None
    low: float | None
    high: float | None
    mean: float | None
    sd: float | None
    spread: tuple[float, ...]
    diverged: int
    settings: str


def standing(rows: Iterable[Row], cell: Cell) -> Standing:
    """Return the standing of a finished final cell."""
    trials = list(rows_of(rows, cell).values())
    sound = [by_step for by_step in trials if last_evaluations(by_step) is not None]
    lost = len(trials) - len(sound)
    if not sound:
        return Standing(None, None, None, None, None, (), lost, cell.settings[0])
    returns = np.array([by_step[cell.updates]["returns"] for by_step in sound])
    last = [last_evaluations(by_step) for by_step in sound]
    return Standing(
        interquartile_mean(returns),
        *bootstrap_interval(returns),
        float(returns.mean()),
        float(standard_deviation(returns.mean(axis=1))),
        tuple(float(np.ptp(values) / max(abs(values.mean()), 1e-9)) for values in last),
        lost,
        cell.settings[0],
    )


def leader(standings: Mapping[str, Standing]) -> str | None:
    """Return the algorithm with the highest interquartile mean."""
    ranked = {name: entry.iqm for name, entry in standings.items() if entry.iqm is not None}
    return max(ranked, key=ranked.get, default=None)


def place(standings: Mapping[str, Standing], name: str) -> str:
    """Return "first", "within" the leader's interval, or an empty string."""
    first = leader(standings)
    if name == first:
        return "first"
    reached = standings[name].iqm is not None and standings[name].iqm >= standings[first].low
    return "within" if reached else ""


def markdown(tasks: Mapping[str, Mapping[str, Standing | str]], protocols: Sequence[str], seeds: int) -> str:
    """Return a table for every task, the meaning of its columns, and where OMCDA stands.

    Args:
        tasks: by task and algorithm, its standing, or a word on how far it is.
        protocols: the distinct protocols of the final runs.
        seeds: seeds of every final cell.
    """
    parts, finished = [], {}
    for task, entries in tasks.items():
        finished[task] = {name: entry for name, entry in entries.items() if isinstance(entry, Standing)}
        parts.append(f"### {task}\n\n{_table(entries, finished[task])}")
    if any(finished.values()):
        parts.append(
            f"Greedy policy after the last update, {seeds} seeds that were not tuned with ({'; '.join(protocols)}): "
            f"interquartile mean of all episodes with its 95 % bootstrap interval ({RESAMPLES} resamples), mean ± "
            "standard deviation of the seeds' means. Bold: first, or within the interval of the first. Last "
            f"{LAST}: the largest of the last {LAST} evaluations of a run less the smallest, relative to their mean, "
            "averaged over seeds; in brackets the largest of a seed."
        )
    if any("omcda" in standings for standings in finished.values()):
        parts.append(verdict(finished))
    return "\n\n".join(parts)


def _table(entries: Mapping[str, Standing | str], finished: Mapping[str, Standing]) -> str:
    header = ["algorithm", "", "interquartile mean", "mean ± sd", "settings", f"last {LAST}"]
    ranked = sorted(finished, key=lambda name: (finished[name].iqm is None, -(finished[name].iqm or 0)))
    body = [_line(name, finished) for name in ranked]
    body += [[name, entry, "", "", "", ""] for name, entry in entries.items() if name not in finished]
    return markdown_table(header, body)


def _line(name: str, finished: Mapping[str, Standing]) -> list[str]:
    entry = finished[name]
    lost = f"{entry.diverged} diverged" if entry.diverged else ""
    if entry.iqm is None:
        return [name, lost, "", "", entry.settings, ""]
    p = 0 if abs(finished[leader(finished)].iqm) >= 100 else 3
    where = place(finished, name)
    return [
        f"**{name}**" if where else name,
        ", ".join(filter(None, [where, lost])),
        f"{entry.iqm:.{p}f} [{entry.low:.{p}f}, {entry.high:.{p}f}]",
        f"{entry.mean:.{p}f} ± {entry.sd:.{p}f}",
        entry.settings,
        f"{np.mean(entry.spread):.0%} ({max(entry.spread):.0%})",
    ]


def verdict(tasks: Mapping[str, Mapping[str, Standing]], name: str = "omcda") -> str:
    """Return where an algorithm is first or within the leader's interval, and where it is below behaviour cloning."""
    there = {task: standings for task, standings in tasks.items() if name in standings}
    by_place = {where: [task for task in there if place(there[task], name) == where] for where in ("first", "within")}
    compared = [task for task in there if "bc" in there[task]]
    below = [task for task in compared if _is_below(there[task][name], there[task]["bc"])]
    listed = lambda found: f" ({', '.join(found)})" if found else ""
    return (
        f"{name} is first on {len(by_place['first'])} of {len(there)} tasks{listed(by_place['first'])}, within the "
        f"interval of the first on {len(by_place['within'])} more{listed(by_place['within'])}, and below the interval "
        f"of bc on {len(below)} of {len(compared)}{listed(below)}."
    )


def _is_below(entry: Standing, clone: Standing) -> bool:
    return clone.low is not None and (entry.iqm is None or entry.iqm < clone.low)
