"""The algorithms by name, and one `init`, `update`, `act` that serve them all by the type of the configuration."""

from typing import Any

import chex

from omcda_jax.algorithms import bc, omcda
from omcda_jax.types import Algorithm, Batch, EnvSpec, Metrics, TrainState

ALGORITHMS = {
    "omcda": Algorithm(omcda.OmcdaConfig, omcda.init, omcda.update, omcda.act),
    "bc": Algorithm(bc.BcConfig, bc.init, bc.update, bc.act),
}


def algorithm_of(config: Any) -> Algorithm:
    """The algorithm a configuration (or a state's static configuration) belongs to.

    Args:
        config: an instance of one of the algorithms' configuration classes.

    Raises:
        TypeError: it belongs to none.
    """
    for algorithm in ALGORITHMS.values():
        if type(config) is algorithm.config:
            return algorithm
    known = ", ".join(algorithm.config.__name__ for algorithm in ALGORITHMS.values())
    raise TypeError(f"config: expected one of {known}, found {type(config).__name__}")


def init(key: chex.PRNGKey, spec: EnvSpec, config: Any) -> TrainState:
    """State before the first update, of the algorithm that `config` belongs to.

    Args:
        key: typed PRNG key (`jax.random.key(seed)`); networks, and all later randomness, follow from it.
        spec: the task's sizes.
        config: for instance `OmcdaConfig(d_tot=1.8)`.

    Raises:
        ConfigError: the settings do not fit the task.
        TypeError: the configuration of no known algorithm.
    """
    return algorithm_of(config).init(key, spec, config)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One pure update step: jit, vmap, scan and differentiate it as you like.

    Args:
        state: from `init` or an earlier update.
        batch: B transitions (this device's, inside a pmap over `axis_name`).
        axis_name: mapped device axis over which averages and gradients are reduced.

    Returns:
        The next state, and a dict of metrics, [] or [N].
    """
    return algorithm_of(state.config).update(state, batch, axis_name=axis_name)


def act(
    state: TrainState, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None
) -> chex.Array:
    """Every agent's action from its own observation.

    Args:
        state: trained state.
        obs: [..., N, O].
        avail: [..., N, A] bool legal actions, None for all.
        key: samples the policy with it; None acts greedily.

    Returns:
        [..., N] int32 (discrete).
    """
    return algorithm_of(state.config).act(state, obs, avail, key)
