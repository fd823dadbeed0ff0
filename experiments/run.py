"""Trains an offline algorithm, evaluates it and reports.

    python experiments/run.py --config=smac_5m6m
    python experiments/run.py --config=smac_5m6m --config.data.quality=good --config.seed=1
    python experiments/run.py --config=smac_3m --config.learner.mode=trials \\
        --config.learner.trials='seed=0..3; algorithm.d_tot=0.6,1.8'
    python experiments/run.py --config=list

The same command goes on where an earlier one stopped; a finished run is evaluated again. Exit status: 0 done, 75
stopped by a signal and saved (run the same command again), 78 a setting or a file to mend, 1 anything else.

One trial runs on all devices of all processes: --distributed joins the processes of a cluster that JAX detects (Slurm,
TPU pods, ...), --coordinator, --num_processes and --process_id say them by hand. Trials are shared among processes that
know nothing of each other, by --num_processes and --process_id alone.
"""

import ast
import functools
import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import report
import session
from absl import flags
from configs._baselines import BASELINES
from session import Job, Switches, by_first, checkpoints_of, is_first, say, without_returns, write_json

from omcda_jax import envs
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.config import ExperimentConfig, apply_overrides, expand_trials, to_dict
from omcda_jax.evaluate import check_video, record_video
from omcda_jax.learner import Interruption
from omcda_jax.metrics import read
from omcda_jax.system import check_free, one_line, suggestion
from omcda_jax.types import ConfigError, TrainState, updates_done

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs")


class Processes(NamedTuple):
    """Which processes share the work; None where the cluster's environment says it."""

    join: bool = False
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


class Command(NamedTuple):
    """What the command line asks for.

    Attributes:
        config: resolved.
        mode: train or eval.
        directory: of the run.
        video: file for a film of one episode, or None.
        checkpoint: which one `eval` and `video` use, latest or best.
        processes: who shares the work.
        switches: ways to look into training.
    """

    config: ExperimentConfig
    mode: str
    directory: str
    video: str | None = None
    checkpoint: str = "latest"
    processes: Processes = Processes()
    switches: Switches = Switches()


def presets() -> dict[str, str]:
    """Returns the description of every preset by name, without importing any."""
    found = {}
    for file in sorted(os.listdir(CONFIGS)):
        name, extension = os.path.splitext(file)
        if extension == ".py" and not name.startswith("_"):
            with open(os.path.join(CONFIGS, file), encoding="utf-8") as source:
                found[name] = (ast.get_docstring(ast.parse(source.read())) or "").partition("\n")[0]
    return found


def parse(argv: Sequence[str]) -> Command | None:
    """Reads the command line; None where it only asked for help or the list of presets, which is printed.

    Raises:
        ConfigError: for anything unknown, misspelt or of another type.
    """
    values = flags.FlagValues()
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    number = functools.partial(flags.DEFINE_integer, flag_values=values, lower_bound=0)
    switch = functools.partial(flags.DEFINE_boolean, flag_values=values)
    text("config", None, "preset, or `list` to see them all")
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "eval: no training", flag_values=values)
    text("workdir", None, "run directory, instead of one named after the config")
    flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "which one --mode=eval takes", flag_values=values)
    text("video", None, "film one greedy episode into this .gif or .mp4")
    switch("distributed", False, "join the other processes of a cluster that JAX detects")
    text("coordinator", None, "host:port of process 0, for processes that no cluster detects")
    number("num_processes", None, "how many processes share the work")
    number("process_id", None, "which one this is")
    switch("profile", False, "trace calls 2 to 4 into RUN/profile, for xprof or Perfetto")
    switch("debug_nans", False, "stop with a traceback at the first operation that gives no number")
    switch("help", False, "show this", short_name="h")
    known = [f"--{name}" for name in values if name not in ("h", "help")]
    try:
        rest = values(list(argv), known_only=True)[1:]
    except flags.Error as error:
        raise ConfigError(one_line(error)) from error
    if values.help or values.config == "list":
        if values.help:
            say(f"{__doc__}\n{values.get_help()}\nConfigs (any key is a flag, as in --config.learner.updates=2000):")
        for name, description in presets().items():
            say(f"  {name:<32} {description}")
        return None
    assignments = [assignment(argument, [*known, "--config.KEY"]) for argument in rest]
    config = resolve(values.config, assignments)
    seed = f"seed_{config.seed}" if config.learner.mode == "data" else "trials"
    parts = (config.directory, config.name, config.data.quality, config.algorithm.name, seed)
    return Command(
        config=config,
        mode=values.mode,
        directory=os.path.abspath(values.workdir or os.path.join(*parts)),
        video=values.video,
        checkpoint=values.checkpoint,
        processes=_processes(values, config),
        switches=Switches(values.profile, values.debug_nans),
    )


