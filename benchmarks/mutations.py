"""Faults in files: one function per kind of fault, on arrays before they are written or on written files."""

import pathlib
from collections.abc import Callable

import numpy as np

from benchmarks import layouts

Arrays = dict[str, np.ndarray]


def _some(rng: np.random.Generator, arrays: Arrays, fits: Callable[[np.ndarray], bool] = lambda values: True) -> str:
    names = [name for name, values in arrays.items() if fits(values)]
    return names[rng.integers(len(names))]


def _floats(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and values.size > 0


def _actions(rng: np.random.Generator, arrays: Arrays) -> str:
    # the entry of the actions, by its name, in any layout
    names = [name for name in arrays if name.split("/")[-1].split("_")[0] in ("actions", "action", "acs", "a")]
    return names[rng.integers(len(names))]


def _flags(rng: np.random.Generator, arrays: Arrays) -> str:
    kinds = ("terminated", "filled", "d", "dones", "done", "terminals", "timeouts", "truncations", "terminations")
    names = [name for name in arrays if name.split("/")[-1].split("_")[0] in (*kinds, "discounts")]
    return names[rng.integers(len(names))]


def other_type(rng, arrays):
    """An array of another type of number."""
    name = _some(rng, arrays)
    kinds = ("float64", "float16", "int64", "int8", "uint8", "bool", "complex64", "U8")
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(kinds[rng.integers(len(kinds))])


def same_numbers(rng, arrays):
    """The same numbers in another encoding: wider, or in another byte or axis order. It must be read."""
    for name, values in arrays.items():
        if values.dtype.kind in "fi" and rng.random() < 0.5:
            wide = values.astype({"f": ">f8", "i": ">i8"}[values.dtype.kind])
            arrays[name] = np.asfortranarray(wide) if rng.random() < 0.5 else wide


def missing_key(rng, arrays):
    """An array is missing."""
    del arrays[_some(rng, arrays)]


def renamed_key(rng, arrays):
    """An array under another name."""
    name = _some(rng, arrays)
    arrays[f"{name}_old"] = arrays.pop(name)


def swapped_keys(rng, arrays):
    """Two arrays under each other's names."""
    first, second = _some(rng, arrays), _some(rng, arrays)
    arrays[first], arrays[second] = arrays[second], arrays[first]


def one_row_less(rng, arrays):
    """An array lacks its last row."""
    name = _some(rng, arrays, lambda values: values.ndim > 0)
    arrays[name] = arrays[name][:-1]


def one_row_more(rng, arrays):
    """An array repeats its last row."""
    name = _some(rng, arrays, lambda values: values.ndim > 0)
    arrays[name] = np.concatenate([arrays[name], arrays[name][-1:]])


def one_off_inside(rng, arrays):
    """An array lacks the last entry of another axis."""
    name = _some(rng, arrays, lambda values: values.ndim > 1)
    axis = int(rng.integers(1, arrays[name].ndim))
    arrays[name] = np.delete(arrays[name], -1, axis=axis)


def other_axes(rng, arrays):
    """An array with one more axis, one less, or two axes exchanged."""
    name = _some(rng, arrays, lambda values: values.ndim > 0)
    values = arrays[name]
    kind = rng.integers(4)
    if kind == 0:
        arrays[name] = values[..., None]
    elif kind == 1:
        arrays[name] = values[..., 0] if values.shape[-1] else values[None]
    elif kind == 2:
        arrays[name] = values[None]
    else:
        arrays[name] = np.swapaxes(values, 0, -1)


def no_rows(rng, arrays):
    """An array, or all of them, without rows."""
    names = list(arrays) if rng.random() < 0.5 else [_some(rng, arrays)]
    for name in names:
        arrays[name] = arrays[name][:0]


def not_finite(rng, arrays):
    """A nan or an infinity."""
    name = _some(rng, arrays, _floats)
    values = arrays[name].copy()
    values[tuple(rng.integers(values.shape))] = (np.nan, np.inf, -np.inf)[rng.integers(3)]
    arrays[name] = values


def too_large(rng, arrays):
    """A finite number that float32 cannot represent."""
    name = _some(rng, arrays, _floats)
    values = arrays[name].astype(np.float64)
    values[tuple(rng.integers(values.shape))] = (1e39, -1e200)[rng.integers(2)]
    arrays[name] = values


def one_hot(rng, arrays):
    """Actions as one-hot vectors."""
    name = _actions(rng, arrays)
    values = arrays[name]
    index = values[..., 0] if values.dtype.kind == "f" or values.shape[-1:] == (1,) else values
    index = np.abs(np.nan_to_num(index)).astype(np.int64) % layouts.ACTIONS
    arrays[name] = np.eye(layouts.ACTIONS, dtype=("f4", "i8")[rng.integers(2)])[index]


def real_actions(rng, arrays):
    """Real numbers where there are indices, natural numbers where there are vectors."""
    name = _actions(rng, arrays)
    values = arrays[name]
    if values.dtype.kind == "f":
        arrays[name] = np.abs(rng.integers(0, 4, values.shape)).astype(values.dtype)
    else:
        arrays[name] = values + (rng.random(values.shape) if rng.random() < 0.5 else 0.0)


def wild_action(rng, arrays):
    """One action far out of range."""
    name = _actions(rng, arrays)
    values = arrays[name].copy()
    if values.size:
        values[tuple(rng.integers(values.shape))] = (-1, 7, 2**31 - 1)[rng.integers(3)]
    arrays[name] = values


def agents_differ(rng, arrays):
    """Rewards or ends that differ between agents."""
    name = _flags(rng, arrays)
    if rng.random() < 0.5:
        rewards = [name for name in arrays if name.split("/")[-1].split("_")[0] in ("reward", "rewards", "rews", "r")]
        name = rewards[rng.integers(len(rewards))]
    values = arrays[name]
    flat = values[..., 0] if values.shape[-1:] == (1,) else values
    if flat.ndim and flat.size and flat.shape[-1] != layouts.AGENTS:
        flat = np.repeat(flat[..., None], layouts.AGENTS, axis=-1)
    flat = flat.copy()
    if flat.size:
        if flat.dtype.kind == "f" and "r" in name.split("/")[-1][:3]:
            flat[..., -1] += 1
        else:
            row = tuple(rng.integers(flat.shape[:-1])) if flat.ndim > 1 else ()
            flat[(*row, -1)] = 1 - flat[(*row, -1)]
    arrays[name] = flat.astype(values.dtype)


def shifted_ends(rng, arrays):
    """Flags one step too early or too late."""
    name = _flags(rng, arrays)
    values = arrays[name]
    axis = 1 if values.ndim > 2 else 0
    arrays[name] = np.roll(values, (-1, 1)[rng.integers(2)], axis=min(axis, max(values.ndim - 1, 0)))


def odd_flags(rng, arrays):
    """A flag that is neither 0 nor 1."""
    name = _flags(rng, arrays)
    values = arrays[name].astype(np.float64)
    if values.size:
        values[tuple(rng.integers(values.shape))] = (2.0, 0.5, -1.0, np.nan)[rng.integers(4)]
    arrays[name] = values


def lengths_off(rng, arrays):
    """A number in an array of whole numbers is one too large or too small."""
    name = _some(rng, arrays, lambda values: values.dtype.kind in "iu" and values.size > 0)
    values = arrays[name].copy()
    values[tuple(rng.integers(values.shape))] += (-1, 1)[rng.integers(2)]
    arrays[name] = values


def _file(rng: np.random.Generator, path: pathlib.Path) -> pathlib.Path:
    found = layouts.files(path)
    return found[rng.integers(len(found))]


def cut_short(rng, path):
    """A file without its end."""
    file = _file(rng, path)
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))] if content else b"")


def flipped_bit(rng, path):
    """A file with one bit changed."""
    file = _file(rng, path)
    content = bytearray(file.read_bytes())
    if content:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def other_content(rng, path):
    """Other content in a file."""
    others = (
        b"",
        b"<!DOCTYPE html><title>404</title>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x04]\x94.",
    )
    _file(rng, path).write_bytes((*others, b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(40))[rng.integers(6)])


def lost_file(rng, path):
    """A file is missing."""
    _file(rng, path).unlink()


def beside(rng, path):
    """Notes next to the data. It must be read."""
    if path.is_dir():
        (path / "README.md").write_text("notes")
        (path / ".hidden").write_text("")


ARRAYS = (
    other_type,
    same_numbers,
    missing_key,
    renamed_key,
    swapped_keys,
    one_row_less,
    one_row_more,
    one_off_inside,
    other_axes,
    no_rows,
    not_finite,
    too_large,
    one_hot,
    real_actions,
    wild_action,
    agents_differ,
    shifted_ends,
    odd_flags,
    lengths_off,
)
FILES = (cut_short, flipped_bit, other_content, lost_file, beside)
# mutations that change nothing for a reader
HARMLESS = (same_numbers, beside)
