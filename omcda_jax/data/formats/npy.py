"""NumPy files; their sizes are checked before anything is read."""

import os
from collections.abc import Iterable

import numpy as np

from omcda_jax.data import guess
from omcda_jax.types import DatasetError


def load(path: str, name: str) -> np.ndarray:
    """Return the array of a NumPy file.

    Args:
        path: the file's folder.
        name: the file's name.

    Raises:
        DatasetError: the file is missing, not a NumPy file, of objects, cut short, or damaged.
    """
    where = os.path.join(path, name)
    try:
        with open(where, "rb") as file:
            if file.read(6) != np.lib.format.MAGIC_PREFIX:
                raise DatasetError(f"{path}: {name}: expected a NumPy file, found {guess.describe_file(where)}")
            file.seek(0)
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            held, wanted = os.path.getsize(where) - file.tell(), int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            raise DatasetError(f"{path}: {name}: expected a NumPy file of numbers, found Python objects")
        if held != wanted:
            raise DatasetError(f"{path}: {name}: expected {wanted} bytes of numbers of shape {shape}, found {held}")
        return np.load(where, allow_pickle=False)
    except OSError as error:
        raise DatasetError(f"{path}: {name}: expected a NumPy file, found: {error.strerror or error}") from error
    except DatasetError:
        raise
    # a damaged header can raise almost any exception class
    except Exception as error:
        raise DatasetError(f"{path}: {name}: expected an intact NumPy file, found a damaged header") from error


def load_all(path: str, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the arrays KEY.npy of a folder for the keys that it has.

    Args:
        path: the folder.
        keys: which arrays to look for.

    Raises:
        DatasetError: as `load`.
    """
    return {key: load(path, f"{key}.npy") for key in keys if os.path.exists(os.path.join(path, f"{key}.npy"))}
