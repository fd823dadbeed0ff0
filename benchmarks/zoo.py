"""Makes entries of the zoo from the final runs of `benchmarks.table`, whose seeds are those of a table's cell.

python -m benchmarks.zoo --directory=runs/table --tasks=mujoco_hopper_medium_replay --algorithms=bc,icq,omcda
"""

import dataclasses
import os
import sys
from collections.abc import Iterator

from benchmarks import standings
from omcda_jax.runner import frame, zoo
from omcda_jax.runner.jobs import Job, settings_of_run
from omcda_jax.system import new_flags, printing
from omcda_jax.types import ConfigError


def main(argv: list[str]) -> int:
    """Run one command line, `argv[0]` being the program's name; return the exit status."""
    values, define = new_flags()
    define("string", "directory", "runs/table", "Of benchmarks.table.")
    define("list", "tasks", [], "Presets, with :quality where the table's task has one; none: all that are there.")
    define("list", "algorithms", [], "Of these; none: all that are there.")
    define("string", "results", "benchmarks/results", "Folder of table.csv.")
    define("string", "zoo", "benchmarks/zoo", "Folder of entries.")
    return frame.main(argv, __doc__, values, _make)


def _make(values) -> None:
    rows = standings.load(os.path.join(values.results, "table.csv"))
    made_with = {(row["task"], row["algorithm"]): row["made_with"] for row in rows if row["returns"]}
    for task, algorithm, job in _finals(values.directory):
        wanted = values.tasks or [task], values.algorithms or [algorithm]
        if task in wanted[0] and algorithm in wanted[1]:
            print(zoo.add(job, values.zoo, f"{task}/{algorithm}", made_with.get((task, algorithm))))


def _finals(directory: str) -> Iterator[tuple[str, str, Job]]:
    """Task, algorithm and job of every cell of fresh seeds."""
    if not os.path.isdir(directory):
        raise ConfigError(f"--directory: expected the folder of a table's runs, found none at {directory}")
    for task in sorted(os.listdir(directory)):
        for algorithm in sorted(os.listdir(os.path.join(directory, task))):
            place = os.path.join(directory, task, algorithm, "final")
            for settings in sorted(os.listdir(place)) if os.path.isdir(place) else []:
                run = os.path.join(place, settings)
                config = settings_of_run(run)
                # one setting and its seeds, in the table's own words
                seeds = config.learner.trials.rpartition("seeds=")[2].split(",")
                configs = [dataclasses.replace(config, seed=int(seed)) for seed in seeds]
                yield task.replace("-", ":"), algorithm, Job(configs, run, population=True, flag="--directory")


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
