"""Compares algorithms on tasks over seeds: one command, one table.

    python experiments/compare.py --tasks=smac_5m6m:good,smac_5m6m:medium --seeds=0,1,2 --config.learner.updates=20000
    python experiments/compare.py --tasks=mujoco_hopper_medium --algorithms=bc,omiga,omcda
    python experiments/compare.py --report_only

A task is a preset, with `:quality` for another dataset. A cell is one algorithm on one task; its seeds train together,
by vmap, each on the batches that `run.py` gives that seed. Unless learner.evaluate_every says otherwise, policies are
evaluated after the last update only, greedily. The same command goes on where an earlier one stopped and skips what is
finished; it writes comparison.md, comparison.csv and comparison.json into --directory. A seed that diverges is counted
and left out of the means, a cell of which all do is told of and left out. Exit status as of run.py.
"""

import csv
import dataclasses
import functools
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import report
import run
import session
from absl import flags
from session import SHOWN

from omcda_jax import envs
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.config import ExperimentConfig, to_dict
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.learner import Interruption, NonFiniteMetrics
from omcda_jax.system import one_line, replacing, suggestion
from omcda_jax.types import ConfigError, updates_done

DEFAULTS = ("learner.evaluate_every=0", "evaluation.episodes=32")
RESAMPLES = 2_000
# settings that every cell has of its own, and the flags that say them
OWN = {"algorithm.name": "--algorithms", "seed": "--seeds", "directory": "--directory"}


class Cell(NamedTuple):
    """One algorithm on one task, all seeds."""

    task: str
    algorithm: str
    config: ExperimentConfig
    seeds: tuple[int, ...]
    directory: str


class Command(NamedTuple):
    """What the command line asks for."""

    cells: list[Cell]
    directory: str
    report_only: bool


