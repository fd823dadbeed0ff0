"""Train an offline algorithm, evaluate it and report.

    python experiments/run.py --config=smac_5m6m
    python experiments/run.py --config=smac_5m6m --config.data.quality=good --config.seed=1
    python experiments/run.py --config=smac_3m --config.learner.mode=trials \\
        --config.learner.trials='seed=0..3; algorithm.d_tot=0.6,1.8' --select=fqe
    python experiments/run.py --config=list
    python experiments/run.py --config=smac_5m6m --help

`omcda-jax run` is the same command, wherever the package is installed. Running the same command
again resumes a stopped run and evaluates a finished one. Exit status: 0 done, 75 stopped by a signal and saved (run the
same command again), 78 a setting or a file to fix, 1 anything else.

One trial runs on all devices of all processes: --distributed joins the processes of a cluster that JAX detects (Slurm,
TPU pods, ...), and --coordinator, --num_processes and --process_id describe them by hand. --num_processes and
--process_id alone share trials among processes that run independently. --select chooses a trial by the data alone.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from omcda_jax import envs
from omcda_jax.config import expand_trials, to_dict
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.evaluate import check_video, record_video
from omcda_jax.metrics import read
from omcda_jax.runner import datasets, plots, processes, report, select
from omcda_jax.runner.command import Command, parse
from omcda_jax.runner.evaluation import Best, Judge, make_judge, without_returns
from omcda_jax.runner.jobs import (
    Job,
    Saved,
    as_begun,
    check_directory,
    claimed,
    fingerprints,
    place_of_share,
    refuse_fewer_updates,
    restore,
    share,
    share_folder,
    write_json,
)
from omcda_jax.runner.outcomes import load
from omcda_jax.runner.processes import by_first, is_first, say
from omcda_jax.runner.settings import overview
from omcda_jax.runner.training import learn
from omcda_jax.system import Interruption
from omcda_jax.types import ConfigError, StorageError, TrainState, updates_done

Labels = Sequence[Mapping[str, Any]]


def execute(command: Command, interruption: Interruption) -> int:
    """Execute the command and return the exit status.

    Raises:
        ConfigError, DatasetError: a mistake that the user can fix, before anything is compiled.
        NonFiniteMetrics, StorageError: as in `training.learn`.
    """
    config, shared = command.config, command.processes
    if shared.join:
        processes.join(shared.coordinator, shared.count, shared.index, interruption)
    job, labels = job_of(command)
    if shared.join:
        processes.require_same("settings", _without_places(job))
    by_first(lambda: check_directory(job))
    if command.mode == "train":
        by_first(lambda: refuse_fewer_updates(job))
    else:
        job = as_begun(job)
        config = dataclasses.replace(config, learner=job.config.learner)
    say(overview(config))
    begins = command.mode == "train" and by_first(lambda: not os.path.isdir(job.checkpoints()))
    # read first: a damaged file is noticed at once, while a simulator takes seconds to import
    source = processes.by_all(lambda: datasets.read_if_there(job)) if begins else None
    environment = envs.make(config.data.environment)
    if command.video:
        check_video(environment, command.video)
    job.template(environment.spec)
    if command.select:
        select.check(command.select, job, environment.spec)
    if command.mode == "eval" and not by_first(lambda: os.path.isdir(job.checkpoints(command.checkpoint))):
        raise ConfigError(f"{job.directory}: expected a run to evaluate, found none; train first")
    with claimed(job, trains=command.mode == "train"):
        saved = restore(job, environment.spec, command.checkpoint, command.step)
        judge = make_judge(job, environment)
        if command.mode == "train" and (saved.state is None or updates_done(saved.state) < config.learner.updates):
            ready = functools.partial(datasets.ready, job, environment, begins=saved.state is None)
            source = processes.by_all(functools.partial(ready, source))
            processes.require_same("the data", source.metadata.get("digest"))
            saved = learn(job, source, saved, judge, interruption)
            step = updates_done(saved.state)
            # one of several processes continues even so: the others would wait for it
            if step < config.learner.updates or (interruption.requested and jax.process_count() == 1):
                say(f"stopped and saved at step {step} of {config.learner.updates}; the same command resumes")
                return os.EX_TEMPFAIL
        elif saved.state is None:
            raise ConfigError(f"{job.directory}: expected a checkpoint to evaluate, found none; train first")
        else:
            say(f"{job.directory}: evaluating step {updates_done(saved.state)}, no training")
            datasets.warn_of_versions("the data", saved.metadata["data"].get("versions", {}), environment)
        result = finish(job, environment, saved, judge, labels, command)
        if is_first():
            show(command, job, environment, saved.state, result)
        if command.select:
            source = None  # frees the memory of the training data
            say(select.table(select.select(job, labels, saved, command.select)))
    return os.EX_OK


def _without_places(job: Job) -> dict[str, Any]:
    """The settings without paths on a host's own disks."""
    settings = to_dict(job.config)
    return settings | {"directory": None, "data": settings["data"] | {"path": None}}


