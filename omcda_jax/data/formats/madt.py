"""The SMAC episodes of MADT and OMIGA: a folder of files of torch.save, read without torch and without running them.

A file is one episode: a list over agents of lists over steps of [state, obs, action, reward, done, legal actions].
There is no observation after the last step; an episode loses its last step if that step is not `done`.

A pickle is a program. Here it may only call what rebuilds arrays, tensors and ordered dictionaries.
"""

import codecs
import collections
import io
import os
import pickle
import pickletools
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from omcda_jax.data import guess
from omcda_jax.data.formats import columns, rows
from omcda_jax.system import one_line
from omcda_jax.types import DatasetError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, protocol=2)
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_STEP = ("state", "obs", "action", "reward", "done", "legal actions")


class _Storage(NamedTuple):
    """The number type of a torch storage."""

    dtype: np.dtype


def is_torch_file(path: str) -> bool:
    """Return whether a file was written by torch.save, in either of its layouts."""
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_START))
    if start == _LEGACY_START:
        return True
    if not start.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def read(path: str) -> rows.Reading:
    """Read one file or a folder of them, in the natural order of their names.

    Args:
        path: the file or folder.

    Raises:
        DatasetError: a file is damaged or asks for more than arrays, or its lists do not have the layout.
    """
    files = [path] if os.path.isfile(path) else guess.parts(path)
    parts, notes, beyond = [], [], 0
    for file in files:
        part, left = _episode(load(file), file)
        parts.append(part)
        beyond += left > 0
    if not parts:
        raise DatasetError(f"{path}: expected at least one episode, found none")
    if beyond:
        notes.append(f"{beyond} episodes go on after all agents are done: those steps are left out")
    for key in ("obs", "global_state", "avail"):
        for part, file in zip(parts, files, strict=True):
            if part[key].shape[1:] != parts[0][key].shape[1:]:
                expected, found = (rest[key].shape[1:] for rest in (parts[0], part))
                raise DatasetError(f"{file}: {key}: expected shape {expected}, as {files[0]} has, found {found}")
    last = np.cumsum([len(part["obs"]) for part in parts]) - 1
    terminated = np.array([part["ended"] for part in parts])
    whole = lambda keys: {key: np.concatenate([part[key] for part in parts]) for key in keys}
    reading = rows.without_successors(
        whole(("obs", "global_state", "avail")), whole(("action", "reward")), last, terminated, path
    )
    return reading._replace(notes=[*notes, *reading.notes])


def _episode(agents: Any, source: str) -> tuple[dict[str, Any], int]:
    """Return a file's arrays up to where all agents are `done`, whether they are, and how many steps follow."""
    if not isinstance(agents, list) or not agents or not all(isinstance(steps, list) for steps in agents):
        raise DatasetError(f"{source}: expected a list over agents of lists of steps, found {type(agents).__name__}")
    lengths = {len(steps) for steps in agents}
    if len(lengths) > 1 or 0 in lengths:
        raise DatasetError(f"{source}: expected the same number of steps for every agent, found {sorted(lengths)}")
    for agent, steps in enumerate(agents):
        for t, step in enumerate(steps):
            if not isinstance(step, list | tuple) or len(step) != len(_STEP):
                found = f"{len(step)} entries" if isinstance(step, list | tuple) else guess.value(step)
                raise DatasetError(f"{source}: agent {agent}, step {t}: expected [{', '.join(_STEP)}], found {found}")
    state, obs, action, reward, done, legal = (_column(agents, k, source) for k in range(len(_STEP)))
    at_step = lambda step: f"step {step}"
    lead = (len(obs), len(agents))
    for name, values in (("reward", reward), ("done", done)):
        if values.shape[2] != 1:
            raise DatasetError(f"{source}: {name}: expected one number per agent and step, found {values.shape[2]}")
    # an agent that is done stays done
    over = np.logical_or.accumulate(columns.flags(done[..., 0], source, "done", at_step), axis=0).all(axis=1)
    length = int(over.argmax()) + 1 if over.any() else len(obs)
    action = columns.actions(
        action[:length], (length, len(agents)), source, "action", count=legal.shape[2], where=at_step
    )
    part = {
        "obs": columns.single(obs, source, "obs", at_step),
        "global_state": rows.shared_state(columns.single(state, source, "state", at_step)),
        "avail": columns.flags(legal, source, "legal actions", at_step),
        "action": action,
        "reward": columns.single(reward[..., 0], source, "reward", at_step),
    }
    return {key: values[:length] for key, values in part.items()} | {"ended": bool(over.any())}, lead[0] - length


