"""The results of a sweep: trial by trial, over seeds, and in the format of marl-eval's plotting tools."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from omcda_jax.metrics import read, standard_deviation
from omcda_jax.runner import outcomes
from omcda_jax.runner.evaluation import SUMMARY
from omcda_jax.runner.sweep import search
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import has_diverged, result_of
from omcda_jax.runner.tables import (
    bootstrap_interval,
    csv_text,
    incomparable,
    interquartile_mean,
    markdown_table,
    write_files,
)
from omcda_jax.types import ConfigError

Record = dict[str, Any]

ALL = "all"  # all trials of a row diverged, and none was evaluated
FOUND = ("updates", *SUMMARY, "skipped", "diverged", "data_mean", "run", "place")  # results; all else is settings


def trials(directory: str, rows: Sequence[Row]) -> list[Record]:
    """Return a record of every trial of the rows that are done.

    Args:
        directory: the sweep's directory.
        rows: rows of its manifest.

    Returns:
        Records of `task`, `algorithm.name`, `seed`, and all other settings that vary in the sweep; then `updates`, the
        results of the final evaluation, `skipped` updates, `diverged` (a metric that was not finite, ALL, or empty),
        `data_mean` (mean return of the data) and `run`, the run directory.
    """
    said = [trial for row in rows for trial in row.trials]
    keys = dict.fromkeys(key for trial in said for key in trial)
    varied = [key for key in keys if len({trial.get(key) for trial in said}) > 1]
    shown = [
        "task",
        *dict.fromkeys(["algorithm.name", *(key for key in varied if key not in ("task", "seed")), "seed"]),
    ]
    found = []
    for row in rows:
        result = result_of(directory, row)
        if result:
            mean, ends = result["data"]["statistics"]["return_mean"], _ends(result)
            each = [
                {"updates": result["step"], **{key: end["evaluation"][key] for key in SUMMARY}}
                | {"skipped": end["skipped"], "diverged": end["diverged"] or "", "data_mean": mean}
                for end in ends
            ]
        elif has_diverged(directory, row):
            nothing = dict.fromkeys(("updates", *SUMMARY, "skipped"), "")
            each = [{**nothing, "diverged": ALL, "data_mean": ""}] * len(row.trials)
        else:
            continue
        for index, (trial, end) in enumerate(zip(row.trials, each, strict=True)):
            given = {key: trial.get(key, "") for key in shown}
            found.append(given | end | {"run": row.directory, "place": index})
    return found


def _ends(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How each trial ended, in a population or in a single run, which has no result if it diverges."""
    if "trials" in result:
        return result["trials"]
    skipped = result["metrics"].get("guard/skipped", 0)
    return [{"evaluation": result["evaluation"], "skipped": skipped, "diverged": None}]


def settings(record: Record) -> dict[str, Any]:
    """Return the settings of a record's trial."""
    return {key: value for key, value in record.items() if key not in FOUND}


def dataset_of(record: Record) -> str:
    """Return the name of a record's task, with the settings of its data that vary in the sweep."""
    quality = [record["data.quality"]] if record.get("data.quality", "") != "" else []
    others = {key: value for key, value in record.items() if key.startswith("data.") and key != "data.quality"}
    named = [f"{key.removeprefix('data.')}={value}" for key, value in others.items() if value != ""]
    return " ".join([":".join([record["task"], *quality]), *named])


