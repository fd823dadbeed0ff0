"""Run many trials with one command: as few programs as possible, on one machine, a cluster or a pod.

    python experiments/sweep.py --config=smac_2s3z --directory=runs/budgets --jobs=2 \\
        --grid='seed=0..4; algorithm.d_tot=0.6,1.8,3; algorithm.allocation=softmax,uniform,projected'
    python experiments/sweep.py --directory=runs/search --grid='task=smac_3m:good,smac_5m6m; seed=0,1' \\
        --grid='task=smac_3m; algorithm.d_tot=loguniform(0.1,10,8)' --dry_run
    python experiments/sweep.py --status=runs/budgets
    python experiments/sweep.py --collect=runs/budgets

`omcda-jax sweep` is the same command, wherever the package is installed. Trials that differ only in the seed and in
numbers of the algorithm train together in one compiled program; every value of any other key has its own rows. Running
the same command again resumes a stopped sweep; added values only add rows. Exit status: 0 all rows done, 75 stopped and
saved (run the same command again), 78 a setting or a file to fix, 1 a row failed.

A grid is key=value,value,... for each key, separated by semicolons. a..b stands for all whole numbers from a to b,
[x,y] is one value of several numbers, uniform(low,high,n) and loguniform(low,high,n) are n random numbers, and |
separates alternatives. Keys are settings of a run, `task` (a preset, with an optional :quality) and `distributed`.
"""

import importlib
import os
import shlex
import time
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from omcda_jax.metrics import duration
from omcda_jax.runner.command import read_settings
from omcda_jax.runner.processes import ordered, say
from omcda_jax.runner.sweep import check, collect, emit, machine, manifest, plan, search, state
from omcda_jax.runner.sweep.study import Search
from omcda_jax.system import Interruption, new_flags
from omcda_jax.types import ConfigError

ENGINES = ("local", "slurm", "ray")  # modules of this package, imported when needed


class Command(NamedTuple):
    """What the command line of a sweep asks for.

    Attributes:
        directory: the sweep's directory.
        act: run, dry_run, status or collect.
        order: trials to add to the manifest, or None to leave it as it is.
        engine: the engine that runs the rows.
        options: options of this machine, or of the engine.
        rate: updates per second for the estimate, or None.
        rates: directory of another sweep with rates for the estimate, or None.
        emit: kind of file to print instead of running anything, or None.
        words: the command line for every host, without the host's number.
        search: what is searched for, or None to run all points of the grid.
    """

    directory: str
    act: str
    order: plan.Order | None
    engine: str
    options: machine.Options
    rate: float | None
    rates: str | None
    emit: str | None = None
    words: Sequence[str] = ()
    search: Search | None = None


def parse(argv: Sequence[str]) -> Command | None:
    """Read the command line; None if it only asks for help, which is printed.

    Raises:
        ConfigError: anything is unknown, misspelt or of the wrong type.
    """
    values = _flags()
    assignments = read_settings(values, argv)
    if values.help:
        say(f"{__doc__}\n{values.get_help()}")
        return None
    shown = [(act, values[act].value) for act in ("status", "collect") if values[act].value]
    if len(shown) > 1:
        raise ConfigError("--status, --collect: expected one of the two, found both")
    act, directory = shown[0] if shown else ("dry_run" if values.dry_run else "run", values.directory)
    if not directory:
        raise ConfigError("--directory: expected the sweep's directory, found none")
    asked = values.config or values.grid or values.rows or assignments
    order = plan.Order(values.config, assignments, values.grid, values.rows, values.distributed, values.population)
    return Command(
        directory=os.path.abspath(directory),
        act=act,
        order=order if asked and not shown else None,
        engine=values.engine,
        options=_options(values),
        rate=values.rate,
        rates=values.rates,
        emit=values.emit,
        words=["omcda-jax", "sweep", *_same_for_all(values), *(f"--config.{text}" for text in assignments)],
        search=_search(values, order) if act in ("run", "dry_run") else None,
    )


def _search(values: flags.FlagValues, order: plan.Order) -> Search | None:
    own = ("metric", "direction", "trials", "parallel", "select_updates")
    if not values.search:
        for name in own:
            if values[name].present:
                raise ConfigError(f"--{name}: expected --search with it, found none")
        return None
    if values.emit or values.rows:
        raise ConfigError(f"--{'emit' if values.emit else 'rows'}: expected none with --search")
    if values.engine == "slurm" or (values.engine == "local" and values.hosts > 1):
        found = f"--engine={values.engine}" + (f" --hosts={values.hosts}" if values.hosts > 1 else "")
        raise ConfigError(
            f"--search: expected an engine that waits for its rows (Ray, or local on one host), found {found}"
        )
    return Search(order, *(values[name].value for name in own))


