"""The engine for Ray clusters: rows of one host are tasks, and rows over a TPU slice use Ray Train's JaxTrainer.

Ray places and restarts the rows; all nodes need the sweep's directory and the package.
"""

import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from omcda_jax.runner import run as runner
from omcda_jax.runner.jobs import write_json
from omcda_jax.runner.outcomes import load
from omcda_jax.runner.processes import is_first, say
from omcda_jax.runner.sweep.machine import Options
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import FINAL, is_over, outcome_path, result_of
from omcda_jax.runner.sweep.task import Busy, Task, command
from omcda_jax.system import Interruption, one_line
from omcda_jax.types import ConfigError

POLL = 0.5  # seconds between polls of a row's process
TRAINER = ("topology", "accelerator_type")  # engine options that describe a slice


def run(directory: str, rows: Sequence[Row], options: Options, interruption: Interruption) -> dict[str, int]:
    """Run the rows that are not done, within `interruption.deferring`; return their exit statuses by name.

    Args:
        directory: the sweep's directory, on a file system that all nodes share.
        rows: rows of its manifest.
        options: `cores`, `memory` and `devices` of each row, and `retries`. A row over all hosts gets `hosts` workers.
            `engine` has `topology` and `accelerator_type` of a TPU slice, and arguments of `ray.init`.
        interruption: a request ends all rows, which save.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = _imported("ray")
    described = {key: value for key, value in options.engine.items() if key in TRAINER}
    given = {key: value for key, value in options.engine.items() if key not in TRAINER}
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, **given)
    except (ConnectionError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"--engine=ray: {one_line(error)}") from error
    slices = [row for row in rows if row.shape == "slice"]
    statuses = {row.name: _train(directory, row, options, described) for row in slices if not interruption.requested}
    on_tpu = options.devices and ray.cluster_resources().get("TPU")
    task = ray.remote(_work).options(
        num_cpus=options.cores or 1,
        max_retries=options.retries,
        memory=int(options.memory * 1e9) or None,
        **({"resources": {"TPU": options.devices}} if on_tpu else {"num_gpus": options.devices}),
    )
    waiting = {task.remote(directory, row, options.retries, os.getcwd()): row for row in rows if row.shape == "host"}
    stopping = False
    while waiting:
        if interruption.requested and not stopping:
            stopping = True
            for reference in waiting:
                ray.cancel(reference, force=False)
        ended, _ = ray.wait(list(waiting), timeout=POLL)
        for reference in ended:
            name = waiting.pop(reference).name
            try:
                statuses[name] = ray.get(reference)
            except ray.exceptions.TaskCancelledError:
                statuses[name] = os.EX_TEMPFAIL
            except ray.exceptions.RayError as error:
                say(f"{name}: {one_line(error)}")
                statuses[name] = 1
            say(f"{name}: ended with {statuses[name]}")
    return statuses


def _work(directory: str, row: Row, retries: int, place: str) -> int:
    """Run one row in a Ray worker. If a worker was killed, its row's process still runs, and this waits for it."""
    _enter(place)
    for left in reversed(range(retries + 1)):
        task = None
        while task is None:
            if is_over(directory, row):
                return os.EX_OK
            try:
                task = Task(directory, row)
            except Busy:
                time.sleep(POLL)
        try:
            while task.poll() is None:
                time.sleep(POLL)
        except KeyboardInterrupt:  # cancelled
            task.stop()
            return task.finish()
        status = task.finish()
        if not left or status in FINAL:
            return status


def _train(directory: str, row: Row, options: Options, described: Mapping[str, str]) -> int:
    """Run one trial over all workers; Ray restarts all of them together when one is lost."""
    train, trainer = _imported("ray.train"), _imported("ray.train.v2.jax")
    on_gpu = bool(options.devices) and not described
    scaling = train.ScalingConfig(
        num_workers=options.hosts,
        use_tpu=bool(described),
        use_gpu=on_gpu,
        resources_per_worker=None if described else {"CPU": options.cores or 1, "GPU": options.devices},
        **described,
    )
    # with neither set, it would not join the workers' JAX processes
    settings = trainer.JaxConfig(use_tpu=not on_gpu, use_gpu=on_gpu)
    failures = train.FailureConfig(max_failures=options.retries)
    kept = train.RunConfig(name=row.name, storage_path=os.path.join(directory, "ray"), failure_config=failures)
    given = {"directory": directory, "row": row._asdict(), "place": os.getcwd()}
    shape = {"jax_config": settings, "scaling_config": scaling, "run_config": kept}
    try:
        trainer.JaxTrainer(_loop, train_loop_config=given, **shape).fit()
    except Exception as error:  # Ray wraps a worker's exception in classes of several modules
        say(f"{row.name}: {one_line(error)}")
        return 1
    return os.EX_OK if result_of(directory, row) else load(outcome_path(directory, row))["status"] or 1


def _loop(settings: Mapping[str, Any]) -> None:
    """What each worker of a slice does, in a Ray process that has already joined the others."""
    _enter(settings["place"])
    directory, row = settings["directory"], Row(**settings["row"])
    status = runner.main(["omcda-jax run", *command(row, directory)[4:]])
    if is_first():
        why = "" if status == os.EX_OK else f"exit status {status}; its output is in Ray's log"
        write_json(outcome_path(directory, row), {"status": status, "why": why})
    if status not in FINAL:
        raise RuntimeError(f"{row.name}: exit status {status}")


def _enter(place: str) -> None:
    """Work in the folder where the sweep was started, if it exists: it may contain data and a user's modules."""
    if os.path.isdir(place):
        os.chdir(place)
        sys.path.append(place)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"--engine=ray: expected {name}, found none; pip install 'omcda-jax[ray]'") from None
