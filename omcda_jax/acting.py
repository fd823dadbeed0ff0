"""The part of a training state that acts, and how it acts: greedily or by sampling, from a policy network or values."""

import chex
import jax.numpy as jnp

from omcda_jax.distributions import Policy, greedy
from omcda_jax.networks import AgentNetwork, MixedCritic, action_distribution, backbone, policy_network
from omcda_jax.types import Actor, EnvSpec, Params, TrainState


def cut(state: TrainState, **params: Params) -> Actor:
    """Cut out the part of a state that acts, with these parameters by optimiser group."""
    return Actor(params=params, config=state.config, spec=state.spec, normaliser=state.normaliser)


def policy_of(state: TrainState) -> Actor:
    """Return the actor of methods with a policy network: the moving average of the network."""
    return cut(state, policy=state.target_params["policy"])


def act_by_policy(
    actor: Actor, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None
) -> chex.Array:
    """Act by the averaged policy network, decentralised: agent i's action depends only on o_i.

    Args:
        actor: from `policy_of`.
        obs: [..., N, O].
        avail: [..., N, A] bool, None for all.
        key: key to sample with; None acts greedily.

    Returns:
        [..., N] int32, or [..., N, A] in [-1, 1].
    """
    network = policy_network(actor.spec, actor.config.hidden_sizes)
    policy = action_distribution(network, actor.params["policy"], obs, all_if_none(actor.spec, obs, avail))
    return policy.mode() if key is None else policy.sample(key)


def values_of(state: TrainState) -> Actor:
    """Return the actor of value methods: the newest local values or, with continuous actions, the averaged policy."""
    if state.spec.discrete:
        return cut(state, critic={"local": state.params["critic"]["local"]})
    return policy_of(state)


def act_by_value(
    actor: Actor, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None
) -> chex.Array:
    """Act by `value_policy`; the actor is from `values_of`, the other arguments are as in `act_by_policy`."""
    nets = backbone(actor.spec, actor.config)
    policy = value_policy(nets.policy, nets.critic, actor.params, obs, all_if_none(actor.spec, obs, avail))
    return policy.mode() if key is None else policy.sample(key)


def value_policy(
    network: AgentNetwork, critic: MixedCritic, params: Params, obs: chex.Array, avail: chex.Array
) -> Policy:
    """Return the policy of a value method: greedy in its local values or, with continuous actions, its policy network.

    Args:
        network: policy network; read only where actions are continuous.
        critic: critic with the local values.
        params: parameters by optimiser group; "critic" or "policy" is used.
        obs: [..., N, O].
        avail: [..., N, A] bool.
    """
    if critic.local.action_inputs:
        return action_distribution(network, params["policy"], obs, avail)
    return greedy(critic.local.apply(params["critic"]["local"], obs), avail)


def all_if_none(spec: EnvSpec, obs: chex.Array, avail: chex.Array | None) -> chex.Array:
    """Return `avail` [..., N, A], or everything available if it is None."""
    return jnp.ones((*obs.shape[:-1], spec.action_dim), bool) if avail is None else avail
