"""Processes that share a run: which one prints, what the first one decides for all, and how a process ends."""

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

from omcda_jax.checkpoint import StorageError
from omcda_jax.learner import NonFiniteMetrics, anywhere, broadcast
from omcda_jax.system import EX_DIVERGED, Interrupted, Interruption, computing, one_line
from omcda_jax.types import ConfigError, DatasetError

# Seconds without a sign of life after which a process counts as gone; the others then end, to be started again.
HEARTBEAT = 20


def say(*words: Any) -> None:
    """Print, in the first process only."""
    if is_first():
        print(*words, flush=True)


def is_first() -> bool:
    """Return whether this process writes files and talks, without asking for a device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def by_first(work: Callable[[], Any]) -> Any:
    """Return in every process what `work()` gave in the first: a JSON value, or the mistake it raised.

    Raises:
        ConfigError: `work` raised it, or DatasetError, in the first process.
    """
    if jax.process_count() == 1:
        return work()
    answer = {}
    if is_first():
        try:
            answer = {"value": work()}
        except (ConfigError, DatasetError) as error:
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(broadcast(np.array(len(text))))
    text = np.asarray(broadcast(text if is_first() else np.zeros(size, np.uint8)))
    answer = json.loads(text.tobytes())
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer["value"]


def by_all(work: Callable[[], Any]) -> Any:
    """Return in every process what `work()` gave there; a mistake in one of them ends all.

    Raises:
        ConfigError: `work` raised it, or DatasetError, in some process.
    """
    found, mistake = None, None
    try:
        found = work()
    except (ConfigError, DatasetError) as error:
        mistake = error
    if anywhere(mistake is not None):
        raise mistake or ConfigError("another process cannot go on and says why; the others end with it")
    return found


def require_same(what: str, value: Any) -> None:
    """Refuse to share a run with processes that have something else, on which each would train its own replica.

    Args:
        what: names the value in the message, in the plural.
        value: of this process, of plain JSON values.

    Raises:
        ConfigError: in every process, where they differ.
    """
    own = np.frombuffer(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest(), np.uint8)
    if anywhere(not np.array_equal(broadcast(own), own)):
        raise ConfigError(f"{what}: expected the same in all {jax.process_count()} processes, found others")


def join(coordinator: str | None, processes: int | None, index: int | None, interruption: Interruption) -> None:
    """Make this process one of several that train one trial, unless that was done already.

    Args:
        coordinator: host:port of process 0; like the others None where the cluster's environment gives it.
        processes: how many there are.
        index: which one this is.
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
    """Parse a command line and execute the command, `guarded`; return the exit status, 0 where `parse` gave None."""

    def work(interruption):
        command = parse(argv)
        return os.EX_OK if command is None else execute(command, interruption)

    return guarded(work)


def guarded(work: Callable[[Interruption], int]) -> int:
    """Do `work` and return its exit status, or that of what stopped it, reported in one line.

    One of several processes that a signal stops alone, or that is left alone, ends here: an orderly end would wait for
    the others. `main` ends those that fail.
    """
    # orbax logs as errors, with tracebacks, what it raises as well; asyncio likewise
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
    # a signal that arrived in a callback of Python's, which cannot be left by an exception
    if isinstance(unraisable.exc_value, Interrupted):
        if not interruption.saving:
            print(f"stopped by {unraisable.exc_value}; the same command resumes", file=sys.stderr, flush=True)
            os._exit(os.EX_TEMPFAIL)
        return
    # what orbax leaves behind where a read or a write failed, which is reported as an error of its own
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
