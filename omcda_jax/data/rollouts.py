"""A policy's episodes in a simulator, one after the other.

Episode e uses the key `fold_in(key(seed), e)`, and its step t also folds t in. So the content of an episode does not
depend on how many are played at once, or on how many are wanted.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.behaviour import acts
from omcda_jax.data.episodes import Episodes
from omcda_jax.envs.base import Environment, HostEnvironment, Simulators
from omcda_jax.types import ConfigError

CHUNK = 256  # episodes played at once if the simulator is JAX; with segments, this bounds the memory
SEGMENT = 8  # steps between checks of whether all of them have ended
COPIES = 32  # largest number of copies of a simulator on the host; another number can change the last bit


class Request(NamedTuple):
    """Which episodes to play.

    Attributes:
        params: weights of the policy, the first argument of `act`.
        seed: seed of the whole collection.
        first: number of the first episode.
        unit: what `enough` counts, episodes or transitions.
        enough: with simulators on the host, no more episodes begin once those begun have this many of the unit, and
            the stream ends with them; 0 is no bound.
    """

    params: Any
    seed: int
    first: int = 0
    unit: str = "episodes"
    enough: int = 0


@contextlib.contextmanager
def player(
    environment: Environment | HostEnvironment, act: acts.Act, episodes: int | None
) -> Iterator[Callable[[Request], Iterator[Episodes]]]:
    """Yield `play(request)`, which yields one episode after another, from number `first` on, each as `Episodes`.

    Args:
        environment: the simulator.
        act: the policies' function, see `acts.Behaviour`.
        episodes: about how many will be wanted; None if that is not known.

    Raises:
        ConfigError: from `play`: an episode goes on beyond the environment's horizon, or an action is not legal and
            the simulator runs on the host.
    """
    if isinstance(environment, HostEnvironment):
        choose, copies = _chooser(act), min(COPIES, episodes or COPIES)
        with contextlib.closing(environment.open(copies)) as simulators:
            yield lambda request: _play_host(environment, simulators, copies, choose, request)
    else:
        functions = _rollout_functions(environment, act)
        yield lambda request: _play(environment, *functions, min(CHUNK, episodes or CHUNK), request)


def _rollout_functions(environment: Environment, act: acts.Act):
    """Compile the start and SEGMENT further steps of many episodes at once; ended episodes go on and are cut later."""

    def start(key):
        return environment.reset(jax.random.fold_in(key, 0))

    def segment(params, key, carry, t):
        def step(carry, t):
            env_state, seen = carry
            act_key, step_key = jax.random.split(jax.random.fold_in(key, t))
            action = act(params, seen.obs, seen.avail, act_key)
            env_state, after = environment.step(step_key, env_state, action)
            row = (seen.obs, seen.global_state, seen.avail, action)
            row += (after.reward, after.terminated, after.truncated, after.won)
            return (env_state, after), row

        return jax.lax.scan(step, carry, t + 1 + jnp.arange(SEGMENT))

    return jax.jit(jax.vmap(start)), jax.jit(jax.vmap(segment, in_axes=(None, 0, 0, None)))


def _play(environment: Environment, begin, advance, chunk: int, request: Request) -> Iterator[Episodes]:
    """Play chunk after chunk and yield the episodes in order."""
    first, key = request.first, jax.random.key(request.seed)
    while True:
        keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(first + jnp.arange(chunk))
        carry = begin(keys)
        parts = []
        ended = np.zeros(chunk, bool)
        t = 0
        while not ended.all() and t < environment.horizon:
            carry, rows = advance(request.params, keys, carry, t)
            parts.append([np.asarray(row) for row in rows])
            ended |= (parts[-1][5] | parts[-1][6]).any(axis=1)
            t += SEGMENT
        after = carry[1]
        # if an episode ends with the last step played, its final observation is only in the carry
        seen = [np.asarray(last)[:, None] for last in (after.obs, after.global_state, after.avail)]
        obs, state, avail = (np.concatenate([*(part[k] for part in parts), seen[k]], axis=1) for k in range(3))
        action, reward, terminated, truncated, won = (
            np.concatenate([p[k] for p in parts], axis=1) for k in range(3, 8)
        )
        over = terminated | truncated
        if not over[:, : environment.horizon].any(axis=1).all():
            raise _endless(environment)
        last = over.argmax(axis=1)
        for e, end in enumerate(last):
            yield _cut(
                obs[e], state[e], avail[e], action[e], reward[e], end + 1, terminated[e, end], won[e, : end + 1].any()
            )
        first += chunk


def _chooser(act: acts.Act):
    """Return a function for a step's actions in the copies `who` that play, each from the key of its episode and step.

    The other arguments have a row for every copy, so the compiled width is the same however many play.
    """
    key_of = lambda key, episode, t: jax.random.fold_in(jax.random.fold_in(key, episode), t)
    if isinstance(act, acts.InPython):
        key_data = jax.jit(jax.vmap(lambda *of: jax.random.key_data(key_of(*of)), in_axes=(None, 0, 0)))

        def choose(who, params, key, episode, t, obs, avail):
            rows = zip(obs[who], avail[who], np.asarray(key_data(key, episode, t))[who], strict=True)
            return np.stack([act(params, *row) for row in rows])

        return choose

    def one(params, key, episode, t, obs, avail):
        return act(params, obs, avail, key_of(key, episode, t))

    jitted = jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0, 0)))
    return lambda who, *rows: np.asarray(jitted(*rows))[who]


def _play_host(
    environment: HostEnvironment, simulators: Simulators, copies: int, choose, request: Request
) -> Iterator[Episodes]:
    """Keep all copies busy by starting the next episode where one has ended, and yield the episodes in order."""
    params, seed, first, unit, enough = request
    spec, key = environment.spec, jax.random.key(seed)
    # the compiled width is the same however few copies there are, and so is the rounding
    rows = (max(copies, COPIES), environment.horizon + 1)
    obs = np.zeros((*rows, spec.num_agents, spec.obs_dim), np.float32)
    state = np.zeros((*rows, spec.state_dim), np.float32)
    avail = np.ones((*rows, spec.num_agents, spec.action_dim), bool)  # idle copies choose too
    action = np.zeros(avail.shape[:3], np.int32) if spec.discrete else np.zeros(avail.shape, np.float32)
    reward = np.zeros(rows, np.float32)
    everyone, running, won = np.arange(rows[0]), np.zeros(rows[0], bool), np.zeros(rows[0], bool)
    episode, t = np.full(rows[0], first, np.int32), np.zeros(rows[0], np.int32)
    begun = steps = 0
    finished: dict[int, Episodes] = {}
    due = first

    def see(who, shown):
        obs[who, t[who]], state[who, t[who]], avail[who, t[who]] = shown.obs, shown.global_state, shown.avail

    while True:
        idle = np.flatnonzero(~running[:copies])
        if enough:
            idle = idle[: max(0, enough - begun)] if unit == "episodes" else idle[: copies * (steps < enough)]
        if len(idle):
            episode[idle], t[idle] = first + begun + np.arange(len(idle)), 0
            running[idle], won[idle] = True, False
            begun += len(idle)
            see(idle, simulators.reset(idle, np.array([_reset_seed(seed, e) for e in episode[idle]])))
        who = np.flatnonzero(running)
        if not len(who):
            return
        chosen = choose(who, params, key, episode, t, obs[everyone, t], avail[everyone, t])
        _require_legal(environment, chosen, avail[who, t[who]])
        after = simulators.step(who, chosen)
        action[who, t[who]], reward[who, t[who]] = chosen, after.reward
        won[who] |= after.won
        t[who] += 1
        steps += len(who)
        see(who, after)
        if (~after.terminated & ~after.truncated & (t[who] >= environment.horizon)).any():
            raise _endless(environment)
        for k in np.flatnonzero(after.terminated | after.truncated):
            e = who[k]
            ending = (t[e], after.terminated[k], won[e])
            finished[int(episode[e])] = _cut(obs[e], state[e], avail[e], action[e], reward[e], *ending)
            running[e] = False
        while due in finished:
            yield finished.pop(due)
            due += 1


def _require_legal(environment: HostEnvironment, action: np.ndarray, avail: np.ndarray) -> None:
    """Refuse illegal actions before a simulator sees them."""
    if environment.spec.discrete:
        inside = (action >= 0) & (action < avail.shape[-1])
        legal = inside & np.take_along_axis(avail, np.where(inside, action, 0)[..., None], axis=-1)[..., 0]
    else:
        legal = (np.abs(action) <= 1).all(axis=-1)  # nan is not legal
    if not legal.all():
        copy, agent = np.argwhere(~legal)[0]
        raise ConfigError(
            f"a policy in {environment.name}: expected legal actions, found {action[copy, agent]} of agent {agent}"
        )


def _endless(environment: Environment | HostEnvironment) -> ConfigError:
    return ConfigError(
        f"environment {environment.name}: expected every episode to end, terminated or truncated, within its horizon "
        f"of {environment.horizon} steps, found one that goes on"
    )


def _reset_seed(seed: int, episode: int) -> int:
    return int(np.random.SeedSequence((seed, int(episode))).generate_state(1)[0])


def _cut(obs, state, avail, action, reward, length, terminated, won) -> Episodes:
    """Copy one episode of `length` steps from longer arrays, with zeros for what its final row does not have."""
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
