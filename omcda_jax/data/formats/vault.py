"""Vaults of Flashbax, in which OG-MARL publishes its datasets (Formanek et al.): zarr arrays in one OCDBT database.

A folder with metadata.json, in which `structure_shape` names the arrays, and a store `vault_index`, which says how many
rows are written. Arrays have shape [B, T, ...], with B lanes of rows (OG-MARL has one) and agents on the third axis:
observations, actions, rewards, terminals, truncations and, optionally, infos.state and infos.legals. Nothing follows
the last step of an episode. So if the time limit cut an episode, its last step has no successor: the step is left out,
and its observation ends the episode.
"""

import json
import os
from ast import literal_eval
from collections.abc import Iterator
from typing import Any

import numpy as np

from omcda_jax.data import guess, h5
from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.data.formats import columns, rows
from omcda_jax.system import one_line
from omcda_jax.types import DatasetError, EnvSpec

VERSION = 1.2
_MANIFEST, _METADATA = "manifest.ocdbt", "metadata.json"
_REQUIRED = ("observations", "actions", "rewards", "terminals", "truncations")
_TIME_AXIS = int(10e12)


def matches(path: str) -> bool:
    """Return whether a folder looks like this layout, even if its description or its arrays are missing."""
    # orbax stores its checkpoints in such a database too
    if guess.is_checkpoint(path):
        return False
    return guess.describes_arrays(path) or {_MANIFEST, "d"} <= guess.visible(path)


def read(path: str) -> rows.Reading:
    """Read a vault; its lanes are read one after another as if they were one.

    Args:
        path: its folder, which contains metadata.json.

    Raises:
        DatasetError: metadata or arrays are missing, damaged or not in OG-MARL's layout.
    """
    arrays, lanes, count = _read_arrays(path)
    total = lanes * count
    where = lambda row: f"row {row}" if lanes == 1 else f"lane {row // count}, row {row % count}"
    flat = lambda name: arrays[name].reshape(total, *arrays[name].shape[2:])
    obs = columns.single(flat("observations"), path, "observations", where)
    agents = obs.shape[1]
    wide = lambda name: rows.per_agent(flat(name), agents, path, name)
    ended, cut = (columns.flags(wide(name), path, name, where) for name in ("terminals", "truncations"))
    ended, cut = (np.broadcast_to(values, (total, agents)) for values in (ended, cut))
    last, terminated, kept, notes = _episodes(ended, cut, lanes, path)
    if "infos.state" in arrays:
        state = columns.single(flat("infos.state"), path, "infos.state", where)
        state = rows.shared_state(state) if state.ndim == 3 else state
    else:
        state = obs.reshape(total, -1)
        notes.append("no infos.state: the observations of all agents form the state")
    seen, legal = {"obs": obs, "global_state": state}, None
    if "infos.legals" in arrays:
        legals = flat("infos.legals")
        seen["avail"], legal = columns.flags(legals, path, "infos.legals", where), legals.shape[2]
    pick = np.flatnonzero(kept)
    there = {"pick": pick, "where": lambda row: where(int(pick[row]))}
    action = columns.actions(flat("actions"), (total, agents), path, "actions", count=legal, **there)
    reward = columns.single(wide("rewards"), path, "rewards", where)
    seen = {name: values[kept] for name, values in seen.items()}
    taken = {"action": action, "reward": rows.team_reward(reward[kept])}
    reading = rows.without_successors(seen, taken, last, terminated, path)
    return reading._replace(notes=[*notes, *reading.notes])


