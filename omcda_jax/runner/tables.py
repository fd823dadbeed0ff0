"""The tables of a comparison: means, interquartile means with their intervals, and the files that contain them."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.config import ExperimentConfig
from omcda_jax.files import replacing
from omcda_jax.metrics import standard_deviation
from omcda_jax.runner.evaluation import SUMMARY
from omcda_jax.runner.outcomes import load
from omcda_jax.types import ConfigError

RESAMPLES = 2_000


class Cell(NamedTuple):
    """One algorithm on one task, with all seeds."""

    task: str
    algorithm: str
    config: ExperimentConfig
    seeds: tuple[int, ...]
    directory: str


def read_result(cell: Cell) -> dict[str, Any] | None:
    """Return the result of a cell, whatever its settings were, or None."""
    path = os.path.join(cell.directory, "result.json")
    return load(path) if os.path.exists(path) else None


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a heading. Other keys than the columns are dropped; a missing value or None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_files(directory: str, texts: Mapping[str, str]) -> None:
    """Write files of tables, each completely or not at all.

    Args:
        directory: the folder.
        texts: the files' contents, by file name.

    Raises:
        ConfigError: the directory cannot be written.
    """
    try:
        for name, text in texts.items():
            with replacing(os.path.join(directory, name)) as partial:
                partial.write_text(text)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot write the tables: {error.strerror}") from error


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a heading and rows of cells as a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *rows])


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half of the values; the two values at the edges count in part."""
    ordered, count = np.sort(np.ravel(values)), np.size(values)
    edges = np.clip(np.arange(count + 1), count / 4, 3 * count / 4)
    return float(np.diff(edges) @ ordered / (count / 2))


