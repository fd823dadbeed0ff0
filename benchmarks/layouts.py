"""Valid files of every format, made of arrays, and a plain second reading of them, step by step.

A layout is a dictionary of arrays by name (MADT: by file and entry). `LAYOUTS` says for each format how to draw a
layout, how to write it, how to get the arrays back with the format's own library, and which episodes are in them.
Nothing here reads with `omcda_jax.data`.
"""

import io
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py
import numpy as np

from omcda_jax.data import hdf5

AGENTS, OBS, STATE, ACTIONS = 3, 4, 5, 4


class Unreadable(Exception):
    """The arrays contain no readable episodes."""


class Episode(NamedTuple):
    """One episode as float64 arrays: L steps, and the observations after them."""

    obs: np.ndarray  # [L + 1, N, O]
    state: np.ndarray  # [L + 1, S]
    avail: np.ndarray | None  # [L + 1, N, A]
    action: np.ndarray  # [L, N] or [L, N, A]
    reward: np.ndarray  # [L]
    terminated: bool


class Layout(NamedTuple):
    """How to draw, write, decode and read one format."""

    draw: Callable[[np.random.Generator], dict[str, np.ndarray]]
    write: Callable[[pathlib.Path, dict[str, np.ndarray]], None]
    decode: Callable[[pathlib.Path], dict[str, np.ndarray]]
    read: Callable[[dict[str, np.ndarray]], list[Episode]]


def _need(condition: Any) -> None:
    if not np.all(condition):
        raise Unreadable


def _flag(value: Any) -> bool:
    _need(value in (0, 1))
    return bool(value)


def _team(values: Any) -> float:
    values = np.ravel(values).astype(np.float64)
    _need(values == values[0])
    return values[0]


def _action(entry: np.ndarray, discrete: bool) -> Any:
    """One agent's action: an index from a number or from an array with one number, or a vector."""
    entry = np.asarray(entry)
    if not discrete:
        return entry.astype(np.float64)
    _need(entry.size == 1)
    value = float(entry.reshape(()))
    _need(value == int(value))
    return int(value)


def _stream(seen: Callable, taken: Callable, flags: Callable, rows: int, closed: Callable = lambda t: False) -> list:
    """Episodes of a layout without next observations.

    Args:
        seen: function of a row: obs, state, avail.
        taken: function of a row: action, reward.
        flags: function of a row: for which agents the task ended, and which the time limit cut.
        rows: number of rows.
        closed: function of a row: whether the file says that an episode is over after it.
    """
    found, begin, ended, cut = [], 0, None, None
    for t in range(rows):
        by_task, by_clock = (np.array([_flag(value) for value in side]) for side in flags(t))
        ended = by_task if ended is None else ended | by_task
        cut = by_clock if cut is None else cut | by_clock
        if not ((ended | cut).all() or closed(t)):
            continue
        terminated = bool(ended.all())
        steps = list(range(begin, t + 1 if terminated else t))
        if steps:
            found.append(_episode([*map(seen, steps), seen(t)], [*map(taken, steps)], terminated))
        begin, ended, cut = t + 1, None, None
    return found


def _episode(seen: list, taken: list, terminated: bool) -> Episode:
    obs, state, avail = zip(*seen, strict=True)
    action, reward = zip(*taken, strict=True)
    legal = None if avail[0] is None else np.array([[[_flag(x) for x in agent] for agent in row] for row in avail])
    return Episode(
        np.array(obs, np.float64), np.array(state, np.float64), legal, np.array(action), np.array(reward), terminated
    )


def _draw_steps(rng: np.random.Generator, rows: int, discrete: bool) -> dict[str, np.ndarray]:
    avail = rng.random((rows, AGENTS, ACTIONS)) < 0.6
    index = rng.integers(0, ACTIONS, (rows, AGENTS))
    np.put_along_axis(avail, index[..., None], True, axis=-1)
    return {
        "obs": rng.normal(size=(rows, AGENTS, OBS)).astype(np.float32),
        "state": rng.normal(size=(rows, STATE)).astype(np.float32),
        "avail": avail,
        "action": index if discrete else rng.uniform(-1, 1, (rows, AGENTS, 2)).astype(np.float32),
        "reward": rng.normal(size=rows).astype(np.float32),
    }