def _episodes(
    ended: np.ndarray, cut: np.ndarray, lanes: int, path: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return the episodes' last rows among those kept [E], which the task ended [E], which are kept [B * T], notes."""
    total, count = len(ended), len(ended) // lanes
    kept = np.zeros(total, bool)
    lasts, terminated, notes, before = [], [], [], 0
    for start in range(0, total, count):
        last, by_task, more = rows.ends(ended[start : start + count], cut[start : start + count])
        notes += [f"lane {start // count}: {note}" if lanes > 1 else note for note in more]
        lasts.append(last + before)
        terminated.append(by_task)
        rest = int(last[-1]) + 1 if len(last) else 0
        kept[start : start + rest] = True
        before += rest
    if not before:
        raise DatasetError(f"{path}: terminals, truncations: expected an end of at least one episode, found none")
    if before < total:
        which = "the last" if lanes == 1 else "in all lanes together, the last"
        notes.append(f"{which} {total - before} rows belong to an episode that does not end: left out")
    if lanes > 1:
        notes.append(f"{lanes} lanes, read one after another")
    return np.concatenate(lasts), np.concatenate(terminated), kept, notes


def _read_arrays(path: str) -> tuple[dict[str, np.ndarray], int, int]:
    """Return a vault's arrays [B, T, ...], with ranks and agents checked, the number of lanes B and of rows T."""
    names = dict(_leaves(_structure(path)))
    rows.require_keys(sorted(names), _REQUIRED, path)
    count = _index(path)
    if count < 1:
        raise DatasetError(f"{path}: vault_index: expected at least one row, found {count}")
    h5.require_room(path, "vault_index", stored_bytes(path))
    wanted = (*_REQUIRED, *(name for name in ("infos.state", "infos.legals") if name in names))
    arrays = {name: _rows(path, name, names[name], count) for name in wanted}
    lanes, _, agents = columns.numbers(arrays["observations"], path, "observations", (4,)).shape[:3]
    if not lanes:
        raise DatasetError(f"{path}: observations: expected at least one lane, found none")
    ranks = {"actions": (3, 4), "infos.legals": (4,), "infos.state": (3, 4)}
    for name, values in arrays.items():
        columns.numbers(values, path, name, ranks.get(name, (4,) if name == "observations" else (2, 3, 4)))
        if len(values) != lanes or values.shape[1] != count:
            raise DatasetError(
                f"{path}: {name}: expected {lanes} lanes of {count} rows, as observations has, found shape"
                f" {values.shape}"
            )
        by_agent = name in ("actions", "infos.legals") or name == "infos.state" and values.ndim == 4
        if by_agent and values.shape[2] != agents:
            raise DatasetError(
                f"{path}: {name}: expected {agents} agents, as observations has, found {values.shape[2]}"
            )
    return arrays, lanes, count


def stored_bytes(path: str) -> int:
    """Return the number of bytes of a vault's written rows in all its arrays, unpacked.

    Args:
        path: its folder.

    Raises:
        DatasetError: metadata or arrays are missing or damaged.
    """
    arrays = [_array(path, name) for name, _ in _leaves(_structure(path))]
    row = sum(int(np.prod([array.shape[0], *array.shape[2:]])) * array.dtype.numpy_dtype.itemsize for array in arrays)
    return _index(path) * row


def _index(path: str) -> int:
    """Return how many rows of every lane are written."""
    index = _array(path, "vault_index")
    try:
        return int(index.read().result().reshape(-1)[0])
    except Exception as error:
        raise DatasetError(f"{path}: vault_index: damaged: {_plain(error)}") from error


def write(path: str, spec: EnvSpec, episodes: Episodes, metadata: dict[str, Any]) -> None:
    """Write a vault, which flashbax reads too; the observation after the last step is lost, as in all vaults.

    Args:
        path: a folder that does not exist yet.
        spec: the task's sizes.
        episodes: the data.
        metadata: metadata of the dataset; plain numbers and text go into metadata.json.
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
        with open(os.path.join(path, _METADATA), encoding="utf-8") as file:
            metadata = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: {_METADATA}: expected a vault's description, found: {one_line(error)}") from error
    structure = metadata.get("structure_shape") if isinstance(metadata, dict) else None
    if not isinstance(structure, dict):
        found = guess.value(structure)
        raise DatasetError(f"{path}: {_METADATA}: structure_shape: expected the arrays' shapes, found {found}")
    return structure


def _leaves(tree: dict[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _rows(path: str, name: str, shape: Any, count: int) -> np.ndarray:
    """Return the first `count` rows of all lanes; check the shape too, because a store cut short reads as zeros."""
    array = _array(path, name)
    try:
        lanes, _, *rest = (int(size) for size in literal_eval(shape))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        found = guess.value(shape)
        raise DatasetError(f"{path}: {name}: expected a shape (B, T, ...) in {_METADATA}, found {found}") from error
    if len(array.shape) < 2 or (array.shape[0], *array.shape[2:]) != (lanes, *rest):
        with_time = lambda sizes: f"({', '.join(str(size) for size in (sizes[0], 'T', *sizes[1:]))})"
        found = with_time((array.shape[0], *array.shape[2:])) if len(array.shape) > 1 else tuple(array.shape)
        raise DatasetError(f"{path}: {name}: expected shape {with_time((lanes, *rest))}, found {found}")
    if count > array.shape[1]:
        raise DatasetError(f"{path}: vault_index: expected at most {array.shape[1]} rows, as {name} has, found {count}")
    try:
        return array[:, :count].read().result()
    except Exception as error:
        raise DatasetError(f"{path}: {name}: damaged: {_plain(error)}") from error


def _plain(error: BaseException) -> str:
    """Return a message of tensorstore without the places in its source code."""
    return one_line(error).split(" [")[0]


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
        raise DatasetError(f"{path}: {name}: expected a zarr array, found: {_plain(error)}") from error
