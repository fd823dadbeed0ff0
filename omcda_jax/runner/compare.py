"""Compare algorithms on tasks over seeds: one command, one table.

    python experiments/compare.py --tasks=smac_5m6m:good,smac_5m6m:medium --seeds=0,1,2 --config.learner.updates=20000
    python experiments/compare.py --tasks=mujoco_hopper_medium --algorithms=bc,omiga,omcda
    python experiments/compare.py --report_only

`omcda-jax compare` is the same command, wherever the package is installed. A task is a preset, with `:quality` for
another dataset. A cell is one algorithm on one task. Its seeds train together, as one program, each on the batches that
`run.py` gives that seed. Unless learner.evaluate_every says otherwise, policies are evaluated only after the last
update, greedily. Running the same command again resumes a stopped comparison and skips what is finished. It writes
comparison.md, comparison.csv and comparison.json into --directory. A seed that diverges is counted and left out of the
means. A cell in which all seeds diverge is reported and left out. The exit status is as in run.py.
"""

import dataclasses
import glob
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from omcda_jax import envs
from omcda_jax.algorithms import ALGORITHMS, find
from omcda_jax.config import ExperimentConfig, to_dict
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.learner import NonFiniteMetrics
from omcda_jax.runner import datasets, report, sinks
from omcda_jax.runner.command import read_settings
from omcda_jax.runner.evaluation import Judge, make_judge
from omcda_jax.runner.jobs import Job, Saved, Switches, claimed, refuse_other_settings, restore, write_json
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.processes import ordered, say
from omcda_jax.runner.tables import Cell, read_result, write_tables
from omcda_jax.runner.training import learn
from omcda_jax.system import Interruption, new_flags
from omcda_jax.types import ConfigError, check_seed, updates_done

DEFAULTS = ("learner.evaluate_every=0", "evaluation.episodes=32")
# settings that differ from cell to cell, and the flags that set them
OWN = {"algorithm.name": "--algorithms", "directory": "--directory"} | dict.fromkeys(
    ("seed", "learner.mode", "learner.trials"), "--seeds"
)


class Command(NamedTuple):
    """What the command line of a comparison asks for."""

    cells: list[Cell]
    directory: str
    report_only: bool
    log: tuple[str, ...] = ()


def parse(argv: Sequence[str]) -> Command | None:
    """Read the command line and resolve every cell's settings; None if it only asks for help.

    Raises:
        ConfigError: anything is unknown, misspelt or of the wrong type.
    """
    values = _flags()
    given = read_settings(values, argv, OWN)
    if values.help:
        say(f"{__doc__}\n{values.get_help()}")
        return None
    assignments = [*DEFAULTS, *given]
    for flag, names in (("--tasks", values.tasks), ("--algorithms", values.algorithms)):
        if not names:
            raise ConfigError(f"{flag}: expected names separated by commas, found none")
        if len(set(names)) < len(names):
            raise ConfigError(f"{flag}: expected different names, found {','.join(names)!r}")
    for name in values.algorithms:
        find(name, "--algorithms")
    seeds, directory = read_seeds(values.seeds), os.path.abspath(values.directory)
    label = "-".join(map(str, seeds))
    cells = []
    for task in values.tasks:
        preset, _, quality = task.partition(":")
        chosen = [*assignments, f"data.quality={quality}"] if quality else assignments
        for name in values.algorithms:
            config = _settings(preset, name, [*chosen, f"seed={seeds[0]}"])
            folder = os.path.join(directory, task.replace(":", "-"), name.replace(":", "."), f"seeds_{label}")
            cells.append(Cell(task, name, config, seeds, folder))
    return Command(cells, directory, values.report_only, sinks.check(values.log))


def _settings(preset: str, name: str, chosen: Sequence[str]) -> ExperimentConfig:
    try:
        return resolve(preset, [f"algorithm.name={name}", *chosen], "--tasks")
    except ConfigError as error:
        if not str(error).startswith("algorithm."):
            raise
        raise ConfigError(f"{name}, of --algorithms: {error}") from None


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define(
        "list",
        "tasks",
        ["smac_5m6m:good", "smac_5m6m:medium", "smac_5m6m:poor"],
        "presets, each with an optional :quality",
    )
    define("list", "algorithms", list(ALGORITHMS), "algorithms to compare")
    define("list", "seeds", ["0", "1", "2"], "seeds of each cell; the dataset is the same for all")
    define("string", "directory", "runs/compare", "folder for the cells and the tables")
    define("list", "log", [], f"also log to these: {', '.join(sinks.SINKS)}")
    define("boolean", "report_only", False, "train nothing, only write the tables of what is finished")
    return values


def read_seeds(words: Sequence[str], flag: str = "--seeds") -> tuple[int, ...]:
    """Return the seeds that a flag lists.

    Raises:
        ConfigError: they are not different whole numbers in [0, 2**32).
    """
    try:
        seeds = tuple(int(word) for word in words)
    except ValueError:
        raise ConfigError(f"{flag}: expected numbers separated by commas, found {','.join(words)!r}") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{flag}: expected different numbers, found {','.join(words)!r}")
    for seed in seeds:
        check_seed(seed, flag)
    return seeds


