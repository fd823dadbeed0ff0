"""Files that are written whole or not at all, locks that end with their process, and checksums."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from omcda_jax.types import ConfigError


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of the file at a path, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path to write a file or a folder to, which replaces `path` as a whole when the block ends.

    If the block fails, `path` stays as it was and nothing else is left behind. A folder can only replace an empty one.

    Args:
        path: the file or folder to write, or a link to it; its parent folder is made if missing.

    Raises:
        ConfigError: `path` is something else, such as a device, a pipe or a socket.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: expected a file or a folder to replace, found a device, a pipe or a socket")
    partial = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if partial.is_file():
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink()


def require_folder(folder: Path) -> None:
    """Make a folder if it is missing, before costly work that writes its results there.

    Raises:
        ConfigError: the folder cannot be made, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder to write to, found: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: expected a folder that can be written to, found a read-only one")


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: Callable[[str], None]) -> Iterator[TextIO]:
    """Hold a lock file during the block; the system releases it when the process ends, however it ends.

    Yields the open file: a process that inherits the file holds the lock too, until both processes have ended.

    Args:
        path: the file, made if missing; it names the process that holds the lock.
        busy: called with the holder's host and process if another process has the lock. Unless it raises, this one
            waits for the lock.
    """
    with open(path, "a+", encoding="utf-8") as file:
        _take(file, busy)
        file.truncate(0)
        file.write(f"host {os.uname().nodename}, process {os.getpid()}\n")
        file.flush()
        yield file


@contextlib.contextmanager
def made_once(path: Path, lock: Path, busy: Callable[[str], None]) -> Iterator[bool]:
    """Let one process at a time make a file or folder; yield whether it is still missing.

    If the block fails, the lock file stays for the processes that wait for it.

    Args:
        path: the file or folder to make.
        lock: the lock file, removed at the end.
        busy: as in `locked`.
    """
    with locked(lock, busy):
        yield not path.exists()
        # only now: whoever waits for the file that is removed finds `path`
        lock.unlink(missing_ok=True)


def _take(file: TextIO, busy: Callable[[str], None], kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        busy(file.read().strip())
        fcntl.flock(file, kind)


@contextlib.contextmanager
def exclusive(directory: str | os.PathLike, flag: str = "directory") -> Iterator[TextIO]:
    """Hold a run directory for this process during the block; yields the lock's open file, as `locked`.

    Args:
        directory: an existing directory.
        flag: flag or setting that chooses another directory, for the message.

    Raises:
        ConfigError: another process holds it; the message names its host and process.
    """

    with locked(os.path.join(directory, "lock"), _refusal(directory, flag)) as file:
        yield file


def check_free(directory: str | os.PathLike, flag: str = "directory") -> None:
    """Raise what `exclusive` would raise, before costly work; nothing is written.

    Args:
        directory: as in `exclusive`; it may be missing.
        flag: as in `exclusive`.

    Raises:
        ConfigError: as `exclusive`.
    """
    path = os.path.join(directory, "lock")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            _take(file, _refusal(directory, flag), fcntl.LOCK_SH)


def _refusal(directory: str | os.PathLike, flag: str) -> Callable[[str], None]:
    def refuse(holder: str) -> None:
        raise ConfigError(
            f"{directory}: another run is at work here ({holder}); wait for it, stop it, or choose another {flag}"
        ) from None

    return refuse
