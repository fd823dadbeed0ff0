"""Loggers that also get the rows of metrics.jsonl: TensorBoard, Weights & Biases, trackio. The file is authoritative.

A run that resumes logs nothing twice, although it repeats updates that a crash lost. `logged.json`, in the same folder
as the metrics, records which rows each sink was given, and of which settings; it is written before the sinks are.
"""

import contextlib
import importlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.config import RESUMABLE, differences, to_dict
from omcda_jax.metrics import read
from omcda_jax.runner.jobs import Job, write_json
from omcda_jax.runner.outcomes import load
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, suggestion

PROJECT = "omcda-jax"
Numbers = Mapping[str, float]


class Sink(NamedTuple):
    """An open logger: `write(step, numbers)` and `close()`."""

    write: Callable[[int, Numbers], None]
    close: Callable[[], None]


def tensorboard(job: Job, name: str) -> Sink:
    """Return a writer of event files in the run's `tensorboard` folder."""
    # file names have a resolution of one second; without a suffix a new file could replace an older one
    suffix = f".{uuid.uuid4().hex[:8]}"
    package = importlib.import_module("tensorboardX")
    writer = package.SummaryWriter(os.path.join(job.directory, "tensorboard"), filename_suffix=suffix)

    def write(step, numbers):
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return Sink(write, writer.close)


def wandb(job: Job, name: str) -> Sink:
    """Return a run of Weights & Biases with files in the run's `wandb` folder; WANDB_MODE=offline keeps it there."""
    package = importlib.import_module("wandb")
    run = package.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=name.rpartition("-")[2],
        name=name,
        dir=job.directory,
        config=to_dict(job.config),
        resume="allow",
        mode=os.environ.get("WANDB_MODE"),  # without this, a login has fixed the mode
        settings=package.Settings(silent=True, console="off"),
    )
    # W&B's own step count refuses a second row of one step after a resumption
    run.define_metric("updates")
    run.define_metric("*", step_metric="updates")
    return Sink(lambda step, numbers: run.log({"updates": step, **numbers}), run.finish)


def trackio(job: Job, name: str) -> Sink:
    """Return a run of trackio, in trackio's database; TRACKIO_DIR chooses its folder."""
    package = importlib.import_module("trackio")
    with contextlib.redirect_stdout(None):
        run = package.init(
            project=PROJECT,
            name=name,
            config=to_dict(job.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def close():
        with contextlib.redirect_stdout(None):
            run.finish()

    return Sink(lambda step, numbers: run.log(dict(numbers), step=step), close)


# the function that opens each sink, and the package that it needs
SINKS = {"tensorboard": (tensorboard, "tensorboardX"), "wandb": (wandb, "wandb"), "trackio": (trackio, "trackio")}


def check(names: Sequence[str]) -> tuple[str, ...]:
    """Return the sinks that --log names, after a check that they can work.

    Raises:
        ConfigError: there is no such sink, its package is missing, or there is no login for W&B.
    """
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"--log: no logger {name!r}; {suggestion(name, SINKS)}")
        try:
            package = importlib.import_module(SINKS[name][1])
        except ImportError as error:
            raise ConfigError(f"--log={name} needs a package ({error}): pip install 'omcda-jax[log]'") from error
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if name == "wandb" and online and not package.login(prompt=False, verify=False):
            raise ConfigError("--log=wandb: expected a login, found none: run `wandb login`, or set WANDB_MODE=offline")
    return tuple(dict.fromkeys(names))


def scalars(values: Mapping[str, Any], population: bool) -> dict[str, float]:
    """Return a row's numbers one by one: lists over agents as `key/agent_0`, over trials as `key/trial_0`, or both.

    Args:
        values: numbers, and arrays of any shape.
        population: whether the first axis of an array is over trials.
    """
    axes, numbers = (["trial"] if population else []) + ["agent"], {}
    for key, value in values.items():
        for place, number in np.ndenumerate(np.asarray(value)):
            parts = (f"{axis}_{index}" for axis, index in zip(axes, place, strict=False))
            numbers["/".join([key, *parts])] = float(number)
    return numbers


@contextlib.contextmanager
def opened(job: Job) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Open the job's sinks, pass them the rows of its metrics that they lack, and yield `write(step, values)`.

    A sink that fails is closed with a warning; training continues.

    Args:
        job: the job; its metrics file is already open, and truncated to where the job resumes.
    """
    path = os.path.join(job.directory, "logged.json")
    logged: dict[str, Any] = load(path) if os.path.exists(path) else {}
    current = to_dict(job.config)
    if differences(logged.get("settings", current), current).keys() - RESUMABLE:
        logged = {}  # of another run, of which no checkpoint is left
    logged["settings"] = current
    names, sinks = job.switches.log, {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            # sinks start processes, and JAX warns about that
            with warnings.catch_warnings(action="ignore"):
                return work()
        except Exception as error:
            sinks.pop(name, None)
            warnings.warn(f"--log={name} has stopped, metrics.jsonl continues: {one_line(error)}", stacklevel=2)
            return None

    def write(step: int, values: Mapping[str, Any]) -> None:
        kind = "evaluation" if any(key.startswith("evaluation/") for key in values) else "learning"
        lacking = [name for name in sinks if logged[name][kind] < step]
        if not lacking:
            return
        for name in lacking:
            logged[name][kind] = step
        write_json(path, logged)
        numbers = scalars(values, job.population)
        for name in lacking:
            attempt(name, lambda: sinks[name].write(step, numbers))  # noqa: B023 called at once

    for name in names:
        logged.setdefault(name, {"id": uuid.uuid4().hex[:8], "learning": -1, "evaluation": -1})
        sink = attempt(name, lambda: SINKS[name][0](job, _title(job, logged[name]["id"])))  # noqa: B023 called at once
        if sink is not None:
            sinks[name] = sink
    if sinks:
        for row in read(job.metrics):
            write(row["step"], {key: value for key, value in row.items() if key != "step"})
    try:
        yield write
    finally:
        for name, sink in list(sinks.items()):
            attempt(name, sink.close)


def _title(job: Job, identity: str) -> str:
    config = job.config
    which = f"{len(job.configs)}-trials" if job.population else f"seed-{config.seed}"
    return "-".join([config.name, config.data.quality, config.algorithm.name.replace(":", "."), which, identity])
