"""The plot of one run, if matplotlib is installed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from omcda_jax import metrics
from omcda_jax.files import replacing
from omcda_jax.types import ConfigError

MANY = 12  # more agents are rows of a heat map, as so many curves cannot be told apart


def plot(directory: str, result: Mapping[str, Any]) -> str:
    """Draw the return over training and, per agent, budget shares, levels and influence.

    Args:
        directory: the run's directory; its metrics.jsonl is read.
        result: as in `report.table`.

    Returns:
        The path of the PNG file written into `directory`.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("no plot: matplotlib is not installed; pip install 'omcda-jax[plot]'") from None
    rows = metrics.read(os.path.join(directory, "metrics.jsonl"))
    evaluations = [row for row in rows if "evaluation/return_mean" in row]
    learning = [row for row in rows if "allocation/budget" in row]
    figure = Figure(figsize=(16 if learning else 5, 4), layout="constrained")
    axes = figure.subplots(1, 4 if learning else 1, squeeze=False)[0]
    _draw_returns(axes[0], evaluations, result)
    if learning:
        steps = [row["step"] for row in learning]
        shares = [[value / sum(row["allocation/budget"]) for value in row["allocation/budget"]] for row in learning]
        drawn = {"budget share": shares}
        for key in ("allocation/alpha", "allocation/influence"):
            drawn[f"{key.split('/')[1]} (scaled reward per nat)"] = [row[key] for row in learning]
        for axis, (title, values) in zip(axes[1:], drawn.items(), strict=True):
            _draw_agents(axis, steps, list(zip(*values, strict=True)), stacked=values is shares)
            axis.set(title=title, xlabel="updates")
    for axis in axes:
        axis.locator_params(axis="x", nbins=5)
    path = os.path.join(directory, "curves.png")
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"no plot: {path}: {error.strerror}") from error
    return path


def _draw_agents(axis: Any, steps: Sequence[int], values: Sequence[Sequence[float]], stacked: bool) -> None:
    """Draw a curve of every agent's values, or a row of a heat map if there are many agents."""
    if len(values) > MANY:
        axis.figure.colorbar(axis.pcolormesh(steps, range(len(values)), values, shading="nearest"))
        axis.set(ylabel="agent")
        axis.invert_yaxis()
    elif stacked:
        axis.stackplot(steps, values, labels=[f"agent {agent}" for agent in range(len(values))])
        axis.set(ylim=(0, 1))
        axis.legend(loc="lower left")
    else:
        axis.plot(steps, list(zip(*values, strict=True)))


def _draw_returns(axis: Any, evaluations: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> None:
    points = {row["step"]: (row["evaluation/return_mean"], row["evaluation/return_se"]) for row in evaluations}
    points[result["step"]] = (result["evaluation"]["return_mean"], result["evaluation"]["return_se"])
    steps = sorted(points)
    mean = [points[step][0] for step in steps]
    low, high = ([points[step][0] + sign * points[step][1] for step in steps] for sign in (-1, 1))
    axis.plot(steps, mean, marker=".", label="greedy policy (± se)")
    axis.fill_between(steps, low, high, alpha=0.3)
    axis.axhline(result["data"]["statistics"]["return_mean"], color="grey", linestyle="--", label="data")
    axis.set(title="return", xlabel="updates")
    axis.legend()
