"""Processes that share a run: which process prints, what the first decides for all, and how a process ends."""

import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np

from omcda_jax.learner import NonFiniteMetrics, anywhere, broadcast
from omcda_jax.system import EX_DIVERGED, Interrupted, Interruption, computing, one_line
from omcda_jax.types import ConfigError, DatasetError, StorageError

# Seconds without a heartbeat after which a process counts as gone. The others then end and can be started again.
HEARTBEAT = 20


def say(*words: Any) -> None:
    """Print, in the first process only."""
    if is_first():
        print(*words, flush=True)


def is_first() -> bool:
    """Return whether this process writes files and prints, without initialising a device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def by_first(work: Callable[[], Any]) -> Any:
    """Return in every process what `work()` returned in the first: a JSON value, or the mistake it raised.

    Raises:
        ConfigError: `work` raised it, or DatasetError, in the first process.
        StorageError: `work` raised it there.
    """
    if jax.process_count() == 1:
        return work()
    answer = {}
    if is_first():
        try:
            answer = {"value": work()}
        except (ConfigError, DatasetError, StorageError) as error:
            answer = {"error": str(error), "fixable": not isinstance(error, StorageError)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(broadcast(np.array(len(text))))
    text = np.asarray(broadcast(text if is_first() else np.zeros(size, np.uint8)))
    answer = json.loads(text.tobytes())
    if "error" in answer:
        raise (ConfigError if answer["fixable"] else StorageError)(answer["error"])
    return answer["value"]


def by_all(work: Callable[[], Any]) -> Any:
    """Return in every process what `work()` returned there; a mistake in one process ends all.

    Raises:
        ConfigError: `work` raised it, or DatasetError, in some process.
    """
    found, mistake = None, None
    try:
        found = work()
    except (ConfigError, DatasetError) as error:
        mistake = error
    if anywhere(mistake is not None):
        raise mistake or ConfigError("another process cannot continue and says why; this one ends too")
    return found


def require_same(what: str, value: Any) -> None:
    """Refuse to share a run if the processes' values differ; each would train its replica on its own value.

    Args:
        what: name of the value in the message, in the plural.
        value: this process's value, as JSON.

    Raises:
        ConfigError: the values differ; raised in every process.
    """
    own = np.frombuffer(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest(), np.uint8)
    if anywhere(not np.array_equal(broadcast(own), own)):
        raise ConfigError(f"{what}: expected the same in all {jax.process_count()} processes, found others")


def join(coordinator: str | None, processes: int | None, index: int | None, interruption: Interruption) -> None:
    """Make this process one of several that train one trial, unless it already is.

    Args:
        coordinator: host:port of process 0. This and the next two are None if the cluster's environment gives them.
        processes: the number of processes.
        index: the index of this process.
        interruption: its handlers are set again, because JAX sets its own.

    Raises:
        ConfigError: neither the arguments nor the environment describe what to join.
    """
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(coordinator, processes, index, heartbeat_timeout_seconds=HEARTBEAT)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--distributed: no cluster found to join ({one_line(error)}); give --coordinator=HOST:PORT "
                "--num_processes=N --process_id=I"
            ) from error
    interruption.renew()
    say(f"{jax.process_count()} processes, {jax.device_count()} devices")


def ordered(
    argv: Sequence[str], parse: Callable[[Sequence[str]], Any], execute: Callable[[Any, Interruption], int]
) -> int:
    """Parse a command line and execute the command, `guarded`; return the exit status, 0 if `parse` returned None."""

    def work(interruption):
        command = parse(argv)
        return os.EX_OK if command is None else execute(command, interruption)

    return guarded(work)


def guarded(work: Callable[[Interruption], int]) -> int:
    """Do `work` and return its exit status. What stops it is reported in one line and has an exit status too.

    If a signal stops one of several processes alone, or the others are gone, the process ends here: an orderly end
    would wait for the others. `main` ends processes that fail.
    """
    # orbax and asyncio log exceptions as errors with tracebacks, and raise them too
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    complain = functools.partial(print, file=sys.stderr, flush=True)
    try:
        with Interruption() as interruption, computing():
            sys.unraisablehook = functools.partial(_unraisable, interruption)
            return work(interruption)
    except (ConfigError, DatasetError) as error:
        complain(f"error: {error}")
        return os.EX_CONFIG
    except NonFiniteMetrics as error:
        complain(f"error: training diverged: {error}; what was saved before is intact")
        return EX_DIVERGED
    except StorageError as error:
        complain(f"error: {error}")
        return 1
    except Interrupted as signal_name:
        complain(f"stopped by {signal_name} with nothing more to save; the same command resumes")
        if jax.distributed.is_initialized():
            os._exit(os.EX_TEMPFAIL)
        return os.EX_TEMPFAIL
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        complain(
            f"error: another process is gone ({one_line(error)}); the same commands resume from the latest checkpoint"
        )
        os._exit(os.EX_TEMPFAIL)


def _unraisable(interruption: Interruption, unraisable: Any) -> None:
    # a signal that arrived in a callback of Python's, which no exception can leave
    if isinstance(unraisable.exc_value, Interrupted):
        if not interruption.saving:
            print(f"stopped by {unraisable.exc_value}; the same command resumes", file=sys.stderr, flush=True)
            os._exit(os.EX_TEMPFAIL)
        return
    # orbax leaves this behind after a failed read or write, which is reported as an error of its own
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
