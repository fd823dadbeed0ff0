"""Rolls a behaviour policy out in a simulator and keeps whole episodes.

Episode e uses the key `fold_in(key(seed), e)` and its step t folds t in again, so what an episode contains depends
neither on how many are played at once nor on how many were asked for.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.behaviour import policies
from omcda_jax.data import hdf5
from omcda_jax.data.dataset import Episodes
from omcda_jax.envs import make
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.envs.versions import installed
from omcda_jax.system import sha256
from omcda_jax.types import ConfigError

CHUNK = 256  # episodes played at once where the simulator is JAX; with segments, this bounds the memory
SEGMENT = 8  # steps between looks at whether all of them have ended
COPIES = 32  # of a simulator on the host, at most; another number can round differently in the last bit
TRIES_PER_EPISODE = 100  # played for each one wanted before a filter counts as hopeless
TRIES_AT_LEAST = 4096


def collect(
    environment: Environment | HostEnvironment,
    params: Sequence[policies.Params],
    recipe: policies.Quality,
    *,
    seed: int,
    episodes: int | None = None,
    transitions: int | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[Episodes, dict[str, Any]]:
    """Plays until enough is kept; each stage gives an equal share (the first ones one more where it is uneven).

    Args:
        environment: the simulator.
        params: weights of the policy of each of the recipe's stages.
        recipe: temperature, and which episodes are kept.
        seed: of the whole collection; the same seed gives the same episodes on the same machine and versions.
        episodes: E, how many to keep.
        transitions: instead of `episodes`: whole episodes are kept until there are at least so many transitions.
        progress: called as `progress(kept, wanted, played)` now and then; the first two count episodes or transitions,
            whichever was asked for, the last one episodes.

    Returns:
        The episodes, and metadata on how they were made.

    Raises:
        ConfigError: the size or `seed` is out of range, the weights do not fit the environment, or too few episodes
            are kept of those played.
    """
    unit, wanted = _size(episodes, transitions)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: expected 0..{2**32 - 1}, found {seed}")
    for stage, weights in zip(recipe.stages, params, strict=True):
        policies.check(weights, environment.spec, f"{stage} for {environment.name}")
    kept: list[Episodes] = []
    played = total = 0
    with _player(environment, recipe.temperature, wanted if unit == "episodes" else None) as play:
        for stage, weights in enumerate(params):
            share, amount = len(range(stage, wanted, len(params))), 0
            limit = played + max(TRIES_AT_LEAST, TRIES_PER_EPISODE * share)
            # an episode that may yet be filtered out counts for nothing while it lasts
            coming = 0 if recipe.won_only else share
            rollouts = play(weights, seed, played, unit, coming)
            while amount < share:
                if played >= limit:
                    raise ConfigError(
                        f"{environment.name} {recipe.stages[stage]}: kept {amount} {unit} of {played} played,"
                        f" expected {share}; the policy wins too rarely for won_only"
                    )
                episode = next(rollouts)
                played += 1
                if episode.won[0] or not recipe.won_only:
                    kept.append(episode)
                    amount += 1 if unit == "episodes" else int(episode.length[0])
                if progress is not None:
                    progress(total + amount, wanted, played)
            total += amount
    metadata = {
        "environment": environment.name,
        "max_return": environment.max_return,
        "temperature": recipe.temperature,
        "won_only": recipe.won_only,
        "description": describe(recipe),
        "seed": seed,
        "transitions": transitions,
        "rollouts": played,
        "versions": {**environment.versions, "numpy": np.__version__, **installed("omcda-jax")},
    }
    joined = (np.concatenate(field) for field in zip(*kept, strict=True))
    return Episodes(*joined), metadata


def describe(recipe: policies.Quality) -> str:
    """Says in words how a dataset is made.

    Args:
        recipe: the dataset's definition.
    """
    *others, last = recipe.stages
    policies = f"{', '.join(others)} and {last}" if others else last
    which = "only won episodes kept" if recipe.won_only else "every episode kept"
    return f"actions sampled from the {policies} policy at temperature {recipe.temperature:g}; {which}"


def default_path(
    environment: str, quality: str, episodes: int | None = None, seed: int = 0, transitions: int | None = None
) -> Path:
    """Returns where a dataset is cached, relative to the working directory.

    Args:
        environment: for instance `smax/3m`.
        quality: for instance `medium`.
        episodes: how many; or
        transitions: how many at least, in whole episodes.
        seed: of the collection.

    Raises:
        ConfigError: not exactly one size, or one below 1.
    """
    unit, wanted = _size(episodes, transitions)
    size = f"{wanted}" if unit == "episodes" else f"{wanted}_transitions"
    return Path("datasets") / environment / f"{quality}_{size}_seed{seed}.h5"


def ensure(
    environment: str,
    quality: str,
    episodes: int | None = None,
    seed: int = 0,
    transitions: int | None = None,
    path: str | os.PathLike | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Returns the path of a dataset file, collecting it first if there is none.

    Args:
        environment: for instance `smax/3m`.
        quality: for instance `medium`, see `policies.QUALITIES`.
        episodes: how many; or
        transitions: how many at least, in whole episodes.
        seed: of the collection.
        path: the file; None is `default_path`. A file that is there is not opened: reading it checks it.
        log: called with one line of text now and then.

    Raises:
        ConfigError: not exactly one size, unknown environment or quality, a missing package, a folder that cannot be
            written.
        DatasetError: the disk refuses the file.
    """
    unit, size = _size(episodes, transitions)
    path = default_path(environment, quality, episodes, seed, transitions) if path is None else Path(path)
    if path.exists():
        return path
    hdf5.require()
    simulator = make(environment)
    recipe = policies.quality(environment, quality)
    files = {stage: policies.weights_path(environment, stage) for stage in recipe.stages}
    _require_folder(path.parent)
    log(f"no dataset at {path}: collecting {size} {unit} of {environment} ({describe(recipe)})")
    start = told = time.monotonic()

    def progress(kept, wanted, played):
        nonlocal told
        if kept >= wanted or time.monotonic() - told > 5:
            told = time.monotonic()
            left = (told - start) * max(0, wanted - kept) / max(1, kept)
            log(f"  kept {kept} of {wanted} {unit}, played {played} episodes, {told - start:.0f} s, left {left:.0f} s")

    params = [policies.read_weights(file) for file in files.values()]
    sizes = {"episodes": episodes, "transitions": transitions}
    data, metadata = collect(simulator, params, recipe, seed=seed, **sizes, progress=progress)
    command = f"python experiments/collect.py --environment={environment} --quality={quality}"
    metadata |= {
        "quality": quality,
        "generator": f"{command} --{unit}={size} --seed={seed}",
        "weights": {stage: sha256(file) for stage, file in files.items()},
    }
    hdf5.write(path, simulator.spec, data, metadata)
    log(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB) in {time.monotonic() - start:.0f} s")
    return path


