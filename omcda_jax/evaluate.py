"""Greedy episodes of a policy in a simulator, compiled once and played side by side; some of them are for viewing."""

import contextlib
import importlib.util
import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.envs.base import Environment, HostEnvironment, Simulators, Units
from omcda_jax.metrics import standard_deviation
from omcda_jax.types import ConfigError

VIDEO_FRAMES = 250  # in an episode as long as the horizon; the steps in between are left out
VIDEO_RATE = 25  # frames per second


class EpisodeResults(NamedTuple):
    """Results of E episodes.

    Attributes:
        returns: [E] undiscounted sum of rewards, in the environment's units.
        won: [E] bool, the goal was reached.
        length: [E] int32, steps.
        truncated: [E] bool, the time limit ended the episode.
    """

    returns: chex.Array
    won: chex.Array
    length: chex.Array
    truncated: chex.Array


class Seen(NamedTuple):
    """One episode of L steps to look at.

    Attributes:
        reward: [L].
        action: [L, N] or [L, N, A].
        won: the team reached the task's goal.
        units: arrays [L + 1, U, ...] of what is on the map; None if the environment has no map.
        frames: pictures [H, W, 3] uint8; empty unless they were asked for.
    """

    reward: np.ndarray
    action: np.ndarray
    won: bool
    units: Units | None = None
    frames: Sequence[np.ndarray] = ()


class _Carry(NamedTuple):
    time: jax.Array
    env_state: Any
    timestep: Any
    done: jax.Array
    results: EpisodeResults


def make_evaluate(
    act: Callable[..., jax.Array],
    environment: Environment | HostEnvironment,
    episodes: int,
    *,
    population: bool = False,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[Any, jax.Array], EpisodeResults]:
    """Return a compiled `(state, key) -> EpisodeResults` that plays greedily until every episode has ended.

    The first call opens simulators on the host. They stay open for later calls, and close when nothing refers to the
    returned function any more.

    Args:
        act: `act(state, obs [E, N, O], avail [E, N, A]) -> action [E, N] or [E, N, A]`; greedy without a key.
        environment: the simulator.
        episodes: E.
        population: states have a leading axis of trials [T], and results are [T, E]. All trials play the same episodes,
            side by side. A later call may have fewer trials than the first call, but not more.
        compiler_options: as in `jax.jit`, which does not allow them in a function that another jitted function calls.
    """
    make = _on_host if isinstance(environment, HostEnvironment) else _in_jax
    return make(act, environment, episodes, population, dict(compiler_options or {}) or None)


def _key_of_reset(key: chex.PRNGKey) -> chex.PRNGKey:
    """Return the key of an episode's reset, which none of its steps uses."""
    return jax.random.fold_in(key, 0)


def _keys_of_step(key: chex.PRNGKey, time: chex.Numeric) -> chex.PRNGKey:
    """Return the keys [2] of the action and of the simulator in step `time` of an episode, counted from 1."""
    return jax.random.split(jax.random.fold_in(key, time))


def _in_jax(act, environment: Environment, episodes: int, population: bool, options: dict[str, Any] | None):
    def step(carry: _Carry, state: Any, keys: jax.Array) -> _Carry:
        action = act(state, carry.timestep.obs, carry.timestep.avail)
        _, step_keys = jax.vmap(_keys_of_step, in_axes=(0, None), out_axes=1)(keys, carry.time + 1)
        env_state, timestep = jax.vmap(environment.step)(step_keys, carry.env_state, action)
        active = ~carry.done
        at_horizon = carry.time + 1 >= environment.horizon
        so_far = carry.results
        return _Carry(
            time=carry.time + 1,
            env_state=env_state,
            timestep=timestep,
            done=carry.done | timestep.terminated | timestep.truncated | at_horizon,
            results=EpisodeResults(
                returns=so_far.returns + jnp.where(active, timestep.reward, 0.0).astype(jnp.float32),
                won=so_far.won | (active & timestep.won),
                length=so_far.length + active.astype(jnp.int32),
                truncated=so_far.truncated | (active & ~timestep.terminated & (timestep.truncated | at_horizon)),
            ),
        )

    def evaluate(state: Any, key: jax.Array) -> EpisodeResults:
        keys = jax.random.split(key, episodes)
        env_state, timestep = jax.vmap(environment.reset)(jax.vmap(_key_of_reset)(keys))
        nothing = jnp.zeros(episodes, bool)
        start = EpisodeResults(jnp.zeros(episodes, jnp.float32), nothing, jnp.zeros(episodes, jnp.int32), nothing)
        carry = _Carry(jnp.int32(0), env_state, timestep, nothing, start)
        final = jax.lax.while_loop(lambda carry: ~jnp.all(carry.done), lambda carry: step(carry, state, keys), carry)
        return final.results

    return jax.jit(jax.vmap(evaluate, in_axes=(0, None)) if population else evaluate, compiler_options=options)


