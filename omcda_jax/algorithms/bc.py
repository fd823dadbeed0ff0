"""Behaviour cloning: maximum likelihood of the data's actions, no values. The yardstick of every offline method."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from omcda_jax import networks
from omcda_jax.distributions import has_choice
from omcda_jax.reductions import loss_share, total
from omcda_jax.training import apply_gradients, init_optimiser, split_config
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class BcConfig:
    """Settings of behaviour cloning.

    Attributes:
        learning_rate: of Adam.
        hidden_sizes: of the policy.
        name: key of the algorithm.
    """

    learning_rate: float = 5e-4
    hidden_sizes: tuple[int, ...] = (256, 256)
    name: str = "bc"


def init(key: chex.PRNGKey, spec: EnvSpec, config: BcConfig) -> TrainState:
    """A fresh policy for the task's sizes; `key` is also the run's key."""
    structure, hyper = split_config(config)
    network = networks.policy_network(spec, config.hidden_sizes)
    params = {"policy": networks.initialise(network, key, jnp.zeros((1, spec.num_agents, spec.obs_dim)))}
    return TrainState(
        params=params,
        target_params={},
        opt_state=init_optimiser(params),
        extra={},
        hyper=hyper,
        step=jnp.zeros((), jnp.int32),
        key=key,
        spec=spec,
        config=structure,
    )


def policy_loss(state: TrainState, params, batch: Batch) -> chex.Array:
    """-log pi_i(a_i|o_i): [B, N]."""
    network = networks.policy_network(state.spec, state.config.hidden_sizes)
    return -networks.action_distribution(network, params["policy"], batch.obs, batch.avail).log_prob(batch.action)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One step of maximum likelihood over the rows in which an agent has a choice.

    Args:
        state: from `init` or an earlier update.
        batch: B transitions; this device's part of them when `axis_name` is given.
        axis_name: mapped device axis to reduce over.

    Returns:
        The next state and {"policy/loss": []}.
    """

    def objective(params):
        return loss_share(policy_loss(state, params, batch), has_choice(batch.avail, state.spec.discrete), axis_name)

    loss, gradients = total(jax.value_and_grad(objective)(state.params), axis_name)
    params, opt_state = apply_gradients(state.params, gradients, state.opt_state, state.hyper["learning_rate"])
    return state.replace(params=params, opt_state=opt_state, step=state.step + 1), {"policy/loss": loss}


def act(
    state: TrainState, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None
) -> chex.Array:
    """Decentralised actions [..., N] for obs [..., N, O] and avail [..., N, A] (None: all legal); no key: greedy."""
    if avail is None:
        avail = jnp.ones((*obs.shape[:-1], state.spec.action_dim), bool)
    network = networks.policy_network(state.spec, state.config.hidden_sizes)
    policy = networks.action_distribution(network, state.params["policy"], obs, avail)
    return policy.mode() if key is None else policy.sample(key)