def _size(episodes: int | None, transitions: int | None) -> tuple[str, int]:
    """The unit of a dataset's size, and how many."""
    given = {unit: size for unit, size in (("episodes", episodes), ("transitions", transitions)) if size is not None}
    if len(given) != 1:
        raise ConfigError(f"size: expected one of episodes and transitions, found {' and '.join(given) or 'neither'}")
    ((unit, size),) = given.items()
    if size < 1:
        raise ConfigError(f"{unit}: expected at least 1, found {size}")
    return unit, size


@contextlib.contextmanager
def _player(environment: Environment | HostEnvironment, temperature: float, episodes: int | None):
    """Gives `play(params, seed, first, unit, coming)`, an endless stream of one-episode Episodes, `first` onwards.

    Where that saves work, no more are begun once those begun hold `coming` of the unit, which ends the stream; 0 is
    no bound.
    """
    if isinstance(environment, HostEnvironment):
        act = _act(temperature)
        copies = min(COPIES, episodes or COPIES)
        with contextlib.closing(environment.open(copies)) as simulators:
            yield lambda *request: _play_host(environment, simulators, copies, act, *request)
    else:
        functions = _rollout_functions(environment, temperature)
        chunk = min(CHUNK, episodes or CHUNK)
        yield lambda params, seed, first, *_: _play(*functions, chunk, params, seed, first)


def _rollout_functions(environment: Environment, temperature: float):
    """Compiles the start and SEGMENT further steps of many episodes at once; ended ones step on, to be cut later."""

    def start(key):
        return environment.reset(jax.random.fold_in(key, 0))

    def segment(params, key, carry, t):
        def step(carry, t):
            env_state, seen = carry
            act_key, step_key = jax.random.split(jax.random.fold_in(key, t))
            action = policies.sample(params, seen.obs, seen.avail, act_key, temperature)
            env_state, after = environment.step(step_key, env_state, action)
            row = (seen.obs, seen.global_state, seen.avail, action)
            row += (after.reward, after.terminated, after.truncated, after.won)
            return (env_state, after), row

        return jax.lax.scan(step, carry, t + 1 + jnp.arange(SEGMENT))

    return jax.jit(jax.vmap(start)), jax.jit(jax.vmap(segment, in_axes=(None, 0, 0, None)))


