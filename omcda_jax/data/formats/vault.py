"""Vaults of Flashbax, in which OG-MARL publishes its datasets (Formanek et al.): zarr arrays in one OCDBT database.

A folder with metadata.json, whose `structure_shape` names the arrays, and a store `vault_index` that says how many rows
are written. Arrays have shape [1, T, ...], agents on the third axis: observations, actions, rewards, terminals,
truncations, and infos.state and infos.legals where there are any. Nothing follows the last step of an episode, so of
one that the clock cut the last step has no successor: it is left out, and its observation ends the episode.
"""

import json
import os
from ast import literal_eval
from collections.abc import Iterator
from typing import Any

import numpy as np

from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.data.formats import rows
from omcda_jax.system import one_line
from omcda_jax.types import DatasetError, EnvSpec

VERSION = 1.2
_MANIFEST, _METADATA = "manifest.ocdbt", "metadata.json"
_REQUIRED = ("observations", "actions", "rewards", "terminals", "truncations")
_TIME_AXIS = int(10e12)


def matches(names: set[str]) -> bool:
    """Return whether the names of a folder's files look like this layout."""
    return bool(names & {_MANIFEST, _METADATA})


def read(path: str) -> tuple[Episodes, list[str]]:
    """Read a vault.

    Args:
        path: its folder, the one with metadata.json.

    Returns:
        The episodes, and notes on what was left out.

    Raises:
        DatasetError: metadata or arrays are missing, damaged or not as OG-MARL lays them out.
    """
    arrays, count = _read_arrays(path)
    obs, notes = arrays["observations"], []
    ended = arrays["terminals"].reshape(count, -1).all(axis=1)
    cut = arrays["truncations"].reshape(count, -1).all(axis=1) & ~ended
    ends = np.flatnonzero(ended | cut)
    if not len(ends):
        raise DatasetError(f"{path}: terminals: expected an end of at least one episode, found none")
    if ends[-1] + 1 < count:
        notes.append(f"the last {count - ends[-1] - 1} rows belong to an episode that does not end: left out")
    stored = np.diff(ends, prepend=-1)
    truncated = cut[ends]
    length = stored - truncated
    if truncated.any():
        notes.append(
            f"{truncated.sum()} episodes were cut by the clock; what followed their last step is not stored:"
            " that step is left out"
        )
    if (length == 0).any():
        notes.append(f"{(length == 0).sum()} episodes without a step that has a successor: left out")
    keep = length > 0
    if not keep.any():
        raise DatasetError(f"{path}: truncations: expected an episode with a step and its successor, found none")
    if "infos.state" not in arrays:
        notes.append("no infos.state: all agents' observations make the state")
    seen = {"obs": obs, "global_state": arrays.get("infos.state", obs).reshape(count, -1)}
    if "infos.legals" in arrays:
        seen["avail"] = arrays["infos.legals"] != 0
    action = arrays["actions"]
    action = action[..., 0] if action.ndim == 3 and action.dtype.kind in "iu" else action
    episode = np.repeat(np.arange(len(ends)), stored)
    last = np.isin(np.arange(len(episode)), ends)
    is_step = keep[episode] & ~(last & truncated[episode])
    values = {**seen, "action": action, "reward": arrays["rewards"]}
    steps = {name: array[: len(episode)][is_step] for name, array in values.items()}
    # after an ending nothing counts, so the last observation will do for the one that is not stored
    finals = {name: array[ends[keep]] for name, array in seen.items()}
    joined = rows.with_final_rows(steps, finals, length[keep])
    return rows.episodes(joined, length[keep], ~truncated[keep]), notes


def _read_arrays(path: str) -> tuple[dict[str, np.ndarray], int]:
    """A vault's arrays with their ranks and agents checked, and their number of rows."""
    names = dict(_leaves(_structure(path)))
    rows.require_keys(sorted(names), _REQUIRED, path)
    count = int(_array(path, "vault_index").read().result()[0])
    if count < 1:
        raise DatasetError(f"{path}: vault_index: expected at least one row, found {count}")
    wanted = (*_REQUIRED, *(name for name in ("infos.state", "infos.legals") if name in names))
    arrays = {name: _rows(path, name, names[name], count) for name in wanted}
    agents = rows.numbers(arrays["observations"], path, "observations", (3,)).shape[1]
    for name in ("actions", "rewards", "terminals", "truncations"):
        rows.numbers(arrays[name], path, name, (2, 3) if name == "actions" else (1, 2))
        if arrays[name].ndim > 1 and arrays[name].shape[1] != agents:
            raise DatasetError(
                f"{path}: {name}: expected {agents} agents, as observations has, found {arrays[name].shape[1]}"
            )
    if "infos.legals" in arrays:
        rows.numbers(arrays["infos.legals"], path, "infos.legals", (3,))
    return arrays, count


