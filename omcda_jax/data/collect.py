"""Rolls a behaviour policy out in a simulator and keeps whole episodes.

Episode e uses the key `fold_in(key(seed), e)` and its step t folds t in again, so what an episode contains depends
neither on how many are played at once nor on how many were asked for.
"""

import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.data import behaviour, hdf5
from omcda_jax.data.dataset import Episodes
from omcda_jax.envs import make
from omcda_jax.types import ConfigError, Environment

CHUNK = 256  # episodes played at once; with segments, this bounds the memory
SEGMENT = 8  # steps between looks at whether all of them have ended
TRIES_PER_EPISODE = 100  # played for each one wanted before a filter counts as hopeless
TRIES_AT_LEAST = 4096


def collect(
    environment: Environment,
    params: Sequence[behaviour.Params],
    recipe: behaviour.Quality,
    episodes: int,
    seed: int,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[Episodes, dict[str, Any]]:
    """Plays until the wanted number of episodes is kept.

    Args:
        environment: the simulator; discrete actions.
        params: weights of the policy of each of the recipe's stages.
        recipe: temperature, and which episodes are kept.
        episodes: E, how many to keep; each stage gives an equal share (the first ones one more where it is uneven).
        seed: of the whole collection; the same seed gives the same episodes on the same machine and versions.
        progress: called as `progress(kept, episodes, played)` after every chunk.

    Returns:
        The episodes, and metadata on how they were made.

    Raises:
        ConfigError: `episodes` or `seed` is out of range, the weights do not fit the environment, or too few
            episodes are kept of those played.
    """
    if episodes < 1:
        raise ConfigError(f"episodes: expected at least 1, found {episodes}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed: expected 0..{2**32 - 1}, found {seed}")
    spec = environment.spec
    expected = (spec.obs_dim + spec.num_agents, spec.action_dim)
    for stage, weights in zip(recipe.stages, params, strict=True):
        found = (weights[0][0].shape[0], weights[-1][0].shape[1])
        if found != expected:
            raise ConfigError(
                f"behaviour policy {stage}: expected {expected} inputs and outputs for {environment.name},"
                f" found {found}"
            )
    chunk = min(CHUNK, episodes)
    begin, advance = _rollout_functions(environment, recipe.temperature)
    kept: list[Episodes] = []
    played = 0
    for stage, weights in enumerate(params):
        wanted = len(kept) + len(range(stage, episodes, len(params)))
        limit = played + max(TRIES_AT_LEAST, TRIES_PER_EPISODE * (wanted - len(kept)))
        while len(kept) < wanted:
            if played >= limit:
                raise ConfigError(
                    f"{environment.name} {recipe.stages[stage]}: kept {len(kept)} of {played} episodes played,"
                    f" expected {wanted}; the policy wins too rarely for won_only"
                )
            keys = jax.vmap(lambda e: jax.random.fold_in(jax.random.key(seed), e))(played + jnp.arange(chunk))
            accepted, tried = _play(begin, advance, weights, keys, recipe, wanted - len(kept))
            kept.extend(accepted)
            played += tried
            if progress is not None:
                progress(len(kept), episodes, played)
    metadata = {
        "environment": environment.name,
        "max_return": environment.max_return,
        "temperature": recipe.temperature,
        "won_only": recipe.won_only,
        "description": describe(recipe),
        "seed": seed,
        "rollouts": played,
        "versions": {**environment.versions, "numpy": np.__version__, **_version("omcda-jax")},
    }
    joined = (np.concatenate(field) for field in zip(*kept, strict=True))
    return Episodes(*joined), metadata


def describe(recipe: behaviour.Quality) -> str:
    """Says in words how a dataset is made.

    Args:
        recipe: the dataset's definition.
    """
    policies = " and ".join(recipe.stages)
    which = "only won episodes kept" if recipe.won_only else "every episode kept"
    return f"actions sampled from the {policies} policy at temperature {recipe.temperature:g}; {which}"


def default_path(environment: str, quality: str, episodes: int, seed: int) -> Path:
    """Returns where a dataset is cached, relative to the working directory.

    Args:
        environment: for instance `smax/3m`.
        quality: for instance `medium`.
        episodes: how many.
        seed: of the collection.
    """
    return Path("datasets") / environment / f"{quality}_{episodes}_seed{seed}.h5"


def ensure(
    environment: str,
    quality: str,
    episodes: int,
    seed: int,
    path: str | os.PathLike | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Returns the path of a dataset file, collecting it first if there is none.

    Args:
        environment: for instance `smax/3m`.
        quality: for instance `medium`, see `behaviour.QUALITIES`.
        episodes: how many.
        seed: of the collection.
        path: the file; None is `default_path`. A file that is there is not opened: reading it checks it.
        log: called with one line of text now and then.

    Raises:
        ConfigError: unknown environment or quality, a missing package, a folder that cannot be written.
        DatasetError: the disk refuses the file.
    """
    path = default_path(environment, quality, episodes, seed) if path is None else Path(path)
    if path.exists():
        return path
    hdf5.require()
    family, _, scenario = environment.partition("/")
    simulator = make(environment)
    recipe = behaviour.quality(scenario, quality)
    files = {stage: behaviour.weights_path(scenario, stage) for stage in recipe.stages}
    _require_folder(path.parent)
    log(f"no dataset at {path}: collecting {episodes} episodes of {environment} ({describe(recipe)})")
    start = told = time.monotonic()

    def progress(kept, wanted, played):
        nonlocal told
        if kept == wanted or time.monotonic() - told > 5:
            told = time.monotonic()
            log(f"  kept {kept} of {wanted} episodes, played {played}, {told - start:.0f} s")

    params = [behaviour.read_weights(file) for file in files.values()]
    data, metadata = collect(simulator, params, recipe, episodes, seed, progress)
    command = f"python experiments/collect.py --environment={environment} --quality={quality}"
    metadata |= {
        "quality": quality,
        "generator": f"{command} --episodes={episodes} --seed={seed}",
        "weights": {stage: behaviour.digest(file) for stage, file in files.items()},
    }
    hdf5.write(path, simulator.spec, data, metadata)
    log(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB) in {time.monotonic() - start:.0f} s")
    return path


def _rollout_functions(environment: Environment, temperature: float):
    """Compiles the start and SEGMENT further steps of many episodes at once; ended ones step on, to be cut later."""

    def start(key):
        return environment.reset(jax.random.fold_in(key, 0))

    def segment(params, key, carry, t):
        def step(carry, t):
            env_state, seen = carry
            act_key, step_key = jax.random.split(jax.random.fold_in(key, t))
            scores = behaviour.logits(params, seen.obs, seen.avail) / temperature
            action = jax.random.categorical(act_key, scores, axis=-1).astype(jnp.int32)
            env_state, after = environment.step(step_key, env_state, action)
            row = (seen.obs, seen.state, seen.avail, action, after.reward, after.terminated, after.truncated, after.won)
            return (env_state, after), row

        return jax.lax.scan(step, carry, t + 1 + jnp.arange(SEGMENT))

    return jax.jit(jax.vmap(start)), jax.jit(jax.vmap(segment, in_axes=(None, 0, 0, None)))


def _play(begin, advance, params, keys, recipe, wanted) -> tuple[list[Episodes], int]:
    """Plays one chunk; returns the first `wanted` episodes that are kept, and how many were played to find them."""
    carry = begin(keys)
    parts = []
    ended = np.zeros(len(keys), bool)
    t = 0
    while not ended.all():
        carry, rows = advance(params, keys, carry, t)
        parts.append([np.asarray(row) for row in rows])
        ended |= (parts[-1][5] | parts[-1][6]).any(axis=1)
        t += SEGMENT
    after = carry[1]
    # an episode that ends with the last step played has its final observation in the carry only
    seen = [np.asarray(last)[:, None] for last in (after.obs, after.state, after.avail)]
    obs, state, avail = (np.concatenate([*(part[k] for part in parts), seen[k]], axis=1) for k in range(3))
    action, reward, terminated, truncated, won = (np.concatenate([p[k] for p in parts], axis=1) for k in range(3, 8))
    last = (terminated | truncated).argmax(axis=1)
    accepted = []
    for e, end in enumerate(last):
        if recipe.won_only and not won[e, end]:
            continue
        accepted.append(
            Episodes(
                obs=obs[e, : end + 2].astype(np.float32),
                state=state[e, : end + 2].astype(np.float32),
                avail=avail[e, : end + 2].copy(),
                action=np.append(action[e, : end + 1], np.zeros_like(action[e, :1]), axis=0),
                reward=np.append(reward[e, : end + 1], np.float32(0)).astype(np.float32),
                length=np.array([end + 1], np.int32),
                terminated=terminated[e, end : end + 1],
                won=won[e, end : end + 1],
            )
        )
        if len(accepted) == wanted:
            return accepted, e + 1
    return accepted, len(keys)


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder to write datasets to, found: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder}: expected a folder that can be written to, found a read-only one")


def _version(package: str) -> dict[str, str]:
    try:
        return {package: importlib.metadata.version(package)}
    except importlib.metadata.PackageNotFoundError:
        return {}
