"""The engine for Slurm: every row is a job in an array, and is requeued whenever it was preempted.

submitit writes, submits and requeues the jobs. This command only submits; `--status` shows the outcome. A job ends at
once if its row is done or is running elsewhere, so submitting again does no harm.
"""

import importlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from omcda_jax.runner.processes import say
from omcda_jax.runner.sweep import task
from omcda_jax.runner.sweep.machine import Options
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import FINAL, is_over
from omcda_jax.runner.sweep.task import Busy, Task
from omcda_jax.system import Interruption, one_line
from omcda_jax.types import ConfigError

POLL = 1.0  # seconds between polls of the row's process
TIMEOUTS = 1000  # how often a job may reach its time limit and continue in another


class Work:
    """What a job does: it runs one row. Its pickle is all that the job gets.

    Args:
        directory: the sweep's directory.
        row: the row to run.
        retries: how often one job restarts the row after a crash.
    """

    def __init__(self, directory: str, row: Row, retries: int):
        self._given = (directory, row, retries)
        self._task: Task | None = None

    def __call__(self) -> int:
        """Run the row and return its exit status; a row that was stopped and saved is requeued with the job.

        Raises:
            RuntimeError: the row failed; the job then counts as failed.
        """
        directory, row, retries = self._given
        rank = _submitit().JobEnvironment().global_rank
        for attempt in range(retries + 1):
            if is_over(directory, row):
                return os.EX_OK
            try:
                self._task = task.start(directory, row, part=f"host_{rank}" if rank else "")
            except Busy as busy:
                say(busy)
                return os.EX_OK
            while self._task.poll() is None:
                time.sleep(POLL)
            status, why, self._task = self._task.finish(), self._task.why, None
            if status == os.EX_TEMPFAIL:
                # preempted: Slurm signalled the row too, and a job that ends by itself would not be requeued
                os.kill(os.getpid(), _signal())
                return status
            say(f"{row.name}: attempt {attempt + 1} ended with {status} {why}")
            if status in FINAL:
                break
        if status:
            raise RuntimeError(f"{row.name}: {why}")
        return status

    def checkpoint(self) -> Any:
        """Stop the row, which saves, and return what the requeued job does. submitit calls this."""
        if self._task is not None:
            self._task.stop()
            self._task.finish()
        return _submitit().helpers.DelayedSubmission(Work(*self._given))


def run(directory: str, rows: Sequence[Row], options: Options, interruption: Interruption) -> dict[str, int]:
    """Submit rows that are not done; return no statuses, since they are not yet known.

    Args:
        directory: the sweep's directory, on a file system that all nodes share.
        rows: rows of its manifest.
        options: `jobs` at a time, with `cores`, `memory` and `devices` each. A row over all hosts gets `hosts` nodes.
            `engine` has parameters of submitit's AutoExecutor, for instance timeout_min and slurm_partition.
        interruption: unused, because submitting takes no time.

    Raises:
        ConfigError: submitit or Slurm is missing, or refuses the parameters.
    """
    given = dict(options.engine)
    folder, cluster = os.path.join(directory, "slurm", "%j"), given.pop("cluster", "slurm")
    asked = {"name": "omcda-jax", "cpus_per_task": options.cores, "mem_gb": options.memory}
    asked |= {"gpus_per_node": options.devices, "slurm_array_parallelism": options.jobs}
    for shape, nodes in (("slice", options.hosts), ("host", 1)):
        chosen = [row for row in rows if row.shape == shape]
        if not chosen:
            continue
        try:
            executor = _submitit().AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS)
            executor.update_parameters(
                nodes=nodes, tasks_per_node=1, **{key: value for key, value in asked.items() if value}, **given
            )
            with executor.batch():
                jobs = [executor.submit(Work(directory, row, options.retries)) for row in chosen]
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"--engine=slurm: {one_line(error)}") from error
        for row, job in zip(chosen, jobs, strict=True):
            say(f"{row.name}: submitted as job {job.job_id}")
    return {}


def _signal() -> signal.Signals:
    """The signal on which submitit calls `checkpoint` and requeues the job."""
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise ConfigError("--engine=slurm: expected submitit, found none; pip install 'omcda-jax[slurm]'") from None
