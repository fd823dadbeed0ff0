"""The single-agent files of D4RL (Fu et al., 2020), and files like them: HDF5, one row per step, N = 1.

observations [T, O], actions [T, A] (or [T], indices), rewards [T], terminals [T] and, optionally, timeouts [T] and
next_observations [T, O]. The observation is also the state. With next_observations, an episode goes on while the next
row's observation equals this row's `next_observations`. Without it, nothing follows the last step of an episode.
"""

import numpy as np

from omcda_jax.data.formats import columns, rows
from omcda_jax.types import DatasetError

KEYS = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
_RANKS = {
    "observations": (2,),
    "actions": (1, 2),
    "rewards": (1, 2),
    "terminals": (1, 2),
    "timeouts": (1, 2),
    "next_observations": (2,),
}


def matches(keys: set[str]) -> bool:
    """Return whether a file's keys look like this layout, even if one is missing."""
    return len(keys & set(KEYS)) >= 3


def parse(arrays: dict[str, np.ndarray], source: str) -> rows.Reading:
    """Return the episodes in a file's arrays.

    Args:
        arrays: arrays by key.
        source: the file.

    Raises:
        DatasetError: a key, shape or type is not the layout's, or no episode ends.
    """
    rows.require_keys(list(arrays), KEYS, source)
    arrays = {
        key: columns.numbers(arrays[key], source, key, _RANKS[key]) for key in (*KEYS, *OPTIONAL) if key in arrays
    }
    total = rows.require_rows(arrays, source)
    column = lambda key: rows.per_agent(arrays[key], 1, source, key)
    ended, cut = (
        columns.flags(column(key), source, key) if key in arrays else np.zeros((total, 1), bool)
        for key in ("terminals", "timeouts")
    )
    obs = columns.single(arrays["observations"], source, "observations")
    after, notes = None, []
    if "next_observations" in arrays:
        after = columns.single(arrays["next_observations"], source, "next_observations")
        if after.shape != obs.shape:
            raise DatasetError(
                f"{source}: next_observations: expected shape {obs.shape}, as observations, found {after.shape}"
            )
        closed = np.append((after[:-1] != obs[1:]).any(axis=1), True)
        breaks = int((closed & ~(ended | cut)[:, 0]).sum())
        if breaks:
            notes.append(
                f"{breaks} rows are not followed by their next_observations, and nothing ends there: episodes are cut"
            )
    else:
        closed = np.zeros(total, bool)
        if "timeouts" not in arrays:
            notes.append("no timeouts and no next_observations: an episode lasts until a terminal row")
    last, terminated, more = rows.ends(ended, cut, closed)
    if not len(last):
        raise DatasetError(f"{source}: terminals: expected an end of at least one episode, found none")
    kept = last[-1] + 1
    if kept < total:
        notes.append(f"the last {total - kept} rows belong to an episode that does not end: left out")
    taken = {
        "action": columns.actions(arrays["actions"], (total,), source, "actions")[:kept],
        "reward": columns.single(column("rewards"), source, "rewards")[:kept, 0],
    }
    seen = {"obs": obs[:kept, None], "global_state": obs[:kept]}
    if after is None:
        reading = rows.without_successors(seen, taken, last, terminated, source)
        return reading._replace(notes=[*notes, *more, *reading.notes])
    length = np.diff(last, prepend=-1)
    finals = {"obs": after[last, None], "global_state": after[last]}
    joined = rows.with_final_rows({**seen, **taken}, finals, length)
    return rows.Reading(rows.episodes(joined, length, terminated), [*notes, *more], np.ones(len(last), bool))