def _same_for_all(values: flags.FlagValues) -> list[str]:
    own = ("emit", "engine_options", "host", "hosts", "directory", "rows")
    given = [line for name in values if values[name].present and name not in own for line in _lines(values[name])]
    places = {name: values[name].value for name in ("rows", "directory") if values[name].value}
    return [*given, *(f"--{name}={os.path.abspath(path)}" for name, path in places.items())]


def _lines(flag: flags.Flag) -> list[str]:
    if isinstance(flag, flags.MultiFlag):
        return [f"--{flag.name}={value}" for value in flag.value]
    return [flag.serialize()]


def _options(values: flags.FlagValues) -> machine.Options:
    given = {}
    for text in values.engine_options:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--engine_options: expected KEY=VALUE, found {text!r}")
        given[key] = value if values.emit or not value.isdecimal() or str(int(value)) != value else int(value)
    if values.engine == "local" and given and not values.emit:
        raise ConfigError("--engine_options: expected none with --engine=local, whose flags are --jobs, --cores, ...")
    same = {name: values[name].value for name in machine.Options._fields if name not in ("jobs", "engine")}
    options = machine.Options(jobs=values.jobs or int(values.engine == "local"), engine=given, **same)
    if not 0 <= options.host < options.hosts:
        raise ConfigError(f"--host: expected less than --hosts={options.hosts}, found {options.host}")
    return options


def _flags() -> flags.FlagValues:
    values, define = new_flags()
    define("string", "config", None, "preset of trials without a task in the grid, with an optional :quality")
    define("multi_string", "grid", [], "settings to vary; several flags are alternatives")
    define("string", "rows", None, "file of settings (JSON lines or .csv), each combined with every point of the grid")
    define("string", "directory", "runs/sweep", "folder for the manifest, the runs and the logs; hosts share it")
    define("integer", "population", 16, "largest number of trials that train together in one row", lower_bound=1)
    define("boolean", "distributed", False, "spread every trial over all hosts; each host runs this command")
    define("boolean", "dry_run", False, "print rows and what they will cost, and write nothing")
    define("float", "rate", None, "updates per second of one row, for --dry_run", lower_bound=1e-9)
    define("string", "rates", None, "directory of another sweep, to take the rates of rows of the same shape from")
    define("enum", "search", None, ["optuna"], "library that chooses values from the grid")
    define("string", "metric", "evaluation/return_mean", "what --search optimises, mean over seeds; see docs/sweeps.md")
    define(
        "enum",
        "direction",
        "maximize",
        ["maximize", "minimize"],
        "whether the metric is better when it is larger or smaller",
    )
    define("integer", "trials", 32, "settings that --search tries in total", lower_bound=1)
    define("integer", "parallel", 8, "settings that --search tries at a time", lower_bound=1)
    define("integer", "select_updates", None, "as in a run, for --metric=select/...", lower_bound=0)
    define("string", "status", None, "print the state of the rows of the sweep in this directory")
    define("string", "collect", None, "write the tables of the sweep in this directory")
    define("enum", "engine", "local", ENGINES, "what runs the rows")
    define("list", "engine_options", [], "KEY=VALUE,... of slurm, ray or --emit")
    define("enum", "emit", None, list(emit.KINDS), "print a file for a tool that starts pods")
    define("integer", "jobs", 0, "rows at a time; locally 1 unless given", lower_bound=0)
    define("integer", "cores", 0, "cores of each row; 0 shares all cores among the rows", lower_bound=0)
    define("float", "memory", 0.0, "gigabytes of memory of each row; 0 is no limit", lower_bound=0)
    define("integer", "devices", 0, "accelerators of each row; 0 is all there are", lower_bound=0)
    define("integer", "retries", 2, "how often to restart a row that was killed or crashed", lower_bound=0)
    define("integer", "host", 0, "number of this host, counted from 0", lower_bound=0)
    define("integer", "hosts", 1, "how many hosts share the rows, by row number", lower_bound=1)
    define("boolean", "claim", False, "after this host's own rows, take any that no other host is working on")
    define("string", "coordinator", None, "host:port of host 0, for --distributed where JAX detects no cluster")
    return values


