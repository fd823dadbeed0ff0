"""Runs that a benchmark starts as processes of their own: a signal to the benchmark lets them save.

A signal to each of its processes does not: a run then also gets the benchmark's signal, and the second ends it unsaved.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Child(NamedTuple):
    """A process to start.

    Attributes:
        name: name for messages.
        command: its command line.
        log: file that its output is appended to; its folder is made.
        done: called at its end; returns whether it left the results that it was started for.
    """

    name: str
    command: Sequence[str]
    log: Path
    done: Callable[[], bool]


def run_all(children: Iterable[Child], cores: Sequence[int | None] = (None,)) -> bool:
    """Run children, one per core at a time, and return whether all of them finished.

    Args:
        children: children in the order of their start.
        cores: cores to pin one child to at a time; None pins it to no core.
    """
    waiting, free, succeeded = list(children), list(cores), True
    running: list[tuple[subprocess.Popen, Child, int | None]] = []
    try:
        while waiting or running:
            while waiting and free:
                child, core = waiting.pop(0), free.pop(0)
                running.append((_start(child, core), child, core))
            time.sleep(0.1)
            for process, child, core in [each for each in running if each[0].poll() is not None]:
                running.remove((process, child, core))
                free.append(core)
                succeeded = child.done() and process.returncode == os.EX_OK and succeeded
                print(f"{child.name}: exit {process.returncode}, {child.log}", file=sys.stderr, flush=True)
    finally:
        for process, _, _ in running:
            process.terminate()
        for process, _, _ in running:
            process.wait()
    return succeeded


def _start(child: Child, core: int | None) -> subprocess.Popen:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with open(child.log, "a", encoding="utf-8") as log:
        # in a group of its own, or Ctrl-C would reach it too, besides our SIGTERM; a second signal ends a run unsaved
        options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "process_group": 0}
        process = subprocess.Popen(child.command, **options)
    if core is not None:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, {core})
    return process