def stored_bytes(path: str) -> int:
    """Return the bytes of a vault's written rows, unpacked, of all its arrays.

    Args:
        path: its folder.

    Raises:
        DatasetError: metadata or arrays are missing or damaged.
    """
    arrays = [_array(path, name) for name, _ in _leaves(_structure(path))]
    row = sum(int(np.prod(array.shape[2:])) * array.dtype.numpy_dtype.itemsize for array in arrays)
    return int(_array(path, "vault_index").read().result()[0]) * row


def write(path: str, spec: EnvSpec, episodes: Episodes, metadata: dict[str, Any]) -> None:
    """Write a vault, which flashbax reads too; the observation after the last step is lost, as in all vaults.

    Args:
        path: a folder that is not there yet.
        spec: the task's sizes.
        episodes: the data.
        metadata: of the dataset; plain numbers and text go into metadata.json.
    """
    agents = spec.num_agents
    steps = np.delete(np.arange(len(episodes.reward)), final_rows(episodes.length))
    ends = np.cumsum(episodes.length) - 1
    ended, cut = (np.zeros((len(steps), agents), bool) for _ in range(2))
    ended[ends], cut[ends] = episodes.terminated[:, None], ~episodes.terminated[:, None]
    arrays = {
        "observations": episodes.obs[steps],
        "actions": episodes.action[steps],
        "rewards": np.repeat(episodes.reward[steps][:, None], agents, axis=1),
        "terminals": ended,
        "truncations": cut,
        "infos.state": episodes.global_state[steps],
    }
    if spec.discrete:
        arrays["infos.legals"] = episodes.avail[steps]
    os.makedirs(path)
    shapes, kinds = ({"infos": {}} for _ in range(2))
    for name, values in arrays.items():
        *group, leaf = name.split(".")
        shape, kind = (tree[group[0]] if group else tree for tree in (shapes, kinds))
        shape[leaf], kind[leaf] = str((1, *values.shape)), values.dtype.name
        store = _array(path, name, shape=(1, _TIME_AXIS, *values.shape[1:]), dtype=values.dtype)
        store[:, : len(values)].write(values[None]).result()
    _array(path, "vault_index", shape=(1,), dtype=np.int32).write(len(steps)).result()
    plain = {key: value for key, value in metadata.items() if isinstance(value, bool | int | float | str)}
    description = {"version": VERSION, "structure_shape": shapes, "structure_dtype": kinds}
    with open(os.path.join(path, _METADATA), "w") as file:
        json.dump(plain | description, file)


def _structure(path: str) -> dict[str, Any]:
    try:
        with open(os.path.join(path, _METADATA)) as file:
            metadata = json.load(file)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {_METADATA}: expected a vault's description, found: {error}") from error
    structure = metadata.get("structure_shape") if isinstance(metadata, dict) else None
    if not isinstance(structure, dict):
        raise DatasetError(f"{path}: {_METADATA}: structure_shape: expected the arrays' shapes, found {structure!r}")
    return structure


def _leaves(tree: dict[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _rows(path: str, name: str, shape: str, count: int) -> np.ndarray:
    """The first `count` rows; a store that is cut short reads as zeros, so its shape is compared too."""
    array = _array(path, name)
    try:
        expected = literal_eval(shape)[2:]
    except (ValueError, SyntaxError, TypeError) as error:
        raise DatasetError(f"{path}: {name}: expected a shape in {_METADATA}, found {shape!r}") from error
    if array.shape[0] != 1 or tuple(array.shape[2:]) != tuple(expected):
        raise DatasetError(f"{path}: {name}: expected shape (1, T, *{expected}), found {tuple(array.shape)}")
    try:
        return array[0, :count].read().result()
    except Exception as error:
        raise DatasetError(f"{path}: {name}: damaged: {one_line(error)}") from error


def _array(path: str, name: str, **created: Any) -> Any:
    import tensorstore

    store = name if name == "vault_index" else f"{name}."
    base = f"file://{os.path.abspath(path)}"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": store}, "metadata": {}}
    if created and name != "vault_index":
        spec["metadata"]["compressor"] = {"id": "gzip", "level": 5}
    try:
        return tensorstore.open(spec, create=bool(created), open=not created, **created).result()
    except Exception as error:
        raise DatasetError(f"{path}: {name}: expected a zarr array, found: {one_line(error)}") from error
