"""The particle and MuJoCo data of OMAR (Pan et al., ICML 2022) and CFCQL's continuous data: a folder of NumPy files.

For each agent i: obs_i.npy, acs_i.npy, rews_i.npy, next_obs_i.npy, dones_i.npy and, for MuJoCo, states_i.npy and
next_states_i.npy, one row per transition. An episode goes on while the next row's observation equals this row's
`next_obs`.
"""

import re

import numpy as np

from omcda_jax.data import guess
from omcda_jax.data.formats import columns, npy, rows
from omcda_jax.types import DatasetError

_PARTS = ("obs", "acs", "rews", "next_obs", "dones")
_STATES = ("states", "next_states")


def matches(names: set[str]) -> bool:
    """Return whether the names of a folder's files look like this layout."""
    return any(re.fullmatch(r"(obs|acs|rews|next_obs|dones)_\d+\.npy", name) for name in names)


def read(path: str) -> rows.Reading:
    """Read a folder.

    If agents' observations or actions differ in size, they are padded with zeros. Without states, the state is all
    agents' observations.

    Args:
        path: the folder.

    Raises:
        DatasetError: a file is missing or damaged, or its shape or type is not the layout's.
    """
    names = guess.visible(path)
    known = "|".join(_PARTS + _STATES)
    numbers = (match[2] for name in names if (match := re.fullmatch(rf"({known})_(\d{{1,3}})\.npy", name)))
    agents = 1 + max(map(int, numbers), default=0)
    expected = [f"{part}_{agent}.npy" for agent in range(agents) for part in _PARTS]
    rows.require_keys(sorted(names), expected, path)
    parts = _PARTS + (_STATES if f"{_STATES[0]}_0.npy" in names else ())
    rows.require_keys(sorted(names), [f"{part}_{agent}.npy" for agent in range(agents) for part in parts], path)
    arrays = {part: [_load(path, part, agent) for agent in range(agents)] for part in parts}
    total = rows.require_rows({f"{part}_{i}.npy": each for part in parts for i, each in enumerate(arrays[part])}, path)
    seen, later, notes = _observed(arrays, path)
    flat = lambda part: np.stack([values.reshape(total) for values in arrays[part]], axis=1)
    done = flat("dones")
    goes_on = np.append((later["obs"][:-1] == seen["obs"][1:]).all(axis=(1, 2)), False)
    ends, terminated, more = rows.ends(done, np.zeros_like(done), ~goes_on)
    length = np.diff(ends, prepend=-1)
    if len(length) == total > 1:
        notes.append("no row follows the one before it: every transition is an episode of its own")
    action = _padded(arrays["acs"])
    steps = {
        **seen,
        "avail": np.broadcast_to(_present(arrays["acs"], action.shape[2]), action.shape),
        "action": action,
        "reward": flat("rews"),
    }
    finals = {name: values[ends] for name, values in later.items()} | {"avail": steps["avail"][ends]}
    joined = rows.with_final_rows(steps, finals, length)
    return rows.Reading(rows.episodes(joined, length, terminated), [*notes, *more], np.ones(len(length), bool))


def _observed(
    arrays: dict[str, list[np.ndarray]], path: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Return observations and states of all rows, those after them, and notes."""
    for part in ("obs", "states"):
        for agent, (now, after) in enumerate(zip(arrays.get(part, ()), arrays.get(f"next_{part}", ()), strict=True)):
            if now.shape != after.shape:
                raise DatasetError(
                    f"{path}: next_{part}_{agent}.npy: expected shape {now.shape}, as {part}_{agent}.npy has, found"
                    f" {after.shape}"
                )
    obs, after = _padded(arrays["obs"]), _padded(arrays["next_obs"])
    if "states" not in arrays:
        state, later = (np.concatenate(arrays[part], axis=1) for part in ("obs", "next_obs"))
        notes = ["no states: the observations of all agents form the state"]
        return {"obs": obs, "global_state": state}, {"obs": after, "global_state": later}, notes
    states, nexts = (_padded(arrays[part]) for part in _STATES)
    both = rows.shared_state(np.concatenate([states, nexts]))
    return {"obs": obs, "global_state": both[: len(obs)]}, {"obs": after, "global_state": both[len(obs) :]}, []


def _load(path: str, part: str, agent: int) -> np.ndarray:
    name = f"{part}_{agent}.npy"
    flat = part in ("rews", "dones")
    values = columns.numbers(npy.load(path, name), path, name, (1, 2) if flat else (2,))
    if flat:
        values = rows.per_agent(values, 1, path, name)
    if part == "dones":
        return columns.flags(values, path, name)
    if part == "acs":
        if values.dtype.kind != "f":
            raise DatasetError(f"{path}: {name}: expected continuous actions, found {values.dtype}")
        return columns.actions(values, values.shape[:1], path, name)[:, 0]
    return columns.single(values, path, name)


def _padded(agents: list[np.ndarray]) -> np.ndarray:
    width = max(values.shape[1] for values in agents)
    return np.stack([np.pad(values, ((0, 0), (0, width - values.shape[1]))) for values in agents], axis=1)


def _present(agents: list[np.ndarray], width: int) -> np.ndarray:
    return np.array([[dimension < values.shape[1] for dimension in range(width)] for values in agents])