def _lengths(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(2, 6, rng.integers(2, 5))


def _shapes(arrays: dict[str, np.ndarray], expected: dict[str, tuple[Any, ...]]) -> dict[str, int]:
    """Sizes by letter; raises Unreadable if an array is missing, is not numbers, or has another shape."""
    sizes: dict[str, int] = {}
    for key, shape in expected.items():
        values = arrays.get(key)
        _need(values is not None and np.asarray(values).dtype.kind in "fiub")
        _need(np.ndim(values) == len(shape))
        for size, letter in zip(np.shape(values), shape, strict=True):
            _need(size > 0 and sizes.setdefault(letter, size) == size if isinstance(letter, str) else size == letter)
    return sizes


# the project's own files


def draw_own(rng):
    """Two to four episodes, one of them cut by the time limit."""
    length = _lengths(rng)
    steps = _draw_steps(rng, int((length + 1).sum()), True)
    final = np.cumsum(length + 1) - 1
    steps["action"][final], steps["reward"][final] = 0, 0
    ended = np.ones(len(length), bool)
    ended[0] = False
    arrays = {**steps, "action": steps["action"].astype(np.int32), "length": length.astype(np.int32)}
    return {**arrays, "terminated": ended, "won": ended}


def write_own(path, arrays):
    """An HDF5 file that describes itself, checksum and all."""
    spec = {"num_agents": AGENTS, "obs_dim": OBS, "state_dim": STATE, "action_dim": ACTIONS, "discrete": True}
    attributes = {f"spec.{key}": value for key, value in spec.items()}
    attributes |= {"format": hdf5.FORMAT, "format_version": hdf5.VERSION, "environment": "toy/ring"}
    if set(hdf5.KEYS) <= set(arrays):
        attributes["digest"] = hdf5.digest([arrays[key] for key in hdf5.KEYS], attributes)
    write_h5(path, arrays)
    with h5py.File(path, "r+") as file:
        file.attrs.update(attributes)


def read_own(arrays):
    """Episode after episode."""
    found, begin = [], 0
    for length, terminated in zip(arrays["length"], arrays["terminated"], strict=True):
        end = begin + length
        rows = [arrays[key][begin : end + 1].astype(np.float64) for key in ("obs", "state", "avail")]
        _need(len(rows[0]) == length + 1)
        found.append(Episode(*rows, arrays["action"][begin:end], arrays["reward"][begin:end], bool(terminated)))
        begin = end + 1
    _need(begin == len(arrays["obs"]))
    return found


# PyMARL's padded batches, as CFCQL keeps them


def draw_pymarl(rng):
    """Two to four padded episodes, one of them cut by the time limit."""
    length, slots = _lengths(rng), 7
    steps = _draw_steps(rng, len(length) * slots, True)
    batch = {key: values.reshape(len(length), slots, *values.shape[1:]) for key, values in steps.items()}
    filled = (np.arange(slots) <= length[:, None]).astype(np.int64)[..., None]
    terminated = np.zeros_like(filled)
    terminated[np.arange(1, len(length)), length[1:] - 1] = 1
    return {
        "state": batch["state"],
        "obs": batch["obs"],
        "actions": batch["action"][..., None],
        "avail_actions": batch["avail"].astype(np.int32),
        "reward": batch["reward"][..., None],
        "terminated": terminated,
        "filled": filled,
    }


def read_pymarl(arrays):
    """Step by step: an episode lasts until all agents are terminated or the rows are no longer filled."""
    squeezed = dict(arrays)
    for key, axes in (("actions", 4), ("reward", 3), ("terminated", 3), ("filled", 3)):
        if key in arrays and np.ndim(arrays[key]) == axes - 1:
            squeezed[key] = np.asarray(arrays[key])[..., None]
    widths = {key: np.shape(squeezed.get(key, ()))[-1:] or (0,) for key in ("reward", "terminated", "filled")}
    sizes = _shapes(
        squeezed,
        {"state": "ETS", "obs": "ETNO", "avail_actions": "ETNA"}
        | {"actions": ("E", "T", "N", 1)}
        | {key: ("E", "T", width[0]) for key, width in widths.items()},
    )
    _need([width[0] in (1, sizes["N"]) for width in widths.values()])
    found = []
    for e in range(sizes["E"]):
        filled = [_flag(_team(row)) for row in squeezed["filled"][e]]
        count = filled.index(False) if False in filled else len(filled)
        _need(not any(filled[count:]))
        for row in squeezed["terminated"][e]:
            [_flag(value) for value in row]
        seen = lambda t, e=e: tuple(squeezed[key][e, t] for key in ("obs", "state", "avail_actions"))
        taken = lambda t, e=e: (
            [_action(entry, True) for entry in squeezed["actions"][e, t]],
            _team(squeezed["reward"][e, t]),
        )
        done, end = np.zeros(widths["terminated"][0], bool), None
        for t in range(count):
            done = done | np.array([_flag(value) for value in squeezed["terminated"][e, t]])
            if done.all():
                end = t
                break
        steps = list(range(count - 1 if end is None else end + 1))
        if steps:
            last = seen(min(len(steps), count - 1))
            found.append(_episode([*map(seen, steps), last], [*map(taken, steps)], end is not None))
    return found


# flat HDF5: OMIGA and D4RL


def draw_omiga(rng):
    """Two to four episodes, each with a closing row."""
    length = _lengths(rng)
    steps = _draw_steps(rng, int((length + 1).sum()), False)
    done = np.zeros((len(steps["obs"]), AGENTS))
    done[np.cumsum(length + 1) - 1] = 1
    state = np.repeat(steps["state"][:, None], AGENTS, axis=1)
    reward = np.repeat(steps["reward"][:, None, None], AGENTS, axis=1)
    return {"s": state, "o": steps["obs"], "a": steps["action"], "r": reward, "d": done}


def read_omiga(arrays):
    """Step by step: an episode lasts until all agents have had their closing row."""
    shapes = {key: np.shape(arrays.get(key, ())) for key in ("s", "r", "d")}
    per_agent = lambda key: (
        ("T", "N", 1)[: len(shapes[key])] if shapes[key][1:2] != (1,) else ("T", 1, 1)[: len(shapes[key])]
    )
    sizes = _shapes(
        arrays,
        {"o": "TNO", "a": "TND", "s": "TNS" if len(shapes["s"]) == 3 else "TS"}
        | {key: per_agent(key) for key in ("r", "d")},
    )
    _need(arrays["a"].dtype.kind == "f" and len(shapes["d"]) < 3)
    states = arrays["s"]
    same = len(shapes["s"]) == 2 or (np.float32(states) == np.float32(states[:, :1])).all()
    team = lambda t: states[t] if len(shapes["s"]) == 2 else states[t, 0] if same else states[t].reshape(-1)
    found, begin, done = [], 0, None
    for t in range(sizes["T"]):
        now = np.array([_flag(value) for value in np.ravel(arrays["d"][t])])
        done = now if done is None else done | now
        if done.all():
            if t > begin:
                seen = [(arrays["o"][k], team(k), None) for k in range(begin, t + 1)]
                taken = [(arrays["a"][k], _team(arrays["r"][k])) for k in range(begin, t)]
                found.append(_episode(seen, taken, True))
            begin, done = t + 1, None
    return found


def draw_d4rl(rng):
    """Two to four episodes of one agent, one of them cut by the time limit; every other time with next_observations."""
    length = _lengths(rng)
    steps = _draw_steps(rng, int(length.sum()), False)
    ends = np.cumsum(length) - 1
    terminals, timeouts = (np.zeros(len(steps["obs"]), bool) for _ in range(2))
    terminals[ends[1:]], timeouts[ends[:1]] = True, True
    obs = steps["obs"][:, 0]
    arrays = {
        "observations": obs,
        "actions": steps["action"][:, 0],
        "rewards": steps["reward"],
        "terminals": terminals,
        "timeouts": timeouts,
    }
    if rng.random() < 0.5:
        following = np.append(obs[1:], rng.normal(size=(1, OBS)), axis=0).astype(np.float32)
        following[ends] = rng.normal(size=(len(ends), OBS))
        arrays["next_observations"] = following
    return arrays


def read_d4rl(arrays):
    """Step by step, by the flags or by what follows."""
    flat = lambda key: "T" if np.ndim(arrays.get(key, 0)) == 1 else ("T", 1)
    names = [key for key in ("rewards", "terminals", "timeouts") if key in arrays or key != "timeouts"]
    action = np.asarray(arrays.get("actions", 0))
    sizes = _shapes(
        arrays,
        {"observations": "TO", "actions": "T" if action.ndim == 1 else "TD"}
        | {key: flat(key) for key in names}
        | ({"next_observations": "TO"} if "next_observations" in arrays else {}),
    )
    discrete = action.ndim == 1 or action.dtype.kind != "f"
    obs, after = np.float32(arrays["observations"]), arrays.get("next_observations")
    flags = lambda t: tuple(np.ravel(arrays[key][t]) if key in arrays else [0] for key in ("terminals", "timeouts"))
    seen = lambda t: (arrays["observations"][t][None], arrays["observations"][t], None)
    taken = lambda t: ([_action(action[t], discrete)], _team(arrays["rewards"][t]))
    if after is None:
        return _stream(seen, taken, flags, sizes["T"])
    found, begin = [], 0
    for t in range(sizes["T"]):
        terminal, timeout = (_flag(side[0]) for side in flags(t))
        if terminal or timeout or t + 1 == sizes["T"] or (np.float32(after[t]) != obs[t + 1]).any():
            last = (after[t][None], after[t], None)
            rows = range(begin, t + 1)
            found.append(_episode([*map(seen, rows), last], [*map(taken, rows)], terminal))
            begin = t + 1
    return found


def write_h5(path, arrays):
    """One HDF5 file."""
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file[key] = values.astype("S") if values.dtype.kind == "U" else values


def decode_h5(path):
    """All arrays of an HDF5 file."""
    with h5py.File(path, "r") as file:
        return {key: file[key][()] for key in file}


def write_parts(path, arrays):
    """A folder of two parts; of the padded batches, cut along the episodes."""
    path.mkdir()
    half = max(1, max(len(np.atleast_1d(values)) for values in arrays.values()) // 2)
    for number, part in ((2, slice(None, half)), (10, slice(half, None))):
        write_h5(path / f"part_{number}.h5", {key: np.atleast_1d(values)[part] for key, values in arrays.items()})


def decode_parts(path):
    """The arrays of both parts, each under its own name."""
    parts = sorted(path.glob("part_*.h5"), key=lambda part: int(part.stem.split("_")[1]))
    return {f"{part.stem}/{key}": values for part in parts for key, values in decode_h5(part).items()}


def read_parts(arrays):
    """One part after another."""
    names = dict.fromkeys(key.split("/")[0] for key in arrays)
    return [
        episode
        for name in names
        for episode in read_pymarl({k.split("/")[1]: v for k, v in arrays.items() if k.split("/")[0] == name})
    ]


# folders of NumPy files: PyMARL's names, MADiff, OMAR


def write_npy(path, arrays):
    """A folder with a NumPy file for every array."""
    path.mkdir()
    for key, values in arrays.items():
        np.save(path / f"{key}.npy", values)


def decode_npy(path):
    """All arrays of a folder."""
    return {file.stem: np.load(file) for file in path.glob("*.npy")}


def draw_madiff(rng):
    """Two to four episodes one after another, one of them cut by the time limit."""
    length = _lengths(rng)
    steps = _draw_steps(rng, int(length.sum()), True)
    discounts = np.ones((len(steps["obs"]), AGENTS), np.float32)
    discounts[np.cumsum(length)[1:] - 1] = 0
    reward = np.repeat(steps["reward"][:, None], AGENTS, axis=1)
    return {
        "obs": steps["obs"],
        "actions": steps["action"],
        "rewards": reward,
        "path_lengths": length,
        "states": steps["state"],
        "legals": steps["avail"].astype(np.float32),
        "discounts": discounts,
    }


def read_madiff(arrays):
    """Step by step, by the lengths; the discounts say which the task ended."""
    per_agent = lambda key: (
        "TN" if np.shape(arrays.get(key, ()))[1:] not in ((1,), ()) else ("T", 1)[: np.ndim(arrays[key])]
    )
    _need("rewards" in arrays)
    optional = {"states": "TS", "legals": "TNA"}
    action = np.asarray(arrays.get("actions", 0))
    vectors = action.ndim == 3 and action.dtype.kind == "f" and "legals" not in arrays
    sizes = _shapes(
        arrays,
        {"obs": "TNO", "path_lengths": "E", "rewards": per_agent("rewards")}
        | {"actions": "TND" if vectors else ("T", "N", 1)[: action.ndim]}
        | {key: shape for key, shape in optional.items() if key in arrays}
        | ({"discounts": per_agent("discounts")} if "discounts" in arrays else {}),
    )
    lengths = [_action(np.asarray(value), True) for value in arrays["path_lengths"]]
    _need([length > 0 for length in lengths])
    _need(sum(lengths) == sizes["T"])
    ends = set(np.cumsum(lengths) - 1)
    state = lambda t: arrays["states"][t] if "states" in arrays else arrays["obs"][t].reshape(-1)
    seen = lambda t: (arrays["obs"][t], state(t), arrays["legals"][t] if "legals" in arrays else None)
    taken = lambda t: ([_action(entry, not vectors) for entry in action[t]], _team(arrays["rewards"][t]))

    def flags(t):
        if "discounts" not in arrays:
            return [t in ends] * sizes["N"], [0] * sizes["N"]
        ended = np.array([1 - _flag(value) for value in np.ravel(arrays["discounts"][t])])
        return ended, np.zeros_like(ended)

    closings = []
    found = _stream(seen, taken, flags, sizes["T"], lambda t: closings.append(t) or t in ends)
    if "discounts" in arrays:
        begin = 0
        for end in sorted(ends):
            rows = 1 - np.array([np.ravel(arrays["discounts"][t]) for t in range(begin, end)]).reshape(end - begin, -1)
            _need(not (len(rows) and rows.any(axis=0).all()))
            begin = end + 1
    return found


def draw_omar(rng):
    """Two to four episodes of transitions, one of them not done."""
    length = _lengths(rng)
    steps = _draw_steps(rng, int(length.sum()), False)
    obs, states = steps["obs"], np.repeat(steps["state"][:, None], AGENTS, axis=1)
    ends = np.cumsum(length) - 1
    later = {}
    for key, values in (("obs", obs), ("states", states)):
        following = np.concatenate([values[1:], values[:1]])
        following[ends] = rng.normal(size=(len(ends), 1, values.shape[-1]))
        later[key] = following.astype(np.float32)
    done = np.zeros(len(obs), np.float32)
    done[ends[1:]] = 1
    arrays = {}
    for agent in range(AGENTS):
        arrays |= {f"obs_{agent}": obs[:, agent], f"next_obs_{agent}": later["obs"][:, agent]}
        arrays |= {f"states_{agent}": states[:, agent], f"next_states_{agent}": later["states"][:, agent]}
        arrays |= {f"acs_{agent}": steps["action"][:, agent], f"rews_{agent}": steps["reward"], f"dones_{agent}": done}
    return arrays


def read_omar(arrays):
    """Step by step: an episode goes on while the next row is what this one leads to."""
    agents = 1 + max((int(key.split("_")[-1]) for key in arrays if key.split("_")[-1].isdigit()), default=-1)
    _need(agents > 0)
    of = lambda part: [np.asarray(arrays[f"{part}_{i}"]) for i in range(agents)]
    parts = ["obs", "next_obs", "acs"] + ["states", "next_states"] * ("states_0" in arrays)
    flat = lambda key: "T" if np.ndim(arrays.get(key, 0)) == 1 else ("T", 1)
    sizes = {}
    for i in range(agents):
        shapes = {f"{part}_{i}": ("T", f"{part.removeprefix('next_')}{i}") for part in parts}
        shapes |= {f"{part}_{i}": flat(f"{part}_{i}") for part in ("rews", "dones")}
        found = _shapes(arrays, shapes)
        _need(sizes.setdefault("T", found["T"]) == found["T"])
        _need(arrays[f"acs_{i}"].dtype.kind == "f")
    pad = lambda rows: np.stack([np.pad(row, (0, max(len(r) for r in rows) - len(row))) for row in rows])
    at = lambda part, t: pad([np.float32(values[t]) for values in of(part)])
    table = {part: np.stack([at(part, t) for t in range(sizes["T"])]) for part in parts}
    if "states_0" in arrays:
        same = all((table[part] == table[part][:, :1]).all() for part in ("states", "next_states"))
        state = lambda part, t: table[part][t, 0] if same else table[part][t].reshape(-1)
        states, nexts = (lambda t: state("states", t)), (lambda t: state("next_states", t))
    else:
        states, nexts = (
            (lambda t, part=part: np.concatenate([values[t] for values in of(part)])) for part in ("obs", "next_obs")
        )
    present = [[d < values.shape[1] for d in range(table["acs"].shape[2])] for values in of("acs")]
    seen = lambda t: (table["obs"][t], states(t), present)
    taken = lambda t: (table["acs"][t], _team([np.ravel(values[t])[0] for values in of("rews")]))
    result, begin, done = [], 0, np.zeros(agents, bool)
    for t in range(sizes["T"]):
        done = done | np.array([_flag(np.ravel(values[t])[0]) for values in of("dones")])
        if done.all() or t + 1 == sizes["T"] or (table["next_obs"][t] != table["obs"][t + 1]).any():
            rows = range(begin, t + 1)
            last = (table["next_obs"][t], nexts(t), present)
            result.append(_episode([*map(seen, rows), last], [*map(taken, rows)], bool(done.all())))
            begin, done = t + 1, np.zeros(agents, bool)
    return result


# Flashbax vaults


def draw_vault(rng, lanes=1):
    """Lanes of rows; episodes end by the task, by the time limit, or, agent by agent, by both; the last one is open."""
    rows = 14
    steps = _draw_steps(rng, lanes * rows, True)
    ended, cut = (np.zeros((lanes, rows, AGENTS), bool) for _ in range(2))
    for lane in range(lanes):
        row = -1
        while (row := row + int(rng.integers(2, 6))) < rows:
            kind = rng.integers(3)
            ended[lane, row] = [True, False, True][kind]
            cut[lane, row] = not ended[lane, row, 0]
            if kind == 2:
                agent = rng.integers(AGENTS)
                ended[lane, row, agent], cut[lane, row, agent] = False, True
    wide = {key: values.reshape(lanes, rows, *values.shape[1:]) for key, values in steps.items()}
    return {
        "observations": wide["obs"],
        "actions": wide["action"].astype(np.int32),
        "rewards": np.repeat(wide["reward"][..., None], AGENTS, axis=2),
        "terminals": ended,
        "truncations": cut,
        "infos.state": wide["state"],
        "infos.legals": wide["avail"],
    }


def write_vault(path, arrays):
    """A vault as flashbax lays it out; rows are taken from the observations."""
    import tensorstore

    path.mkdir()
    rows = arrays.get("observations", next(iter(arrays.values()))).shape[1]
    shapes = {"infos": {}}
    for name, values in arrays.items():
        *group, leaf = name.split(".")
        (shapes[group[0]] if group else shapes)[leaf] = str(values.shape)
    open_ = lambda name, **new: tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": f"file://{path}", "path": name},
            "metadata": {"compressor": {"id": "gzip", "level": 1}} if name != "vault_index" else {},
        },
        create=True,
        **new,
    ).result()
    for name, values in arrays.items():
        store = open_(f"{name}.", shape=(values.shape[0], 10**9, *values.shape[2:]), dtype=values.dtype)
        store[:, : values.shape[1]].write(values).result()
    open_("vault_index", shape=(1,), dtype=np.int32).write(rows).result()
    (path / "metadata.json").write_text(json.dumps({"version": 1.2, "structure_shape": shapes}))