def job_of(command: Command) -> tuple[Job, Labels]:
    """Return the trials that this process trains, and what each of them varies.

    Raises:
        ConfigError: there are fewer trials than processes to share them; or as in `expand_trials`.
    """
    config, directory, shared = command.config, command.directory, command.processes
    if config.learner.mode == "data":
        return Job([config], directory, switches=command.switches), [{}]
    labels, configs = zip(*expand_trials(config), strict=True)
    if shared.count is not None:
        if shared.count > len(configs):
            raise ConfigError(f"--num_processes: expected at most {len(configs)}, the trials, found {shared.count}")
        labels, configs = (share(each, shared.index, shared.count) for each in (labels, configs))
        directory = share_folder(directory, shared.index, shared.count)
    elif own := place_of_share(directory):
        if own[1] > len(configs):
            raise ConfigError(
                f"--workdir: expected the share of one of at most {len(configs)} trials, found {directory}"
            )
        labels, configs = (share(each, *own) for each in (labels, configs))
    return Job(configs, directory, population=True, switches=command.switches), labels


def finish(
    job: Job, environment: Environment | HostEnvironment, saved: Saved, judge: Judge, labels: Labels, command: Command
) -> dict[str, Any]:
    """Evaluate the state, write result.json (for the best checkpoint result_best.json) and return its contents.

    Args:
        job: the job.
        environment: the environment of the evaluation.
        saved: the job's state and that state's metadata.
        judge: evaluates the state.
        labels: what each trial varies.
        command: says which checkpoint the state is from, and whether it ends a training.

    Raises:
        StorageError: the result cannot be written.
    """
    began, config, state, path = time.monotonic(), job.config, saved.state, result_path(job, command.which)
    summaries = judge(state)
    evaluated = time.monotonic() - began
    if not is_first():
        return {}
    learning = report.learning_summary([row for row in read(job.metrics) if row["step"] <= updates_done(state)])
    result = {
        "config": to_dict(config),
        "step": updates_done(state),
        "finished": updates_done(state) >= config.learner.updates,
    }
    if job.population:
        result["trials"] = report.trials(labels, summaries, learning["metrics"], saved.metadata["guard"])
    else:
        result |= {"evaluation": without_returns(summaries[0]), **learning}
        # an evaluation that is requested later, perhaps with fewer episodes, is not part of the training
        if command.mode == "train" and _recorded(path) != updates_done(state):
            with Best(job, environment.spec) as best:
                best.offer(state, summaries[0], saved.metadata)
    result |= {
        "data": saved.metadata["data"],
        "environment_versions": dict(environment.versions),
        "training_seconds": saved.metadata["seconds"],
        "evaluation_seconds": evaluated,
        **fingerprints(job, state),
        **report.provenance(),
    }
    try:
        write_json(path, result)
    except OSError as error:
        raise StorageError(
            f"{path}: could not be written ({error.strerror}); training is saved, the same command evaluates it again"
        ) from error
    return result


def _recorded(path: str) -> int | None:
    """The number of updates in the existing result, if it can be read."""
    with contextlib.suppress(ConfigError):
        return load(path).get("step")
    return None


def result_path(job: Job, which: str) -> str:
    """Return the path of a checkpoint's result; `which` as in `Command.which`."""
    return os.path.join(job.directory, "result.json" if which == "latest" else f"result_{which}.json")


def show(
    command: Command,
    job: Job,
    environment: Environment | HostEnvironment,
    state: TrainState,
    result: Mapping[str, Any],
) -> None:
    """Print the table, draw the plot and make the video.

    Args:
        command: the command.
        job: the finished job.
        environment: the environment of the video.
        state: the state that acts in the video.
        result: as `finish` returns it.
    """
    if job.population:
        say(report.trials_table(result))
        count = command.processes.count
        shares = None if count is None else report.shares(command.directory, count)
        if shares:
            say(f"all shares of {command.directory}:\n{report.trials_table(shares)}")
    else:
        say(report.table(result))
        if command.which == "latest":
            try:
                say(f"plot: {plots.plot(job.directory, result)}")
            except ConfigError as error:
                say(error)
    say(f"result: {result_path(job, command.which)}")
    if command.video:
        one = jax.tree.map(lambda leaf: leaf[0], state) if job.population else state
        record_video(job.algorithm.act, environment, one, command.video, seed=job.config.evaluation.seed)
        say(f"video: {command.video}")


def main(argv: Sequence[str]) -> int:
    """Run one command line, with the program's name in `argv[0]`; return the exit status."""
    return processes.ordered(argv, lambda argv: parse(argv, __doc__), execute)
