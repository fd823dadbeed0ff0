"""Behaviour cloning: maximum likelihood of the data's actions, no values. The yardstick of every offline method."""

import dataclasses

import chex
import jax.numpy as jnp

from omcda_jax import networks
from omcda_jax.training import check_numbers, descend, new_state
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class BcConfig:
    """Settings of behaviour cloning.

    Attributes:
        learning_rate: of Adam.
        policy_average_rate: weight of the newest policy in the moving average that acts; 1 acts with the newest.
        hidden_sizes: of the policy.
        name: key of the algorithm.
    """

    learning_rate: float = 5e-4
    policy_average_rate: float = 1.0
    hidden_sizes: tuple[int, ...] = (256, 256)
    name: str = "bc"

    def __post_init__(self):
        check_numbers(self)


def init(key: chex.PRNGKey, spec: EnvSpec, config: BcConfig) -> TrainState:
    """A fresh policy for the task's sizes; `key` is also the run's key."""
    network = networks.policy_network(spec, config.hidden_sizes)
    params = {"policy": networks.initialise(network, key, jnp.zeros((1, spec.num_agents, spec.obs_dim)))}
    return new_state(key, spec, config, params, targets=["policy"])


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
        return {"policy/loss": policy_loss(state, params, batch)}, {}

    return descend(state, batch, objective, axis_name)


act = networks.act_by_policy
