"""Runs that a benchmark starts as processes of their own: a signal to the benchmark lets them save.

One to each of its processes does not: a run gets ours too, and the second ends it unsaved.
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
    """What to start.

    Attributes:
        name: for messages.
        command: its words.
        log: file that its output is added to; the folder is made.
        done: called at its end; whether it left what it was for.
    """

    name: str
    command: Sequence[str]
    log: Path
    done: Callable[[], bool]


def run_all(children: Iterable[Child], cores: Sequence[int | None] = (None,)) -> bool:
    """Run children, one for each core at a time, and return whether all of them came to their end.

    Args:
        children: in the order of their start.
        cores: each pins one child; None pins it to none.
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
        # in a group of its own: Ctrl-C would reach it beside our SIGTERM, and the second signal ends a run unsaved
        options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "process_group": 0}
        process = subprocess.Popen(child.command, **options)
    if core is not None:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, {core})
    return process
