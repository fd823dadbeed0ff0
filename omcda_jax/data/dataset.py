"""Transitions ready to be sampled, on the device or on the host; their rows are laid out as in `episodes`."""

from collections.abc import Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.config import require
from omcda_jax.data.episodes import BLOCK, Episodes, as_arrays, check, final_rows
from omcda_jax.types import Batch, EnvSpec, Normaliser

_ROWWISE = ("obs", "global_state", "avail", "action", "reward", "discount", "first", "return_to_go")
# If what a time limit cut off has more than this weight in a return, the sum of the rest says too little.
_UNSEEN = 0.05
_ALIGNMENT = 64  # bytes; JAX on a CPU shares NumPy's memory if it is aligned to this


@flax.struct.dataclass
class Dataset:
    """T rows, M of which have a successor and can be sampled: JAX arrays on the device, NumPy arrays on the host.

    Attributes:
        obs: [T, N, O] float32.
        global_state: [T, S] float32.
        avail: [T, N, A] bool.
        action: [T, N] int32 or [T, N, A] float32.
        reward: [T] float32, scaled.
        discount: [T] float32, 0 where the step ended the task, else 1 (a time limit is not an end); 0 on final rows.
        first: [T] bool, the row starts an episode.
        rows: [M] int32, the rows that can be sampled, one shard after another.
        starts: [H + 1] int32, where in `rows` each of the H shards present starts, and where the last one ends.
        first_shard: [] int32, the first shard present.
        return_to_go: [T, G] float32 from `returns_to_go`, or None.
        gammas: [G] float32, the discount factors of the columns of `return_to_go`, or None.
        spec: the task's sizes (static).
        shards: V, the number of shards of the whole dataset (static).
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
    return_to_go: chex.Array | None = None
    gammas: chex.Array | None = None
    spec: EnvSpec = flax.struct.field(pytree_node=False, kw_only=True)
    shards: int = flax.struct.field(pytree_node=False, default=1)


def gather(dataset: Dataset, rows: chex.Array, gamma: chex.Numeric | None = None) -> Batch:
    """Return the transitions that start at the given rows.

    Args:
        dataset: the data.
        rows: [B] int32, entries of `dataset.rows`.
        gamma: discount factor of the returns-to-go, if the dataset has them; None: the first one. They are nan if the
            dataset has them for other factors only, so nothing is primed with them.
    """
    chex.assert_rank(rows, 1)
    after = rows + 1
    returns = None
    if dataset.return_to_go is not None:
        away = jnp.zeros(1) if gamma is None else jnp.abs(dataset.gammas - gamma)
        column = jnp.argmin(away)
        returns = jnp.where(away[column] < 1e-6, dataset.return_to_go[rows, column], jnp.nan)
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
        # the row after the next one starts another episode, or there are no more data
        last=dataset.first[(rows + 2) % dataset.first.shape[0]],
        return_to_go=returns,
    )


def sample(
    dataset: Dataset,
    key: chex.PRNGKey,
    batch_size: int,
    part: chex.Numeric = 0,
    parts: int = 1,
    gamma: chex.Numeric | None = None,
) -> Batch:
    """Draw transitions uniformly with replacement, batch row r from shard r * V // B.

    A row's draw depends only on the key and its place in the whole batch, not on how many devices or processes share
    the work.

    Args:
        dataset: the data; at least the shards of the rows to be read.
        key: typed PRNG key; the same key draws the same rows.
        batch_size: B (static).
        part: which part of the B rows to read.
        parts: number of equal parts (static); their rows, one after another, are the whole batch.
        gamma: as in `gather`.
    """
    shard = np.arange(batch_size) * dataset.shards // batch_size - dataset.first_shard
    index = jax.random.randint(key, (batch_size,), dataset.starts[shard], dataset.starts[shard + 1])
    index = jax.lax.dynamic_slice_in_dim(index, part * (batch_size // parts), batch_size // parts)
    return gather(dataset, dataset.rows[index], gamma)


def shard(dataset: Dataset, shards: int, process: int, processes: int) -> Dataset:
    """Cut a dataset into V shards of consecutive transitions, as equal as possible, and return those of one process.

    Args:
        dataset: the whole dataset, without shards.
        shards: V, a multiple of the number of processes.
        process: index of the process.
        processes: number of processes that share the batch.

    Raises:
        ConfigError: the processes cannot share the shards evenly, or there are more shards than transitions.
    """
    own = own_shards(dataset, shards, process, processes)
    return put(take(dataset, shard_edges(dataset, shards), own, shards))


def own_shards(dataset: Dataset, shards: int, process: int, processes: int) -> range:
    """Return which of the V shards belong to one process.

    Args:
        dataset, shards, process, processes: as in `shard`.

    Raises:
        ConfigError: as `shard`.
    """
    count = dataset.rows.shape[0]
    require(shards % processes == 0, "data.shards", f"a multiple of the {processes} processes", shards)
    require(shards <= count, "data.shards", f"at most {count}, the number of transitions", shards)
    each = shards // processes
    return range(process * each, (process + 1) * each)


def shard_edges(dataset: Dataset, shards: int, pieces: int = 1) -> np.ndarray:
    """Return where pieces of consecutive entries of `rows` start and end, P in each of V shards: [V, P, 2] int64.

    Args:
        dataset: the whole dataset, without shards.
        shards: V.
        pieces: P, the number of pieces, which are as equal as possible.
    """
    count = dataset.rows.shape[0]
    bounds = np.arange(shards + 1) * count // shards
    edges = bounds[:-1, None] + np.diff(bounds)[:, None] * np.arange(pieces + 1) // pieces
    return np.stack([edges[:, :-1], edges[:, 1:]], axis=-1)


def take(dataset: Dataset, edges: np.ndarray, own: range, shards: int, chosen: np.ndarray | None = None) -> Dataset:
    """Copy pieces of a dataset into a new one on the host; equally many pieces of the same edges give the same shapes.

    Args:
        dataset: the whole dataset, without shards.
        edges: [V, P, 2] from `shard_edges`.
        own: the H shards to take from.
        shards: V.
        chosen: [H, C] which pieces of each shard to take; None takes all.
    """
    rows, first = np.asarray(dataset.rows), np.asarray(dataset.first)
    total, size = len(first), int((edges[..., 1] - edges[..., 0]).max())
    # `gather` looks two rows ahead: at the successor, and at whether an episode starts after it
    begin, end = rows[edges[..., 0]].astype(np.int64), rows[edges[..., 1] - 1].astype(np.int64) + 3
    span = int((end - begin).max())
    chosen = np.tile(np.arange(edges.shape[1]), (len(own), 1)) if chosen is None else chosen
    places = chosen.size
    arrays = {name: getattr(dataset, name) for name in _ROWWISE if getattr(dataset, name) is not None}
    cut = {name: aligned((places * span, *values.shape[1:]), values.dtype) for name, values in arrays.items()}
    entries, starts = np.zeros(places * size, np.int32), np.zeros(len(own) + 1, np.int32)
    filled = place = 0
    for index, shard in enumerate(own):
        for piece in chosen[index]:
            start, stop = begin[shard, piece], min(end[shard, piece], total)
            into = slice(place * span, place * span + int(stop - start))
            for name, values in arrays.items():
                cut[name][into] = values[start:stop]
            # after the very last row comes the first row
            cut["first"][into.stop : place * span + int(end[shard, piece] - start)] = True
            here = rows[slice(*edges[shard, piece])] - start + place * span
            entries[filled : filled + len(here)] = here
            filled += len(here)
            place += 1
        starts[index + 1] = filled
    first_shard = np.int32(own.start)
    return dataset.replace(**cut, rows=entries, starts=starts, first_shard=first_shard, shards=shards)


def from_arrays(spec: EnvSpec, episodes: Episodes, *, reward_scale: float = 1.0, source: str = "dataset") -> Dataset:
    """Check episodes and place them on the device.

    Args:
        spec: the task's sizes.
        episodes: the data, see `Episodes`; lists and JAX arrays are allowed.
        reward_scale: factor on every reward.
        source: what error messages call the data, for instance a file's path.

    Raises:
        DatasetError: whatever `as_arrays` and `check` find.
    """
    episodes = as_arrays(spec, episodes, source)
    check(spec, episodes, source)
    # a copy, because the caller may write to the arrays again
    return jax.tree.map(jnp.array, arrange(spec, episodes, reward_scale))


def arrange(spec: EnvSpec, episodes: Episodes, reward_scale: float = 1.0) -> Dataset:
    """Return checked episodes as a dataset on the host, which shares their large arrays.

    Args:
        spec: the task's sizes.
        episodes: data that pass `check`.
        reward_scale: factor on every reward.

    Raises:
        ConfigError: the scale is 0 or not finite as float32, or makes a reward infinite.
    """
    with np.errstate(all="ignore"):
        scale = np.float32(reward_scale)
        reward = episodes.reward * scale
    require(scale != 0 and np.isfinite(scale), "reward_scale", "a finite number other than 0", reward_scale)
    require(np.isfinite(reward).all(), "reward_scale", "one that leaves rewards finite", reward_scale)
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
        reward=reward,
        discount=discount,
        first=first,
        rows=rows,
        starts=np.array([0, len(rows)], np.int32),
        first_shard=np.int32(0),
        spec=spec,
    )


def split(dataset: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a dataset in two by whole episodes, drawn at random; the two share all arrays except `rows` and `starts`.

    Args:
        dataset: the whole dataset, without shards.
        share: share of the episodes that go to the second part; both parts get at least one.
        seed: seed of the draw; the same seed makes the same split.

    Raises:
        ConfigError: there is only one episode.
    """
    rows = np.asarray(dataset.rows)
    episode = np.cumsum(np.asarray(dataset.first))[rows] - 1
    count = int(episode[-1]) + 1
    require(count >= 2, "data", "at least 2 episodes to split in two", count)
    order = np.random.default_rng(seed).permutation(count)
    second = np.isin(episode, order[: int(np.clip(round(share * count), 1, count - 1))])

    place = (lambda arrays: arrays) if isinstance(dataset.rows, np.ndarray) else jax.device_put

    def part(chosen):
        return dataset.replace(**place({"rows": chosen, "starts": np.array([0, len(chosen)], np.int32)}))

    return part(rows[~second]), part(rows[second])


