"""MADiff's folders (Zhu et al., NeurIPS 2024): NumPy files of all steps, made from OG-MARL's data.

obs.npy [T, N, O], actions.npy [T, N] or [T, N, A], rewards.npy [T, N] or [T], path_lengths.npy [E] and, optionally,
states.npy [T, S], legals.npy [T, N, A] and discounts.npy [T, N], 0 where the task ended. Nothing follows the last step
of an episode. Without discounts, every episode counts as ended, as in MADiff's own loaders.
"""

import numpy as np

from omcda_jax.data.formats import columns, rows
from omcda_jax.types import DatasetError

KEYS = ("obs", "actions", "rewards", "path_lengths")
OPTIONAL = ("states", "legals", "discounts")
_RANKS = {"obs": (3,), "actions": (2, 3), "rewards": (1, 2), "states": (2,), "legals": (3,), "discounts": (1, 2)}


def matches(keys: set[str]) -> bool:
    """Return whether the names of a folder's arrays look like this layout."""
    return "path_lengths" in keys


def parse(arrays: dict[str, np.ndarray], source: str) -> rows.Reading:
    """Return the episodes in a folder's arrays.

    Args:
        arrays: arrays by name.
        source: the folder.

    Raises:
        DatasetError: an array is missing, or its shape or type is not the layout's, or the lengths do not fit.
    """
    rows.require_keys(list(arrays), KEYS, source)
    lengths = _lengths(columns.numbers(arrays["path_lengths"], source, "path_lengths", (1,)), source)
    arrays = {key: columns.numbers(arrays[key], source, key, ranks) for key, ranks in _RANKS.items() if key in arrays}
    total = rows.require_rows(arrays, source)
    if lengths.sum() != total:
        raise DatasetError(f"{source}: path_lengths: expected {total} steps in all, as obs has, found {lengths.sum()}")
    agents = arrays["obs"].shape[1]
    last, notes = np.cumsum(lengths) - 1, []
    terminated = np.ones(len(last), bool)
    if "discounts" in arrays:
        going = columns.flags(rows.per_agent(arrays["discounts"], agents, source, "discounts"), source, "discounts")
        terminated, notes = _terminated(~going, last, source)
    else:
        notes.append("no discounts: every episode counts as ended by the task; time_limit=STEPS tells which were cut")
    obs = columns.single(arrays["obs"], source, "obs")
    if "states" in arrays:
        state = columns.single(arrays["states"], source, "states")
    else:
        state = obs.reshape(total, -1)
        notes.append("no states: the observations of all agents form the state")
    seen = {"obs": obs, "global_state": state}
    count = None
    if "legals" in arrays:
        seen["avail"], count = columns.flags(arrays["legals"], source, "legals"), arrays["legals"].shape[2]
        if seen["avail"].shape[1] != agents:
            raise DatasetError(
                f"{source}: legals: expected {agents} agents, as obs has, found {seen['avail'].shape[1]}"
            )
    reward = columns.single(rows.per_agent(arrays["rewards"], agents, source, "rewards"), source, "rewards")
    taken = {
        "action": columns.actions(arrays["actions"], (total, agents), source, "actions", count=count),
        "reward": rows.team_reward(reward),
    }
    reading = rows.without_successors(seen, taken, last, terminated, source)
    return reading._replace(notes=[*notes, *reading.notes])


def _lengths(values: np.ndarray, source: str) -> np.ndarray:
    wrong = ~((values >= 1) & (values == np.floor(values)) & (values < 2**31))
    if wrong.any() or not len(values):
        found = f"{float(values[wrong][0]):.6g} in episode {int(wrong.argmax())}" if wrong.any() else "none"
        raise DatasetError(f"{source}: path_lengths: expected whole numbers of at least 1, found {found}")
    return values.astype(np.int64)


def _terminated(ended: np.ndarray, last: np.ndarray, source: str) -> tuple[np.ndarray, list[str]]:
    """Return which episodes the task ended, from the agents' ends [T, N] and the episodes' last rows."""
    closed = np.zeros(len(ended), bool)
    closed[last] = True
    found, terminated, notes = rows.ends(ended, np.zeros_like(ended), closed)
    if len(found) != len(last):
        row = int(found[~closed[found]][0])
        episode = int(np.searchsorted(last, row))
        raise DatasetError(
            f"{source}: discounts: expected the end of episode {episode} on its last row, {last[episode]},"
            f" found one on row {row}"
        )
    return terminated, notes