def over_seeds(records: Sequence[Record]) -> list[Record]:
    """Return one record for all seeds of the same settings.

    Args:
        records: from `trials`.

    Returns:
        Records of the settings, the number of `seeds`, how many of them `diverged` and are left out of the rest, `mean`
        and `sd` of the seeds' mean returns, their interquartile mean `iqm` with the bounds `low` and `high` of its 95 %
        bootstrap interval (seeds drawn with replacement), `win_rate` and `data_mean`.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        shared = {key: value for key, value in settings(record).items() if key != "seed"}
        groups.setdefault(tuple(shared.items()), []).append(record)
    found = []
    for shared, members in groups.items():
        sound = [record for record in members if not record["diverged"]]
        entry = dict(shared) | {"seeds": len(members), "diverged": len(members) - len(sound)}
        if sound:
            returns = np.array([[record["return_mean"]] for record in sound])
            low, high = bootstrap_interval(returns)
            entry |= {"mean": float(returns.mean()), "sd": standard_deviation(returns)}
            entry |= {"iqm": interquartile_mean(returns), "low": low, "high": high}
            entry |= {"win_rate": float(np.mean([record["win_rate"] for record in sound]))}
        of_data = [record["data_mean"] for record in members if record["data_mean"] != ""]
        found.append(entry | {"data_mean": of_data[0] if of_data else ""})
    return found


def marl_eval(directory: str, records: Sequence[Record]) -> dict[str, Any]:
    """Return the records in marl-eval's format: environment, task, algorithm, run, step, metrics.

    An algorithm with other settings counts as another algorithm, and trials that diverged are left out. Both the last
    step and the `absolute_metrics` are the final evaluation, because the final policy is what counts.

    Args:
        directory: the sweep's directory.
        records: from `trials`.
    """
    found: dict[str, Any] = {}
    names = outcomes.short_names(key for record in records for key in settings(record))
    for record in records:
        if record["diverged"]:
            continue
        config = outcomes.load(os.path.join(directory, record["run"], "config.json"))
        environment = config["data"]["environment"].partition("/")[0].lower()
        given = settings(record)
        # marl-eval expects lower case for tasks and upper case for algorithms
        task = "-".join([given.pop("task"), *filter(None, [given.pop("data.quality", "")])]).lower()
        seed, name = given.pop("seed"), given.pop("algorithm.name")
        variant = [f"{names[key]}={value}" for key, value in given.items() if value != ""]
        algorithm = " ".join([name, *variant]).upper()
        last = {"return": [record["return_mean"]], "win_rate": [record["win_rate"]]}
        steps = [*_on_the_way(directory, record), {"step_count": record["updates"], **last}]
        run = {f"step_{number}": step for number, step in enumerate(steps, 1)} | {"absolute_metrics": last}
        found.setdefault(environment, {}).setdefault(task, {}).setdefault(algorithm, {})[f"seed_{seed}"] = run
    return found


def _on_the_way(directory: str, record: Record) -> Iterator[Record]:
    """The evaluations before the last update."""
    for row in read(os.path.join(directory, record["run"], "metrics.jsonl")):
        if "evaluation/return_mean" in row:
            mean, wins = (
                np.atleast_1d(row[f"evaluation/{key}"])[record["place"]] for key in ("return_mean", "win_rate")
            )
            yield {"step_count": row["step"], "return": [float(mean)], "win_rate": [float(wins)]}


def markdown(records: Sequence[Record]) -> str:
    """Return records as a table in Markdown."""
    columns = columns_of(records)
    return markdown_table(columns, ([cell(record.get(key, "")) for key in columns] for record in records)) + "\n"


def columns_of(records: Sequence[Record]) -> list[str]:
    """Return the columns of a table of records, without `place`, which only readers of metrics need."""
    return [key for key in dict.fromkeys(key for record in records for key in record) if key != "place"]


def cell(value: Any) -> str:
    """Return a value as a table cell."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def collect(directory: str, rows: Sequence[Row]) -> str:
    """Write the tables and marl_eval.json, and return the table over seeds.

    The tables are trials, seeds and, for a search, tried, each as .csv, .json and .md.

    Args:
        directory: the sweep's directory.
        rows: rows of its manifest.

    Raises:
        ConfigError: no row is done, or the directory cannot be written.
    """
    records = trials(directory, rows)
    if not records:
        raise ConfigError(f"{directory}: expected a row that is done, found none")
    files = {"marl_eval.json": json.dumps(marl_eval(directory, records), indent=2)}
    shown = [{key: value for key, value in record.items() if key != "place"} for record in records]
    groups = over_seeds(records)
    tables = {"trials": shown, "seeds": groups}
    searched = search.read(directory)
    if searched:
        tables["tried"] = search.records(searched)
    for name, entries in tables.items():
        files |= {f"{name}.csv": csv_text(columns_of(entries), entries), f"{name}.json": json.dumps(entries, indent=2)}
        files[f"{name}.md"] = markdown(entries)
    warning = incomparable(filter(None, (result_of(directory, row) for row in rows)))
    if warning:
        files["seeds.md"] += f"\n**{warning}**\n"
    write_files(directory, files)
    return files["seeds.md"]
