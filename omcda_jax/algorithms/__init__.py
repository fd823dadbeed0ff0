"""The algorithms by name, and one `init`, `update`, `policy`, `act` that serve them all by the name in the settings.

An algorithm's own functions see checked input: batches and observations of the right shapes and kinds, normalised
if the state has a normaliser, with zeros for the padding of continuous actions. They compute in 32 bits whatever
JAX_ENABLE_X64 says. All of this is done here, once.
"""

import functools
import importlib
from typing import Any

import chex
import jax
import jax.numpy as jnp

from omcda_jax.algorithms import bc, bcq, cfcql, comadice, cql, icq, omar, omcda, omiga
from omcda_jax.checks import check_axis, check_batch, check_key, check_observation, check_single
from omcda_jax.types import Actor, Algorithm, Batch, ConfigError, EnvSpec, Metrics, Normaliser, TrainState, suggestion


@functools.cache
def _complete(algorithm: Algorithm) -> Algorithm:
    """Return the same algorithm on raw observations and actions, with checks of its inputs."""
    name = algorithm.config.name

    def init(key: chex.PRNGKey, spec: EnvSpec, config: Any) -> TrainState:
        check_key(key)
        if type(config) is not algorithm.config:
            expected, given = algorithm.config.__qualname__, type(config).__qualname__
            raise ConfigError(f"{name}: expected settings of class {expected}, found {given}, which has the same name")
        check_single("config", config)
        with jax.enable_x64(False):
            config.validate()
            return algorithm.init(key, spec, config)

    def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
        check_single("state", state.config)
        check_batch(batch, state.spec, name, algorithm.needs)
        check_axis(batch, axis_name)
        with jax.enable_x64(False):
            batch = normalise(state, jax.tree.map(_as_single, batch))
            return algorithm.update(state, batch, axis_name=axis_name)

    def act(policy, obs, avail=None, key=None):
        check_single("policy", policy.config)
        if key is not None:
            check_key(key)
        actor = algorithm.policy(policy) if isinstance(policy, TrainState) else policy
        check_observation(obs, avail, actor.spec)
        with jax.enable_x64(False):
            return algorithm.act(actor, _normalise_obs(actor.normaliser, _as_single(obs)), avail, key)

    return algorithm._replace(init=init, update=update, act=act)


def _as_single(array: chex.Array) -> jax.Array:
    """Return floats as float32 and integers as int32, whatever their width; booleans as they are."""
    for kind, single in ((jnp.floating, jnp.float32), (jnp.integer, jnp.int32)):
        if jnp.issubdtype(array.dtype, kind):
            return jnp.asarray(array, single)
    return array


def _normalise_obs(normaliser: Normaliser | None, obs: chex.Array) -> chex.Array:
    return obs if normaliser is None else (obs - normaliser.obs_shift) * normaliser.obs_factor


def normalise(state: TrainState, batch: Batch) -> Batch:
    """Return a batch of raw observations, states and actions as the state's algorithm sees it.

    Args:
        state: only its normaliser and spec are read.
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
        batch = batch.replace(action=jnp.where(batch.avail, batch.action, 0.0))
        if batch.next_action is not None:
            batch = batch.replace(next_action=jnp.where(batch.next_avail, batch.next_action, 0.0))
    return batch


ALGORITHMS = {
    module.ALGORITHM.config.name: _complete(module.ALGORITHM)
    for module in (bc, bcq, cql, icq, omar, omiga, cfcql, comadice, omcda)
}


def find(name: str, key: str = "algorithm.name") -> Algorithm:
    """Return the algorithm of a name.

    Args:
        name: a key of ALGORITHMS, or `module:ATTRIBUTE` of an algorithm of your own, which is imported.
        key: setting or flag that gave the name, for messages.

    Raises:
        ConfigError: there is no algorithm of this name.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{key}: no algorithm {name!r}; {suggestion(name, ALGORITHMS)}, or module:ATTRIBUTE")
    try:
        algorithm = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: expected module:ATTRIBUTE, found {name!r}: {error}") from error
    if not isinstance(algorithm, Algorithm):
        raise ConfigError(f"{key}: expected an Algorithm at {name}, found {type(algorithm).__name__}")
    return _complete(algorithm._replace(needs=tuple(algorithm.needs)))