def put(dataset: Dataset) -> Dataset:
    """Place a dataset on the device; on a CPU, aligned arrays are shared, not copied.

    Args:
        dataset: a dataset of NumPy arrays; do not write to them afterwards.
    """
    return jax.device_put(dataset)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of zeros whose memory JAX can share on a CPU.

    Args:
        shape: shape of the array.
        dtype: type of the array.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + size].view(dtype).reshape(shape)


def memory_bytes(dataset: Dataset) -> int:
    """Return the number of bytes that a dataset takes on the device.

    Args:
        dataset: the data.
    """
    return sum(leaf.nbytes for leaf in jax.tree.leaves(dataset))


@jax.jit
def _returns_to_go(reward: chex.Array, discount: chex.Array, rows: chex.Array, gammas: chex.Array) -> jax.Array:
    """Return the discounted rewards to go [T, G], 0 on final rows, nan where too much was cut off."""
    has_successor = jnp.zeros(reward.shape, bool).at[rows].set(True)

    def back(later, row):
        value, unseen = later
        reward, discount, live = row
        # weight in a row's return of what a time limit cut off
        now = jnp.where(live, reward + gammas * value, 0.0), jnp.where(live, gammas * discount * unseen, 1.0)
        return now, now

    start = jnp.zeros_like(gammas), jnp.ones_like(gammas)
    _, (value, unseen) = jax.lax.scan(back, start, (reward, discount, has_successor), reverse=True)
    return jnp.where(has_successor[:, None] & (unseen > _UNSEEN), jnp.nan, value)


