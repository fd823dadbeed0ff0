"""What every command needs of the system: its words, signals, devices and compiled programs, and its exit status."""

import contextlib
import errno
import functools
import itertools
import os
import re
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from absl import flags

from omcda_jax.types import ConfigError, DatasetError, StorageError, check_seed

PROGRAMS_SIZE = 2 * 1024**3  # bytes of compiled programs that are kept
EX_DIVERGED = os.EX_DATAERR  # not retried: the same numbers would come again
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}  # errors of a disk, whatever the program does
EX_PIPE = 141  # what a shell reports for a process that SIGPIPE ended


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of at most 300 characters; without a message, return its class.

    Args:
        error: any exception; bytes in its message are left out.
    """
    return re.sub(r"\bb(['\"]).*?\1", "bytes", " ".join(str(error).split()))[:300] or type(error).__name__


def new_flags() -> tuple[flags.FlagValues, Callable[..., Any]]:
    """Return flags with only --help, and `define(kind, name, default, ...)`, absl's DEFINE_KIND, which adds a flag."""
    values = flags.FlagValues()
    define = lambda kind, *arguments, **more: getattr(flags, f"DEFINE_{kind}")(*arguments, flag_values=values, **more)
    define("boolean", "help", False, "Show this.", short_name="h")
    return values, define


def read_flags(values: flags.FlagValues, argv: Sequence[str], *, known_only: bool = False) -> list[str]:
    """Read flags into `values` and return the words that are not flags.

    All commands read their words here. A `~` at the start of a word or of a flag's value becomes the home folder,
    because the shell does not do so in --flag=~/path. The flag --seed is checked.

    Args:
        values: the flags' definitions.
        argv: a command line that starts with the program's name.
        known_only: return unknown flags among the words instead of refusing them.

    Raises:
        ConfigError: an unknown flag, a value of another type, or a seed out of range.
    """
    try:
        words = values([argv[0], *map(_at_home, argv[1:])], known_only=known_only)[1:]
    except flags.Error as error:
        raise ConfigError(one_line(error)) from error
    if "seed" in values and values["seed"].value is not None:
        check_seed(values["seed"].value, "--seed")
    return words


