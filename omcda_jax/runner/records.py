"""What training writes to disk and to the screen: metrics, checkpoints, the best policy, progress, a profile."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import to_dict
from omcda_jax.learner import Guard, Report
from omcda_jax.metrics import MetricsFile, Progress, overestimates, read
from omcda_jax.runner import sinks
from omcda_jax.runner.evaluation import SUMMARY, Best, without_returns
from omcda_jax.runner.jobs import Job
from omcda_jax.runner.processes import by_first, is_first, say
from omcda_jax.types import EnvSpec, StorageError, TrainState

PROGRESS_METRICS = ("policy/loss", "critic/q_return", "policy/divergence")
TRACED = (1, 4)  # calls after which the profiler starts and stops


class Records:
    """The files of a run in training, written by the first process only; a context manager, open during training.

    Args:
        job: the job that is trained.
        spec: sizes of its task.
        data: metadata of its dataset.
        guard: counts of skipped updates, stored in every checkpoint.
        start: updates done before this start.
        seconds: seconds of training before this start.

    Attributes:
        saved: updates done by the last saved state, or at the start.
        metadata: metadata of the last saved state: settings, data, the guard's counts, seconds of training.
    """

    def __init__(self, job: Job, spec: EnvSpec, data: Mapping[str, Any], guard: Guard, start: int, seconds: float):
        self.saved = start
        self.metadata = {"config": to_dict(job.config), "data": data, "seconds": seconds, "guard": guard.counts}
        self._job, self._spec, self._guard = job, spec, guard
        self._began = time.monotonic() - seconds
        self._progress = Progress(job.config.learner.updates, start, PROGRESS_METRICS)
        self._logged, self._seconds = start, 0.0
        self._calls, self._tracing = 0, False
        self._largest = data.get("max_return_to_go")

    def __enter__(self) -> "Records":
        with contextlib.ExitStack() as files:
            with self._in_one_line():
                self._rows = files.enter_context(MetricsFile(self._job.metrics, self.saved)) if is_first() else None
            self._sinks = files.enter_context(sinks.opened(self._job)) if is_first() else None
            self._checkpoints = files.enter_context(Checkpoints(self._job.checkpoints()))
            self._best = files.enter_context(Best(self._job, self._spec))
            # read only now: the rows of lost updates are gone
            self._evaluated = frozenset(by_first(lambda: _evaluated(self._job)))
            self._files = files.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._trace(stop=True)
        self._files.__exit__(*error)
        if is_first() and error[0] is None:
            self._progress.close()

    def lack_evaluation(self, step: int) -> bool:
        """Return whether an evaluation is due before the next update and was not done by an earlier start."""
        settings = self._job.config.learner
        is_due = settings.evaluate_every and 0 < step < settings.updates and step % settings.evaluate_every == 0
        return bool(is_due) and step not in self._evaluated

    def count(self, report: Report) -> None:
        """Count a training call, for the rate and the profile."""
        self._seconds += report.seconds
        self._calls += 1
        self._trace()

    def show(self, step: int, report: Report) -> None:
        """Show progress after a training call."""
        if is_first():
            self._progress.update(step, report.metrics)

    def log(self, step: int, report: Report) -> None:
        """Write a row of metrics, with updates per second over the calls since the last row."""
        rate = (step - self._logged) / self._seconds
        self._logged, self._seconds = step, 0.0
        self._write(step, {"seconds": time.monotonic() - self._began, "updates_per_second": rate} | report.metrics)
        above = overestimates(report.metrics, self._largest, self._job.config.data.reward_scale)
        if above.any():
            who = f"the critics of {above.sum()} of {above.size} trials value" if above.ndim else "the critic values"
            say(f"warning: at step {step} {who} the data above every return in them, which is too high")
            self._largest = None  # warn once

    def save(self, step: int, state: TrainState) -> None:
        """Write a checkpoint in the background."""
        self.saved = step
        self.metadata |= {"seconds": time.monotonic() - self._began, "guard": self._guard.counts}
        if is_first():
            self._checkpoints.save(state, self.metadata)

    def wait(self) -> None:
        """Return once the last saved checkpoint is on disk."""
        self._checkpoints.wait()

    def add_evaluation(self, step: int, state: TrainState, summaries: Sequence[Mapping[str, Any]]) -> None:
        """Write the row of an evaluation from one summary per trial, and keep the state if it is the best so far."""
        self._best.offer(state, summaries[0], self.metadata)
        values = without_returns(summaries[0])
        if self._job.population:
            values = {key: [summary[key] for summary in summaries] for key in (*SUMMARY, "return_se")}
        self._write(step, {f"evaluation/{key}": value for key, value in values.items()})

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Turn a failure to write metrics into an error of one line, which says where the run resumes."""
        try:
            yield
        except OSError as error:
            next_time = f"resumes from the checkpoint of {self.saved} updates" if self.saved else "starts again"
            raise StorageError(
                f"{self._job.metrics}: could not be written ({error.strerror}); the same command {next_time}"
            ) from error

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        if self._rows:
            with self._in_one_line():
                self._rows.write(step, values)
            self._sinks(step, values)

    def _trace(self, stop: bool = False) -> None:
        if not self._job.switches.profile or not is_first():
            return
        path, (first, last) = os.path.join(self._job.directory, "profile"), TRACED
        if self._calls == first and not stop and not self._tracing:
            jax.profiler.start_trace(path)
            self._tracing = True
        elif self._tracing and (stop or self._calls == last):
            jax.profiler.stop_trace()
            self._tracing = False
            say(f"profile of calls {first + 1} to {self._calls}: {path}")


def _evaluated(job: Job) -> list[int]:
    return [row["step"] for row in read(job.metrics) if "evaluation/return_mean" in row]