def returns_to_go(dataset: Dataset, gammas: Sequence[float]) -> Dataset:
    """Return the dataset with the discounted sum of scaled rewards from every row to its episode's end.

    If a time limit cut the episode, the sum lacks the rewards that would have followed. It is kept if their weight is
    at most 5 %, gamma^(steps left) <= 0.05, and is nan otherwise.

    Args:
        dataset: the whole dataset, without shards.
        gammas: G discount factors per step; a batch has the returns of the factor that it is drawn with.
    """
    factors = np.asarray(gammas, np.float32)
    returns = _returns_to_go(dataset.reward, dataset.discount, dataset.rows, factors)
    on_host = isinstance(dataset.reward, np.ndarray)
    returns, factors = (np.asarray(returns), factors) if on_host else (returns, jnp.asarray(factors))
    return dataset.replace(return_to_go=returns, gammas=factors)


def max_return_to_go(dataset: Dataset, gamma: float) -> float:
    """Return the largest sum of discounted rewards from a row to its episode's end, in scaled reward units.

    It bounds what a critic should say about the data. Rows with a sum that a time limit cut short do not count, see
    `returns_to_go`, and other sums may lack 5 %. nan if fewer than a quarter of the rows count, because these may be
    the bad ones.

    Args:
        dataset: the data.
        gamma: discount factor per step in [0, 1]; 1 gives the undiscounted return-to-go.
    """
    factors = np.array([gamma], np.float32)
    returns = np.asarray(_returns_to_go(dataset.reward, dataset.discount, dataset.rows, factors))
    known = returns[np.asarray(dataset.rows)]
    finite = np.isfinite(known)
    return float(known[finite].max()) if finite.size and finite.mean() >= 0.25 else float("nan")


def normaliser(dataset: Dataset) -> Normaliser:
    """Return the shift and factor of every feature for zero mean and unit spread over the rows that can be sampled.

    A feature that hardly varies (a spread below 1e-4, such as padding) gets factor 0, which drops it.

    Args:
        dataset: the data.
    """

    def scale(values):
        # in blocks and two passes, because everything at once in double precision would be twice the dataset
        width = max(1, BLOCK // values[0].nbytes)
        blocks = lambda: (np.asarray(values[rows[at : at + width]], np.float64) for at in range(0, len(rows), width))
        mean = sum(block.sum(axis=0) for block in blocks()) / len(rows)
        spread = np.sqrt(sum(np.square(block - mean).sum(axis=0) for block in blocks()) / len(rows))
        factor = np.where(spread < 1e-4, 0.0, 1.0 / np.maximum(spread, 1e-4))
        return jnp.asarray(mean, jnp.float32), jnp.asarray(factor, jnp.float32)

    rows = np.asarray(dataset.rows)
    return Normaliser(*scale(np.asarray(dataset.obs)), *scale(np.asarray(dataset.global_state)))
