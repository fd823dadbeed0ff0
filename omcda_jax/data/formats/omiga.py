"""The multi-agent MuJoCo files of OMIGA (Wang et al., NeurIPS 2023): HDF5, flat rows s, o, a, r, d.

A row with d = 1 is the extra row that closes an episode, with the observation after the last step. The file does not
distinguish an end from the time limit. States and observations are per agent, actions continuous, one reward per row.
"""

from typing import Any

import numpy as np

from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.data.formats import columns, rows
from omcda_jax.types import DatasetError

KEYS = ("s", "o", "a", "r", "d")
OPTIONAL = ()
_RANKS = ((2, 3), (3,), (3,), (1, 2, 3), (1, 2))


def matches(keys: set[str]) -> bool:
    """Return whether a file's keys look like this layout, even if one is missing."""
    return len(keys & set(KEYS)) >= 3 and not keys & {"obs", "actions"}


def parse(arrays: dict[str, np.ndarray], source: str) -> rows.Reading:
    """Return the episodes in a file's arrays.

    Args:
        arrays: arrays by key.
        source: the file.

    Raises:
        DatasetError: a key, shape or type is not the layout's, or no episode is closed.
    """
    rows.require_keys(list(arrays), KEYS, source)
    arrays = {key: columns.numbers(arrays[key], source, key, ranks) for key, ranks in zip(KEYS, _RANKS, strict=True)}
    total = rows.require_rows(arrays, source)
    agents = arrays["o"].shape[1]
    if arrays["a"].dtype.kind != "f":
        raise DatasetError(f"{source}: a: expected floating-point actions, found {arrays['a'].dtype}")
    for key in ("s", "a"):
        if arrays[key].ndim == 3 and arrays[key].shape[1] != agents:
            raise DatasetError(f"{source}: {key}: expected {agents} agents, as o has, found {arrays[key].shape[1]}")
    done = columns.flags(rows.per_agent(arrays.pop("d"), agents, source, "d"), source, "d")
    ends, _, notes = rows.ends(done, np.zeros_like(done))
    if not len(ends):
        raise DatasetError(f"{source}: d: expected a 1 on each episode's closing row, found none")
    kept = ends[-1] + 1
    if kept < total:
        notes.append(f"the last {total - kept} rows belong to an episode that is not closed: left out")
    length = np.diff(ends, prepend=-1) - 1
    # a closing row directly after another one closes an episode without a step
    empty = length == 0
    if empty.all():
        raise DatasetError(f"{source}: d: expected an episode with a step, found closing rows only")
    if empty.any():
        notes.append(f"{empty.sum()} closing rows have no step before them: left out")
    keep = np.ones(kept, bool)
    keep[ends[empty]] = False
    length = length[~empty]
    taken = np.flatnonzero(keep)
    # the arrays are large: none is copied without need, or kept longer than needed
    cut = lambda values: values[:kept] if keep.all() else values[:kept][keep]
    single = lambda key: columns.single(cut(arrays.pop(key)), source, key, lambda row: f"row {taken[row]}")
    steps = np.delete(taken, final_rows(length))
    place = {"pick": steps, "where": lambda row: f"row {steps[row]}"}
    action = columns.actions(arrays.pop("a"), (total, agents), source, "a", **place)
    reward = rows.per_agent(arrays.pop("r"), agents, source, "r")[steps]
    reward = rows.team_reward(columns.single(reward, source, "r", place["where"]))
    state = single("s")
    values = {"obs": single("o"), "global_state": rows.shared_state(state) if state.ndim == 3 else state}
    values |= rows.with_final_rows({"action": action, "reward": reward}, {}, length)
    ended = np.ones(len(length), bool)
    return rows.Reading(rows.episodes(values, length, ended), notes, ended)


def write(file: Any, episodes: Episodes) -> None:
    """Write the rows into an open file; the layout cannot store legal actions or why an episode ended.

    Args:
        file: an empty h5py file.
        episodes: episodes with continuous actions.
    """
    agents = episodes.obs.shape[1]
    done = np.zeros((len(episodes.reward), agents), np.float32)
    done[final_rows(episodes.length)] = 1
    every = lambda values: np.repeat(values[:, None], agents, axis=1)
    layout = (every(episodes.global_state), episodes.obs, episodes.action, every(episodes.reward)[..., None], done)
    for key, values in zip(KEYS, layout, strict=True):
        file.create_dataset(key, data=values, compression="gzip", compression_opts=1, shuffle=True)
