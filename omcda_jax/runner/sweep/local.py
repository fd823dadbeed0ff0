"""The default engine: rows as processes on this machine, one or several at a time."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence

from omcda_jax.runner.processes import say
from omcda_jax.runner.sweep import machine
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.runner.sweep.state import FINAL, is_over
from omcda_jax.runner.sweep.task import Busy, Task, start
from omcda_jax.system import Interruption

POLL = 0.2  # seconds between polls of the processes
AGAIN = 5.0  # seconds until a row that another process has is tried again


def run(directory: str, rows: Sequence[Row], options: machine.Options, interruption: Interruption) -> dict[str, int]:
    """Run the rows that are not done, within `interruption.deferring`; return the exit statuses by name.

    A row that another process has is left to it and has no status here. If it is one of this host's own rows, this host
    waits for it.

    Args:
        directory: the sweep's directory.
        rows: rows of its manifest.
        options: how rows share this machine.
        interruption: a request ends all rows, which save.

    Raises:
        ConfigError: the machine has fewer cores or devices than requested.
    """
    pool = Pool(directory, options)
    for row in (row for row in rows if row.shape == "slice" and not is_over(directory, row)):
        if interruption.requested or pool.together(row, interruption) not in FINAL:
            # all hosts start again together: the others cannot know which row this one is at
            return pool.statuses
    single = [row for row in rows if row.shape == "host"]
    own = [row for row in single if row.number % options.hosts == options.host]
    others = [row for row in single if row.number % options.hosts != options.host] if options.claim else []
    # hosts that help start at different rows
    turn = len(others) * options.host // options.hosts
    return pool.work(own, [*others[turn:], *others[:turn]], interruption)


class Pool:
    """Places for rows on this machine, each with cores and devices of its own."""

    def __init__(self, directory: str, options: machine.Options):
        self._directory, self._options = directory, options
        self._cores = machine.shares_of_cores(options.jobs, options.cores)
        self._devices = machine.shares_of_devices(options.jobs, options.devices)
        self._tasks: dict[int, Task] = {}
        self._attempts: dict[str, int] = {}
        self._excess: dict[str, str] = {}
        self.statuses: dict[str, int] = {}

    def work(self, own: Sequence[Row], others: Sequence[Row], interruption: Interruption) -> dict[str, int]:
        """Run this host's own rows and then other hosts' rows; return their exit statuses by name."""
        waiting, later = deque([*own, *others]), deque()
        mine, seen = {row.name for row in own}, set()
        looked = time.monotonic()
        try:
            while (waiting or later or self._tasks) and not interruption.requested:
                if later and time.monotonic() - looked > AGAIN:
                    waiting, later, looked = waiting + later, deque(), time.monotonic()
                while waiting and self._has_room() and not interruption.requested:
                    row = waiting.popleft()
                    # other hosts' rows are tried twice, in case another host was only trying them too
                    if not self._start(row) and (row.name in mine or row.name not in seen):
                        later.append(row)
                    seen.add(row.name)
                waiting += self._reap()
                time.sleep(POLL)
        finally:
            self._end()
        return self.statuses

    def together(self, row: Row, interruption: Interruption) -> int:
        """Run a row together with all other hosts, each with all its devices; return the exit status."""
        options, words = self._options, ()
        if options.coordinator:
            words = (f"--coordinator={options.coordinator}", f"--num_processes={options.hosts}")
            words += (f"--process_id={options.host}",)
        part = f"host_{options.host}" if options.host else ""
        say(f"{row.name}: starting on {options.hosts} hosts; this is host {options.host}")
        try:
            task = start(self._directory, row, words=words, part=part)
        except Busy as error:
            say(f"{row.name}: {error}")
            return os.EX_TEMPFAIL
        while task.poll() is None and not interruption.requested:
            time.sleep(POLL)
        task.stop()
        return self._ended(task)

    def _has_room(self) -> bool:
        needed = self._options.memory * 1e9
        if len(self._tasks) >= self._options.jobs:
            return False
        return not needed or not self._tasks or machine.free_memory() >= needed

    def _start(self, row: Row) -> bool:
        """Start a row unless it is done; False if another process has it."""
        if is_over(self._directory, row):
            return True
        place = min(set(range(self._options.jobs)) - self._tasks.keys())
        try:
            task = Task(self._directory, row, cores=self._cores[place], environment=self._devices[place])
        except Busy:
            return False
        self._tasks[place] = task
        return True

    def _reap(self) -> list[Row]:
        """Record the rows that have ended; return those to start again."""
        again = []
        for place, task in list(self._tasks.items()):
            self._watch(task)
            if task.poll() is None:
                continue
            del self._tasks[place]
            status, name = self._ended(task), task.row.name
            if status not in FINAL and name not in self._excess:
                self._attempts[name] = self._attempts.get(name, 0) + 1
                if self._attempts[name] <= self._options.retries:
                    say(f"{name}: starting again, {self._attempts[name]} of {self._options.retries}")
                    again.append(task.row)
        return again

    def _ended(self, task: Task) -> int:
        status, name = task.finish(self._excess.get(task.row.name, "")), task.row.name
        self.statuses[name] = status
        word = {os.EX_OK: "done", os.EX_TEMPFAIL: "stopped and saved"}.get(status, "failed")
        say(f"{name}: {word}{f', {task.why}' if word == 'failed' else ''}")
        return status

    def _watch(self, task: Task) -> None:
        """Stop a row that takes more memory than allowed."""
        limit = self._options.memory
        taken = machine.memory_of(task.pid) / 1e9 if limit else 0
        if taken > limit and task.row.name not in self._excess:
            self._excess[task.row.name] = f"took {taken:.1f} GB of memory, more than --memory={limit:g}"
            task.stop()

    def _end(self) -> None:
        for task in self._tasks.values():
            task.stop()
        with contextlib.ExitStack() as each:  # it goes on after an error, and raises it at the end
            for task in self._tasks.values():
                each.callback(self._ended, task)
        self._tasks = {}
