"""Metrics on disk, one JSON object per line; progress on the screen; the spread of numbers."""

import collections
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from omcda_jax.files import replacing

VALUES = ("critic/q_return", "critic/q")  # the learned value of the data, in scaled reward; a row has one at most
WINDOW = 300.0  # seconds over which updates per second are counted


class MetricsFile:
    """A JSONL file of rows, appended to; a context manager.

    A row is `{"step": ..., **values}`: scalars as numbers, vectors as lists. Rows past `resumed_step` are dropped
    on opening, so the file of a run that resumes from a checkpoint never contains a step twice.

    Args:
        path: the file; made if missing.
        resumed_step: updates that the resumed run has done; 0 starts an empty file.
    """

    def __init__(self, path: str | os.PathLike, resumed_step: int = 0):
        kept = [row for row in read(path) if row["step"] <= resumed_step] if resumed_step else []
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed by __exit__

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row and flush it; array values become lists."""
        self._file.write(json.dumps({"step": step} | {key: to_json(value) for key, value in values.items()}) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *error: Any) -> None:
        # closing flushes again, and a full disk refuses again
        with contextlib.suppress(OSError) if error[0] else contextlib.nullcontext():
            self._file.close()


def read(path: str | os.PathLike) -> list[dict]:
    """Return the rows of a metrics file in order; none if the file is missing; an incomplete last line is left out."""
    if not os.path.exists(path):
        return []
    rows = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def learned_value(row: Mapping[str, Any]) -> Any:
    """Return the learned value of the data's states and actions in a row of metrics, or None if it has none.

    Args:
        row: metrics by key.
    """
    return next((row[key] for key in VALUES if key in row), None)


def overestimates(row: Mapping[str, Any], largest: float | None, reward_scale: float) -> np.ndarray:
    """Return whether the learned value of the data is above the largest return-to-go in them: [], or [P] for P trials.

    The 5 % that may be missing where a time limit cut an episode are allowed on top. False if either is not known.

    Args:
        row: metrics by key, of a trial or with lists over trials.
        largest: the largest return-to-go in the environment's units; None if it is not known.
        reward_scale: factor on the rewards that the value was learned from.
    """
    value = learned_value(row)
    if value is None or largest is None:
        return np.zeros((), bool)
    bound = largest * reward_scale
    return np.asarray(np.asarray(value) > bound + max(bound, 0.0) / 19)


def to_json(value: Any) -> Any:
    """Return a number, string or array of any shape as a JSON value."""
    return np.asarray(value).tolist()


class Progress:
    """Progress of a run: one line rewritten in place on a terminal, else a plain line every few seconds.

    Updates per second, and the time left, are computed from the last minutes: how busy the machine was an hour ago says
    nothing about now.

    Args:
        total: total number of updates.
        start: updates done before this start.
        shown: metrics to print when present, by key.
        stream: where to print; standard output by default.
        interval: seconds between plain lines.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        shown: tuple[str, ...] = (),
        stream: TextIO | None = None,
        interval: float = 10.0,
    ):
        self._total, self._shown, self._interval = total, shown, interval
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._reached = collections.deque([(time.monotonic(), start)])
        self._rate = 0.0
        self._last = -float("inf")

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print, if it is time: updates done, percentage, updates per second, time left and a few metrics."""
        now = time.monotonic()
        due = step >= self._total or now - self._last >= (0.2 if self._live else self._interval)
        if not due:
            return
        self._last = now
        self._count(now, step)
        left = (self._total - step) / self._rate if self._rate else float("inf")
        parts = [
            f"{step}/{self._total} ({step / self._total:.0%})",
            f"{self._rate:.1f} updates/s",
            f"{duration(left)} left",
        ]
        parts += [f"{key} {_mean(metrics[key]):.4g}" for key in self._shown if key in metrics]
        line = "  ".join(parts)
        if self._live:  # a line that the terminal wraps could not be rewritten
            self._stream.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _count(self, now: float, step: int) -> None:
        """Bring the updates per second up to date; after a pause longer than the window they stay as they were."""
        if self._rate and now - self._reached[-1][0] > WINDOW:
            self._reached = collections.deque([(now, step)])
            return
        self._reached.append((now, step))
        while now - self._reached[1][0] >= WINDOW:
            self._reached.popleft()
        since, before = self._reached[0]
        self._rate = (step - before) / max(now - since, 1e-9)

    def close(self) -> None:
        """End the rewritten line, so that later output starts on a new line."""
        if self._live:
            self._stream.write("\n")


def _mean(values: Any) -> float:
    """Return the mean over trials; diverged trials are left out unless all have diverged."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    return finite.mean() if finite.size else values.mean()


def standard_deviation(values: Any) -> float:
    """Return the sample standard deviation of numbers of any shape, which divides by n - 1; 0 for a single value."""
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1)) if values.size > 1 else 0.0


def duration(seconds: float) -> str:
    """Return seconds as `1h02m`, `3m20s` or `12s`."""
    if not np.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