def init(key: chex.PRNGKey, spec: EnvSpec, config: Any) -> TrainState:
    """Return the state before the first update of the algorithm that `config` belongs to.

    Args:
        key: typed PRNG key (`jax.random.key(seed)`); networks, and all later randomness, follow from it.
        spec: the task's sizes.
        config: for instance `OmcdaConfig(d_tot=1.8)`; its numbers may be traced, for a population by vmap.

    Raises:
        ConfigError: a setting out of its range, or settings that do not fit the task.
        BatchError: a setting is an array of numbers.
        TypeError: `config` is not an algorithm's settings, or `key` is not a key.
    """
    if isinstance(config, type) or not isinstance(getattr(config, "name", None), str):
        found = f"the class {config.__name__}" if isinstance(config, type) else type(config).__name__
        raise TypeError(f"config: expected an algorithm's settings, such as OmcdaConfig(), found {found}")
    return find(config.name).init(key, spec, config)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one pure update step: jit, vmap and scan it as you like, and differentiate it in reverse mode.

    Gradients are stopped at targets, weights and advantages: the derivative of OMCDA's next parameters by `gamma`, for
    instance, is 0.

    Args:
        state: from `init` or an earlier update.
        batch: B transitions (this device's, inside a pmap over `axis_name`), observations raw.
        axis_name: mapped device axis over which averages and gradients are reduced; `jax.shard_map` needs
            `check_vma=False`.

    Returns:
        The next state, and a dict of metrics, [] or [N]: losses at the parameters before the step, and the algorithm's
        own state (levels, budgets, influence) after it.

    Raises:
        BatchError: while tracing, for the first field with a wrong shape or kind of numbers, for a stack of states
            outside of vmap, or for check_vma left on.
        TypeError: `state` or `batch` is something else.
    """
    for name, value, expected in (("state", state, TrainState), ("batch", batch, Batch)):
        if not isinstance(value, expected):
            raise TypeError(f"{name}: expected {expected.__name__}, found {type(value).__name__}")
    return find(state.config.name).update(state, batch, axis_name=axis_name)


def policy(state: TrainState | Actor) -> Actor:
    """Cut out the part of a state that acts, without optimiser moments and target critics, to save, ship or export.

    Args:
        state: trained state, or what was cut out of one before.
    """
    return state if isinstance(state, Actor) else find(state.config.name).policy(state)


def act(
    policy: TrainState | Actor, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None
) -> chex.Array:
    """Choose every agent's action from its own observation.

    Args:
        policy: trained state, or what `policy` cut out of a state.
        obs: [..., N, O], raw.
        avail: [..., N, A] bool legal actions or dimensions an agent has, None for all.
        key: samples from a policy network (discrete BCQ, CQL and CFCQL and continuous OMAR stay greedy); None acts
            greedily.

    Returns:
        [..., N] int32, or [..., N, A] float32 in [-1, 1].

    Raises:
        BatchError: while tracing, if a shape or the kind of numbers is wrong, or for a stack of policies outside of
            vmap.
        TypeError: `key` is not a key.
    """
    return find(policy.config.name).act(policy, obs, avail, key)


def export(policy: TrainState | Actor, platforms: tuple[str, ...] = ("cpu",)) -> jax.export.Exported:
    """Export the greedy policy as a self-contained StableHLO program, its parameters included.

    `export(policy).serialize()` gives bytes (needs the extra `export`), and
    `jax.export.deserialize(bytearray(data)).call(obs, avail)` acts wherever JAX is.

    Args:
        policy: as in `act`.
        platforms: platforms to compile for, among "cpu", "cuda", "rocm" and "tpu".

    Returns:
        A function of obs [B, N, O] float32 and avail [B, N, A] bool, of any B.
    """
    spec = policy.spec
    (rows,) = jax.export.symbolic_shape("B")
    obs = jax.ShapeDtypeStruct((rows, spec.num_agents, spec.obs_dim), jnp.float32)
    avail = jax.ShapeDtypeStruct((rows, spec.num_agents, spec.action_dim), jnp.bool_)
    greedy = jax.jit(lambda obs, avail: act(policy, obs, avail))
    return jax.export.export(greedy, platforms=platforms)(obs, avail)
