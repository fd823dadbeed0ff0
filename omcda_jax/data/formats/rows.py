"""Steps that a reader takes from arrays as a file has them to `Episodes`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omcda_jax.data.episodes import Episodes
from omcda_jax.types import DatasetError


def numbers(values: Any, source: str, key: str, ranks: Sequence[int]) -> np.ndarray:
    """Return an array of numbers of one of the ranks named.

    Args:
        values: what a file holds.
        source: the file.
        key: the array's name in it.
        ranks: numbers of axes that are right.

    Raises:
        DatasetError: not numbers, or of another rank.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DatasetError(f"{source}: {key}: expected rows of one shape, found {error}") from error
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{source}: {key}: expected numbers, found {array.dtype}")
    if array.ndim not in ranks:
        expected = " or ".join(str(rank) for rank in ranks)
        raise DatasetError(f"{source}: {key}: expected {expected} axes, found shape {array.shape}")
    return array


def require_keys(keys: Sequence[str], expected: Sequence[str], source: str) -> None:
    """Raise a DatasetError that names the keys that are missing and those that are there."""
    missing = [key for key in expected if key not in keys]
    if missing:
        there = ", ".join(sorted(keys)) or "nothing"
        raise DatasetError(
            f"{source}: {', '.join(missing)}: missing; expected {', '.join(expected)}, found {there[:200]}"
        )


def require_rows(arrays: Mapping[str, np.ndarray], source: str) -> int:
    """Return the number of rows that all arrays share; a DatasetError names the first that has another, or none."""
    (first, values), *others = arrays.items()
    if len(values) == 0:
        raise DatasetError(f"{source}: {first}: expected at least one row, found none")
    for key, other in others:
        if len(other) != len(values):
            raise DatasetError(f"{source}: {key}: expected {len(values)} rows, as {first} has, found {len(other)}")
    return len(values)


def shared_state(state: np.ndarray) -> np.ndarray:
    """Return the team's state from one state per agent: [T, N, S] to [T, S], or to [T, N * S] where they differ."""
    if (state == state[:, :1]).all():
        return state[:, 0].copy()
    return state.reshape(len(state), -1)


def with_final_rows(
    steps: Mapping[str, np.ndarray], finals: Mapping[str, np.ndarray], length: np.ndarray
) -> dict[str, np.ndarray]:
    """Return arrays with a final row after every episode's steps.

    Args:
        steps: arrays over all steps [sum(length), ...], episode after episode.
        finals: for some of them, [E, ...] what the final rows hold; the others get zeros.
        length: [E] steps.
    """
    length = np.asarray(length, np.int64)
    rows = np.arange(length.sum()) + np.repeat(np.arange(len(length)), length)
    ends = np.cumsum(length + 1) - 1
    joined = {}
    for key, values in steps.items():
        joined[key] = np.zeros((len(values) + len(length), *values.shape[1:]), values.dtype)
        joined[key][rows] = values
        if key in finals:
            joined[key][ends] = finals[key]
    return joined


def episodes(rows: Mapping[str, np.ndarray], length: Any, terminated: Any, won: Any = None) -> Episodes:
    """Return rows as `Episodes`, of its types; a missing `avail` allows everything.

    Args:
        rows: obs, global_state, action, reward and, if there is one, avail, each with its final rows.
        length: [E].
        terminated: [E].
        won: [E], None where the file does not say.
    """
    action = rows["action"]
    discrete = action.dtype.kind != "f"
    avail = rows.get("avail")
    if avail is None:
        shape = (*action.shape, int(action.max(initial=0)) + 1) if discrete else action.shape
        avail = np.ones(shape, bool)
    length = np.asarray(length, np.int32)
    return Episodes(
        obs=np.asarray(rows["obs"], np.float32),
        global_state=np.asarray(rows["global_state"], np.float32),
        avail=np.asarray(avail, bool),
        action=np.asarray(action, np.int32 if discrete else np.float32),
        reward=np.asarray(rows["reward"], np.float32),
        length=length,
        terminated=np.asarray(terminated, bool),
        won=np.zeros(len(length), bool) if won is None else np.asarray(won, bool),
    )