def _at_home(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return flag + equals + os.path.expanduser(value)


class Interrupted(BaseException):
    """A signal arrived when nothing needs saving; not an Exception, so that it is not handled as a failure."""


class Interruption:
    """SIGINT, SIGTERM and SIGHUP as a request to stop; a second signal acts as it would have without this class.

    A context manager, without effect outside the main thread. A signal raises Interrupted at once. Within `deferring`,
    where work must be saved first, it only sets `requested`; poll it. SIGHUP stays ignored if it already was, as under
    nohup.

    In an XLA callback, Interrupted turns into another error. So any error raised after Interrupted counts as it.

    Attributes:
        requested: a signal arrived.
        deferred: a signal does not raise.
        saving: the program is within `deferring`.
        raised: the signal's name while Interrupted has been raised and not yet been dealt with.
    """

    def __init__(self):
        self.requested = False
        self.deferred = False
        self.saving = False
        self.raised: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.getsignal(number)
                signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._restore()
        if self.raised and isinstance(error, Exception):
            raise Interrupted(self.raised) from error

    def renew(self) -> None:
        """Set the handlers again, after something else has replaced them."""
        for number in self._previous:
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """Keep a signal that arrives in this block as a request."""
        self.deferred = self.saving = True
        try:
            yield
        finally:
            self.deferred = self.saving = False

    def breaking_off(self, work: Callable[[], Any]) -> Any:
        """Within `deferring`: return what `work()` returns, or None if a signal interrupted it.

        The outer try is for a signal that arrives between the end of `work` and the last line.
        """
        try:
            try:
                self.deferred = False
                return work()
            finally:
                self.deferred = True
        except (Interrupted, Exception):
            if self.raised is None:
                raise
            self.raised = None
            return None

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self.requested = True
        if number == signal.SIGHUP:
            _leave_terminal()
        if not self.deferred:
            self.raised = signal.Signals(number).name
            raise Interrupted(self.raised)


def _leave_terminal() -> None:
    """Discard further output if the terminal is gone, because writing to it would fail."""
    for place in (1, 2):
        try:
            os.write(place, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), place)


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Compute in 32 bits, compiled and on a device, or say in one line what prevents it; keep compiled programs.

    JAX_ENABLE_X64 and JAX_DISABLE_JIT have no effect in this block, and a warning is one line.

    Raises:
        ConfigError: JAX has no device of the requested kind.
        StorageError: a disk is full or broken.
    """
    if jax.config.jax_disable_jit:
        print("warning: JAX_DISABLE_JIT has no effect, commands run compiled programs", file=sys.stderr, flush=True)
    keep_programs()
    try:
        with warnings.catch_warnings(), jax.enable_x64(False), jax.disable_jit(False):
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr, flush=True)
            yield
    except (RuntimeError, AssertionError) as error:
        reason = _lacking_device()
        if reason is None:
            raise
        raise ConfigError(reason) from error
    except OSError as error:
        if error.errno not in DISK:
            raise
        raise StorageError(f"{error.filename or 'the disk'}: {error.strerror}") from error


def cores() -> list[int]:
    """Return the cores that this process may use, or none if the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def keep_programs() -> None:
    """Let JAX keep all compiled programs, where a later process finds them.

    They are kept in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder. When they take more than
    PROGRAMS_SIZE there, the longest unused are deleted first. This has no effect if JAX_ENABLE_COMPILATION_CACHE=false
    or if the folder cannot be made.
    """
    if not jax.config.jax_enable_compilation_cache:
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.jax_compilation_cache_dir:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "omcda-jax", "programs")
    with contextlib.suppress(OSError):  # another process may be deleting files too
        folder.mkdir(parents=True, exist_ok=True)
        there = ((entry.stat(), entry) for entry in folder.iterdir() if entry.is_file())
        files = sorted(there, key=lambda pair: -pair[0].st_atime)
        for (_, file), size in zip(files, itertools.accumulate(each.st_size for each, _ in files), strict=True):
            if size > PROGRAMS_SIZE:
                file.unlink(missing_ok=True)
    if os.path.isdir(folder):
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compiler_options(platform: str, *, once: bool = False) -> dict[str, Any]:
    """Return `compiler_options` of JAX for a large program on devices of a platform; {} compiles as usual.

    On a CPU, XLA turns such a program into hundreds of kernels. With LLVM's first level of optimisation, and sums that
    are not split into trees, they compile in about four fifths of the time, and training and evaluation run as fast.
    If the process has a single core, its kernels run in the order that needs the least memory: nothing can run in
    parallel, and data still in the cache are quicker to reach. Digits change, as with any other compiler. Anything
    that XLA_FLAGS or JAX_DISABLE_MOST_OPTIMIZATIONS sets stays as it is.

    Args:
        platform: platform of the devices.
        once: the program runs only once, so its kernels are not optimised at all.
    """
    flags_given = os.environ.get("XLA_FLAGS", "").strip()
    in_a_file = flags_given and not flags_given.startswith("-")
    if platform != "cpu" or in_a_file or jax.config.read("jax_disable_most_optimizations"):
        return {}
    options = {}
    if "xla_backend_optimization_level" not in flags_given:
        options["xla_backend_optimization_level"] = 0 if once else 1
    if "hlo_passes" not in flags_given:  # XLA ends the process if some are disabled and others enabled
        options["xla_disable_hlo_passes"] = "tree_reduction_rewriter"
    if len(cores()) == 1 and not once:
        options |= {name: value for name, value in _one_core().items() if name not in flags_given}
    return options


@functools.cache
def _one_core() -> dict[str, Any]:
    """Return options that order kernels for one core; {} if this version of XLA does not know them."""
    options = {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except RuntimeError:
        return {}
    return options


@contextlib.contextmanager
def programs_read() -> Iterator[list[str]]:
    """Yield a list that is no longer empty once JAX has read a program from its cache in the block."""
    events: list[str] = []

    def listen(event: str, **unused: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _lacking_device() -> str | None:
    """Return why JAX has no device to compute on; None if it has one."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        why = f" ({one_line(error)})" if str(error) else ""
        expected = f"JAX_PLATFORMS={jax.config.jax_platforms}: expected a device of this kind, found none{why}"
        return f"{expected}; install JAX for it, or set JAX_PLATFORMS=cpu"
    return None


def exit_status(work: Callable[[], None]) -> int:
    """Run a command and return its status: EX_CONFIG if the user can fix it, 1 for a disk, EX_TEMPFAIL for a signal."""
    try:
        with Interruption(), computing():
            work()
    except (ConfigError, DatasetError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StorageError) else os.EX_CONFIG
    except Interrupted as signal_name:
        print(f"stopped by {signal_name}; the same command starts again", file=sys.stderr)
        return os.EX_TEMPFAIL
    return os.EX_OK


def printing(work: Callable[[], int]) -> int:
    """Run a command and return its exit status; if the reader of its output leaves early, end it quietly.

    Args:
        work: the command; returns its exit status.
    """
    try:
        status = work()
        print(end="", flush=True)
        return status
    except BrokenPipeError:
        watch = select.poll()
        watch.register(sys.stdout, select.POLLERR)
        if not watch.poll(0):
            raise
        # nothing may be written after this, not even while Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_PIPE