def bootstrap_interval(returns: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the interquartile mean: draw seeds with replacement, then episodes of each drawn seed.

    Args:
        returns: [P, E] returns of every seed's episodes.
        level: confidence level.
    """
    rng = np.random.default_rng(0)
    seeds, episodes = returns.shape
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(seeds, size=(seeds, 1))
        drawn.append(interquartile_mean(returns[rows, rng.integers(episodes, size=(seeds, episodes))]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def performance_profile(scores: Sequence[np.ndarray], thresholds: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Return the share of runs that score above each threshold, with its interval, [3, K]: share, low and high.

    For the interval, seeds are drawn with replacement within each task.

    Args:
        scores: for each task, one score per seed.
        thresholds: [K].
        level: confidence level.
    """
    rng = np.random.default_rng(0)
    above = [task[:, None] > thresholds for task in scores]  # [seeds, K] of each task
    drawn = [
        np.concatenate([task[rng.integers(len(task), size=len(task))] for task in above]) for _ in range(RESAMPLES)
    ]
    edges = np.quantile([runs.mean(axis=0) for runs in drawn], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack([np.concatenate(above).mean(axis=0), *edges])


def probability_of_improvement(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the probability that a run of one algorithm beats a run of another on the same task, with its interval.

    It is averaged over tasks, and a tie counts half. For the interval, seeds are drawn with replacement.

    Args:
        ours, theirs: for each task, one score per seed.
        level: confidence level.
    """
    rng = np.random.default_rng(0)
    wins = [(np.sign(a[:, None] - b) + 1) / 2 for a, b in zip(ours, theirs, strict=True)]
    drawn = []
    for _ in range(RESAMPLES):
        chosen = [[rng.integers(size, size=size) for size in task.shape] for task in wins]
        drawn.append(np.mean([task[np.ix_(*rows)].mean() for task, rows in zip(wins, chosen, strict=True)]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([task.mean() for task in wins])), float(low), float(high)


def statistics(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's numbers for the tables; seeds that diverged are counted, and left out of the other numbers."""
    sound = [seed for seed, culprit in zip(result["evaluation"], result["diverged"], strict=True) if not culprit]
    returns = np.array([seed["returns"] for seed in sound])
    known = result["data"]["statistics"]
    versions = {key: result["versions"][key] for key in ("omcda-jax", "jax")} | result["environment_versions"]
    commit = f", commit {result['git'][:9]}{' with changes' if result['git_dirty'] else ''}" if result["git"] else ""
    software = ", ".join(f"{package} {version}" for package, version in versions.items())
    return {
        "mean": float(returns.mean()),
        "sd": standard_deviation(returns.mean(axis=1)),
        "iqm": interquartile_mean(returns),
        "interval": bootstrap_interval(returns),
        "win_rate": float(np.mean([seed["win_rate"] for seed in sound])),
        "seeds": len(result["evaluation"]),
        "diverged": len(result["evaluation"]) - len(sound),
        "episodes": returns.shape[1],
        "updates": result["step"],
        "updates_per_second": result["step"] / result["training_seconds"],
        "data_mean": known["return_mean"],
        "data_sd": known["return_sd"],
        "made_with": f"{software} on {result['device']}{commit}",
    }


def incomparable(results: Iterable[Mapping[str, Any]]) -> str:
    """Return a warning if results on the same data settings are from different simulators or data, else "".

    Args:
        results: contents of result.json files.
    """
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for result in results:
        settings = result["config"]["data"]
        facts = result.get("environment_versions", {}) | {"data": (result["data"].get("digest") or "")[:12]}
        groups.setdefault((settings["environment"], json.dumps(settings, sort_keys=True)), []).append(facts)
    found = []
    for (name, _), members in groups.items():
        for fact in dict.fromkeys(fact for facts in members for fact in facts):
            seen = sorted({facts[fact] for facts in members if facts.get(fact)})
            if len(seen) > 1:
                found.append(f"{name} with {fact} {' and '.join(seen)}")
    return f"Not comparable, because made with different simulators or data: {'; '.join(found)}." if found else ""


def markdown(entries: Mapping[tuple[str, str], Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    """Return the table: mean ± standard deviation over seeds, then the interquartile mean with its interval.

    Args:
        entries: `statistics` of the finished cells, by task and algorithm.
        cells: all cells; an unfinished cell shows as a dash.
    """
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    lines = [f"| algorithm | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for algorithm in dict.fromkeys(cell.algorithm for cell in cells):
        lines.append(f"| {algorithm} | {' | '.join(_shown(entries.get((task, algorithm))) for task in tasks)} |")
    of_task = {task: next((entry for (name, _), entry in entries.items() if name == task), None) for task in tasks}
    lines.append(f"| data | {' | '.join(map(_recorded, of_task.values()))} |")
    if entries:
        spans = {key: sorted({entry[key] for entry in entries.values()}) for key in ("seeds", "episodes", "updates")}
        counts = {key: " or ".join(map(str, span)) for key, span in spans.items()}
        lines += [
            "",
            f"Return of the greedy policy after {counts['updates']} updates, {counts['seeds']} seeds with "
            f"{counts['episodes']} episodes each: mean ± standard deviation of the seeds' means; below it the "
            f"interquartile mean of all episodes with its 95 % bootstrap interval ({RESAMPLES} resamples: as many "
            "seeds with replacement, then as many episodes of each seed drawn), and the share of episodes won, if any. "
            "data: mean ± standard deviation of the dataset's episodes. "
            f"Made with {'; '.join(sorted({entry['made_with'] for entry in entries.values()}))}.",
        ]
    return "\n".join(lines) + "\n"


def _places(entry: Mapping[str, Any]) -> int:
    """Decimals of a task's returns."""
    return 0 if abs(entry["data_mean"]) >= 100 else 3


def _shown(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    p, (low, high) = _places(entry), entry["interval"]
    won = f"<br>{entry['win_rate']:.0%} won" if entry["win_rate"] else ""
    lost = f"<br>{entry['diverged']} diverged" if entry["diverged"] else ""
    spread = f"{entry['mean']:.{p}f} ± {entry['sd']:.{p}f}<br>{entry['iqm']:.{p}f} [{low:.{p}f}, {high:.{p}f}]"
    return f"{spread}{won}{lost}"


def _recorded(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    p = _places(entry)
    return f"{entry['data_mean']:.{p}f} ± {entry['data_sd']:.{p}f}"


def write_tables(cells: Sequence[Cell], directory: str) -> str:
    """Write comparison.md, .csv and .json of all cells with a result; return the Markdown.

    Args:
        cells: the comparison's cells, finished or not.
        directory: folder for the files.
    """
    read = {(cell.task, cell.algorithm): read_result(cell) for cell in cells}
    results = {key: result for key, result in read.items() if result}
    entries = {key: statistics(result) for key, result in results.items()}
    rows = [
        {"task": task, "algorithm": algorithm, "updates": result["step"], **seed, "diverged": culprit or ""}
        for (task, algorithm), result in results.items()
        for seed, culprit in zip(result["evaluation"], result["diverged"], strict=True)
    ]
    by_seed = csv_text(("task", "algorithm", "seed", "updates", *SUMMARY, "diverged"), rows)
    places = {(cell.task, cell.algorithm): os.path.relpath(cell.directory, directory) for cell in cells}
    whole = [
        {"task": task, "algorithm": algorithm, "directory": places[task, algorithm], **entry}
        for (task, algorithm), entry in entries.items()
    ]
    warning = incomparable(results.values())
    table = markdown(entries, cells) + (f"\n**{warning}**\n" if warning else "")
    texts = {"md": table, "csv": by_seed, "json": json.dumps(whole, indent=2)}
    write_files(directory, {f"comparison.{extension}": text for extension, text in texts.items()})
    return table
