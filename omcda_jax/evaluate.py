"""Greedy episodes of a policy in a simulator, compiled once and played side by side."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.types import Environment


class Episodes(NamedTuple):
    """What E episodes came to.

    Attributes:
        returns: [E] undiscounted sum of rewards, in the environment's units.
        won: [E] bool, the goal was reached.
        length: [E] int32, steps.
        truncated: [E] bool, the time limit ended the episode.
    """

    returns: jax.Array
    won: jax.Array
    length: jax.Array
    truncated: jax.Array


class _Carry(NamedTuple):
    time: jax.Array
    env_state: Any
    timestep: Any
    done: jax.Array
    episodes: Episodes


def make_evaluate(
    act: Callable[..., jax.Array], environment: Environment, episodes: int
) -> Callable[[Any, jax.Array], Episodes]:
    """Returns a compiled `(state, key) -> Episodes` that plays greedily until every episode has ended.

    Args:
        act: `act(state, obs [E, N, O], avail [E, N, A]) -> action [E, N] or [E, N, A]`; greedy without a key.
        environment: the simulator.
        episodes: E.
    """

    def step(carry: _Carry, state: Any, keys: jax.Array) -> _Carry:
        action = act(state, carry.timestep.obs, carry.timestep.avail)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, carry.time + 1)
        env_state, timestep = jax.vmap(environment.step)(step_keys, carry.env_state, action)
        active = ~carry.done
        at_horizon = carry.time + 1 >= environment.horizon
        so_far = carry.episodes
        return _Carry(
            time=carry.time + 1,
            env_state=env_state,
            timestep=timestep,
            done=carry.done | timestep.terminated | timestep.truncated | at_horizon,
            episodes=Episodes(
                returns=so_far.returns + jnp.where(active, timestep.reward, 0.0),
                won=so_far.won | (active & timestep.won),
                length=so_far.length + active.astype(jnp.int32),
                truncated=so_far.truncated | (active & ~timestep.terminated & (timestep.truncated | at_horizon)),
            ),
        )

    @jax.jit
    def evaluate(state: Any, key: jax.Array) -> Episodes:
        keys = jax.random.split(key, episodes)
        env_state, timestep = jax.vmap(environment.reset)(keys)
        nothing = jnp.zeros(episodes, bool)
        start = Episodes(jnp.zeros(episodes, jnp.float32), nothing, jnp.zeros(episodes, jnp.int32), nothing)
        carry = _Carry(jnp.int32(0), env_state, timestep, nothing, start)
        final = jax.lax.while_loop(lambda carry: ~jnp.all(carry.done), lambda carry: step(carry, state, keys), carry)
        return final.episodes

    return evaluate


def summarise(episodes: Episodes) -> dict[str, float]:
    """Returns means over episodes, with the spread of the return.

    Args:
        episodes: arrays [E].

    Returns:
        `episodes`, `return_mean`, `return_sd` (over episodes; 0 for a single one), `return_se` (of the mean),
        `win_rate`, `length_mean`, `truncated_rate`.
    """
    returns, won, length, truncated = (np.asarray(values, np.float64) for values in episodes)
    spread = float(returns.std(ddof=1)) if returns.size > 1 else 0.0
    return {
        "episodes": returns.size,
        "return_mean": float(returns.mean()),
        "return_sd": spread,
        "return_se": spread / math.sqrt(returns.size),
        "win_rate": float(won.mean()),
        "length_mean": float(length.mean()),
        "truncated_rate": float(truncated.mean()),
    }