def execute(command: Command, interruption: Interruption) -> int:
    """Execute the command and return the exit status.

    Raises:
        ConfigError, DatasetError: a mistake that the user can fix; all rows are checked first.
    """
    directory = command.directory
    add = lambda rows: plan.rows(command.order, rows) if command.order else []
    if command.act == "dry_run":
        present = manifest.read(directory)
        if command.search:
            added, said = search.ahead(directory, command.search)
            _show(command, [*present, *added], len(present))
            say(said)
        else:
            _show(command, [*present, *add(present)], len(present))
        return os.EX_OK
    if command.emit:
        if command.order:
            plan.trials(command.order)
        options = command.options
        say(emit.emit(command.emit, command.words, options.hosts, options.engine))
        return os.EX_OK
    if command.act in ("status", "collect"):
        return _report(command)
    began = time.monotonic()
    with interruption.deferring():
        engine = importlib.import_module(f"omcda_jax.runner.sweep.{command.engine}")
        statuses: dict[str, int] = {}

        def work(rows):
            ended = engine.run(directory, rows, command.options, interruption)
            statuses.update(ended)
            return ended

        if command.search:
            ended = search.run(directory, command.search, work, interruption)
            rows = manifest.read(directory)
        else:
            rows = _some(directory, check.extend(directory, add))
            waiting = [row for row in rows if not state.is_over(directory, row)]
            say(f"{directory}: {len(rows)} rows, {len(rows) - len(waiting)} of them done or diverged")
            work(waiting)
            ended = _status(list(statuses.values()), interruption.requested)
    say(_standing(directory, rows))
    programs = {(row.program, len(row.trials)) for row in rows if row.name in statuses}
    say(f"{duration(time.monotonic() - began)} for {len(statuses)} rows of {len(programs)} different programs")
    if ended == os.EX_TEMPFAIL:
        say("stopped and saved; the same command resumes")
    return ended


def _some(directory: str, rows: list[manifest.Row]) -> list[manifest.Row]:
    if not rows:
        raise ConfigError(f"{directory}: expected a sweep, found no manifest.jsonl; give --config, --grid or --rows")
    return rows


def _report(command: Command) -> int:
    directory = command.directory
    rows = _some(directory, manifest.read(directory))
    if command.act == "status":
        say(_standing(directory, rows))
        return os.EX_OK
    say(collect.collect(directory, rows))
    missing = sum(state.result_of(directory, row) is None for row in rows)
    names = "{seeds,trials,tried}" if search.read(directory) else "{seeds,trials}"
    say(f"tables: {os.path.join(directory, names + '.{md,csv,json}')}; rows not done: {missing}")
    return os.EX_OK


def _standing(directory: str, rows: Sequence[manifest.Row]) -> str:
    searched = search.read(directory)
    return "\n".join([state.status(directory, rows), *([search.status(searched)] if searched else [])])


def _status(statuses: Sequence[int], stopped: bool) -> int:
    """The exit status of a sweep, from the exit statuses of its rows."""
    if stopped or os.EX_TEMPFAIL in statuses:
        return os.EX_TEMPFAIL
    failed = {status for status in statuses if status != os.EX_OK}
    return os.EX_OK if not failed else os.EX_CONFIG if failed == {os.EX_CONFIG} else 1


def _show(command: Command, rows: Sequence[manifest.Row], present: int) -> None:
    directory, options = command.directory, command.options
    if command.rates and not manifest.read(command.rates):
        raise ConfigError(f"--rates={command.rates}: expected the directory of a sweep, found no manifest.jsonl")
    for row in rows[:present]:
        say(f"{row.name}  {state.state_of(directory, row).kind}, {len(row.trials)} trials")
    for row in rows[present:]:
        say(f"{row.name}  new, {len(row.trials)} trials\n    {shlex.join(row.command)}")
    waiting = [row for row in rows if not state.is_over(directory, row)]
    if not waiting:
        say("nothing to do")
        return
    others = [os.path.abspath(command.rates)] if command.rates else []
    rates = {}
    for place in [*others, directory]:
        rates |= state.rates(place, manifest.read(place))
    say(check.estimate(waiting, rates, command.rate, max(options.jobs, 1) * options.hosts, options.devices))


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    return ordered(argv, parse, execute)