def _of_every_trial(act):
    """Act for one trial after the other on a CPU, whose caches have room for only one; elsewhere for all at once."""
    if jax.default_backend() == "cpu":
        return lambda *stacked: jax.lax.map(lambda one: act(*one), stacked)
    return jax.vmap(act)


def _on_host(act, environment: HostEnvironment, episodes: int, population: bool, options: dict[str, Any] | None):
    opened: list[Simulators] = []
    # always the whole batch, with ended episodes, so that there is only one shape to compile for
    jitted = jax.jit(_of_every_trial(act) if population else act, compiler_options=options)

    def evaluate(state: Any, key: jax.Array) -> EpisodeResults:
        shape = (*jax.tree.leaves(state)[0].shape[:1], episodes) if population else (episodes,)
        copies = math.prod(shape)
        if not opened:
            opened.append(environment.open(copies))
        simulators = opened[0]
        running = np.arange(copies)
        timestep = simulators.reset(running, np.resize(np.asarray(jax.random.bits(key, (episodes,))), copies))
        obs, avail = np.array(timestep.obs), np.array(timestep.avail)
        returns, length = np.zeros(copies), np.zeros(copies, np.int32)
        won, truncated = np.zeros(copies, bool), np.zeros(copies, bool)
        while running.size:
            action = np.asarray(jitted(state, *(each.reshape(*shape, *each.shape[1:]) for each in (obs, avail))))
            action = action.reshape(copies, *action.shape[len(shape) :])[running]
            timestep = simulators.step(running, action)
            obs[running], avail[running] = timestep.obs, timestep.avail
            returns[running] += timestep.reward
            length[running] += 1
            won[running] |= timestep.won
            truncated[running] = ~timestep.terminated & (timestep.truncated | (length[running] >= environment.horizon))
            running = running[~(timestep.terminated | truncated[running])]
        results = EpisodeResults(returns.astype(np.float32), won, length, truncated)
        return EpisodeResults(*(values.reshape(shape) for values in results))

    weakref.finalize(evaluate, lambda: [simulators.close() for simulators in opened])
    return evaluate


def summarise(results: EpisodeResults) -> dict[str, float]:
    """Return means over episodes, with the spread of the return.

    Args:
        results: arrays [E].

    Returns:
        `episodes`, `return_mean`, `return_sd` (over episodes; 0 for a single one), `return_se` (standard error of the
        mean), `win_rate`, `length_mean`, `truncated_rate`.
    """
    returns, won, length, truncated = (np.asarray(values, np.float64) for values in results)
    spread = standard_deviation(returns)
    return {
        "episodes": returns.size,
        "return_mean": float(returns.mean()),
        "return_sd": spread,
        "return_se": spread / math.sqrt(returns.size),
        "win_rate": float(won.mean()),
        "length_mean": float(length.mean()),
        "truncated_rate": float(truncated.mean()),
    }


def check_video(environment: Environment | HostEnvironment, path: str) -> None:
    """Find out whether `record_video` would succeed, by rendering one frame; worth doing before a long training.

    Args:
        environment: the simulator.
        path: path of the file to be written.

    Raises:
        ConfigError: the environment has no renderer, the renderer finds no graphics, the name does not end in .gif or
            .mp4, or a package is missing.
    """
    if not isinstance(environment, HostEnvironment):
        raise ConfigError(f"video: environment {environment.name} has no renderer")
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".gif", ".mp4"):
        raise ConfigError(f"video: expected a path ending in .gif or .mp4, found {path!r}")
    for package, needed in (("imageio", True), ("imageio_ffmpeg", kind == ".mp4")):
        if needed and importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise ConfigError(f"video: {path} needs a package: pip install {name}")
    with _simulator(environment) as simulators:
        simulators.reset(np.arange(1), np.zeros(1, int))
        simulators.render()


