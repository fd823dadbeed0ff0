"""Nine algorithms, each tuned over six settings by one rule, then compared on fresh seeds: one command, one table.

    python -m benchmarks.table
    python -m benchmarks.table --tasks=smac_5m6m:medium --algorithms=omcda,bc
    python -m benchmarks.table --report_only

The rule is the same for every algorithm. Six settings (GRID) are trained with --tuning_seeds for --tuning_updates, and
evaluated every tenth of the updates, on 32 greedy episodes in the simulator. The settings with the highest mean of the
last five evaluations over the tuning seeds are chosen; in a tie, the preset's win. Settings with a trial that diverged
are out. The chosen settings are then trained with --seeds, which tuning never saw, and the policy after the last update
counts. Tuning is online, with the simulator, for every algorithm: it shows what an algorithm can do, and is not an
offline choice.

A task is a preset of SMAX or MuJoCo, with `:quality` for another dataset. Every algorithm gets 20,000 updates of 256
transitions and hidden layers of 256 on SMAX, and 30,000 updates of 64 and layers of 128 on MuJoCo; everything else is
the preset's. `--config.KEY=VALUE` overrides a setting for all.

Tasks run one after another, with all algorithms. The six settings are one population, and so are the final seeds. The
rows of every finished population are added to table.csv in --results. A population with rows there is not trained
again, even on another machine; to train it again, delete its rows and the folder of its run. Running the same command
again resumes a stopped one. Prints Markdown, see `benchmarks/standings.py`. The exit status is as in experiments/run.py
but 1 if nothing is left of an algorithm: all settings or all seeds diverged.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from benchmarks import standings
from benchmarks.command import check_data
from benchmarks.rows import check_writable
from benchmarks.standings import Cell, Row
from omcda_jax import envs
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.config import RESUMABLE, ExperimentConfig, replace_settings, require
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.learner import NonFiniteMetrics
from omcda_jax.metrics import read
from omcda_jax.runner import report
from omcda_jax.runner.command import read_settings
from omcda_jax.runner.compare import read_seeds, trained
from omcda_jax.runner.evaluation import make_judge
from omcda_jax.runner.jobs import Job, Saved, claimed, refuse_other_settings
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.processes import ordered, say
from omcda_jax.system import Interruption, new_flags, printing
from omcda_jax.types import ConfigError, suggestion, updates_done

TASKS = (
    "smac_5m6m:medium",
    "smac_5m6m:good",
    "smac_5m6m:poor",
    "mujoco_hopper_expert",
    "mujoco_hopper_medium",
    "mujoco_hopper_medium_expert",
    "mujoco_hopper_medium_replay",
    "mujoco_halfcheetah_medium_replay",
    "smac_2s3z:medium",
)
FIRST = ("omcda", "bc")
LOST = "all settings diverged"
EVALUATIONS = 10  # evaluations of every trial, including the one after the last update
# short calls, because a stop signal waits for a call of the whole population
DEFAULTS = ("learner.updates_per_call=20", "evaluation.episodes=32")
# by kind of task, so that these lengths do not change with the presets
SIZES = {
    "smac": ("learner.updates=20000", "learner.batch_size=256", "algorithm.hidden_sizes=256,256"),
    "mujoco": ("learner.updates=30000", "learner.batch_size=64", "algorithm.hidden_sizes=128,128"),
}
# settings that differ from trial to trial, and the flags that set them
OWN = {
    "algorithm.name": "--algorithms",
    "seed": "--seeds and --tuning_seeds",
    "directory": "--directory",
    "learner.mode": "--seeds and --tuning_seeds",
    "learner.trials": "--seeds and --tuning_seeds",
    "learner.evaluate_every": "learner.updates (it is a tenth of that)",
    "learner.checkpoint_every": "learner.updates (it is a tenth of that)",
}
IN_PROTOCOL = ("learner.updates", "learner.batch_size", "algorithm.hidden_sizes", "evaluation.episodes")
UNLIKE = RESUMABLE | {*IN_PROTOCOL, "learner.updates_per_call"}  # settings in which trials of one preset may differ


class Values(NamedTuple):
    """A tuned number: values of the setting or, as factors, multiples of the preset's value."""

    numbers: tuple[float, ...]
    are_factors: bool = True


