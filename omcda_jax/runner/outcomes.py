"""What runs, populations and comparisons left on disk, read as trials, which figures and pages are made of."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.metrics import read
from omcda_jax.types import ConfigError


class Trial(NamedTuple):
    """One trial and what came of it.

    Attributes:
        label: what sets it apart from the others beside it, by key; empty where it is alone.
        rows: of its metrics file: numbers, and lists over agents.
        step: updates done.
        final: summary of the last evaluation.
        diverged: a metric that was not finite, or None.
        directory: where its checkpoints lie.
        place: its place among the trials trained together there, and how many they are; None for a single one.
    """

    label: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    step: int
    final: Mapping[str, Any]
    diverged: str | None
    directory: str
    place: tuple[int, int] | None = None


class Curve(NamedTuple):
    """A number over training, [K] each: its mean over trials and an interval around it, or None where there is none."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def load(path: str) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: it is missing, or no JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, found something else: {error}") from error


def trials_of(directory: str, result: Mapping[str, Any]) -> list[Trial]:
    """Return the trials of one directory that was trained in.

    Args:
        directory: with metrics.jsonl and checkpoints.
        result: what its result.json holds: a run's, a population's, or that of a cell of a comparison.
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
    """A population's rows as one of its trials has them."""
    return [{key: value[place] if isinstance(value, list) else value for key, value in row.items()} for row in rows]


def by_setting(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return trials that differ by their seed only together, under what they have in common, in order of appearance."""
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
    """Return the last word of each dotted key; the whole key where another one ends alike."""
    found = dict.fromkeys(keys)
    last = [key.rpartition(".")[2] for key in found]
    return {key: key if last.count(word) > 1 else word for key, word in zip(found, last, strict=True)}


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest last return among those that stayed finite, or the first."""
    sound = [trial for trial in trials if not trial.diverged] or trials[:1]
    return max(sound, key=lambda trial: trial.final["return_mean"])


def curve(trials: Sequence[Trial], key: str, error: str | None = None, scale: float = 1.0) -> Curve | None:
    """Return how a metric went, or None where no trial that stayed finite has it.

    Args:
        trials: averaged at the steps that all of them have. With several, the interval reaches from the lowest to the
            highest.
        key: of the metric; for `evaluation/...` the final evaluation is its last point.
        error: metric with its standard error, which for a single trial makes a 95 % interval.
        scale: divides the values.
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
    """Return steps [K] and values [K, N] of a metric of every agent, averaged over trials; None without it.

    Args:
        trials, key: as of `curve`.
    """
    found = [dict(_points(trial, key)) for trial in trials if not trial.diverged]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    if not steps or not isinstance(found[0][steps[0]], list):
        return None
    return np.array(steps), np.mean([[points[step] for step in steps] for points in found], axis=0)
