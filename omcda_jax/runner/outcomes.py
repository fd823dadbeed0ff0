"""Reads what runs, populations and comparisons leave on disk as trials, for figures and pages."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.metrics import read
from omcda_jax.types import ConfigError


class Trial(NamedTuple):
    """One trial and its outcome.

    Attributes:
        label: what sets it apart from the trials next to it, by key; empty for a single trial.
        rows: rows of its metrics file: numbers, and lists over agents.
        step: updates done.
        final: summary of the last evaluation.
        diverged: a metric that was not finite, or None.
        directory: directory with its checkpoints.
        place: its index among the trials trained together there, and their number; None for a single trial.
    """

    label: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    step: int
    final: Mapping[str, Any]
    diverged: str | None
    directory: str
    place: tuple[int, int] | None = None


class Curve(NamedTuple):
    """A number over training, [K] each: its mean over trials, and an interval around it or None."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def load(path: str) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: the file is missing, or is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, found something else: {error}") from error


def trials_of(directory: str, result: Mapping[str, Any]) -> list[Trial]:
    """Return the trials of one training directory.

    Args:
        directory: directory with metrics.jsonl and checkpoints.
        result: contents of its result.json: of a run, a population or a cell of a comparison.
    """
    rows, step = read(os.path.join(directory, "metrics.jsonl")), result["step"]
    if "trials" in result:
        each = [(one["trial"], one["evaluation"], one["diverged"]) for one in result["trials"]]
    elif "seeds" in result:
        pairs = zip(result["evaluation"], result["diverged"], strict=True)
        each = [({"seed": final["seed"]}, final, diverged) for final, diverged in pairs]
    else:
        return [Trial({}, rows, step, result["evaluation"], None, directory)]
    return [
        Trial(label, _own(rows, place), step, final, diverged or None, directory, (place, len(each)))
        for place, (label, final, diverged) in enumerate(each)
    ]


def _own(rows: Sequence[Mapping[str, Any]], place: int) -> list[dict[str, Any]]:
    """The rows of one trial, from its population's rows."""
    return [{key: value[place] if isinstance(value, list) else value for key, value in row.items()} for row in rows]


def by_setting(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Group trials that differ only in their seed, under what they have in common, in order of appearance."""
    groups: dict[str, list[Trial]] = {}
    names = short_names(key for trial in trials for key in trial.label)
    for trial in trials:
        shared = [
            str(value) if key == "algorithm.name" else f"{names[key]}={value}"
            for key, value in trial.label.items()
            if key != "seed"
        ]
        groups.setdefault(", ".join(shared), []).append(trial)
    return groups


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the last word of each dotted key, or the whole key if another key ends with the same word."""
    found = dict.fromkeys(keys)
    last = [key.rpartition(".")[2] for key in found]
    return {key: key if last.count(word) > 1 else word for key, word in zip(found, last, strict=True)}


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest last return among those that stayed finite, or the first."""
    sound = [trial for trial in trials if not trial.diverged] or trials[:1]
    return max(sound, key=lambda trial: trial.final["return_mean"])


def curve(trials: Sequence[Trial], key: str, error: str | None = None, scale: float = 1.0) -> Curve | None:
    """Return a metric over training, or None if no trial that stayed finite has it.

    Args:
        trials: averaged at the steps that all of them have. With several, the interval reaches from the lowest to the
            highest.
        key: the metric's key; for `evaluation/...` the final evaluation is the last point.
        error: key of its standard error, which gives a 95 % interval for a single trial.
        scale: the values are divided by it.
    """
    found = [dict(_points(trial, key)) for trial in trials if not trial.diverged]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    if not steps:
        return None
    values = np.array([[points[step] for step in steps] for points in found], np.float64) / scale
    mean, low, high = values.mean(axis=0), None, None
    if len(found) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
    elif error is not None:
        spread = dict(_points(next(trial for trial in trials if not trial.diverged), error))
        width = 1.96 * np.array([spread.get(step, np.nan) for step in steps]) / scale
        low, high = mean - width, mean + width
    return Curve(np.array(steps), mean, low, high)


def _points(trial: Trial, key: str) -> list[tuple[int, Any]]:
    points = [(row["step"], row[key]) for row in trial.rows if row.get(key) is not None]
    name = key.removeprefix("evaluation/")
    if name != key and name in trial.final:
        points.append((trial.step, trial.final[name]))
    return points


def series(trials: Sequence[Trial], key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return steps [K] and values [K, N] of a metric of every agent, averaged over trials; None if there is none.

    Args:
        trials, key: as in `curve`.
    """
    found = [dict(_points(trial, key)) for trial in trials if not trial.diverged]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    if not steps or not isinstance(found[0][steps[0]], list):
        return None
    return np.array(steps), np.mean([[points[step] for step in steps] for points in found], axis=0)
