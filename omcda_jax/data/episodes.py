"""Whole episodes in host memory, as they come from a file or a simulator: their layout, sums and checks.

An episode of L steps takes L + 1 consecutive rows. Row t contains the team's observations, actions and reward at step
t. The last row contains the true final observation, global state and legal actions; the action and the reward do not
exist there and are zero. So every row is stored once, and the successor of row t is always row t + 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from omcda_jax.metrics import standard_deviation
from omcda_jax.types import DatasetError, EnvSpec

BLOCK = 1 << 24  # bytes processed together

Where = Callable[[int], str]


class Episodes(NamedTuple):
    """E whole episodes in host memory, one after the other, T = sum(length) + E rows.

    Attributes:
        obs: [T, N, O] float32 local observations.
        global_state: [T, S] float32.
        avail: [T, N, A] bool, legal actions; continuous: the dimensions of its action that an agent has.
        action: [T, N] int32 indices, or [T, N, A] float32 in [-1, 1]; zero on final rows.
        reward: [T] float32 team reward in the environment's own units; zero on final rows.
        length: [E] int32, steps of each episode.
        terminated: [E] bool, the task itself ended (False: the time limit cut the episode).
        won: [E] bool, the team reached the task's goal (all False if the task has no goal).
    """

    obs: np.ndarray
    global_state: np.ndarray
    avail: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    length: np.ndarray
    terminated: np.ndarray
    won: np.ndarray


def final_rows(length: np.ndarray) -> np.ndarray:
    """Return the [E] int64 indices of the rows with the final observations.

    Args:
        length: [E] steps of each episode.
    """
    return np.cumsum(length.astype(np.int64) + 1) - 1


def by_row(row: int) -> str:
    """Return what error messages call a row."""
    return f"row {row}"


def by_step(length: np.ndarray, files: Sequence[tuple[str, int]] = ()) -> Where:
    """Return a function that names a row by its episode and step, for rows that are not numbered as in their file.

    Args:
        length: [E] steps of each episode.
        files: name and number of episodes of each file, in order, if there are several files.
    """
    last = final_rows(length)

    def where(row: int) -> str:
        episode = int(np.searchsorted(last, row))
        step, inside = row - int(last[episode] - length[episode]), ""
        for name, count in files:
            if episode < count:
                inside = f" of {name}"
                break
            episode -= count
        return f"episode {episode}, step {step}{inside}"

    return where


def returns(episodes: Episodes) -> np.ndarray:
    """Return the [E] float64 undiscounted returns, in the environment's own units.

    Args:
        episodes: the data.
    """
    start = final_rows(episodes.length) - episodes.length
    return np.add.reduceat(episodes.reward.astype(np.float64), start)


def statistics(episodes: Episodes) -> dict[str, Any]:
    """Return a summary of episodes in plain numbers; returns are undiscounted and in the environment's own units.

    Args:
        episodes: the data.
    """
    total = returns(episodes)
    return {
        "episodes": len(episodes.length),
        "transitions": int(episodes.length.sum()),
        "return_mean": float(total.mean()),
        "return_sd": standard_deviation(total),
        "return_min": float(total.min()),
        "return_max": float(total.max()),
        "win_rate": float(episodes.won.mean()),
        "terminated_rate": float(episodes.terminated.mean()),
        "length_mean": float(episodes.length.mean()),
        "length_min": int(episodes.length.min()),
        "length_max": int(episodes.length.max()),
    }


def as_arrays(spec: EnvSpec, episodes: Episodes, source: str) -> Episodes:
    """Return episodes as NumPy arrays: lists and JAX arrays become arrays of the right types, NumPy's stay as they are.

    Args:
        spec: the task's sizes.
        episodes: the data.
        source: what error messages call the data.

    Raises:
        DatasetError: a list whose rows differ in shape, or numbers that the right type cannot hold.
    """
    action = np.int32 if spec.discrete else np.float32
    types = Episodes(np.float32, np.float32, np.bool_, action, np.float32, np.int32, np.bool_, np.bool_)
    return Episodes(
        *(_as_array(value, kind, source, key) for key, value, kind in zip(types._fields, episodes, types, strict=True))
    )


def _as_array(value: Any, kind: Any, source: str, key: str) -> np.ndarray:
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise DatasetError(f"{source}: {key}: expected numbers in rows of one shape, found rows that differ") from error
    if not found.ndim:
        raise DatasetError(f"{source}: {key}: expected an array with rows, found {value!r:.80}")
    if isinstance(value, np.ndarray):
        return value
    if found.dtype.name == "bfloat16":
        found = found.astype(np.float32)
    if found.dtype.kind not in "fiub":
        raise DatasetError(f"{source}: {key}: expected {np.dtype(kind)}, found {found.dtype}")
    with np.errstate(all="ignore"):
        array = found.astype(kind)
    # only floats may be rounded; nan and inf pass here, because `check` names them
    same = np.isfinite(array) | ~np.isfinite(found) if kind is np.float32 else array == found
    if not np.all(same):
        index = tuple(int(i) for i in np.argwhere(~same)[0])
        place = f" at {', '.join(map(str, index))}" if index else ""
        raise DatasetError(
            f"{source}: {key}: expected numbers that fit in {np.dtype(kind)}, found {found[index]:.6g}{place}"
        )
    return array


def check(spec: EnvSpec, episodes: Episodes, source: str, where: Where = by_row) -> None:
    """Check shapes, types, finite values, episode bookkeeping and the legality of every action.

    Args:
        spec: the task's sizes.
        episodes: the data.
        source: what error messages call the data.
        where: what error messages call a row.

    Raises:
        DatasetError: one line naming the source, the key, what was expected and what was found.
    """
    _check_bookkeeping(episodes, source)
    total = len(episodes.reward)
    agents, actions = spec.num_agents, spec.action_dim
    expected = {
        "obs": ((total, agents, spec.obs_dim), np.float32),
        "global_state": ((total, spec.state_dim), np.float32),
        "avail": ((total, agents, actions), np.bool_),
        "action": ((total, agents), np.int32) if spec.discrete else ((total, agents, actions), np.float32),
        "reward": ((total,), np.float32),
    }
    for key, (shape, dtype) in expected.items():
        value = getattr(episodes, key)
        if value.dtype != dtype:
            raise DatasetError(f"{source}: {key}: expected {np.dtype(dtype)}, found {value.dtype}")
        if value.shape != shape:
            raise DatasetError(f"{source}: {key}: expected shape {shape}, found {value.shape}")
        if value.dtype == np.float32 and (row := _not_finite(value)) is not None:
            raise DatasetError(f"{source}: {key}: expected finite numbers, found nan or inf in {where(row)}")
    _check_actions(spec, episodes, source, where)


def _not_finite(values: np.ndarray) -> int | None:
    """Return the first row with a nan or inf; None if there is none."""
    width = max(1, BLOCK // max(1, values[:1].nbytes))
    for start in range(0, len(values), width):
        finite = np.isfinite(values[start : start + width])
        if not finite.all():
            return start + int(np.argwhere(~finite)[0, 0])
    return None


def _check_bookkeeping(episodes: Episodes, source: str) -> None:
    count = len(episodes.length)
    for key, dtype in (("length", np.int32), ("terminated", np.bool_), ("won", np.bool_)):
        value = getattr(episodes, key)
        if value.dtype != dtype:
            raise DatasetError(f"{source}: {key}: expected {np.dtype(dtype)}, found {value.dtype}")
        if value.shape != (count,):
            raise DatasetError(f"{source}: {key}: expected shape {(count,)}, found {value.shape}")
    if count == 0:
        raise DatasetError(f"{source}: length: expected at least one episode, found none")
    if episodes.length.min() < 1:
        episode = int(episodes.length.argmin())
        raise DatasetError(
            f"{source}: length: expected at least 1 step, found {episodes.length[episode]} in episode {episode}"
        )
    expected = int(episodes.length.sum(dtype=np.int64)) + len(episodes.length)
    largest = np.iinfo(np.int32).max
    if expected > largest:
        raise DatasetError(f"{source}: length: expected at most {largest} rows in all, found {expected}")
    for key in ("obs", "global_state", "avail", "action", "reward"):
        count = len(getattr(episodes, key))
        if count != expected:
            raise DatasetError(f"{source}: {key}: expected {expected} rows (length + 1 per episode), found {count}")


def _check_actions(spec: EnvSpec, episodes: Episodes, source: str, where: Where) -> None:
    final = final_rows(episodes.length)
    for key in ("action", "reward"):
        if getattr(episodes, key)[final].any():
            raise DatasetError(f"{source}: {key}: expected zeros on each episode's final row, found other values")
    stuck = ~episodes.avail.any(axis=-1)
    if spec.discrete and stuck.any():
        row, agent = np.argwhere(stuck)[0]
        raise DatasetError(f"{source}: avail: expected a legal action, found none for agent {agent} in {where(row)}")
    action = episodes.action
    low, high = (0, spec.action_dim - 1) if spec.discrete else (-1, 1)
    if action.min() < low or action.max() > high:
        row = int(np.argwhere((action < low) | (action > high))[0, 0])
        raise DatasetError(
            f"{source}: action: expected {low}..{high}, found {action.min()}..{action.max()} ({where(row)})"
        )
    if spec.discrete:
        legal = np.take_along_axis(episodes.avail, action[..., None], axis=-1)[..., 0]
        legal[final] = True
        if not legal.all():
            row, agent = np.argwhere(~legal)[0]
            found = f"{action[row, agent]} of agent {agent} in {where(row)}"
            raise DatasetError(f"{source}: action: expected a legal action, found {found}")
