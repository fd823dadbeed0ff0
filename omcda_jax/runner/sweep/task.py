"""A running row: a process of its own, claimed by a lock, with its output and its end on disk."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omcda_jax.files import exclusive
from omcda_jax.runner.jobs import write_json
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import outcome_path, result_of
from omcda_jax.types import ConfigError

REASON = 300  # characters of a reason that are kept
LOOKS, PAUSE = 5, 1.0  # tries to claim a row before it counts as running elsewhere, and seconds between them


class Busy(Exception):
    """Another process is working on the row."""


class Task:
    """The process of one row; the constructor starts it. The caller calls `finish` once `poll` returns a status.

    The process holds the claim too: if its starter is killed, the row stays claimed until the process itself has ended.
    It has a session of its own, so a signal from the terminal reaches it only through its starter.

    Attributes:
        row: the row.
        why: after `finish`, why it did not end well.

    Args:
        directory: the sweep's directory.
        row: the row to run.
        words: more words of its command line.
        environment: variables in addition to those of this process.
        cores: cores that its threads run on; empty: any.
        part: for a row that several hosts run together, the name of this host's folder inside the row's folder.

    Raises:
        Busy: another process is working on the row.
    """

    def __init__(
        self,
        directory: str,
        row: Row,
        *,
        words: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        cores: Sequence[int] = (),
        part: str = "",
    ):
        self.row, self._directory, self._part = row, directory, part
        self.why, self._stopped = "", False
        self._held = contextlib.ExitStack()
        folder = os.path.join(directory, row.log, part)
        os.makedirs(folder, exist_ok=True)
        self._output = os.path.join(folder, "output.txt")
        try:
            claim = self._held.enter_context(exclusive(folder))
        except ConfigError as error:
            raise Busy(str(error)) from None
        with self._held.pop_all() as held, open(self._output, "ab") as said:
            self._from = said.tell()
            line = [*command(row, directory), *words]
            options = {"stdin": subprocess.DEVNULL, "start_new_session": True, "pass_fds": [claim.fileno()]}
            surroundings = os.environ | dict(environment)
            with _deaf_to_schedulers():
                self._process = subprocess.Popen(line, stdout=said, stderr=said, env=surroundings, **options)
            if cores and hasattr(os, "sched_setaffinity"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(self._process.pid, cores)
            self._held = held.pop_all()

    @property
    def pid(self) -> int:
        """The id of the row's process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, below 0 for a signal that killed the process, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask the process to save and end."""
        self._stopped = True
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def finish(self, why: str = "") -> int:
        """Wait for its end, record it on disk, release the row and return the status.

        Args:
            why: why it was made to end, which counts as a failure.
        """
        with self._held:
            status = self._process.wait()
            if self._stopped and status == -signal.SIGTERM:
                status = os.EX_TEMPFAIL  # stopped before it could handle the signal; it had nothing to save
            if why and status == os.EX_TEMPFAIL:
                status = 1
            if status == os.EX_OK and not self._part and result_of(self._directory, self.row) is None:
                status, why = 1, "ended without a result"
            if status != os.EX_OK:
                self.why = why or self._reason(status)
            write_json(outcome_path(self._directory, self.row, self._part), {"status": status, "why": self.why})
        return status

    def _reason(self, status: int) -> str:
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        with open(self._output, "rb") as file:
            file.seek(self._from)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"error:", line)]
        # the last line of a traceback says what happened
        return (errors[:1] or lines[-1:] or [f"exit status {status}"])[0][:REASON]


def start(directory: str, row: Row, **more: Any) -> Task:
    """Return a task; retry for a while, because a process that checks the claim holds it for a moment.

    Args:
        directory, row, **more: as in `Task`.

    Raises:
        Busy: another process is working on the row.
    """
    for _ in range(LOOKS - 1):
        with contextlib.suppress(Busy):
            return Task(directory, row, **more)
        time.sleep(PAUSE)
    return Task(directory, row, **more)


@contextlib.contextmanager
def _deaf_to_schedulers() -> Iterator[None]:
    """A process started within it leaves SIGUSR2 pending, which schedulers send to all processes of a job.

    It is for the one that started the row, which has the row save by SIGTERM; the row itself it would kill.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def command(row: Row, directory: str) -> list[str]:
    """Return the words that start a row on this machine."""
    own = [sys.executable, "-m", "omcda_jax.runner.main"]
    first, *rest = row.command
    return [*(own if first == "omcda-jax" else [first]), *rest, f"--workdir={os.path.join(directory, row.directory)}"]