def _column(agents: list[Any], k: int, source: str) -> np.ndarray:
    """Return one of a step's six entries for all steps and agents [T, N, ...]."""
    try:
        entries = [[np.asarray(steps[t][k]) for steps in agents] for t in range(len(agents[0]))]
    except ValueError as error:
        raise DatasetError(f"{source}: {_STEP[k]}: expected numbers, found lists of different lengths") from error
    first = entries[0][0]
    for t, row in enumerate(entries):
        for agent, entry in enumerate(row):
            columns.numbers(entry, source, f"{_STEP[k]} of agent {agent}, step {t}", (0, 1, 2))
            if entry.size != first.size or entry.size == 0:
                raise DatasetError(
                    f"{source}: {_STEP[k]}: expected {max(first.size, 1)} numbers, as in the first step, found"
                    f" {entry.size} of agent {agent}, step {t}"
                )
    return np.array([[entry.reshape(-1) for entry in row] for row in entries])


def load(path: str) -> Any:
    """Return what torch.save wrote, with tensors as arrays.

    Args:
        path: the file.

    Raises:
        DatasetError: it is damaged, or its pickle asks for more than arrays, tensors and plain containers.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _load_zip(archive)
        with open(path, "rb") as file:
            return _load_legacy(file)
    except DatasetError:
        raise
    except pickle.UnpicklingError as error:
        raise DatasetError(f"{path}: expected a file of torch.save, found: {error}") from error
    # a damaged pickle can raise almost any exception class
    except Exception as error:
        raise DatasetError(f"{path}: expected an intact file of torch.save, found: {one_line(error)}") from error


def _load_zip(archive: zipfile.ZipFile) -> Any:
    (main,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
    folder = main.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise pickle.UnpicklingError("numbers in big-endian order")

    def storage(kind, key, count):
        values = np.frombuffer(archive.read(f"{folder}data/{key}"), kind.dtype)
        if len(values) != count:
            raise pickle.UnpicklingError(f"storage {key} of {len(values)} numbers, expected {count}")
        return values

    return _Unpickler(io.BytesIO(archive.read(main)), storage).load()


def _load_legacy(file: BinaryIO) -> Any:
    """Read the layout before torch 1.6: five pickles, then the storages one after another."""
    plain = lambda: _Unpickler(file, _no_storage).load()
    if plain() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("an unknown magic number")
    plain(), plain()
    storages: dict[str, np.ndarray] = {}
    size = os.fstat(file.fileno()).st_size

    def storage(kind, key, count):
        if not 0 <= count * kind.dtype.itemsize <= size:
            raise pickle.UnpicklingError(f"storage {key} of {count} numbers, more than the file contains")
        return storages.setdefault(key, np.zeros(count, kind.dtype))

    content = _Unpickler(file, storage).load()
    for key in plain():
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        if count != len(storages[key]):
            raise pickle.UnpicklingError(f"storage {key} of {count} numbers, expected {len(storages[key])}")
        storages[key][:] = np.frombuffer(file.read(count * storages[key].itemsize), storages[key].dtype)
    return content


def _no_storage(*_):
    raise pickle.UnpicklingError("a tensor where there must be none")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storage: Any):
        super().__init__(file, encoding="latin1")
        self._file, self._storage = file, storage

    def load(self) -> Any:
        # the unpickler allocates memory up to any index of its memo: gigabytes if the index is damaged
        start = self._file.tell()
        for code, index, _ in pickletools.genops(self._file):
            if code.name == "LONG_BINPUT" and index > self._file.tell():
                raise pickle.UnpicklingError(f"entry {index} of a memo that can have {self._file.tell()} at most")
        self._file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Storage(np.dtype(_STORAGES[name]))
        try:
            return _ALLOWED[module.replace("numpy.core", "numpy._core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"a pickle that calls {module}.{name}, which is not run") from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", _Storage() as kind, key, _, int(count), *_):
                return self._storage(kind, str(key), count)
        raise pickle.UnpicklingError("a reference to something other than a tensor")


def _tensor(storage, offset, size, stride, *_):
    """Return a view, because legacy storages are filled later; check the bounds, because as_strided does not."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (np.prod(size) and last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of shape {size} beyond its storage of {len(storage)} numbers")
    if not np.prod(size):
        return np.zeros(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return codecs.encode(text, "latin1")


def _dtype(name: str, *_: Any) -> np.dtype:
    # a copy, because the pickle then sets its byte order, which NumPy's own instances ignore
    return np.dtype(name, False, True)


def _array_class(*_):
    raise pickle.UnpicklingError("numpy.ndarray called by itself")


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    if kind is not _array_class:
        raise pickle.UnpicklingError("an array of a class that is not NumPy's")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: np.dtype, content: bytes) -> np.generic:
    return np.frombuffer(content, dtype, 1)[0]


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): _array_class,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
