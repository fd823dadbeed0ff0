"""HDF5 files of any layout: open, read and write them so that damage ends in a one-line error."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omcda_jax.data import guess
from omcda_jax.files import replacing
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, DatasetError


def require() -> Any:
    """Import h5py.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"dataset files need h5py ({error}): pip install 'omcda-jax[data]'") from error
    return h5py


def store(path: str | os.PathLike, fill: Callable[[Any], None]) -> None:
    """Write an HDF5 file; the path has either the whole new file or what was there before.

    Args:
        path: where to write; its folder is made if missing.
        fill: puts the contents into the open h5py file.

    Raises:
        DatasetError: the disk refuses the file.
        ConfigError: h5py is not installed.
    """
    h5py = require()
    # built in memory, because HDF5 can crash the interpreter if it writes to a full disk itself
    # this file version has checksums of HDF5's own structures, which Fletcher-32 does not cover
    options = {"driver": "core", "backing_store": False, "libver": ("v110", "v110")}
    with h5py.File("dataset", "w", **options) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()
    try:
        with replacing(path) as partial:
            partial.write_bytes(image)
    except OSError as error:
        raise DatasetError(f"{path}: could not write {len(image)} bytes: {error.strerror}") from error


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """Open an HDF5 file for reading; any error from a damaged file becomes a DatasetError.

    Args:
        path: the file.
    """
    h5py = require()
    if not os.path.isfile(path):
        there = "a folder" if os.path.isdir(path) else "nothing there"
        raise DatasetError(f"{path}: expected a dataset file, found {there}")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        if not start.startswith(b"\x89HDF\r\n\x1a\n"):
            raise DatasetError(f"{path}: expected an HDF5 file, found {guess.describe_file(path)}")
        with h5py.File(path, "r") as file:
            yield file
    except (DatasetError, ConfigError):
        raise
    # a damaged header can raise almost any exception class
    except Exception as error:
        raise DatasetError(f"{path}: expected an intact HDF5 file, found: {one_line(error)}") from error


def arrays(path: str | os.PathLike, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the arrays of an HDF5 file for the keys that it has.

    Args:
        path: the file.
        keys: which arrays to read.

    Raises:
        DatasetError: as `opened`; a group instead of an array, or more numbers than the file can contain.
    """
    with opened(path) as file:
        found = {key: intact(lambda key=key: file[key], key, path) for key in keys if key in file}
        for key, stored in found.items():
            if not hasattr(stored, "shape"):
                raise DatasetError(f"{path}: {key}: expected an array, found {kind_of(stored)}")
            require_room(path, key, stored.size * stored.dtype.itemsize if stored.shape is not None else 0)
        return {key: intact(lambda stored=stored: np.asarray(stored[()]), key, path) for key, stored in found.items()}


def stored_bytes(path: str | os.PathLike) -> int:
    """Return how many bytes the arrays of an HDF5 file take when unpacked, from its headers alone.

    Args:
        path: the file.
    """
    with opened(path) as file:
        return sum(getattr(stored, "nbytes", 0) for stored in file.values())


def require_room(path: str | os.PathLike, key: str, size: int) -> None:
    """Refuse an array that is too large for its file even if compressed: its description is damaged.

    Args:
        path: the file or folder.
        key: the array.
        size: size of the array in bytes.

    Raises:
        DatasetError: naming both sizes.
    """
    files = [os.fspath(path)] if os.path.isfile(path) else [str(file) for file in Path(path).rglob("*")]
    held = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    if size > 2**26 + 2000 * held:
        raise DatasetError(f"{path}: {key}: damaged, {size} bytes of numbers in a file of {held} bytes")


def kind_of(stored: Any) -> str:
    """Return what error messages call something in an HDF5 file that is not an array."""
    return "a group" if hasattr(stored, "keys") else "something else"


def intact(how: Callable[[], Any], key: str, path: str | os.PathLike) -> Any:
    """Return what reading a part of an HDF5 file returns; any error from damage becomes a DatasetError.

    Args:
        how: reads the part.
        key: name of the part.
        path: the file.
    """
    try:
        return how()
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DatasetError(f"{path}: {key}: damaged, expected intact checksums, found: {one_line(error)}") from error
