"""Offline data: whole episodes as they come from a file, and the same rows ready to be sampled on the device.

An episode of L steps takes L + 1 consecutive rows. Row t holds what the team saw, did and was paid at step t; the last
row holds the true final observation, state and legal actions, and zeros for the action and the reward, which do not
exist there. So every row is stored once and the successor of row t is always row t + 1.
"""

from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.config import require
from omcda_jax.types import Batch, DatasetError, EnvSpec, Normaliser

_ROWWISE = ("obs", "global_state", "avail", "action", "reward", "discount", "first")
_ALIGNMENT = 64  # bytes; JAX shares NumPy's memory on a CPU where it is aligned so
_BLOCK = 1 << 24  # bytes looked at together


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
        won: [E] bool, the team reached the task's goal (all False where there is none).
    """

    obs: np.ndarray
    global_state: np.ndarray
    avail: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    length: np.ndarray
    terminated: np.ndarray
    won: np.ndarray


@flax.struct.dataclass
class Dataset:
    """T rows of which M have a successor and can be sampled: JAX arrays on the device, NumPy arrays on the host.

    Attributes:
        obs: [T, N, O] float32.
        global_state: [T, S] float32.
        avail: [T, N, A] bool.
        action: [T, N] int32 or [T, N, A] float32.
        reward: [T] float32, scaled.
        discount: [T] float32, 0 where the step ended the task, else 1 (a time limit is not an end); 0 on final rows.
        first: [T] bool, the row starts an episode.
        rows: [M] int32, the rows that can be sampled, one shard after another.
        starts: [H + 1] int32, where in `rows` the H shards that are here start, and the end of the last.
        first_shard: [] int32, the first shard that is here.
        spec: the task's sizes (static).
        shards: V, of the whole dataset (static).
    """

    obs: chex.Array
    global_state: chex.Array
    avail: chex.Array
    action: chex.Array
    reward: chex.Array
    discount: chex.Array
    first: chex.Array
    rows: chex.Array
    starts: chex.Array
    first_shard: chex.Array
    spec: EnvSpec = flax.struct.field(pytree_node=False)
    shards: int = flax.struct.field(pytree_node=False, default=1)


def gather(dataset: Dataset, rows: chex.Array) -> Batch:
    """Reads the transitions that start at the given rows.

    Args:
        dataset: the data.
        rows: [B] int32, entries of `dataset.rows`.
    """
    chex.assert_rank(rows, 1)
    after = rows + 1
    return Batch(
        obs=dataset.obs[rows],
        global_state=dataset.global_state[rows],
        avail=dataset.avail[rows],
        action=dataset.action[rows],
        reward=dataset.reward[rows],
        discount=dataset.discount[rows],
        next_obs=dataset.obs[after],
        next_global_state=dataset.global_state[after],
        next_avail=dataset.avail[after],
        next_action=dataset.action[after],
        first=dataset.first[rows],
        # the row after the next one starts another episode, or the data are over
        last=dataset.first[(rows + 2) % dataset.first.shape[0]],
    )


def sample(dataset: Dataset, key: chex.PRNGKey, batch_size: int, part: chex.Numeric = 0, parts: int = 1) -> Batch:
    """Draws transitions uniformly with replacement, batch row r from shard r * V // B.

    A row's draw depends on the key and its place in the whole batch alone, not on how many devices or processes share
    the work.

    Args:
        dataset: the data; at least the shards of the rows asked for.
        key: typed PRNG key; the same key draws the same rows.
        batch_size: B (static).
        part: which share of the B rows to read.
        parts: number of equal shares (static); their rows, one after another, are those of the whole.
    """
    shard = np.arange(batch_size) * dataset.shards // batch_size - dataset.first_shard
    index = jax.random.randint(key, (batch_size,), dataset.starts[shard], dataset.starts[shard + 1])
    index = jax.lax.dynamic_slice_in_dim(index, part * (batch_size // parts), batch_size // parts)
    return gather(dataset, dataset.rows[index])


def shard(dataset: Dataset, shards: int, process: int, processes: int) -> Dataset:
    """Cuts a dataset into V shards of consecutive transitions, as equal as can be, and returns those of one process.

    Args:
        dataset: the whole, uncut.
        shards: V, a multiple of the number of processes.
        process: which one's.
        processes: how many share the batch.

    Raises:
        ConfigError: the processes cannot share the shards evenly, or there are more shards than transitions.
    """
    own = own_shards(dataset, shards, process, processes)
    return put(take(dataset, shard_edges(dataset, shards), own, shards))


def own_shards(dataset: Dataset, shards: int, process: int, processes: int) -> range:
    """Returns which of V shards are one process's.

    Args:
        dataset, shards, process, processes: as of `shard`.

    Raises:
        ConfigError: as `shard`.
    """
    count = dataset.rows.shape[0]
    require(shards % processes == 0, "data.shards", f"a multiple of the {processes} processes", shards)
    require(shards <= count, "data.shards", f"at most {count}, the number of transitions", shards)
    each = shards // processes
    return range(process * each, (process + 1) * each)


def shard_edges(dataset: Dataset, shards: int, pieces: int = 1) -> np.ndarray:
    """Returns where pieces of consecutive entries of `rows` start and end, P in each of V shards: [V, P, 2] int64.

    Args:
        dataset: the whole, uncut.
        shards: V.
        pieces: P, as equal as can be.
    """
    count = dataset.rows.shape[0]
    bounds = np.arange(shards + 1) * count // shards
    edges = bounds[:-1, None] + np.diff(bounds)[:, None] * np.arange(pieces + 1) // pieces
    return np.stack([edges[:, :-1], edges[:, 1:]], axis=-1)


def take(dataset: Dataset, edges: np.ndarray, own: range, shards: int, chosen: np.ndarray | None = None) -> Dataset:
    """Copies pieces of a dataset into one on the host, whose shape is that of any other pieces of the same edges.

    Args:
        dataset: the whole, uncut.
        edges: [V, P, 2] from `shard_edges`.
        own: the shards to take from, H of them.
        shards: V.
        chosen: [H, C] which pieces of each; None takes all.
    """
    rows, first = np.asarray(dataset.rows), np.asarray(dataset.first)
    total, size = len(first), int((edges[..., 1] - edges[..., 0]).max())
    # `gather` looks two rows ahead, for the successor and for whether an episode follows it
    begin, end = rows[edges[..., 0]].astype(np.int64), rows[edges[..., 1] - 1].astype(np.int64) + 3
    span = int((end - begin).max())
    chosen = np.tile(np.arange(edges.shape[1]), (len(own), 1)) if chosen is None else chosen
    places = chosen.size
    arrays = {name: getattr(dataset, name) for name in _ROWWISE}
    cut = {name: aligned((places * span, *values.shape[1:]), values.dtype) for name, values in arrays.items()}
    entries, starts = np.zeros(places * size, np.int32), np.zeros(len(own) + 1, np.int32)
    filled = place = 0
    for index, shard in enumerate(own):
        for piece in chosen[index]:
            start, stop = begin[shard, piece], min(end[shard, piece], total)
            into = slice(place * span, place * span + int(stop - start))
            for name, values in arrays.items():
                cut[name][into] = values[start:stop]
            # after the last row of all comes the first one
            cut["first"][into.stop : place * span + int(end[shard, piece] - start)] = True
            here = rows[slice(*edges[shard, piece])] - start + place * span
            entries[filled : filled + len(here)] = here
            filled += len(here)
            place += 1
        starts[index + 1] = filled
    return Dataset(
        **cut, rows=entries, starts=starts, first_shard=np.int32(own.start), spec=dataset.spec, shards=shards
    )


def from_arrays(spec: EnvSpec, episodes: Episodes, *, reward_scale: float = 1.0, source: str = "dataset") -> Dataset:
    """Checks episodes and places them on the device.

    Args:
        spec: the task's sizes.
        episodes: the data, see `Episodes`.
        reward_scale: every reward is multiplied by it.
        source: what error messages call the data, a file's path for instance.

    Raises:
        DatasetError: whatever `check` finds.
    """
    check(spec, episodes, source)
    # a copy, for the caller may write to the arrays again
    return jax.tree.map(jnp.array, arrange(spec, episodes, reward_scale))


def arrange(spec: EnvSpec, episodes: Episodes, reward_scale: float = 1.0) -> Dataset:
    """Makes a dataset on the host of checked episodes, whose large arrays it shares.

    Args:
        spec: the task's sizes.
        episodes: the data, as `check` lets them pass.
        reward_scale: every reward is multiplied by it.
    """
    final = final_rows(episodes.length)
    first = np.zeros(len(episodes.reward), bool)
    first[0] = True
    first[final[:-1] + 1] = True
    discount = np.ones(len(episodes.reward), np.float32)
    discount[final] = 0.0
    discount[final[episodes.terminated] - 1] = 0.0
    rows = np.delete(np.arange(len(episodes.reward), dtype=np.int32), final)
    return Dataset(
        obs=episodes.obs,
        global_state=episodes.global_state,
        avail=episodes.avail,
        action=episodes.action,
        reward=episodes.reward * np.float32(reward_scale),
        discount=discount,
        first=first,
        rows=rows,
        starts=np.array([0, len(rows)], np.int32),
        first_shard=np.int32(0),
        spec=spec,
    )


def put(dataset: Dataset) -> Dataset:
    """Places a dataset of the host on the device; on a CPU what is aligned is shared, not copied.

    Args:
        dataset: of NumPy arrays, not to be written to any more.
    """
    return jax.device_put(dataset)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array of zeros whose memory JAX can share on a CPU.

    Args:
        shape: of the array.
        dtype: of the array.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + size].view(dtype).reshape(shape)


def final_rows(length: np.ndarray) -> np.ndarray:
    """Returns the [E] int64 indices of the rows that hold the final observations.

    Args:
        length: [E] steps of each episode.
    """
    return np.cumsum(length.astype(np.int64) + 1) - 1


def returns(episodes: Episodes) -> np.ndarray:
    """Returns the [E] float64 undiscounted returns, in the environment's own units.

    Args:
        episodes: the data.
    """
    start = final_rows(episodes.length) - episodes.length
    return np.add.reduceat(episodes.reward.astype(np.float64), start)


def statistics(episodes: Episodes) -> dict[str, Any]:
    """Summarises episodes in plain numbers; returns are undiscounted and in the environment's own units.

    Args:
        episodes: the data.
    """
    total = returns(episodes)
    return {
        "episodes": len(episodes.length),
        "transitions": int(episodes.length.sum()),
        "return_mean": float(total.mean()),
        "return_sd": float(total.std()),
        "return_min": float(total.min()),
        "return_max": float(total.max()),
        "win_rate": float(episodes.won.mean()),
        "terminated_rate": float(episodes.terminated.mean()),
        "length_mean": float(episodes.length.mean()),
        "length_min": int(episodes.length.min()),
        "length_max": int(episodes.length.max()),
    }


def memory_bytes(dataset: Dataset) -> int:
    """Returns the bytes a dataset takes on the device.

    Args:
        dataset: the data.
    """
    return sum(leaf.nbytes for leaf in jax.tree.leaves(dataset))


def max_return_to_go(dataset: Dataset, discount: float) -> jax.Array:
    """Returns the largest sum of discounted rewards from any row to its episode's end, in scaled reward units.

    No honest value of the data's policy can lie above it, so it bounds what a critic should say of the data.

    Args:
        dataset: the data.
        discount: factor per step in [0, 1]; 1 gives the undiscounted return-to-go.
    """
    has_successor = jnp.zeros(dataset.reward.shape, bool).at[dataset.rows].set(True)

    def back(later, row):
        reward, live = row
        value = jnp.where(live, reward + discount * later, 0.0)
        return value, value

    _, values = jax.lax.scan(back, jnp.zeros(()), (dataset.reward, has_successor), reverse=True)
    return jnp.max(values, where=has_successor, initial=-jnp.inf)


def normaliser(dataset: Dataset) -> Normaliser:
    """Returns what brings every feature to zero mean and unit spread over the rows that can be sampled.

    A feature that hardly varies (a spread below 1e-4, as padding has) gets factor 0, which drops it.

    Args:
        dataset: the data.
    """

    def scale(values):
        # in blocks and two passes, for double precision of everything at once would be twice the dataset
        width = max(1, _BLOCK // values[0].nbytes)
        blocks = lambda: (np.asarray(values[rows[at : at + width]], np.float64) for at in range(0, len(rows), width))
        mean = sum(block.sum(axis=0) for block in blocks()) / len(rows)
        spread = np.sqrt(sum(np.square(block - mean).sum(axis=0) for block in blocks()) / len(rows))
        factor = np.where(spread < 1e-4, 0.0, 1.0 / np.maximum(spread, 1e-4))
        return jnp.asarray(mean, jnp.float32), jnp.asarray(factor, jnp.float32)

    rows = np.asarray(dataset.rows)
    return Normaliser(*scale(np.asarray(dataset.obs)), *scale(np.asarray(dataset.global_state)))


def check(spec: EnvSpec, episodes: Episodes, source: str) -> None:
    """Checks shapes, types, finite values, episode bookkeeping and the legality of every action.

    Args:
        spec: the task's sizes.
        episodes: the data.
        source: what error messages call the data.

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
            raise DatasetError(f"{source}: {key}: expected finite numbers, found nan or inf in row {row}")
    _check_actions(spec, episodes, source)


