"""ComaDICE: stationary-distribution correction with value factorisation.

Source: Bui, Mai, Nguyen, "ComaDICE: Offline Cooperative Multi-Agent Reinforcement Learning with Stationary
Distribution Shift Regularization" (ICLR 2025). With f' the derivative of the divergence's generator, w = max(0, f'^-1)
and g = f(w), see `losses.F_DIVERGENCES`:

    y     = r + gamma nu V_tot(s'), targets barred                          L_q = mean (Q_tot - y)^2
    e_i   = w_i (q_i - v_i),  x_i = (e_i - lambda_v) / alpha                w_i, q_i stopped
    L_v   = (1 - gamma) mean_{s0} v_i + mean [ -alpha g(x_i) + w(x_i) (e_i - lambda_v) ] + lambda_v        "dual"
    omega = sum_i w(x_i),  x_i with lambda_e, w_i and q_i barred            L_pi = -mean omega log pi_i(a_i|o_i)
    lambda_e follows 1 - E w(x), lambda_v the gradient of L_v

The default `value_form="released"` stops the gradients through g and the trailing e_i, as the authors' code does and
hence as their figures were made: v then minimises alpha E g(x), a one-sided regression towards q, which is not the
dual. The steps are taken one after another: critic, value and lambda_v, lambda_e, policy, each seeing the ones before
it. (The released continuous class gives the value step the critic from before its step; here both kinds see it after.)
Agents without a choice count neither in omega nor in E w(x) for lambda_e.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from omcda_jax import losses, networks
from omcda_jax.distributions import has_choice
from omcda_jax.networks import Backbone, backbone
from omcda_jax.reductions import masked_mean
from omcda_jax.training import CriticSettings, advance, check_numbers, gradient_step, new_state, require
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState

VALUE_FORMS = ("released", "dual")


@dataclasses.dataclass(frozen=True)
class ComadiceConfig(CriticSettings):
    """Settings of ComaDICE.

    Attributes:
        alpha: weight of the divergence, in units of return.
        divergence: key of `losses.F_DIVERGENCES`.
        value_form: "released" or "dual", see the module.
        max_weight: cap on every agent's w(x) in the policy's weight where actions are discrete; like the released
            code there is none where they are continuous.
        learning_rate: of Adam; the released code's.
        name: key of the algorithm.
    """

    alpha: float = 10.0
    divergence: str = "soft_chi_square"
    value_form: str = "released"
    max_weight: float = 2.0
    learning_rate: float = 1e-4
    name: str = "comadice"

    def __post_init__(self):
        require(
            self, "divergence", self.divergence in losses.F_DIVERGENCES, f"one of {', '.join(losses.F_DIVERGENCES)}"
        )
        require(self, "value_form", self.value_form in VALUE_FORMS, f"one of {', '.join(VALUE_FORMS)}")
        check_numbers(self, positive=["alpha", "max_weight"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: ComadiceConfig) -> TrainState:
    """Fresh networks for the task's sizes, both multipliers 0; `key` is also the run's key."""
    multipliers = {"lambda_v": jnp.zeros(()), "lambda_e": jnp.zeros(())}
    params = networks.init_backbone(key, backbone(spec, config), spec) | multipliers
    return new_state(key, spec, config, params, targets=["policy", "critic", "value"])


def value_loss(
    advantage: chex.Array, multiplier: chex.Array, alpha: chex.Numeric, *, divergence: str, form: str
) -> chex.Array:
    """-alpha g(x) + w(x) (e - lambda), x = (e - lambda) / alpha; released: g and the trailing e stopped.

    Args:
        advantage: [...] e, with its gradient in v.
        multiplier: [] lambda_v.
        alpha: weight of the divergence.
        divergence: key of `losses.F_DIVERGENCES`.
        form: one of VALUE_FORMS.
    """
    w, g = losses.F_DIVERGENCES[divergence]((advantage - multiplier) / alpha)
    if form == "dual":
        return -alpha * g + w * (advantage - multiplier)
    return -alpha * jax.lax.stop_gradient(g) + w * (jax.lax.stop_gradient(advantage) - multiplier)


def policy_weight(advantage: chex.Array, multiplier: chex.Array, alpha: chex.Numeric, divergence: str) -> chex.Array:
    """w(x), x = (e - lambda_e) / alpha: the shape of `advantage`."""
    return losses.F_DIVERGENCES[divergence]((advantage - multiplier) / alpha)[0]


def _advantage(nets: Backbone, critic, value, batch: Batch) -> chex.Array:
    """e_i = w_i (q_i - v_i), w_i and q_i stopped: [B, N]."""
    q = networks.action_values(nets.critic.local, critic["local"], batch.obs, batch.action)
    v = nets.value.apply(value, batch.obs)[..., 0]
    return jax.lax.stop_gradient(nets.critic.weights(critic, batch.global_state)) * (jax.lax.stop_gradient(q) - v)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Steps of critic, value with lambda_v, lambda_e and policy, in this order, then of the target networks.

    Arguments and results are those of `omcda_jax.update`.
    """
    config, hyper, nets, barred = state.config, state.hyper, backbone(state.spec, state.config), state.target_params
    mask = has_choice(batch.avail, state.spec.discrete)
    starts = masked_mean(batch.first, jnp.ones_like(batch.first), axis_name)

    y = nets.critic.bootstrap(state, batch, nets.value.apply(barred["value"], batch.next_obs)[..., 0])

    def critic_objective(params):
        q_tot = nets.critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
        return {"critic/td": jnp.square(q_tot - y)}, {"critic/q": q_tot}

    state, critic_metrics = gradient_step(state, batch, critic_objective, axis_name, ["critic"])

    def value_objective(params):
        value = nets.value.apply(params["value"], batch.obs)[..., 0]
        advantage = _advantage(nets, params["critic"], params["value"], batch)
        each = value_loss(
            advantage, params["lambda_v"], hyper["alpha"], divergence=config.divergence, form=config.value_form
        )
        # rows without a choice count here, for the team's value sums over every agent
        value, each = jnp.mean(value, axis=-1), jnp.mean(each, axis=-1)
        at_start = jnp.where(batch.first, value, 0.0) / jnp.maximum(starts, 1e-8)
        by_name = {
            "value/start": (1.0 - hyper["discount"]) * at_start,
            "value/loss": each + params["lambda_v"],
        }
        return by_name, {"value/v": value}

    state, value_metrics = gradient_step(state, batch, value_objective, axis_name, ["value", "lambda_v"])
    advantage = jax.lax.stop_gradient(_advantage(nets, barred["critic"], state.params["value"], batch))
    weight = functools.partial(policy_weight, advantage, alpha=hyper["alpha"], divergence=config.divergence)

    def multiplier_objective(params):
        shortage = 1.0 - jax.lax.stop_gradient(weight(params["lambda_e"]))
        return {"policy/multiplier": params["lambda_e"] * shortage}, {}

    state, _ = gradient_step(state, batch, multiplier_objective, axis_name, ["lambda_e"])
    each = weight(state.params["lambda_e"])
    each = jnp.minimum(each, hyper["max_weight"]) if state.spec.discrete else each
    omega = jnp.broadcast_to(jnp.sum(jnp.where(mask, each, 0.0), axis=-1, keepdims=True), mask.shape)

    def policy_objective(params):
        policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
        return {"policy/loss": -omega * policy.log_prob(batch.action)}, {"policy/weight": omega}

    state, policy_metrics = gradient_step(state, batch, policy_objective, axis_name, ["policy"])
    multipliers = {f"value/{name}": state.params[name] for name in ("lambda_v", "lambda_e")}
    return advance(state), critic_metrics | value_metrics | policy_metrics | multipliers


act = networks.act_by_policy