def decode_vault(path):
    """The written rows of a vault's arrays."""
    import tensorstore

    spec = lambda name: {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{path}", "path": name}}
    rows = int(tensorstore.open(spec("vault_index")).result().read().result()[0])
    _need(0 < rows < 1000)
    shapes = json.loads((path / "metadata.json").read_text())["structure_shape"]
    names = [name for name in shapes if name != "infos"] + [f"infos.{name}" for name in shapes.get("infos", {})]
    return {name: tensorstore.open(spec(f"{name}.")).result()[:, :rows].read().result() for name in names}


def read_vault(arrays):
    """Lane by lane, step by step."""
    per_agent = lambda key: ("B", "T", "N", 1)[: np.ndim(arrays.get(key, 0))]
    action = np.asarray(arrays.get("actions", 0))
    vectors = action.ndim == 4 and action.dtype.kind == "f" and "infos.legals" not in arrays
    sizes = _shapes(
        arrays,
        {"observations": "BTNO", "actions": "BTND" if vectors else ("B", "T", "N", 1)[: action.ndim]}
        | {key: per_agent(key) for key in ("rewards", "terminals", "truncations")}
        | ({"infos.state": "BTS"} if "infos.state" in arrays else {})
        | ({"infos.legals": "BTNA"} if "infos.legals" in arrays else {}),
    )
    found = []
    for b in range(sizes["B"]):
        obs = arrays["observations"][b]
        state = lambda t, b=b, obs=obs: arrays["infos.state"][b, t] if "infos.state" in arrays else obs[t].reshape(-1)
        legal = lambda t, b=b: arrays["infos.legals"][b, t] if "infos.legals" in arrays else None
        seen = lambda t, obs=obs, state=state, legal=legal: (obs[t], state(t), legal(t))
        taken = lambda t, b=b: (
            [_action(entry, not vectors) for entry in action[b, t]],
            _team(arrays["rewards"][b, t]),
        )
        flags = lambda t, b=b: tuple(np.ravel(arrays[key][b, t]) for key in ("terminals", "truncations"))
        found += _stream(seen, taken, flags, sizes["T"])
    return found


# MADT's episodes


def draw_madt(rng):
    """Three files of an episode each, the first of them not done."""
    arrays = {}
    for number, length in enumerate(rng.integers(2, 6, 3)):
        steps = _draw_steps(rng, length, True)
        done = np.zeros((length, AGENTS, 1), bool)
        done[-1] = number > 0
        arrays |= {
            f"episode_{number}/state": np.repeat(steps["state"][:, None], AGENTS, axis=1),
            f"episode_{number}/obs": steps["obs"],
            f"episode_{number}/action": steps["action"][..., None],
            f"episode_{number}/reward": np.repeat(steps["reward"][:, None, None], AGENTS, axis=1),
            f"episode_{number}/done": done,
            f"episode_{number}/legal": steps["avail"].astype(np.float32),
        }
    return arrays


_MADT = ("state", "obs", "action", "reward", "done", "legal")


def write_madt(path, arrays):
    """A folder of files as torch.save makes them of lists of NumPy arrays."""
    path.mkdir()
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        entries = [arrays[f"{name}/{key}"] for key in _MADT if f"{name}/{key}" in arrays]
        rows = min((len(np.atleast_1d(entry)) for entry in entries), default=0)
        width = min((entry.shape[1] if entry.ndim > 1 else 1 for entry in entries), default=0)
        pick = lambda entry, t, i: entry[t, i] if entry.ndim > 1 else np.atleast_1d(entry)[t]
        content = [[[pick(entry, t, i) for entry in entries] for t in range(rows)] for i in range(width)]
        with zipfile.ZipFile(path / f"{name}.pth", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


def decode_madt(path):
    """The lists of the files, as arrays."""
    arrays = {}
    for file in sorted(path.glob("*.pth")):
        with zipfile.ZipFile(file) as archive:
            content = pickle.load(io.BytesIO(archive.read("archive/data.pkl")))
        _need(bool(content) and bool(content[0]))
        for k, key in enumerate(_MADT):
            _need([len(step) == len(_MADT) for steps in content for step in steps])
            entries = [[np.ravel(steps[t][k]) for steps in content] for t in range(len(content[0]))]
            _need(len({entry.size for row in entries for entry in row}) == 1)
            arrays[f"{file.stem}/{key}"] = np.array(entries)
    return arrays


def read_madt(arrays):
    """File by file, step by step."""
    found, widths = [], {}
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        of = {key: arrays[f"{name}/{key}"] for key in _MADT}
        sizes = _shapes(
            of,
            {"state": "TNS", "obs": "TNO", "legal": "TNA"} | dict.fromkeys(("action", "reward", "done"), ("T", "N", 1)),
        )
        _need(all(widths.setdefault(letter, sizes[letter]) == sizes[letter] for letter in "NOA"))
        state = np.float32(of["state"])
        same = (state == state[:, :1]).all()
        _need(
            widths.setdefault("state", state[0, 0].size if same else state[0].size)
            == (state[0, 0].size if same else state[0].size)
        )
        seen = lambda t, of=of, same=same: (
            of["obs"][t],
            of["state"][t, 0] if same else of["state"][t].reshape(-1),
            of["legal"][t],
        )
        taken = lambda t, of=of: ([_action(entry, True) for entry in of["action"][t]], _team(of["reward"][t]))
        last = sizes["T"] - 1
        flags = lambda t, of=of: (np.ravel(of["done"][t]), np.zeros(of["done"].shape[1]))
        found += _stream(seen, taken, flags, sizes["T"], lambda t, last=last: t == last)[:1]
    return found


# Minari


def draw_minari(rng):
    """Two to four episodes of one agent, one of them cut by the time limit."""
    arrays = {}
    for number, length in enumerate(_lengths(rng)):
        steps = _draw_steps(rng, length + 1, True)
        ended, cut = (np.zeros(length, bool) for _ in range(2))
        ended[-1], cut[-1] = number > 0, number == 0
        arrays |= {
            f"episode_{number}/observations": steps["obs"][:, 0],
            f"episode_{number}/actions": steps["action"][:length, 0],
            f"episode_{number}/rewards": steps["reward"][:length].astype(np.float64),
            f"episode_{number}/terminations": ended,
            f"episode_{number}/truncations": cut,
        }
    return arrays


def write_minari(path, arrays):
    """A dataset's folder as Minari lays it out."""
    (path / "data").mkdir(parents=True)
    box = {"type": "Box", "dtype": "float32", "shape": [OBS], "low": [-99.0] * OBS, "high": [99.0] * OBS}
    names = dict.fromkeys(key.split("/")[0] for key in arrays)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for key, values in arrays.items():
            file[key] = values.astype("S") if values.dtype.kind == "U" else values
    metadata = {
        "total_episodes": len(names),
        "total_steps": 0,
        "data_format": "hdf5",
        "observation_space": json.dumps(box),
        "action_space": json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": ACTIONS}),
        "dataset_id": "toy/test-v0",
        "minari_version": "0.5.4",
    }
    (path / "data" / "metadata.json").write_text(json.dumps(metadata))


def decode_minari(path):
    """The arrays of all episodes that the metadata count."""
    count = json.loads((path / "data" / "metadata.json").read_text())["total_episodes"]
    with h5py.File(path / "data" / "main_data.hdf5", "r") as file:
        return {f"episode_{e}/{key}": values[()] for e in range(count) for key, values in file[f"episode_{e}"].items()}


def read_minari(arrays):
    """Episode by episode."""
    found, widths = [], {}
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        of = {key.split("/")[1]: values for key, values in arrays.items() if key.split("/")[0] == name}
        obs = np.asarray(of["observations"])
        obs = obs.reshape(len(obs), -1) if obs.ndim else obs
        action = np.asarray(of["actions"])
        shapes = {"actions": ("T", 1)[: action.ndim]} | dict.fromkeys(("rewards", "terminations", "truncations"), "T")
        steps = _shapes(of, shapes)["T"]
        _need(obs.dtype.kind in "fiub" and obs.ndim == 2 and len(obs) in (steps, steps + 1))
        _need(widths.setdefault("O", obs.shape[1]) == obs.shape[1])
        flags = {key: [_flag(value) for value in of[key]] for key in ("terminations", "truncations")}
        _need([not any(side[:-1]) for side in flags.values()])
        taken = [([_action(action[t], True)], float(of["rewards"][t])) for t in range(steps)]
        ended = flags["terminations"][-1]
        seen = [(row[None], row, None) for row in obs]
        if len(obs) == steps:
            seen, taken = ([*seen, seen[-1]], taken) if ended else (seen, taken[:-1])
        if taken:
            found.append(_episode(seen, taken, ended))
    return found


LAYOUTS = {
    "omcda": Layout(draw_own, write_own, decode_h5, read_own),
    "cfcql": Layout(draw_pymarl, write_h5, decode_h5, read_pymarl),
    "cfcql, parts": Layout(draw_pymarl, write_parts, decode_parts, read_parts),
    "cfcql, .npy": Layout(draw_pymarl, write_npy, decode_npy, read_pymarl),
    "omiga": Layout(draw_omiga, write_h5, decode_h5, read_omiga),
    "d4rl": Layout(draw_d4rl, write_h5, decode_h5, read_d4rl),
    "omar": Layout(draw_omar, write_npy, decode_npy, read_omar),
    "madiff": Layout(draw_madiff, write_npy, decode_npy, read_madiff),
    "vault": Layout(draw_vault, write_vault, decode_vault, read_vault),
    "vault, 3 lanes": Layout(lambda rng: draw_vault(rng, 3), write_vault, decode_vault, read_vault),
    "madt": Layout(draw_madt, write_madt, decode_madt, read_madt),
    "minari": Layout(draw_minari, write_minari, decode_minari, read_minari),
}


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of a dataset, sorted."""
    return (
        [path]
        if path.is_file()
        else sorted(pathlib.Path(root) / name for root, _, names in os.walk(path) for name in names)
    )
