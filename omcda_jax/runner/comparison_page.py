"""The page of a comparison: which algorithm is better on which task, how sure that is, and how each cell trained."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omcda_jax.config import assignments, differences, to_dict
from omcda_jax.runner import figures, page, report
from omcda_jax.runner.compare import DEFAULTS
from omcda_jax.runner.outcomes import Trial, best, load, trials_of
from omcda_jax.runner.page import Page, Part, Section
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.tables import incomparable, performance_profile, probability_of_improvement
from omcda_jax.types import ConfigError

Entry = Mapping[str, Any]
THRESHOLDS = 101
COLUMNS = ("mean", "sd", "iqm", "low", "high", "win_rate", "data_mean")


def of_comparison(directory: str, *, with_replay: bool = True) -> Page:
    """Return the page of a comparison.

    Args:
        directory: directory with comparison.json.
        with_replay: play an episode of the algorithm that is best on the first task.

    Raises:
        ConfigError: its cells cannot be read.
    """
    path = os.path.join(directory, "comparison.json")
    entries = load(path)
    if not entries:
        raise ConfigError(f"{path}: expected at least one finished cell, found none")
    if any("directory" not in entry for entry in entries):
        raise ConfigError(f"{path}: was written by an earlier version; compare --report_only writes it again")
    results = [load(os.path.join(directory, entry["directory"], "result.json")) for entry in entries]
    cells = [
        trials_of(os.path.join(directory, entry["directory"]), result)
        for entry, result in zip(entries, results, strict=True)
    ]
    sections = [Section("Result", [*warnings(results), _table(entries), _intervals(entries)])]
    scores: dict[str, dict[str, np.ndarray]] = {}
    for entry, trials, result in zip(entries, cells, results, strict=True):
        scores.setdefault(entry["algorithm"], {})[entry["task"]] = normalised(trials, result["data"]["statistics"])
    if len(scores) > 1:
        sections.append(Section("Across tasks", across(scores)))
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    for task in tasks:
        own = [place for place, entry in enumerate(entries) if entry["task"] == task]
        groups = {entries[place]["algorithm"]: cells[place] for place in own}
        sections.append(Section(f"Training on {task}", page.training(groups, results[own[0]]), folded=len(tasks) > 1))
    if with_replay:
        place = max(
            (i for i, entry in enumerate(entries) if entry["task"] == tasks[0]), key=lambda i: entries[i]["iqm"]
        )
        name, config = f"{entries[place]['algorithm']} on {tasks[0]}", results[place]["config"]
        sections.append(Section("An episode", page.episode(best(cells[place]), config, name)))
    for entry, result in zip(entries, results, strict=True):
        parts = [page.settings(result["config"]), page.made_with(result)]
        sections.append(Section(f"Settings of {entry['algorithm']} on {entry['task']}", parts, folded=True))
    made = [page.words("This command makes it:"), {"kind": "code", "text": command(entries, results)}]
    made += [page.words(f"Made with {text}.") for text in sorted({entry["made_with"] for entry in entries})]
    sections.append(Section("How it was made", made))
    size = f"{len(entries)} cells, {entries[0]['seeds']} seeds each, {entries[0]['updates']} updates"
    return Page(f"Comparison on {', '.join(tasks)}", size, sections)


def warnings(results: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return what a reader of a table of results has to know first: nothing, or that they are not comparable.

    Args:
        results: contents of result.json files.
    """
    text = incomparable(results)
    return [page.words(text)] if text else []


def _table(entries: Sequence[Entry]) -> Part:
    heading = ["task", "algorithm", "mean", "sd", "IQM", "95 % from", "to", report.WINS, "data"]
    rows = [[*heading, "seeds", "diverged", "updates", "updates/s"]]
    for entry in entries:
        low, high = entry["interval"]
        numbers = [f"{(entry | {'low': low, 'high': high})[key]:.3f}" for key in COLUMNS]
        counts = [str(entry[key]) for key in ("seeds", "diverged", "updates")]
        rows.append([entry["task"], entry["algorithm"], *numbers, *counts, f"{entry['updates_per_second']:.1f}"])
    heading, *rows = report.without_empty_wins(rows)
    caption = (
        "Return of the greedy policy after the last update: mean and standard deviation of the seeds' means, "
        "interquartile mean of all episodes with its bootstrap interval; mean return of the data."
    )
    return page.table(heading, rows, caption)