def _not_finite(values: np.ndarray) -> int | None:
    """The first row with a nan or inf."""
    width = max(1, _BLOCK // max(1, values[:1].nbytes))
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
    expected = int(episodes.length.sum(dtype=np.int64)) + count
    largest = np.iinfo(np.int32).max
    if expected > largest:
        raise DatasetError(f"{source}: length: expected at most {largest} rows in all, found {expected}")
    for key in ("obs", "global_state", "avail", "action", "reward"):
        if len(getattr(episodes, key)) != expected:
            found = len(getattr(episodes, key))
            raise DatasetError(f"{source}: {key}: expected {expected} rows (length + 1 per episode), found {found}")


def _check_actions(spec: EnvSpec, episodes: Episodes, source: str) -> None:
    final = final_rows(episodes.length)
    for key in ("action", "reward"):
        if getattr(episodes, key)[final].any():
            raise DatasetError(f"{source}: {key}: expected zeros on each episode's final row, found others")
    stuck = ~episodes.avail.any(axis=-1)
    if stuck.any():
        row, agent = np.argwhere(stuck)[0]
        raise DatasetError(f"{source}: avail: expected a legal action, found none for agent {agent} in row {row}")
    action = episodes.action
    low, high = (0, spec.action_dim - 1) if spec.discrete else (-1, 1)
    if action.min() < low or action.max() > high:
        row = int(np.argwhere((action < low) | (action > high))[0, 0])
        raise DatasetError(
            f"{source}: action: expected {low}..{high}, found {action.min()}..{action.max()} (row {row})"
        )
    if spec.discrete:
        legal = np.take_along_axis(episodes.avail, action[..., None], axis=-1)[..., 0]
        legal[final] = True
        if not legal.all():
            row, agent = np.argwhere(~legal)[0]
            raise DatasetError(
                f"{source}: action: expected a legal action, found {action[row, agent]} of agent {agent} in row {row}"
            )