def parse(argv: Sequence[str]) -> Command | None:
    """Reads the command line and resolves every cell's settings; None where it only asked for help.

    Raises:
        ConfigError: for anything unknown, misspelt or of another type.
    """
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_list, flag_values=values)
    define("tasks", ["smac_5m6m:good", "smac_5m6m:medium", "smac_5m6m:poor"], "presets, each with an optional :quality")
    define("algorithms", list(ALGORITHMS), "algorithms to compare")
    define("seeds", ["0", "1", "2"], "seeds of each cell; the dataset is the same for all")
    flags.DEFINE_string("directory", "runs/compare", "where cells and tables lie", flag_values=values)
    flags.DEFINE_boolean("report_only", False, "only the tables of what is finished", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this", short_name="h", flag_values=values)
    try:
        rest = values(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise ConfigError(one_line(error)) from error
    if values.help:
        session.say(f"{__doc__}\n{values.get_help()}")
        return None
    known = ["--tasks", "--algorithms", "--seeds", "--directory", "--report_only", "--config.KEY"]
    assignments = [*DEFAULTS, *(run.assignment(argument, known) for argument in rest)]
    for key in (assignment.partition("=")[0] for assignment in assignments):
        if key in OWN:
            raise ConfigError(f"--config.{key}: expected the flag {OWN[key]} in its place")
    for name, asked in (("--tasks", values.tasks), ("--algorithms", values.algorithms)):
        if not asked:
            raise ConfigError(f"{name}: expected names separated by commas, found none")
    for name in values.algorithms:
        if name not in ALGORITHMS:
            raise ConfigError(f"--algorithms: no algorithm {name!r}; {suggestion(name, ALGORITHMS)}")
    try:
        seeds = tuple(int(seed) for seed in values.seeds)
    except ValueError:
        raise ConfigError(f"--seeds: expected numbers separated by commas, found {','.join(values.seeds)!r}") from None
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: expected different numbers of at least 0, found {','.join(values.seeds)!r}")
    cells = []
    for task in values.tasks:
        preset, _, quality = task.partition(":")
        chosen = [*assignments, f"data.quality={quality}"] if quality else assignments
        for name in values.algorithms:
            config = run.resolve(preset, [f"algorithm.name={name}", *chosen, f"seed={seeds[0]}"], "--tasks")
            label = "-".join(map(str, seeds))
            folder = os.path.join(os.path.abspath(values.directory), task.replace(":", "-"), name, f"seeds_{label}")
            cells.append(Cell(task, name, config, seeds, folder))
    return Command(cells, os.path.abspath(values.directory), values.report_only)


def job_of(cell: Cell, environment: Environment | HostEnvironment) -> session.Job:
    """The cell's seeds as a population."""
    configs = [dataclasses.replace(cell.config, seed=seed) for seed in cell.seeds]
    return session.Job(configs, cell.directory, environment, population=True, flag="--directory")


def read_result(cell: Cell) -> dict[str, Any] | None:
    """What a cell came to, whatever its settings were, or None."""
    path = os.path.join(cell.directory, "result.json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def is_finished(cell: Cell) -> bool:
    """Whether a cell trained to its end and was evaluated as it now asks for."""
    result = read_result(cell)
    if result is None or result["step"] < cell.config.learner.updates:
        return False
    return result["config"]["evaluation"] == to_dict(cell.config.evaluation)


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of the values, the two at the edges counted in part."""
    ordered, count = np.sort(np.ravel(values)), np.size(values)
    edges = np.clip(np.arange(count + 1), count / 4, 3 * count / 4)
    return float(np.diff(edges) @ ordered / (count / 2))


def bootstrap_interval(returns: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of the interquartile mean: seeds are drawn with replacement, and from each seed drawn its episodes.

    Args:
        returns: [P, E] of every seed's episodes.
        level: of confidence.
    """
    rng = np.random.default_rng(0)
    seeds, episodes = returns.shape
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(seeds, size=(seeds, 1))
        drawn.append(interquartile_mean(returns[rows, rng.integers(episodes, size=(seeds, episodes))]))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def statistics(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables say of one cell; seeds that diverged are counted and left out of the rest."""
    sound = [seed for seed, culprit in zip(result["evaluation"], result["diverged"], strict=True) if not culprit]
    returns = np.array([seed["returns"] for seed in sound])
    known, versions = result["data"]["statistics"], result["versions"]
    commit = f", commit {result['git'][:9]}{' with changes' if result['git_dirty'] else ''}" if result["git"] else ""
    return {
        "mean": float(returns.mean()),
        "sd": float(returns.mean(axis=1).std()),
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
        "made_with": f"omcda-jax {versions['omcda-jax']}, jax {versions['jax']} on {result['device']}{commit}",
    }


def markdown(entries: Mapping[tuple[str, str], Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    """The table: mean ± standard deviation over seeds, then the interquartile mean with its interval.

    Args:
        entries: `statistics` of the finished cells by task and algorithm.
        cells: all of them; an unfinished one shows as a dash.
    """
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    lines = [f"| algorithm | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    of_task = {task: [entry for (name, _), entry in entries.items() if name == task] for task in tasks}
    places = {task: 0 if found and abs(found[0]["data_mean"]) >= 100 else 3 for task, found in of_task.items()}

    def show(task, algorithm):
        if (task, algorithm) not in entries:
            return "-"
        entry, p = entries[task, algorithm], places[task]
        low, high = entry["interval"]
        lost = f"<br>{entry['diverged']} diverged" if entry["diverged"] else ""
        return f"{entry['mean']:.{p}f} ± {entry['sd']:.{p}f}<br>{entry['iqm']:.{p}f} [{low:.{p}f}, {high:.{p}f}]{lost}"

    def recorded(task):
        entry = next(iter(of_task[task]), None)
        return "-" if entry is None else f"{entry['data_mean']:.{places[task]}f} ± {entry['data_sd']:.{places[task]}f}"

    for algorithm in dict.fromkeys(cell.algorithm for cell in cells):
        lines.append(f"| {algorithm} | {' | '.join(show(task, algorithm) for task in tasks)} |")
    lines.append(f"| data | {' | '.join(map(recorded, tasks))} |")
    if entries:
        spans = {key: sorted({entry[key] for entry in entries.values()}) for key in ("seeds", "episodes", "updates")}
        counts = {key: " or ".join(map(str, span)) for key, span in spans.items()}
        lines += [
            "",
            f"Return of the greedy policy after {counts['updates']} updates, {counts['seeds']} seeds with "
            f"{counts['episodes']} episodes each: mean ± standard deviation of the seeds' means; below it the "
            f"interquartile mean of all episodes with its 95 % bootstrap interval ({RESAMPLES} resamples: as many "
            "seeds with replacement, then as many episodes of each seed drawn). data: mean ± standard deviation of the "
            "dataset's episodes. "
            f"Made with {'; '.join(sorted({entry['made_with'] for entry in entries.values()}))}.",
        ]
    return "\n".join(lines) + "\n"


def write_tables(command: Command) -> str:
    """Writes comparison.md, .csv and .json of all cells with a result; returns the first."""
    found = [(cell, read_result(cell)) for cell in command.cells]
    results = {(cell.task, cell.algorithm): result for cell, result in found if result}
    entries = {key: statistics(result) for key, result in results.items()}
    text = io.StringIO()
    columns = ("task", "algorithm", "seed", "updates", *SHOWN)
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for (task, algorithm), result in results.items():
        for seed in result["evaluation"]:
            writer.writerow({"task": task, "algorithm": algorithm, "updates": result["step"], **seed})
    whole = [{"task": task, "algorithm": algorithm, **entry} for (task, algorithm), entry in entries.items()]
    table = markdown(entries, command.cells)
    for extension, content in (("md", table), ("csv", text.getvalue()), ("json", json.dumps(whole, indent=2))):
        with replacing(os.path.join(command.directory, f"comparison.{extension}")) as partial:
            partial.write_text(content)
    return table


def run_cell(cell: Cell, environment: Environment | HostEnvironment, interruption: Interruption) -> int:
    """Trains and evaluates a cell and writes its result.json; returns the updates it has behind it.

    Raises:
        ConfigError, DatasetError, NonFiniteMetrics, StorageError: as `session.learn`.
    """
    job = job_of(cell, environment)
    judge, updates = session.make_judge(job), cell.config.learner.updates
    with session.claimed(cell.directory, cell.config, job.flag):
        state, saved = session.restore(job)
        if state is None or updates_done(state) < updates:
            state, saved = session.learn(job, state, saved, judge, interruption)
        if updates_done(state) >= updates:
            guard = saved["guard"]
            result = {
                "config": to_dict(cell.config),
                "seeds": list(cell.seeds),
                "step": updates_done(state),
                "evaluation": [{"seed": seed, **one} for seed, one in zip(cell.seeds, judge(state), strict=True)],
                "skipped": guard["skipped"],
                "diverged": guard["culprits"],
                "data": saved["data"],
                "environment_versions": dict(environment.versions),
                "training_seconds": saved["seconds"],
                **report.provenance(),
            }
            session.write_json(os.path.join(cell.directory, "result.json"), result)
    return updates_done(state)


def execute(command: Command, interruption: Interruption) -> int:
    """Trains and evaluates what is missing, writes the tables and returns the exit status.

    Raises:
        ConfigError, DatasetError: what the user can mend; settings and data of every cell are checked first.
    """
    missing, environments, diverged = [], {}, False
    if not command.report_only:
        environments = {cell.task: envs.make(cell.config.data.environment) for cell in command.cells}
        for cell in command.cells:
            jax.eval_shape(job_of(cell, environments[cell.task]).fresh)
            session.refuse_other_settings(cell.directory, cell.config, "--directory")
        missing = [cell for cell in command.cells if not is_finished(cell)]
    for task, cell in {cell.task: cell for cell in missing}.items():
        session.load_data(cell.config, environments[task])
    for place, cell in enumerate(missing):
        session.say(f"cell {place + 1} of {len(missing)}: {cell.algorithm} on {cell.task}, seeds {cell.seeds}")
        try:
            updates = run_cell(cell, environments[cell.task], interruption)
        except NonFiniteMetrics as error:
            print(f"error: {cell.algorithm} on {cell.task} diverged: {error}", file=sys.stderr)
            diverged = True
            continue
        if updates < cell.config.learner.updates:
            session.say(f"stopped and saved at update {updates}; the same command goes on")
            return 75
        write_tables(command)
    session.say(write_tables(command))
    session.say(f"tables: {os.path.join(command.directory, 'comparison.{md,csv,json}')}")
    return int(diverged)


def main(argv: Sequence[str]) -> int:
    """Runs one command line, `argv[0]` being the script; returns the exit status."""

    def work(interruption):
        command = parse(argv)
        return 0 if command is None else execute(command, interruption)

    return session.guarded(work)


if __name__ == "__main__":
    session.leave(main(sys.argv))
