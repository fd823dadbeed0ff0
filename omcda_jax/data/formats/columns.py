"""Columns of a file, checked and converted to the library's types: numbers, flags, actions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omcda_jax.data.episodes import Where, by_row
from omcda_jax.types import DatasetError

_KINDS = {"S": "text", "U": "text", "O": "objects", "V": "records", "c": "complex numbers", "m": "times", "M": "dates"}
# largest number of actions if no mask tells it; a larger index is damage rather than an action
_MOST_ACTIONS = 4096


def numbers(values: Any, source: str, key: str, ranks: Sequence[int]) -> np.ndarray:
    """Return an array of numbers that has one of the given ranks.

    Args:
        values: content of a file.
        source: the file.
        key: the array's name in it.
        ranks: allowed numbers of axes.

    Raises:
        DatasetError: the values are not numbers, or have another rank.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{source}: {key}: expected numbers, found {_KINDS.get(array.dtype.kind, 'something else')}")
    if array.ndim not in ranks:
        expected = " or ".join(str(rank) for rank in ranks)
        found = f"shape {array.shape}" if array.ndim else "a single number"
        raise DatasetError(f"{source}: {key}: expected {expected} axes, found {found}")
    return array


def single(values: np.ndarray, source: str, key: str, where: Where = by_row) -> np.ndarray:
    """Return numbers as float32.

    Args:
        values: [T, ...] numbers.
        source: the file.
        key: the array's name in it.
        where: what to call a place in the first axis.

    Raises:
        DatasetError: a nan, an infinity, or a number too large for float32, with its value and its place.
    """
    with np.errstate(all="ignore"):
        result = np.asarray(values, np.float32)
        # the extremes are finite if all numbers are
        if not result.size or np.isfinite(result.min()) and np.isfinite(result.max()):
            return result
    index = tuple(np.argwhere(~np.isfinite(result))[0])
    found = f"{float(values[index]):.6g} in {where(int(index[0]))}"
    if np.isfinite(values[index]):
        raise DatasetError(f"{source}: {key}: expected numbers that fit in float32, found {found}, which is too large")
    raise DatasetError(f"{source}: {key}: expected finite numbers, found {found}")


def flags(values: np.ndarray, source: str, key: str, where: Where = by_row) -> np.ndarray:
    """Return zeros and ones as booleans.

    Args:
        values: [T, ...] numbers.
        source: the file.
        key: the array's name in it.
        where: what to call a place in the first axis.

    Raises:
        DatasetError: a number that is neither 0 nor 1, with its place.
    """
    if values.dtype == np.bool_:
        return values
    ones = values == 1
    wrong = ~ones & (values != 0)
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0])
        raise DatasetError(
            f"{source}: {key}: expected 0 or 1, found {float(values[index]):.6g} in {where(int(index[0]))}"
        )
    return ones


def actions(
    values: np.ndarray,
    lead: tuple[int, ...],
    source: str,
    key: str,
    *,
    count: int | None = None,
    pick: np.ndarray | None = None,
    where: Where = by_row,
) -> np.ndarray:
    """Return a file's actions: indices [R, N] int32, or vectors [R, N, A] float32.

    If the file lists legal actions, its actions are indices. Else integers are indices, and floats with an axis of
    their own are vectors. Nothing is rounded, and no encoding is guessed.

    Args:
        values: [*lead], [*lead, 1] or [*lead, A] numbers.
        lead: first part of the shape of `values`: rows (or episodes and steps), then N agents; only rows if there is
            one agent without an axis of its own.
        source: the file.
        key: the array's name in it.
        count: A if the file lists A legal actions; None if it lists none.
        pick: [R] which rows to take and check, after all axes before the agents are merged into one; None takes all.
        where: what to call a place in the first axis of the rows taken.

    Raises:
        DatasetError: a shape that fits neither kind, one-hot actions, indices that are not whole or are out of range,
            vectors that are indices, numbers that are not finite; with the place.
    """
    apart = values.shape[:-1] == lead
    discrete = count is not None or values.dtype.kind != "f" or not apart
    if values.shape != lead and not (apart and (values.shape[-1] == 1 or not discrete)):
        expected = f"{lead} or {(*lead, 1)}, the indices of actions" if discrete else f"{(*lead, 'A')}"
        raise DatasetError(f"{source}: {key}: expected shape {expected}, found shape {values.shape}{_hint(values)}")
    agents = lead[-1] if len(lead) > 1 else 1
    rows = values.reshape(-1, agents, *values.shape[len(lead) :])
    rows = rows if pick is None else rows[pick]
    if discrete:
        return _indices(rows.reshape(len(rows), agents), source, key, count, where)
    if rows.shape[-1] == 0:
        raise DatasetError(f"{source}: {key}: expected at least one dimension of an action, found shape {values.shape}")
    rows = single(rows, source, key, where)
    if _one_hot(rows):
        raise DatasetError(
            f"{source}: {key}: expected continuous actions in [-1, 1] or indices of shape {lead}, found shape"
            f" {values.shape}{_hint(rows)}"
        )
    # continuous actions are rarely whole numbers, and never only natural numbers
    if rows.size and rows.min() >= 0 and rows.max() > 1 and (rows == np.floor(rows)).all():
        raise DatasetError(
            f"{source}: {key}: expected continuous actions in [-1, 1], found whole numbers up to {rows.max():.6g} in"
            f" shape {values.shape}: indices of discrete actions? store them as integers of shape {lead}"
        )
    return rows


def _indices(values: np.ndarray, source: str, key: str, count: int | None, where: Where) -> np.ndarray:
    def refuse(wrong: np.ndarray, expected: str) -> None:
        if wrong.any():
            row, agent = np.argwhere(wrong)[0]
            found = f"{float(values[row, agent]):.6g} in {where(int(row))}, agent {agent}"
            raise DatasetError(f"{source}: {key}: expected {expected}, found {found}")

    if values.dtype.kind == "f":
        refuse(~np.isfinite(values) | (values != np.floor(values)), "whole numbers, the indices of actions")
    most = _MOST_ACTIONS if count is None else count
    what = "the indices of actions" if count is None else f"for {count} actions are listed as legal or not"
    refuse((values < 0) | (values >= most), f"0..{most - 1}, {what}")
    return values.astype(np.int32)


def _one_hot(values: np.ndarray) -> bool:
    """Return whether every vector along the last axis has a single 1 among zeros."""
    if values.ndim < 2 or values.shape[-1] < 2 or not values.size:
        return False
    ones = values == 1
    return bool((ones | (values == 0)).all() and (ones.sum(axis=-1) == 1).mean() > 0.5 and ones.sum(axis=-1).max() == 1)


def _hint(values: np.ndarray) -> str:
    return ": one-hot? store the index of the one, numpy.argmax(..., axis=-1)" if _one_hot(values) else ""
