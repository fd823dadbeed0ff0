"""Behaviour cloning: maximum likelihood of the data's actions, without values. The baseline of every offline method."""

from typing import ClassVar

import chex
import flax.struct

from omcda_jax import acting, networks, training
from omcda_jax.training import static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState


@flax.struct.dataclass(kw_only=True)
class BcConfig:
    """Settings of behaviour cloning.

    Attributes:
        learning_rate: step size of Adam.
        policy_average_rate: weight of the newest policy in the moving average that acts; 1 acts with the newest.
        hidden_sizes: widths of the policy's hidden layers.
    """

    name: ClassVar[str] = "bc"

    learning_rate: float = 5e-4
    policy_average_rate: float = 1.0
    hidden_sizes: tuple[int, ...] = static((256, 256))

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_numbers(self)


def init(key: chex.PRNGKey, spec: EnvSpec, config: BcConfig) -> TrainState:
    """Initialise a policy for the task's sizes; `key` is also the run's key."""
    params = networks.init_params(key, spec, policy=networks.policy_network(spec, config.hidden_sizes))
    return training.new_state(key, spec, config, params, targets=["policy"])


def policy_loss(params: Params, state: TrainState, batch: Batch, fixed: None) -> Losses:
    """Return -log pi_i(a_i|o_i): [B, N]."""
    network = networks.policy_network(state.spec, state.config.hidden_sizes)
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -policy.log_prob(batch.action)}, {}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of maximum likelihood over the rows in which an agent has a choice.

    Arguments and results are those of `omcda_jax.update`.
    """
    return training.descend(state, batch, [policy_loss], None, axis_name)


ALGORITHM = Algorithm(BcConfig, init, update, acting.policy_of, acting.act_by_policy)