def _intervals(entries: Sequence[Entry]) -> Part:
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    drawn = [
        page.drawing(
            f"{task}: interquartile mean with its 95 % interval; dashed, the mean of the data",
            figures.intervals([entry for entry in entries if entry["task"] == task]),
        )
        for task in tasks
    ]
    return {"kind": "figures", "figures": drawn}


def normalised(trials: Sequence[Trial], data: Mapping[str, Any]) -> np.ndarray:
    """Return the mean returns of trials that stayed finite, on a scale shared by all tasks: 0 is the data's mean.

    Args:
        trials: trials on one task.
        data: statistics of its dataset. Their standard deviation is the unit; if it is 0, the unit is 1.
    """
    returns = np.array([trial.final["return_mean"] for trial in trials if not trial.diverged])
    return (returns - data["return_mean"]) / (data["return_sd"] or 1.0)


def across(scores: Mapping[str, Mapping[str, np.ndarray]]) -> list[Part]:
    """Return performance profiles and the probability of improvement for every pair of algorithms.

    Args:
        scores: for every algorithm and task, one score per seed, as in `normalised`.
    """
    every = np.concatenate([values for tasks in scores.values() for values in tasks.values()])
    thresholds = np.linspace(min(0.0, every.min()), every.max(), THRESHOLDS)
    shares = {name: performance_profile(list(tasks.values()), thresholds) for name, tasks in scores.items()}
    chances = {}
    for ours in scores:
        for theirs in scores:
            common = [task for task in scores[ours] if task in scores[theirs]]
            if ours != theirs and common:
                sides = [[scores[name][task] for task in common] for name in (ours, theirs)]
                chances[ours, theirs] = probability_of_improvement(*sides)
    rows = [[ours, theirs, *(f"{value:.2f}" for value in chance)] for (ours, theirs), chance in chances.items()]
    profile = (
        "Performance profile: share of runs (a seed on a task) with a higher score. The score is the mean return above "
        "the data's mean, in standard deviations of the data's episodes."
    )
    drawn = [
        page.drawing(profile, figures.profile(shares, thresholds)),
        page.drawing(
            "Probability that a run of the row beats one of the column", figures.improvement(list(scores), chances)
        ),
    ]
    caption = "Probability of improvement, averaged over tasks, with the bootstrap interval over seeds."
    table = page.table(["algorithm", "beats", "probability", "95 % from", "to"], rows, caption)
    return [{"kind": "figures", "figures": drawn}, table]


def command(entries: Sequence[Entry], results: Sequence[Mapping[str, Any]]) -> str:
    """Return a command line that makes the comparison.

    Args:
        entries: entries of comparison.json.
        results: results of the cells, in the same order.
    """
    chosen: dict[str, None] = {}
    for entry, result in zip(entries, results, strict=True):
        config, (preset, _, quality) = result["config"], entry["task"].partition(":")
        given = [f"algorithm.name={entry['algorithm']}", *DEFAULTS]
        usual = to_dict(resolve(preset, [*given, f"data.quality={quality}"] if quality else given))
        changed = differences(usual, config).keys() - {"seed", "directory"}
        chosen |= dict.fromkeys(text for text in assignments(config) if text.partition("=")[0] in changed)
    listed = {
        "tasks": dict.fromkeys(entry["task"] for entry in entries),
        "algorithms": dict.fromkeys(entry["algorithm"] for entry in entries),
        "seeds": dict.fromkeys(str(seed) for seed in results[0]["seeds"]),
    }
    flags = [f"--{name}={','.join(values)}" for name, values in listed.items()]
    return shlex.join(["omcda-jax", "compare", *flags, *(f"--config.{text}" for text in chosen)])
