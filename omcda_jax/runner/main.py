"""The console script: `omcda-jax COMMAND ...`.

Nothing slow is imported before the signal handlers are set.
"""

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import omcda_jax

FAREWELL = 2  # seconds that the first of several processes waits for the others to end; its own end would abort them

# each is a module with `main(argv)`, which returns the exit status; it is imported only when it is called
COMMANDS = {
    "run": ("omcda_jax.runner.run", "train an algorithm on a preset's task, evaluate it and report"),
    "compare": ("omcda_jax.runner.compare", "algorithms on tasks over seeds, in one table"),
    "sweep": ("omcda_jax.runner.sweep.command", "many trials by one command, on one machine or a pod"),
    "collect": ("omcda_jax.runner.collect", "make an offline dataset in a simulator"),
    "data": ("omcda_jax.runner.card", "check, describe, convert and download datasets"),
    "train-behaviour": ("omcda_jax.runner.train_behaviour", "train the policies that datasets are collected with"),
    "zoo": ("omcda_jax.runner.zoo", "list, get, evaluate and add policies that were trained"),
    "watch": ("omcda_jax.runner.watch", "show a policy's episodes beside those of its data, on one page"),
    "report": ("omcda_jax.runner.report", "print a finished run's table again and write its page"),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and end the process.

    Args:
        argv: the command and its arguments; None: those of this process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    if sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    # for a user's own environments and algorithms
    sys.path.append(os.getcwd())
    from omcda_jax.system import printing

    def work() -> int:
        if name in COMMANDS:
            return importlib.import_module(COMMANDS[name][0]).main([f"omcda-jax {name}", *rest])
        return _help(name)

    try:
        status = printing(work)
    except Exception:
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        status = 1
    _leave(status)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End the process at once: before the command begins, after it ends, and at a second signal on the way out."""
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name}; the same command starts or resumes\n".encode())
    os._exit(os.EX_TEMPFAIL)


def _help(name: str) -> int:
    lines = [f"  {command:<16} {text}" for command, (_, text) in COMMANDS.items()]
    text = "\n".join(["usage: omcda-jax COMMAND ...; omcda-jax COMMAND --help explains one", "", *lines])
    if name in ("-h", "--help", "help"):
        print(text)
        return os.EX_OK
    if name == "--version":
        print(f"omcda-jax {omcda_jax.__version__}")
        return os.EX_OK
    print(f"error: no command {name!r}\n{text}", file=sys.stderr)
    return os.EX_CONFIG


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return bool(jax) and jax.distributed.is_initialized()


def _leave(status: int) -> NoReturn:
    """End the process, at once unless other processes end with it.

    With JAX, Python's orderly exit takes a while. A signal then kills a process that is already done, and an aborted
    compilation makes the exit fail. One of several processes waits for the others, unless it failed.
    """
    if _is_one_of_several():
        if status in (os.EX_OK, os.EX_TEMPFAIL):
            sys.exit(status)
        time.sleep(FAREWELL if sys.modules["jax"].process_index() == 0 else 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