def _processes(values: flags.FlagValues, config: ExperimentConfig) -> Processes:
    told = Processes(
        join=values.distributed or values.coordinator is not None,
        coordinator=values.coordinator,
        count=values.num_processes,
        index=values.process_id,
    )
    if (told.count is None) != (told.index is None):
        raise ConfigError("--num_processes, --process_id: expected both or neither, found one")
    if told.count is not None and not told.index < told.count:
        raise ConfigError(f"--process_id: expected less than --num_processes={told.count}, found {told.index}")
    if config.learner.mode == "trials" and told.join:
        raise ConfigError(
            "--distributed: trials know nothing of each other; give --num_processes and --process_id only"
        )
    if config.learner.mode == "data" and told.count is not None and not told.join:
        raise ConfigError(
            "--num_processes: one trial on several processes needs --coordinator=HOST:PORT or --distributed"
        )
    return told


def resolve(name: str | None, assignments: Sequence[str], flag: str = "--config") -> ExperimentConfig:
    """Returns a preset with `key=value` assignments applied.

    Args:
        name: of the preset.
        assignments: as of `apply_overrides`.
        flag: that named the preset.

    Raises:
        ConfigError: for an unknown name or key or a value that is refused.
    """
    config = _preset(name, flag)
    algorithms = {name: algorithm.config for name, algorithm in ALGORITHMS.items()}
    family = config.data.environment.partition("/")[0]
    return apply_overrides(config, assignments, algorithms, BASELINES.get(family))


def assignment(argument: str, known: Sequence[str]) -> str:
    """Returns `key=value` of an argument `--config.key=value`.

    Args:
        argument: of the command line.
        known: flags there are, to name the nearest one.

    Raises:
        ConfigError: it is none.
    """
    prefix = "--config."
    if argument.startswith(prefix) and "=" in argument:
        return argument[len(prefix) :]
    if argument.startswith(prefix):
        raise ConfigError(f"{argument}: expected {argument}=VALUE")
    name = argument.partition("=")[0]
    raise ConfigError(f"{name}: no such flag; {suggestion(name, known)}")


def _preset(name: str | None, flag: str) -> ExperimentConfig:
    names = presets()
    if name not in names:
        problem = f"no config {name!r}" if name else "expected a config, found none"
        raise ConfigError(f"{flag}: {problem}; {suggestion(name or '', names)}")
    return importlib.import_module(f"configs.{name}").get_config()