def greedily(act: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the `act` that `watch` takes, for an algorithm that acts greedily.

    Args:
        act: as for `make_evaluate`.
    """
    return lambda state, obs, avail, key: act(state, obs[None], avail[None])[0]


def record(
    act: Callable[..., jax.Array], environment: HostEnvironment, state: Any, *, seed: int, every: int = 1
) -> list[np.ndarray]:
    """Play one greedy episode and return its frames, each [H, W, 3] uint8: the first, the last, some in between.

    Args:
        act, environment: as for `make_evaluate`.
        state: first argument of `act`.
        seed: seed of the episode.
        every: steps from one frame to the next.

    Raises:
        ConfigError: there are no graphics.
    """
    jitted = jax.jit(greedily(act))
    with _simulator(environment) as simulators:
        return list(_seen_on_host(jitted, environment, simulators, state, seed, jax.random.key(seed), every).frames)


def watch(
    act: Callable[..., jax.Array],
    environment: Environment | HostEnvironment,
    state: Any,
    *,
    seed: int,
    episodes: int = 1,
    places: Sequence[int] = (0,),
    every: int = 0,
) -> list[Seen]:
    """Play episodes of an evaluation and return them for viewing.

    Args:
        act: `act(state, obs [N, O], avail [N, A], key) -> action [N] or [N, A]`; see `greedily`.
        environment: the simulator.
        state: first argument of `act`.
        seed: seed of the evaluation.
        episodes: number of episodes in that evaluation.
        places: which of the episodes to play.
        every: steps from one frame to the next; 0: no frames. For simulators on the host only.

    Raises:
        ConfigError: frames are asked for, but there are no graphics.
    """
    key, jitted, chosen = jax.random.key(seed), jax.jit(act), list(places)
    keys = [jax.random.split(key, episodes)[place] for place in chosen]
    if isinstance(environment, Environment):
        return [_seen_in_jax(jitted, environment, state, one) for one in keys]
    seeds = np.asarray(jax.random.bits(key, (episodes,)))[chosen]
    with _simulator(environment) as simulators:
        played = zip(seeds, keys, strict=True)
        return [_seen_on_host(jitted, environment, simulators, state, *one, every) for one in played]


def _seen_in_jax(act, environment: Environment, state: Any, key: jax.Array) -> Seen:
    units = jax.jit(environment.map.units) if environment.map else lambda env_state: None
    step = jax.jit(environment.step)
    env_state, timestep = jax.jit(environment.reset)(_key_of_reset(key))
    seen, actions, rewards, won = [units(env_state)], [], [], False
    for time in range(1, environment.horizon + 1):
        act_key, step_key = _keys_of_step(key, time)
        actions.append(act(state, timestep.obs, timestep.avail, act_key))
        env_state, timestep = step(step_key, env_state, actions[-1])
        seen.append(units(env_state))
        rewards.append(timestep.reward)
        won |= bool(timestep.won)
        if timestep.terminated | timestep.truncated:
            break
    stacked = lambda moments: jax.tree.map(lambda *each: np.stack(each), *jax.device_get(moments))
    return Seen(stacked(rewards), stacked(actions), won, stacked(seen))


@contextlib.contextmanager
def _simulator(environment: HostEnvironment) -> Iterator[Simulators]:
    simulators = environment.open(1)
    try:
        yield simulators
    finally:
        simulators.close()


def _seen_on_host(act, environment, simulators, state, seed, key, every) -> Seen:
    index, won = np.arange(1), False
    timestep, actions, rewards = simulators.reset(index, np.array([seed])), [], []
    frames = [simulators.render()] if every else []
    for time in range(1, environment.horizon + 1):
        action = act(state, timestep.obs[0], timestep.avail[0], jax.random.fold_in(key, time))
        actions.append(np.asarray(action))
        timestep = simulators.step(index, actions[-1][None])
        rewards.append(float(timestep.reward[0]))
        won |= bool(timestep.won[0])
        over = bool(timestep.terminated[0] | timestep.truncated[0]) or time == environment.horizon
        if every and (over or time % every == 0):
            frames.append(simulators.render())
        if over:
            break
    return Seen(np.array(rewards), np.stack(actions), won, frames=frames)


def record_video(
    act: Callable[..., jax.Array], environment: Environment | HostEnvironment, state: Any, path: str, *, seed: int
) -> None:
    """Write one greedy episode as a GIF, or as an MP4 if imageio-ffmpeg is installed; at most about 250 frames.

    Args:
        act, environment, state, seed: as for `record`.
        path: path of the file, ending in .gif or .mp4; missing folders on the way are made.

    Raises:
        ConfigError: as `check_video`, or the file cannot be written.
    """
    check_video(environment, path)
    frames = record(act, environment, state, seed=seed, every=math.ceil(environment.horizon / VIDEO_FRAMES))
    import imageio.v3

    timing = {"duration": 1000 / VIDEO_RATE, "loop": 0} if path.lower().endswith(".gif") else {"fps": VIDEO_RATE}
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        # the MP4 encoder is a process of its own, and JAX warns about every new process
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            imageio.v3.imwrite(path, np.stack(frames), **timing)
    except OSError as error:
        raise ConfigError(f"video: cannot write {path}: {error.strerror or error}") from error
