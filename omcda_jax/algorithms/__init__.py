"""The algorithms by name, and one `init`, `update`, `act` that serve them all by the type of the configuration.

Observations reach an algorithm's own functions normalised, where the state has a normaliser, and the padding of
continuous actions reaches them as zeros: both are done here, once for all.
"""

from typing import Any

import chex
import jax.numpy as jnp

from omcda_jax.algorithms import bc, bcq, cfcql, comadice, cql, icq, omar, omcda, omiga
from omcda_jax.types import Algorithm, Batch, EnvSpec, Metrics, Normaliser, TrainState


def _normalised(algorithm: Algorithm) -> Algorithm:
    """The same algorithm on raw observations and actions."""

    def update(state, batch, *, axis_name=None):
        return algorithm.update(state, normalise(state, batch), axis_name=axis_name)

    def act(state, obs, avail=None, key=None):
        return algorithm.act(state, _normalise_obs(state.normaliser, obs), avail, key)

    return algorithm._replace(update=update, act=act)


def _normalise_obs(normaliser: Normaliser | None, obs: chex.Array) -> chex.Array:
    return obs if normaliser is None else (obs - normaliser.obs_shift) * normaliser.obs_factor


def normalise(state: TrainState, batch: Batch) -> Batch:
    """What the state's algorithm sees of a batch of raw observations, states and actions.

    Args:
        state: only its normaliser and spec are looked at.
        batch: as it comes from the data.
    """
    scale = state.normaliser
    if scale is not None:
        batch = batch.replace(
            obs=_normalise_obs(scale, batch.obs),
            next_obs=_normalise_obs(scale, batch.next_obs),
            global_state=(batch.global_state - scale.global_state_shift) * scale.global_state_factor,
            next_global_state=(batch.next_global_state - scale.global_state_shift) * scale.global_state_factor,
        )
    if not state.spec.discrete:
        batch = batch.replace(
            action=jnp.where(batch.avail, batch.action, 0.0),
            next_action=jnp.where(batch.next_avail, batch.next_action, 0.0),
        )
    return batch


ALGORITHMS = {
    "bc": _normalised(Algorithm(bc.BcConfig, bc.init, bc.update, bc.act)),
    "bcq": _normalised(Algorithm(bcq.BcqConfig, bcq.init, bcq.update, bcq.act)),
    "cql": _normalised(Algorithm(cql.CqlConfig, cql.init, cql.update, cql.act)),
    "icq": _normalised(Algorithm(icq.IcqConfig, icq.init, icq.update, icq.act)),
    "omar": _normalised(Algorithm(omar.OmarConfig, omar.init, omar.update, omar.act)),
    "omiga": _normalised(Algorithm(omiga.OmigaConfig, omiga.init, omiga.update, omiga.act)),
    "cfcql": _normalised(Algorithm(cfcql.CfcqlConfig, cfcql.init, cfcql.update, cfcql.act)),
    "comadice": _normalised(Algorithm(comadice.ComadiceConfig, comadice.init, comadice.update, comadice.act)),
    "omcda": _normalised(Algorithm(omcda.OmcdaConfig, omcda.init, omcda.update, omcda.act)),
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
        batch: B transitions (this device's, inside a pmap over `axis_name`), observations raw.
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
        obs: [..., N, O], raw.
        avail: [..., N, A] bool legal actions or dimensions an agent has, None for all.
        key: samples the policy with it; None acts greedily.

    Returns:
        [..., N] int32, or [..., N, A] float32 in [-1, 1].
    """
    return algorithm_of(state.config).act(state, obs, avail, key)
