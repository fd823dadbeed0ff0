"""OMIGA: implicit value regularisation, with one conservatism level for all agents.

Source: Wang, Xu, Zheng, Zhan, "Offline Multi-Agent Reinforcement Learning with Implicit Global-to-Local Value
Regularization" (NeurIPS 2023). With the linear mixer, targets barred:

    y     = r + gamma nu [ sum_i w_i(s') v_i(o'_i) + b(s') ]                L_q = mean (Q_tot - y)^2
    z_i   = clip( w_i(s) (q_i(o_i,a_i) - v_i(o_i)) / alpha, +-10 )          q, w of the target networks
    L_v   = mean [ exp(z_i - M) + exp(-M) w_i v_i / alpha ]                 M = max(max z, -1)
    L_pi  = -mean [ exp(z_i) log pi_i(a_i|o_i) ]                            over agents with a choice

Rewards are the data's own; the released SMAC code replaces them by returns-to-go and still bootstraps.
"""

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax.numpy as jnp

from omcda_jax import acting, losses, networks, training
from omcda_jax.networks import backbone
from omcda_jax.training import CriticSettings
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState


@flax.struct.dataclass(kw_only=True)
class OmigaConfig(CriticSettings):
    """Settings of OMIGA.

    Attributes:
        alpha: conservatism level, the same for all agents, in units of return per nat.
    """

    name: ClassVar[str] = "omiga"

    alpha: float = 10.0

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_numbers(self, positive=["alpha"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmigaConfig) -> TrainState:
    """Initialise networks for the task's sizes; `key` is also the run's key."""
    params = networks.init_params(key, spec, **backbone(spec, config)._asdict())
    return training.new_state(key, spec, config, params, targets=["policy", "critic", "value"])


class Estimates(NamedTuple):
    """Constants of the losses, from the parameters before the step."""

    target: chex.Array  # [B] y
    q: chex.Array  # [B, N] q_i of the data's actions, target networks
    slope: chex.Array  # [B, N] w_i / alpha
    weight: chex.Array  # [B, N] exp(z_i)
    largest_exponent: chex.Array  # [] M


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute targets and exponents from the target critic and the newest value network."""
    nets, barred = backbone(state.spec, state.config), state.target_params
    next_value = nets.value.apply(barred["value"], batch.next_obs)[..., 0]
    slope = nets.critic.weights(barred["critic"], batch.global_state) / state.config.alpha
    q = networks.action_values(nets.critic.local, barred["critic"]["local"], batch.obs, batch.action)
    exponent = slope * (q - nets.value.apply(state.params["value"], batch.obs)[..., 0])
    return Estimates(
        target=training.bootstrap(state, batch, nets.critic.mix(barred["critic"], batch.next_global_state, next_value)),
        q=q,
        slope=slope,
        weight=jnp.exp(jnp.clip(exponent, -losses.MAX_EXPONENT, losses.MAX_EXPONENT)),
        largest_exponent=losses.largest_exponent(exponent, axis_name),
    )


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q_tot - y)^2: [B]."""
    critic = backbone(state.spec, state.config).critic
    q_tot = critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
    return {"critic/td": jnp.square(q_tot - estimates.target)}, {"critic/q": q_tot}


def value_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return exp(z - M) + exp(-M) w v / alpha, minimal where the data's mean exp(z) is one; averaged over agents: [B].

    Rows without a choice count too, because the team's value sums over every agent.
    """
    value = backbone(state.spec, state.config).value.apply(params["value"], batch.obs)[..., 0]
    exponent, linear = estimates.slope * (estimates.q - value), estimates.slope * value
    each = losses.normalisation_loss(exponent, linear, estimates.largest_exponent)
    return {"value/loss": jnp.mean(each, axis=-1)}, {}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -exp(z_i) log pi_i(a_i|o_i): [B, N]."""
    network = backbone(state.spec, state.config).policy
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -estimates.weight * policy.log_prob(batch.action)}, {"policy/weight": estimates.weight}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of critic, value and policy, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    estimates = estimate(state, batch, axis_name)
    return training.descend(state, batch, [critic_loss, value_loss, policy_loss], estimates, axis_name)


ALGORITHM = Algorithm(OmigaConfig, init, update, acting.policy_of, acting.act_by_policy)