def _play(begin, advance, chunk, params, seed, first) -> Iterator[Episodes]:
    """Plays chunk after chunk and yields the episodes in order."""
    while True:
        keys = jax.vmap(lambda e: jax.random.fold_in(jax.random.key(seed), e))(first + jnp.arange(chunk))
        carry = begin(keys)
        parts = []
        ended = np.zeros(chunk, bool)
        t = 0
        while not ended.all():
            carry, rows = advance(params, keys, carry, t)
            parts.append([np.asarray(row) for row in rows])
            ended |= (parts[-1][5] | parts[-1][6]).any(axis=1)
            t += SEGMENT
        after = carry[1]
        # an episode that ends with the last step played has its final observation in the carry only
        seen = [np.asarray(last)[:, None] for last in (after.obs, after.global_state, after.avail)]
        obs, state, avail = (np.concatenate([*(part[k] for part in parts), seen[k]], axis=1) for k in range(3))
        action, reward, terminated, truncated, won = (
            np.concatenate([p[k] for p in parts], axis=1) for k in range(3, 8)
        )
        last = (terminated | truncated).argmax(axis=1)
        for e, end in enumerate(last):
            yield _cut(obs[e], state[e], avail[e], action[e], reward[e], end + 1, terminated[e, end], won[e, end])
        first += chunk


def _act(temperature: float):
    """Compiles a step's actions of all copies at once, each from the key of its own episode and step."""

    def act(params, key, episode, t, obs, avail):
        return policies.sample(params, obs, avail, jax.random.fold_in(jax.random.fold_in(key, episode), t), temperature)

    return jax.jit(jax.vmap(act, in_axes=(None, None, 0, 0, 0, 0)))


def _play_host(environment, simulators, copies, act, params, seed, first, unit, coming) -> Iterator[Episodes]:
    """Keeps all copies busy, a copy whose episode ended begins the next one, and yields the episodes in order."""
    spec, key = environment.spec, jax.random.key(seed)
    # the compiled width stays the same however few copies there are, so that rounding does too
    rows = (max(copies, COPIES), environment.horizon + 1)
    obs = np.zeros((*rows, spec.num_agents, spec.obs_dim), np.float32)
    state = np.zeros((*rows, spec.state_dim), np.float32)
    avail = np.zeros((*rows, spec.num_agents, spec.action_dim), bool)
    action = np.zeros(avail.shape[:3], np.int32) if spec.discrete else np.zeros(avail.shape, np.float32)
    reward = np.zeros(rows, np.float32)
    everyone, running = np.arange(rows[0]), np.zeros(rows[0], bool)
    episode, t = np.full(rows[0], first, np.int32), np.zeros(rows[0], np.int32)
    begun = steps = 0
    finished: dict[int, Episodes] = {}
    due = first

    def see(who, shown):
        obs[who, t[who]], state[who, t[who]], avail[who, t[who]] = shown.obs, shown.global_state, shown.avail

    while True:
        idle = np.flatnonzero(~running[:copies])
        if coming:
            idle = idle[: max(0, coming - begun)] if unit == "episodes" else idle[: copies * (steps < coming)]
        if len(idle):
            episode[idle], t[idle], running[idle] = first + begun + np.arange(len(idle)), 0, True
            begun += len(idle)
            see(idle, simulators.reset(idle, np.array([_reset_seed(seed, e) for e in episode[idle]])))
        chosen = np.asarray(act(params, key, episode, t, obs[everyone, t], avail[everyone, t]))
        who = np.flatnonzero(running)
        after = simulators.step(who, chosen[who])
        action[who, t[who]], reward[who, t[who]] = chosen[who], after.reward
        t[who] += 1
        steps += len(who)
        see(who, after)
        for k in np.flatnonzero(after.terminated | after.truncated):
            e = who[k]
            ending = (t[e], after.terminated[k], after.won[k])
            finished[int(episode[e])] = _cut(obs[e], state[e], avail[e], action[e], reward[e], *ending)
            running[e] = False
        while due in finished:
            yield finished.pop(due)
            due += 1


def _reset_seed(seed: int, episode: int) -> int:
    return int(np.random.SeedSequence((seed, int(episode))).generate_state(1)[0])


def _cut(obs, state, avail, action, reward, length, terminated, won) -> Episodes:
    """Copies one episode of `length` steps out of longer arrays, with zeros for what its final row has not."""
    return Episodes(
        obs=obs[: length + 1].astype(np.float32),
        global_state=state[: length + 1].astype(np.float32),
        avail=avail[: length + 1].copy(),
        action=np.append(action[:length], np.zeros_like(action[:1]), axis=0),
        reward=np.append(reward[:length], np.float32(0)).astype(np.float32),
        length=np.array([length], np.int32),
        terminated=np.array([terminated], bool),
        won=np.array([won], bool),
    )


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder to write datasets to, found: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: expected a folder that can be written to, found a read-only one")