THREE = Values((1 / 3, 1, 3))
_ANYWHERE = {
    "cql": {"penalty": THREE, "learning_rate": Values((0.4, 1))},
    "omiga": {"alpha": THREE, "learning_rate": Values((0.4, 1))},
    "cfcql": {"penalty": THREE, "learning_rate": Values((1, 2))},
    "comadice": {"alpha": THREE, "learning_rate": Values((1, 3))},
}
# By kind of task and algorithm, three values of one setting and two of another. They are numbers only, so the six are
# one program. The values cover published settings, except those for returns of another size.
GRID: dict[str, dict[str, dict[str, Values]]] = {
    "smac": _ANYWHERE
    | {
        "omcda": {"d_tot": Values((0.6, 1.8, 3.0), False), "learning_rate": Values((0.4, 1))},
        "bc": {"learning_rate": THREE, "policy_average_rate": Values((0.003, 1.0), False)},
        "bcq": {"threshold": Values((1 / 3, 1, 2)), "learning_rate": Values((0.4, 1))},
        "icq": {"policy_temperature": THREE, "value_temperature": Values((0.03, 1))},
        "omar": {"penalty": THREE, "coefficient": Values((1, 1.8))},
    },
    "mujoco": _ANYWHERE
    | {
        "omcda": {"d_tot": Values((0.3, 1.2, 3.0), False), "price": Values((0.006, 0.02), False)},
        "bc": {"learning_rate": THREE, "policy_average_rate": Values((0.001, 0.005), False)},
        "bcq": {"reach": THREE, "share": Values((0.75, 1.0), False)},
        "icq": {"policy_temperature": THREE, "value_temperature": Values((1 / 3, 1))},
        "omar": {"penalty": THREE, "coefficient": Values((1, 2.5))},
    },
}


class Method(NamedTuple):
    """One algorithm on one task.

    Attributes:
        task, algorithm: their names.
        tuning, final: settings of every trial of that stage, without seeds and tuned settings.
        grid: the six settings, by their text.
        preset: text of the preset's settings.
    """

    task: str
    algorithm: str
    tuning: ExperimentConfig
    final: ExperimentConfig
    grid: Mapping[str, Mapping[str, float]]
    preset: str


class Command(NamedTuple):
    """What the command line asks for.

    Attributes:
        methods: methods in the order of work.
        tuning_seeds, seeds: seeds of the two stages.
        extra: settings of the command line that the protocol does not show otherwise.
        directory: folder of the runs.
        csv: path of the rows.
        report_only: train nothing.
    """

    methods: list[Method]
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    extra: tuple[str, ...]
    directory: str
    csv: str
    report_only: bool

    def protocol(self, config: ExperimentConfig) -> str:
        """Return the text of the protocol column: how trials are trained and evaluated."""
        return " ".join([standings.sizes_of(config), *self.extra])

    def _whole_protocol(self, method: Method, config: ExperimentConfig) -> str:
        return f"{self.protocol(config)} preset={digest_of(config, method.task)}"

    def tuning(self, method: Method) -> Cell:
        """Return the cell that tunes a method."""
        config, protocol = method.tuning, self._whole_protocol(method, method.tuning)
        settings, updates = tuple(method.grid), config.learner.updates
        return Cell(method.task, method.algorithm, "tuning", protocol, settings, self.tuning_seeds, updates)

    def final(self, method: Method, chosen: str) -> Cell:
        """Return the cell of the final seeds."""
        config, protocol = method.final, self._whole_protocol(method, method.final)
        return Cell(method.task, method.algorithm, "final", protocol, (chosen,), self.seeds, config.learner.updates)


def digest_of(config: ExperimentConfig, task: str) -> str:
    """Return the digits that every protocol ends with, the same for all settings that are tuned on a task."""
    tuned = GRID[task.partition("_")[0]][config.algorithm.name]
    return standings.digest(config, UNLIKE | {f"algorithm.{key}" for key in tuned})


