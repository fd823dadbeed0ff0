"""The particle and MuJoCo data of OMAR (Pan et al., ICML 2022), CFCQL's continuous ones too: a folder of NumPy files.

For each agent i: obs_i.npy, acs_i.npy, rews_i.npy, next_obs_i.npy, dones_i.npy and, for MuJoCo, states_i.npy and
next_states_i.npy, one row per transition. An episode goes on while the next row observes what this one's `next_obs`
says.
"""

import os
import re

import numpy as np

from omcda_jax.data.episodes import Episodes
from omcda_jax.data.formats import rows
from omcda_jax.system import one_line
from omcda_jax.types import DatasetError

_PARTS = ("obs", "acs", "rews", "next_obs", "dones")
_STATES = ("states", "next_states")


def matches(names: set[str]) -> bool:
    """Return whether the names of a folder's files look like this layout."""
    return any(re.fullmatch(r"(obs|acs|rews|next_obs|dones)_\d+\.npy", name) for name in names)


def read(path: str) -> tuple[Episodes, list[str]]:
    """Read a folder.

    Args:
        path: the folder.

    Returns:
        The episodes, and notes on what was made of them. Agents' observations and actions of different sizes are
        padded with zeros; without states the state is all agents' observations.

    Raises:
        DatasetError: a file is missing or damaged, or its shape or type is not the layout's.
    """
    names = set(os.listdir(path))
    agents = 1 + max(int(match[1]) for name in names if (match := re.fullmatch(r"\w+_(\d+)\.npy", name)))
    expected = [f"{part}_{agent}.npy" for agent in range(agents) for part in _PARTS]
    rows.require_keys(sorted(names), expected, path)
    parts = _PARTS + (_STATES if f"{_STATES[0]}_0.npy" in names else ())
    arrays = {part: [_load(path, f"{part}_{agent}.npy") for agent in range(agents)] for part in parts}
    flat = {f"{part}_{agent}.npy": values for part in parts for agent, values in enumerate(arrays[part])}
    rows.require_rows(flat, path)
    obs, after = _padded(arrays["obs"]), _padded(arrays["next_obs"])
    if obs.shape != after.shape:
        raise DatasetError(f"{path}: next_obs: expected shape {obs.shape}, as obs, found {after.shape}")
    notes = []
    if "states" in arrays:
        state, later = (rows.shared_state(_padded(arrays[part])) for part in _STATES)
        if state.shape != later.shape:
            raise DatasetError(f"{path}: next_states: expected shape {state.shape}, as states, found {later.shape}")
    else:
        state, later = (np.concatenate(arrays[part], axis=1) for part in ("obs", "next_obs"))
        notes.append("no states: all agents' observations make the state")
    done = np.stack([values.reshape(len(values)) for values in arrays["dones"]], axis=1).all(axis=1)
    goes_on = ~done & np.append((after[:-1] == obs[1:]).all(axis=(1, 2)), False)
    ends = np.flatnonzero(~goes_on)
    length = np.diff(ends, prepend=-1)
    if len(length) == len(done) > 1:
        notes.append("no row follows the one before it: every transition is an episode of its own")
    action = _padded(arrays["acs"])
    steps = {
        "obs": obs,
        "global_state": state,
        "avail": np.broadcast_to(_present(arrays["acs"], action.shape[2]), action.shape),
        "action": action.astype(np.float32),
        "reward": np.stack([values.reshape(len(values)) for values in arrays["rews"]], axis=1),
    }
    finals = {"obs": after[ends], "global_state": later[ends], "avail": steps["avail"][ends]}
    return rows.episodes(rows.with_final_rows(steps, finals, length), length, done[ends]), notes


def _load(path: str, name: str) -> np.ndarray:
    try:
        values = np.load(os.path.join(path, name), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: {name}: expected a NumPy file, found: {one_line(error)}") from error
    flat = name.startswith(("rews", "dones"))
    return rows.numbers(values, path, name, (1, 2) if flat else (2,))


def _padded(agents: list[np.ndarray]) -> np.ndarray:
    width = max(values.shape[1] for values in agents)
    return np.stack([np.pad(values, ((0, 0), (0, width - values.shape[1]))) for values in agents], axis=1)


def _present(agents: list[np.ndarray], width: int) -> np.ndarray:
    return np.array([[dimension < values.shape[1] for dimension in range(width)] for values in agents])