def job_of(cell: Cell, log: tuple[str, ...] = ()) -> Job:
    """Return the cell's seeds as a population."""
    configs = [dataclasses.replace(cell.config, seed=seed) for seed in cell.seeds]
    return Job(configs, cell.directory, population=True, flag="--directory", switches=Switches(log=log))


def is_finished(cell: Cell) -> bool:
    """Return whether a cell was trained to the end and evaluated as its settings now require."""
    result = read_result(cell)
    if result is None or result["step"] < cell.config.learner.updates:
        return False
    return result["config"]["evaluation"] == to_dict(cell.config.evaluation)


def execute(command: Command, interruption: Interruption) -> int:
    """Train and evaluate what is missing, write the tables and return the exit status.

    Raises:
        ConfigError, DatasetError: a mistake that the user can fix; every cell's settings and data are checked first.
    """
    missing, environments, diverged = [], {}, False
    if command.report_only:
        _require_results(command)
    else:
        environments = {cell.task: envs.make(cell.config.data.environment) for cell in command.cells}
        for cell in command.cells:
            job_of(cell).template(environments[cell.task].spec)
            refuse_other_settings(job_of(cell))
        missing = [cell for cell in command.cells if not is_finished(cell)]
    for task, cell in {cell.task: cell for cell in missing}.items():
        datasets.ready(job_of(cell), environments[task], None, begins=False)
    for place, cell in enumerate(missing):
        say(f"cell {place + 1} of {len(missing)}: {cell.algorithm} on {cell.task}, seeds {cell.seeds}")
        try:
            updates = run_cell(cell, environments[cell.task], interruption, command.log)
        except NonFiniteMetrics as error:
            print(f"error: {cell.algorithm} on {cell.task} diverged: {error}", file=sys.stderr)
            diverged = True
            continue
        if updates < cell.config.learner.updates:
            say(f"stopped and saved at update {updates}; the same command resumes")
            return os.EX_TEMPFAIL
        write_tables(command.cells, command.directory)
    say(write_tables(command.cells, command.directory))
    say(f"tables: {os.path.join(command.directory, 'comparison.{md,csv,json}')}")
    return int(diverged)


def _require_results(command: Command) -> None:
    """Refuse to overwrite existing tables with empty ones."""
    if any(read_result(cell) for cell in command.cells):
        return
    paths = glob.glob("*/*/seeds_*/result.json", root_dir=command.directory)
    there = ", ".join(sorted(os.path.dirname(path) for path in paths)) or "none at all"
    wanted = f"a cell with a result of these --tasks, --algorithms and --seeds in {command.directory}"
    raise ConfigError(f"--report_only: expected {wanted}, found {there}")


def run_cell(
    cell: Cell, environment: Environment | HostEnvironment, interruption: Interruption, log: tuple[str, ...] = ()
) -> int:
    """Train and evaluate a cell and write its result.json; return the number of updates done.

    Raises:
        ConfigError, DatasetError, NonFiniteMetrics, StorageError: as in `datasets.ready` and `training.learn`.
    """
    job, updates = job_of(cell, log), cell.config.learner.updates
    judge = make_judge(job, environment)
    with claimed(job):
        saved = trained(job, environment, judge, interruption)
        if updates_done(saved.state) >= updates:
            write_result(cell, job, saved, judge(saved.state), environment)
    return updates_done(saved.state)


def trained(job: Job, environment: Environment | HostEnvironment, judge: Judge, interruption: Interruption) -> Saved:
    """Train what is missing and return a job's state after its last update, or at the point where a signal stopped it.

    Args:
        job: the job; its directory is claimed.
        environment: its simulator.
        judge: evaluates its states during training.
        interruption: polled between calls.

    Raises:
        ConfigError, DatasetError, NonFiniteMetrics, StorageError: as in `datasets.ready` and `training.learn`.
    """
    saved = restore(job, environment.spec)
    if saved.state is not None and updates_done(saved.state) >= job.config.learner.updates:
        datasets.warn_of_versions("the data", saved.metadata["data"].get("versions", {}), environment)
        return saved
    source = datasets.ready(job, environment, None, begins=saved.state is None)
    return learn(job, source, saved, judge, interruption)


def write_result(
    cell: Cell, job: Job, saved: Saved, summaries: Sequence[dict], environment: Environment | HostEnvironment
) -> None:
    """Write a finished cell's result.json.

    Args:
        cell: the cell.
        job: its trials.
        saved: its last state and that state's metadata.
        summaries: one summary of the last evaluation per seed.
        environment: the environment of the evaluation.
    """
    guard = saved.metadata["guard"]
    result = {
        "config": to_dict(cell.config),
        "seeds": list(cell.seeds),
        "step": updates_done(saved.state),
        "evaluation": [{"seed": seed, **summary} for seed, summary in zip(cell.seeds, summaries, strict=True)],
        "skipped": guard["skipped"],
        "diverged": guard["culprits"],
        "data": saved.metadata["data"],
        "environment_versions": dict(environment.versions),
        "training_seconds": saved.metadata["seconds"],
        **report.provenance(),
    }
    write_json(os.path.join(job.directory, "result.json"), result)


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    return ordered(argv, parse, execute)
