"""The multi-agent MuJoCo files of OMIGA (Wang et al., NeurIPS 2023): HDF5, flat rows s, o, a, r, d.

A row with d = 1 is the extra one that closes an episode: it holds the observation after the last step. The file does
not tell an end from the time limit. States and observations are per agent, actions continuous, one reward per row.
"""

from typing import Any

import numpy as np

from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.data.formats import rows
from omcda_jax.types import DatasetError

KEYS = ("s", "o", "a", "r", "d")


def matches(keys: set[str]) -> bool:
    """Return whether a file's keys look like this layout, even if one is missing."""
    return len(keys & set(KEYS)) >= 3 and not keys & {"obs", "actions"}


def read(file: Any, source: str) -> tuple[Episodes, list[str]]:
    """Read an open file.

    Args:
        file: of h5py.
        source: its path.

    Returns:
        The episodes, and notes on what was left out.

    Raises:
        DatasetError: a key, shape or type is not the layout's, or no episode is closed.
    """
    rows.require_keys(list(file), KEYS, source)
    arrays = {key: rows.numbers(file[key][()], source, key, ranks) for key, ranks in zip(KEYS, _RANKS, strict=True)}
    rows.require_rows(arrays, source)
    obs, action, done = arrays["o"], arrays["a"], arrays["d"]
    if action.dtype.kind != "f":
        raise DatasetError(f"{source}: a: expected floating-point actions, found {action.dtype}")
    if obs.shape[1] != action.shape[1]:
        raise DatasetError(f"{source}: a: expected {obs.shape[1]} agents, as o has, found {action.shape[1]}")
    done = done.reshape(len(done), -1)[:, 0] != 0
    ends = np.flatnonzero(done)
    if not len(ends):
        raise DatasetError(f"{source}: d: expected a 1 on each episode's closing row, found none")
    notes = []
    kept = ends[-1] + 1
    if kept < len(done):
        notes.append(f"the last {len(done) - kept} rows belong to an episode that is not closed: left out")
    length = np.diff(ends, prepend=-1) - 1
    # a closing row right after another closes an episode without a step
    empty = length == 0
    if empty.any():
        notes.append(f"{empty.sum()} closing rows have no step before them: left out")
    keep = np.ones(kept, bool)
    keep[ends[empty]] = False
    length = length[~empty]
    # the arrays are large: none is copied that need not be, or held longer
    cut = lambda values: values[:kept] if keep.all() else values[:kept][keep]
    state = cut(arrays.pop("s"))
    state = rows.shared_state(state) if state.ndim == 3 else state
    values = {
        "obs": cut(obs),
        "global_state": state,
        "action": cut(action),
        "reward": cut(arrays["r"].reshape(len(done), -1)),
    }
    final = final_rows(length)
    values["action"][final], values["reward"][final] = 0, 0
    return rows.episodes(values, length, np.ones(len(length), bool)), notes


_RANKS = ((2, 3), (3,), (3,), (1, 2, 3), (1, 2))


def write(file: Any, episodes: Episodes) -> None:
    """Write the rows into an open file; what the layout cannot hold is lost: legal actions, why an episode ended.

    Args:
        file: of h5py, empty.
        episodes: with continuous actions.
    """
    agents = episodes.obs.shape[1]
    done = np.zeros((len(episodes.reward), agents), np.float32)
    done[final_rows(episodes.length)] = 1
    every = lambda values: np.repeat(values[:, None], agents, axis=1)
    columns = (every(episodes.global_state), episodes.obs, episodes.action, every(episodes.reward)[..., None], done)
    for key, values in zip(KEYS, columns, strict=True):
        file.create_dataset(key, data=values, compression="gzip", compression_opts=1, shuffle=True)