def execute(command: Command, interruption: Interruption) -> int:
    """Does what the command asks for and returns the exit status.

    Raises:
        ConfigError, DatasetError: what the user can mend, before anything is compiled.
        NonFiniteMetrics, StorageError: as `session.learn`.
    """
    config, directory, told = command.config, command.directory, command.processes
    if told.join:
        session.join(told.coordinator, told.count, told.index, interruption)
    labels, configs = [{}], [config]
    if config.learner.mode == "trials":
        labels, configs = zip(*expand_trials(config), strict=True)
        if told.count is not None:
            mine = np.array_split(np.arange(len(configs)), told.count)[told.index]
            if not len(mine):
                raise ConfigError(f"--num_processes: expected at most {len(configs)}, the trials, found {told.count}")
            labels, configs = labels[mine[0] : mine[-1] + 1], configs[mine[0] : mine[-1] + 1]
            directory = os.path.join(directory, f"share_{told.index}_of_{told.count}")
    by_first(lambda: check_free(directory, "--workdir"))
    begins = command.mode == "train" and not os.path.isdir(checkpoints_of(directory))
    # a simulator takes seconds to import, a damaged file is found at once; handed on without being kept here
    early = [session.read_data(config)] if begins else []
    environment = envs.make(config.data.environment)
    if command.video:
        check_video(environment, command.video)
    population = config.learner.mode == "trials"
    job = Job(configs, directory, environment, population, switches=command.switches)
    jax.eval_shape(job.fresh)
    if command.mode == "eval" and not by_first(lambda: os.path.isdir(checkpoints_of(directory, command.checkpoint))):
        raise ConfigError(f"{directory}: expected a run to evaluate, found none; train first")
    with session.claimed(directory, config):
        state, saved = session.restore(job, command.checkpoint)
        judge = session.make_judge(job)
        if command.mode == "train" and (state is None or updates_done(state) < config.learner.updates):
            state, saved = session.learn(job, state, saved, judge, interruption, early.pop() if early else None)
            step = updates_done(state)
            if step < config.learner.updates:
                say(f"stopped and saved at step {step} of {config.learner.updates}; the same command goes on")
                return 75
        elif state is None:
            raise ConfigError(f"{directory}: expected a checkpoint to evaluate, found none; train first")
        else:
            say(f"{directory}: evaluating step {updates_done(state)}, no training")
        result = finish(job, state, saved, judge, labels, command.checkpoint)
    if is_first():
        show(command, job, state, result)
    return 0


def finish(
    job: Job, state: TrainState, saved: dict[str, Any], judge: Any, labels: Sequence[dict], which: str
) -> dict[str, Any]:
    """Evaluates the state, writes result.json (of the best checkpoint result_best.json), returns what it holds."""
    began, config = time.monotonic(), job.config
    found = judge(state)
    evaluated = time.monotonic() - began
    if not is_first():
        return {}
    learning = report.learning_summary(read(os.path.join(job.directory, "metrics.jsonl")))
    result = {
        "config": to_dict(config),
        "step": updates_done(state),
        "finished": updates_done(state) >= config.learner.updates,
    }
    if job.population:
        result["trials"] = report.trials(labels, found, learning["metrics"], saved["guard"])
    else:
        result |= {"evaluation": without_returns(found[0]), **learning}
        if which == "latest":
            with session.Best(job, jax.eval_shape(job.fresh)) as best:
                best.offer(state, found[0], saved)
    result |= {
        "data": saved["data"],
        "environment_versions": dict(job.environment.versions),
        "training_seconds": saved["seconds"],
        "evaluation_seconds": evaluated,
        **session.fingerprints(job.directory, state),
        **report.provenance(),
    }
    write_json(os.path.join(job.directory, "result.json" if which == "latest" else f"result_{which}.json"), result)
    return result


def show(command: Command, job: Job, state: TrainState, result: dict[str, Any]) -> None:
    """Prints the table, draws the plot and makes the film."""
    if job.population:
        say(report.trials_table(result))
        shares = report.shares(command.directory)
        if shares:
            say(f"all shares of {command.directory}:\n{report.trials_table(shares)}")
    else:
        say(report.table(result))
        try:
            say(f"plot: {report.plot(job.directory, result)}")
        except ConfigError as error:
            say(error)
    say(f"result: {os.path.join(job.directory, 'result.json')}")
    if command.video:
        one = jax.tree.map(lambda leaf: leaf[0], state) if job.population else state
        record_video(job.algorithm.act, job.environment, one, command.video, seed=job.config.evaluation.seed)
        say(f"video: {command.video}")


def main(argv: Sequence[str]) -> int:
    """Runs one command line, `argv[0]` being the script; returns the exit status."""

    def work(interruption):
        command = parse(argv)
        return 0 if command is None else execute(command, interruption)

    return session.guarded(work)


if __name__ == "__main__":
    session.leave(main(sys.argv))
