"""OMIGA: implicit value regularisation, every agent equally near to the behaviour.

Source: Wang, Xu, Zheng, Zhan, "Offline Multi-Agent Reinforcement Learning with Implicit Global-to-Local Value
Regularization" (NeurIPS 2023). With the linear mixer, targets barred:

    y     = r + gamma nu [ sum_i w_i(s') v_i(o'_i) + b(s') ]                L_q = mean (Q_tot - y)^2
    z_i   = clip( w_i(s) (q_i(o_i,a_i) - v_i(o_i)) / alpha, +-10 )          q, w of the target networks
    L_v   = mean [ exp(z_i - M) + exp(-M) w_i v_i / alpha ]                 M = max(max z, -1)
    L_pi  = -mean [ exp(z_i) log pi_i(a_i|o_i) ]                            over agents with a choice

Rewards are the data's own; the released SMAC code replaces them by returns-to-go and bootstraps on top.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from omcda_jax import losses, networks
from omcda_jax.networks import Backbone, backbone
from omcda_jax.reductions import largest
from omcda_jax.training import CriticSettings, check_numbers, descend, new_state
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class OmigaConfig(CriticSettings):
    """Settings of OMIGA.

    Attributes:
        alpha: conservatism level, the same for all agents; in units of return per nat.
        name: key of the algorithm.
    """

    alpha: float = 10.0
    name: str = "omiga"

    def __post_init__(self):
        check_numbers(self, positive=["alpha"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmigaConfig) -> TrainState:
    """Fresh networks for the task's sizes; `key` is also the run's key."""
    params = networks.init_backbone(key, backbone(spec, config), spec)
    return new_state(key, spec, config, params, targets=["policy", "critic", "value"])


def critic_loss(nets: Backbone, params, batch: Batch, target: chex.Array) -> tuple[chex.Array, chex.Array]:
    """(Q_tot - y)^2 and Q_tot, both [B]."""
    q_tot = nets.critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
    return jnp.square(q_tot - target), q_tot


def value_loss(value, slope, exponent, axis_name: str | None = None) -> chex.Array:
    """exp(z - M) + exp(-M) w v / alpha, minimal where the data's mean of exp(z) is one.

    Args:
        value: [B, N] v_i.
        slope: [B, N] w_i / alpha.
        exponent: [B, N] z_i.
        axis_name: mapped device axis, over which M is taken too.

    Returns:
        [B, N].
    """
    highest = largest(jnp.max(jax.lax.stop_gradient(exponent), initial=-1.0), axis_name)
    highest = jnp.minimum(highest, losses.MAX_EXPONENT)
    return losses.normalisation_loss(exponent, slope * value, highest)


def policy_loss(nets: Backbone, params, batch: Batch, exponent: chex.Array) -> chex.Array:
    """-exp(z_i) log pi_i(a_i|o_i), the weight stopped: [B, N]."""
    policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
    weight = jnp.exp(jnp.clip(exponent, -losses.MAX_EXPONENT, losses.MAX_EXPONENT))
    return -jax.lax.stop_gradient(weight) * policy.log_prob(batch.action)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One step of critic, value and policy, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    nets, target, hyper = backbone(state.spec, state.config), state.target_params, state.hyper

    y = nets.critic.bootstrap(state, batch, nets.value.apply(target["value"], batch.next_obs)[..., 0])
    slope = nets.critic.weights(target["critic"], batch.global_state) / hyper["alpha"]
    q = networks.action_values(nets.critic.local, target["critic"]["local"], batch.obs, batch.action)

    def objective(params):
        squared, q_tot = critic_loss(nets, params, batch, y)
        value = nets.value.apply(params["value"], batch.obs)[..., 0]
        exponent = slope * (q - value)
        weight = jnp.exp(jnp.clip(exponent, -losses.MAX_EXPONENT, losses.MAX_EXPONENT))
        by_name = {
            "critic/td": squared,
            # rows without a choice count here, for the team's value sums over every agent
            "value/loss": jnp.mean(value_loss(value, slope, exponent, axis_name), axis=-1),
            "policy/loss": policy_loss(nets, params, batch, exponent),
        }
        return by_name, {"critic/q": q_tot, "policy/weight": weight}

    return descend(state, batch, objective, axis_name)


act = networks.act_by_policy
