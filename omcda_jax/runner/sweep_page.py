"""The page of a sweep: the returns of its trials, how they depend on the settings, and how the best trials trained."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from omcda_jax.runner import figures, outcomes, page
from omcda_jax.runner.comparison_page import across, normalised, warnings
from omcda_jax.runner.outcomes import Trial, by_setting, trials_of
from omcda_jax.runner.page import Page, Part, Section
from omcda_jax.runner.sweep import collect, manifest, search
from omcda_jax.runner.sweep.state import result_of
from omcda_jax.types import ConfigError

CURVES = 12  # settings per task with training curves and pairwise comparisons


def of_sweep(directory: str, rows: Sequence[manifest.Row], *, with_replay: bool = True) -> Page:
    """Return the page of a sweep, from the rows that are done.

    Args:
        directory: the sweep's directory.
        rows: rows of its manifest, of which at least one is done.
        with_replay: play an episode of the trial with the highest return on the first task.

    Raises:
        ConfigError: every row that ended diverged.
    """
    records = [record for record in collect.trials(directory, rows) if record["diverged"] != collect.ALL]
    results = _results(directory, rows)
    found = [
        (trial, result)
        for row, result in results
        for trial in trials_of(os.path.join(directory, row.directory), result)
    ]
    tasks: dict[str, list[tuple[Trial, Mapping[str, Any]]]] = {}
    left_out = {"algorithm.name"} if len({record["algorithm.name"] for record in records}) == 1 else set()
    for record, (trial, result) in zip(records, found, strict=True):
        labelled = trial._replace(label=_label(record, left_out))
        tasks.setdefault(collect.dataset_of(record), []).append((labelled, result))
    by_task = {task: by_setting([trial for trial, _ in own]) for task, own in tasks.items()}
    data = {task: own[0][1] for task, own in tasks.items()}

    sections = [Section("Result", _outcome(records, results))]
    searched = search.read(directory)
    if searched:
        sections.insert(0, Section("Search", search_parts(searched)))
    drawn = _settings(records)
    if drawn:
        sections.append(Section("Return by setting", [{"kind": "figures", "figures": drawn}]))
    best = {task: _best(groups) for task, groups in by_task.items()}
    names = dict.fromkeys(name for groups in best.values() for name in groups)
    if 1 < len(names) <= CURVES:
        scores = {
            name: {
                task: normalised(groups[name], data[task]["data"]["statistics"])
                for task, groups in by_task.items()
                if any(not trial.diverged for trial in groups.get(name, []))
            }
            for name in names
        }
        sections.append(Section("Across tasks", across({name: own for name, own in scores.items() if own})))
    if with_replay:
        first = next(iter(tasks))
        trial = outcomes.best([trial for trial, _ in tasks[first]])
        config = next(result for one, result in tasks[first] if one is trial)["config"]
        sections.append(Section("An episode", page.episode(trial, config, first)))
    for task, groups in best.items():
        most = f", the {len(groups)} best settings" if len(groups) < len(by_task[task]) else ""
        parts = page.training(groups, data[task])
        sections.append(Section(f"Training on {task}{most}", parts, folded=len(tasks) > 1))
    sections += [
        Section("All trials", [_table(records, "")], folded=True),
        Section("How it was made", _made(rows, results)),
    ]
    done = f"{len(results)} of {len(rows)} rows done, {len(records)} trials"
    return Page(f"Sweep on {', '.join(tasks)}", done, sections)


def _results(directory: str, rows: Sequence[manifest.Row]) -> list[tuple[manifest.Row, Mapping[str, Any]]]:
    found = [(row, result) for row in rows if (result := result_of(directory, row))]
    if not found:
        raise ConfigError(f"{directory}: expected a row with a result, found none: all that ended diverged")
    return found


def _label(record: collect.Record, left_out: set[str]) -> dict[str, Any]:
    """A trial's settings besides its task and data."""
    given = {key: value for key, value in collect.settings(record).items() if not key.startswith("data.")}
    return {key: value for key, value in given.items() if value != "" and key not in {"task", *left_out}}


def _outcome(
    records: Sequence[collect.Record], results: Sequence[tuple[manifest.Row, Mapping[str, Any]]]
) -> list[Part]:
    tuned_online = page.words(
        "The returns come from the simulator. A setting chosen by them was tuned online, which a report of offline "
        "learning has to say."
    )
    table = _table(collect.over_seeds(records), "Over seeds.")
    return [*warnings([result for _, result in results]), table, tuned_online]


def search_parts(searched: Mapping[str, Any]) -> list[Part]:
    """Return the first parts of a search's page.

    Args:
        searched: as `search.read` returns it.
    """
    parts = [page.words(search.status(searched) + ".")]
    course = search.best_so_far(searched)
    if course:
        figure = figures.course(searched["metric"], course)
        drawn = page.drawing(f"{searched['metric']} of every trial of the search, a mean over its seeds", figure)
        parts.append({"kind": "figures", "figures": [drawn]})
    parts.append(page.words(search.HONEST[searched["offline"]]))
    return [*parts, _table(search.records(searched), "Every trial of the search.")]


def _table(records: Sequence[Mapping[str, Any]], caption: str) -> Part:
    columns = collect.columns_of(records)
    rows = [[collect.cell(record.get(key, "")) for key in columns] for record in records]
    return page.table(columns, rows, caption)


def _best(groups: Mapping[str, Sequence[Trial]]) -> dict[str, Sequence[Trial]]:
    """The groups with the highest mean returns, at most CURVES groups, in the order of the sweep."""
    means = {
        name: sum(trial.final["return_mean"] for trial in sound) / len(sound)
        for name, trials in groups.items()
        if (sound := [trial for trial in trials if not trial.diverged])
    }
    kept = sorted(means, key=means.__getitem__, reverse=True)[:CURVES]
    return {name: trials for name, trials in groups.items() if name in kept}


def _settings(records: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Draw a figure for every setting that varies on a task."""
    drawn = []
    for task in dict.fromkeys(map(collect.dataset_of, records)):
        own = [record for record in records if collect.dataset_of(record) == task and not record["diverged"]]
        for key in (key for key in (own[0] if own else {}) if "." in key):
            having = [record for record in own if record[key] != ""]
            values = [_number(record[key]) for record in having]
            if any(isinstance(value, str) for value in values):
                values = [str(record[key]) for record in having]
            if len(set(values)) < 2:
                continue
            groups = [record["algorithm.name"] if key != "algorithm.name" else "" for record in having]
            figure = figures.setting(key, values, groups, [record["return_mean"] for record in having])
            drawn.append(page.drawing(f"{task}: return of every trial by {key}, and means", figure))
    return drawn


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _made(rows: Sequence[manifest.Row], results: Sequence[tuple[manifest.Row, Mapping[str, Any]]]) -> list[Part]:
    lines = "\n".join(shlex.join(row.command) for row in rows)
    return [page.words("The commands of its rows:"), {"kind": "code", "text": lines}, page.made_with(results[0][1])]