def parse(argv: Sequence[str]) -> Command | None:
    """Read the command line and resolve every method's settings; None if it only asks for help.

    Raises:
        ConfigError: anything is unknown, misspelt or of the wrong type.
    """
    values = _flags()
    given = read_settings(values, argv, OWN)
    if values.help:
        say(f"{__doc__}\n{values.get_help()}")
        return None
    keys = [text.partition("=")[0] for text in given]
    for flag in ("tasks", "algorithms"):
        if not values[flag].value:
            raise ConfigError(f"--{flag}: expected names separated by commas, found none")
    for name in values.algorithms:
        if name not in ALGORITHMS:
            raise ConfigError(f"--algorithms: no algorithm {name!r} in the grid; {suggestion(name, ALGORITHMS)}")
    seeds, tuning_seeds = read_seeds(values.seeds), read_seeds(values.tuning_seeds, "--tuning_seeds")
    shared = sorted(set(seeds) & set(tuning_seeds))
    if shared:
        raise ConfigError(f"--seeds: expected none of --tuning_seeds, found {shared[0]}")
    extra = tuple(text for key, text in sorted(zip(keys, given, strict=True)) if key not in UNLIKE)
    algorithms = sorted(values.algorithms, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    methods = [
        _method(task, name, given, values.tuning_updates)
        for task in dict.fromkeys(values.tasks)
        for name in dict.fromkeys(algorithms)
    ]
    directory, csv = os.path.abspath(values.directory), os.path.join(values.results, "table.csv")
    return Command(methods, tuning_seeds, seeds, extra, directory, csv, values.report_only)


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("list", "tasks", list(TASKS), "presets, each with an optional :quality, in the order of work")
    define("list", "algorithms", list(ALGORITHMS), f"algorithms to compare; {' and '.join(FIRST)} go first")
    # as many seeds as settings: with JAX's compilation cache, the second stage is not compiled again
    define("list", "seeds", ["0", "1", "2", "3", "4", "5"], "seeds of the final runs; the dataset is the same for all")
    define("list", "tuning_seeds", ["100"], "seeds of the runs that settings are chosen by")
    define("integer", "tuning_updates", 0, "updates of a tuning run; 0: as many as of a final one", lower_bound=0)
    define("string", "directory", "runs/table", "folder for the runs")
    define("string", "results", "benchmarks/results", "folder of table.csv")
    define("boolean", "report_only", False, "train nothing, only print the tables of the existing rows")
    return values


def _method(task: str, name: str, given: Sequence[str], tuning_updates: int) -> Method:
    """Return a method with the settings of its stages and its grid."""
    preset, _, quality = task.partition(":")
    kind = preset.partition("_")[0]
    if kind not in GRID:
        raise ConfigError(f"--tasks: expected presets of {' and '.join(f'{known}_*' for known in GRID)}, found {task}")
    chosen = [*DEFAULTS, *SIZES[kind], *([f"data.quality={quality}"] if quality else []), *given]
    config = resolve(preset, [f"algorithm.name={name}", *chosen], "--tasks")
    priming, waits = (getattr(config.algorithm, key, 0) for key in ("priming", "behaviour_updates"))
    if priming and waits and not any(text.startswith("algorithm.priming=") for text in given):
        # a critic that waits for a behaviour clone must be primed after it
        config = dataclasses.replace(config, algorithm=replace_settings(config.algorithm, {"priming": priming + waits}))
    grid = _grid(kind, name, config.algorithm)
    base = standings.text_of({key: getattr(config.algorithm, key) for key in GRID[kind][name]})
    updates = config.learner.updates
    final = _of_length(config, updates, "learner.updates")
    tuning = _of_length(config, tuning_updates, "--tuning_updates") if tuning_updates else final
    return Method(task, name, tuning, final, grid, base)


def _of_length(config: ExperimentConfig, updates: int, flag: str) -> ExperimentConfig:
    """Return settings with this many updates, evaluated and saved every tenth of them."""
    learner = config.learner
    unit = EVALUATIONS * learner.updates_per_call
    expected = f"a positive multiple of {EVALUATIONS} times learner.updates_per_call={learner.updates_per_call}"
    require(updates >= unit and updates % unit == 0, flag, expected, updates)
    often = updates // EVALUATIONS
    learner = dataclasses.replace(learner, updates=updates, evaluate_every=often, checkpoint_every=often)
    return dataclasses.replace(config, learner=learner)


def _grid(kind: str, name: str, settings: Any) -> dict[str, dict[str, float]]:
    """Return the six settings by their text; the text has all digits of the numbers."""
    (first, few), (second, two) = GRID[kind][name].items()
    value = lambda key, values, x: float(f"{x * getattr(settings, key) if values.are_factors else x:g}")
    listed = [{first: value(first, few, x), second: value(second, two, y)} for x in few.numbers for y in two.numbers]
    return {standings.text_of(each): each for each in listed}


def job_of(command: Command, method: Method, cell: Cell) -> Job:
    """Return a cell as a population; what varies is among the settings that a later start is compared with."""
    config = getattr(method, cell.stage)
    varied = f"settings={'; '.join(cell.settings)}; seeds={','.join(map(str, cell.seeds))}"
    config = dataclasses.replace(config, learner=dataclasses.replace(config.learner, mode="trials", trials=varied))
    configs = [
        dataclasses.replace(config, algorithm=replace_settings(config.algorithm, method.grid[settings]), seed=seed)
        for settings, seed in cell.trials
    ]
    folder = [method.task.replace(":", "-"), method.algorithm, cell.stage]
    if cell.stage == "final":
        folder.append(cell.settings[0].replace(" ", "_"))
    return Job(configs, os.path.join(command.directory, *folder), population=True, flag="--directory")


def execute(command: Command, interruption: Interruption) -> int:
    """Train and evaluate what is missing, print the tables and return the exit status.

    Raises:
        ConfigError, DatasetError: a mistake that the user can fix; a task's settings are checked before it begins.
    """
    rows = standings.load(command.csv)
    if not command.report_only:
        for method in command.methods:
            if next_cell(command, method, rows):
                check_data(method.final.data)
        check_writable(command.csv)
    for task in [] if command.report_only else dict.fromkeys(method.task for method in command.methods):
        methods = [method for method in command.methods if method.task == task]
        waiting = [method for method in methods if next_cell(command, method, rows)]
        if not waiting:
            continue
        environment = envs.make(waiting[0].final.data.environment)
        for method in waiting:
            job = job_of(command, method, next_cell(command, method, rows))
            job.template(environment.spec)
            refuse_other_settings(job)
        for method in waiting:
            while (cell := next_cell(command, method, rows)) is not None:
                say(f"{task}, {method.algorithm}, {cell.stage}: {len(cell.trials)} trials")
                new = run(job_of(command, method, cell), cell, environment, interruption)
                if new is None:
                    say("stopped and saved; the same command resumes")
                    return os.EX_TEMPFAIL
                rows = standings.merge(command.csv, new)
    tasks = entries(command, rows)
    protocols = list(dict.fromkeys(command.protocol(method.final) for method in command.methods))
    say(f"{standings.markdown(tasks, protocols, len(command.seeds))}\n\nrows: {command.csv}")
    is_lost = lambda entry: entry == LOST or (isinstance(entry, standings.Standing) and entry.iqm is None)
    return int(any(is_lost(entry) for found in tasks.values() for entry in found.values()))


def next_cell(command: Command, method: Method, rows: Sequence[Row]) -> Cell | None:
    """Return the cell that a method has to train next; None if it is done, or if all its settings diverged."""
    tuning = command.tuning(method)
    if not standings.is_finished(rows, tuning):
        return tuning
    chosen = standings.choose(rows, tuning, method.preset)
    if chosen is None:
        return None
    final = command.final(method, chosen)
    return None if standings.is_finished(rows, final) else final


def run(
    job: Job, cell: Cell, environment: Environment | HostEnvironment, interruption: Interruption
) -> list[dict[str, Any]] | None:
    """Train and evaluate a population; return its rows, or None if a signal stopped it.

    Raises:
        ConfigError, DatasetError, StorageError: as in `trained`.
    """
    judge = make_judge(job, environment)
    with claimed(job):
        try:
            saved = trained(job, environment, judge, interruption)
        except NonFiniteMetrics as error:
            say(f"{cell.algorithm} on {cell.task} diverged: {error}")
            return rows_of(cell, [], None, [str(error)] * len(cell.trials), {})
        if updates_done(saved.state) < cell.updates:
            return None
        say(f"evaluating {len(job.configs)} policies")
        return measured(job, cell, saved, judge(saved.state), environment)


def measured(
    job: Job,
    cell: Cell,
    saved: Saved,
    summaries: Sequence[Mapping[str, Any]],
    environment: Environment | HostEnvironment,
) -> list[dict[str, Any]]:
    """Return a finished population's rows: its evaluations during training, and the last.

    Args:
        job: the population.
        cell: its cell in the comparison.
        saved: its last state and that state's metadata.
        summaries: one summary of the last evaluation per trial.
        environment: the environment of the evaluation.
    """
    often = job.config.learner.evaluate_every
    is_due = lambda row: "evaluation/return_mean" in row and row["step"] % often == 0 and row["step"] < cell.updates
    on_the_way = [row for row in read(job.metrics) if is_due(row)]
    made = report.provenance()
    commit = f"commit {made['git'][:9]}{' with changes' if made['git_dirty'] else ''}" if made["git"] else ""
    versions = {key: made["versions"][key] for key in ("omcda-jax", "jax")} | dict(environment.versions)
    listed = [*(f"{package} {version}" for package, version in versions.items()), made["device"], commit]
    last = {"seconds": saved.metadata["seconds"] / len(cell.trials), "made_with": ", ".join(filter(None, listed))}
    return rows_of(cell, on_the_way, summaries, saved.metadata["guard"]["culprits"], last)


def rows_of(
    cell: Cell,
    on_the_way: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]] | None,
    diverged: Sequence[str | None],
    last: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return a population's rows; a trial that diverged has one row, without numbers.

    Args:
        cell: the population.
        on_the_way: rows of its metrics file, evaluations with lists over trials.
        summaries: summary of every trial after its last update; None if all diverged.
        diverged: for every trial, the metric that was not finite, or None.
        last: columns `seconds` and `made_with`.
    """
    columns = ("return_mean", "return_sd", "win_rate", "episodes")
    shared = {"task": cell.task, "algorithm": cell.algorithm, "stage": cell.stage, "protocol": cell.protocol}
    empty = dict.fromkeys(standings.NUMBERS) | {"diverged": "", "made_with": "", "returns": []}
    rows = []
    for trial, (settings, seed) in enumerate(cell.trials):
        base = shared | {"settings": settings, "seed": seed, "step": cell.updates} | empty
        if diverged[trial]:
            rows.append(base | last | {"diverged": diverged[trial]})
            continue
        for row in on_the_way:
            values = {key: row[f"evaluation/{key}"][trial] for key in columns}
            rows.append(base | {"step": row["step"]} | values)
        values = {key: summaries[trial][key] for key in columns}
        returns = summaries[trial]["returns"] if cell.stage == "final" else []
        rows.append(base | last | values | {"returns": returns})
    return rows


def entries(command: Command, rows: Sequence[Row]) -> dict[str, dict[str, standings.Standing | str]]:
    """Return by task and algorithm the standing of what is finished, or a word on how far it is."""
    tasks: dict[str, dict[str, standings.Standing | str]] = {}
    for method in command.methods:
        tuning, entry = command.tuning(method), "not trained"
        if standings.is_finished(rows, tuning):
            chosen = standings.choose(rows, tuning, method.preset)
            entry = f"tuned: {chosen}" if chosen else LOST
            if chosen and standings.is_finished(rows, command.final(method, chosen)):
                entry = standings.standing(rows, command.final(method, chosen))
        tasks.setdefault(method.task, {})[method.algorithm] = entry
    return tasks


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    return ordered(argv, parse, execute)


if __name__ == "__main__":
    sys.exit(printing(lambda: main(sys.argv)))
