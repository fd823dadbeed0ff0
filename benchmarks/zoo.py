"""Makes entries of the zoo from the final runs of `benchmarks.table`; an entry has the seeds of a table's cell.

python -m benchmarks.zoo --directory=runs/table --tasks=mujoco_hopper_medium_replay --algorithms=bc,icq,omcda
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from benchmarks import standings, table
from omcda_jax.runner import frame, zoo
from omcda_jax.runner.jobs import Job, settings_of_run
from omcda_jax.system import new_flags, printing
from omcda_jax.types import ConfigError, suggestion


def main(argv: list[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    values, define = new_flags()
    define("string", "directory", "runs/table", "The --directory of benchmarks.table.")
    define("list", "tasks", [], "Presets, with :quality where the table's task has one; none: all that are there.")
    define("list", "algorithms", [], "Algorithms; none: all that are there.")
    define("string", "results", "benchmarks/results", "Folder of table.csv.")
    define("string", "zoo", "benchmarks/zoo", "Folder of entries.")
    return frame.main(argv, __doc__, values, _make)


def _make(values: flags.FlagValues) -> None:
    rows = standings.load(os.path.join(values.results, "table.csv"))
    found = list(_finals(values.directory))
    if not found:
        raise ConfigError(f"--directory: expected the folder of a table's final runs, found none at {values.directory}")
    for flag, there in (("tasks", {task for task, _, _ in found}), ("algorithms", {name for _, name, _ in found})):
        for word in values[flag].value:
            if word not in there:
                raise ConfigError(f"--{flag}: no final run of {word!r} there; {suggestion(word, there)}")
    for task, algorithm, run in found:
        if task in (values.tasks or [task]) and algorithm in (values.algorithms or [algorithm]):
            config = settings_of_run(run)
            # one setting and its seeds, in the table's own words
            settings, _, seeds = config.learner.trials.removeprefix("settings=").partition("; seeds=")
            configs = [dataclasses.replace(config, seed=int(seed)) for seed in seeds.split(",")]
            job = Job(configs, run, population=True, flag="--directory")
            print(zoo.add(job, values.zoo, f"{task}/{algorithm}", _made_with(rows, task, settings, job)))


def _finals(directory: str) -> Iterator[tuple[str, str, str]]:
    """The task, the algorithm and the folder of every run of final seeds."""
    for path in sorted(Path(directory).glob("*/*/final/*/config.json")):
        run = path.parent
        if run.parts[-4].partition("_")[0] in table.GRID:
            yield run.parts[-4].replace("-", ":", 1), run.parts[-3], str(run)


def _made_with(rows: Sequence[standings.Row], task: str, settings: str, job: Job) -> str | None:
    """What a run's rows say about where it was trained; rows of another protocol or seed are another run's."""
    config = settings_of_run(job.directory, ["learner.mode=data", "learner.trials=", "seed=0"])  # as in the digests
    shared = (task, config.algorithm.name, "final", settings)
    begins, ends = f"{standings.sizes_of(config)} ", f" preset={table.digest_of(config, task)}"
    seeds = {trial.seed for trial in job.configs}
    for row in rows:
        if row["seed"] not in seeds:
            continue
        is_alike = (row["task"], row["algorithm"], row["stage"], row["settings"]) == shared
        if is_alike and row["made_with"] and row["protocol"].startswith(begins) and row["protocol"].endswith(ends):
            return row["made_with"]
    return None


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
