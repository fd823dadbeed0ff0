"""ComaDICE: stationary-distribution correction with value factorisation.

Source: Bui, Mai, Nguyen, "ComaDICE: Offline Cooperative Multi-Agent Reinforcement Learning with Stationary
Distribution Shift Regularization" (ICLR 2025). f' is the derivative of the divergence's generator, w = max(0, f'^-1)
and g = f(w), see `losses.F_DIVERGENCES`:

    y     = r + gamma nu V_tot(s'), targets barred                          L_q = mean (Q_tot - y)^2
    e_i   = w_i (q_i - v_i),  x_i = (e_i - lambda_v) / alpha                w_i, q_i stopped
    L_v   = (1 - gamma) mean_{s0} v_i + mean [ -alpha g(x_i) + w(x_i) (e_i - lambda_v) ] + lambda_v        "dual"
    omega = sum_i w(x_i),  x_i with lambda_e, w_i and q_i barred            L_pi = -mean omega log pi_i(a_i|o_i)
    lambda_e descends the gradient 1 - E w(x), lambda_v that of L_v

The default `value_form="released"` stops the gradients through g and the trailing e_i, as does the authors' code, which
made their figures. v then minimises alpha E g(x), a one-sided regression towards q, which is not the dual. The steps
follow one another: critic, value and lambda_v, lambda_e, policy; each sees the results of those before it. (In the
released code for continuous actions, the value step sees the critic before the critic's step; here it sees it after
the step for both kinds of action.) Agents without a choice count neither in omega nor in E w(x) for lambda_e.
"""

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, losses, networks, training
from omcda_jax.distributions import has_choice
from omcda_jax.networks import backbone
from omcda_jax.reductions import masked_mean
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState

VALUE_FORMS = ("released", "dual")


@flax.struct.dataclass(kw_only=True)
class ComadiceConfig(CriticSettings):
    """Settings of ComaDICE.

    Attributes:
        alpha: weight of the divergence, in units of return.
        divergence: f-divergence from the data, see `losses.F_DIVERGENCES`.
        value_form: "released" or "dual", see the module.
        max_weight: cap on every agent's w(x) in the policy's weight where actions are discrete; continuous actions
            have no cap, as in the released code.
        learning_rate: step size of Adam; the default is that of the released code.
    """

    name: ClassVar[str] = "comadice"

    alpha: float = 10.0
    divergence: str = static("soft_chi_square", losses.F_DIVERGENCES)
    value_form: str = static("released", VALUE_FORMS)
    max_weight: float = 2.0
    learning_rate: float = 1e-4

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_choices(self)
        training.check_numbers(self, positive=["alpha", "max_weight"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: ComadiceConfig) -> TrainState:
    """Initialise networks for the task's sizes, and both multipliers at 0; `key` is also the run's key."""
    params = networks.init_params(key, spec, **backbone(spec, config)._asdict())
    params |= {"lambda_v": jnp.zeros(()), "lambda_e": jnp.zeros(())}
    return training.new_state(key, spec, config, params, targets=["policy", "critic", "value"])


def dual_value_loss(
    advantage: chex.Array, multiplier: chex.Array, alpha: chex.Numeric, *, divergence: str, form: str
) -> chex.Array:
    """Return -alpha g(x) + w(x) (e - lambda) with x = (e - lambda) / alpha; "released" stops g and the trailing e.

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
    """Return w(x), x = (e - lambda_e) / alpha: the shape of `advantage`."""
    return losses.F_DIVERGENCES[divergence]((advantage - multiplier) / alpha)[0]


class Estimates(NamedTuple):
    """Constants of the losses."""

    target: chex.Array  # [B] y
    starts: chex.Array  # [] share of the rows that start an episode
    advantage: chex.Array | None = None  # [B, N] e_i after the value's step, None before
    omega: chex.Array | None = None  # [B, N] after the multiplier's step, None before


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute the critic's target, from the parameters before the first step."""
    nets, barred = backbone(state.spec, state.config), state.target_params
    next_value = nets.value.apply(barred["value"], batch.next_obs)[..., 0]
    return Estimates(
        target=training.bootstrap(state, batch, nets.critic.mix(barred["critic"], batch.next_global_state, next_value)),
        starts=masked_mean(batch.first, jnp.ones_like(batch.first), axis_name),
    )


def _advantage(state: TrainState, critic: Params, value: Params, batch: Batch) -> chex.Array:
    """Return e_i = w_i (q_i - v_i), w_i and q_i stopped: [B, N]."""
    nets = backbone(state.spec, state.config)
    q = networks.action_values(nets.critic.local, critic["local"], batch.obs, batch.action)
    v = nets.value.apply(value, batch.obs)[..., 0]
    return jax.lax.stop_gradient(nets.critic.weights(critic, batch.global_state)) * (jax.lax.stop_gradient(q) - v)


def _weight(state: TrainState, multiplier: chex.Array, estimates: Estimates) -> chex.Array:
    """Return w(x) of the policy: [B, N]."""
    return policy_weight(estimates.advantage, multiplier, state.config.alpha, state.config.divergence)


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return L_q, the squared error of Q_tot against y: [B]."""
    critic = backbone(state.spec, state.config).critic
    q_tot = critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
    return {"critic/td": jnp.square(q_tot - estimates.target)}, {"critic/q": q_tot}


def value_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the terms of L_v at first steps and at all steps, averaged over agents: [B] each.

    Rows without a choice count too, because the team's value sums over every agent.
    """
    config = state.config
    value = jnp.mean(backbone(state.spec, config).value.apply(params["value"], batch.obs)[..., 0], axis=-1)
    each = dual_value_loss(
        _advantage(state, state.params["critic"], params["value"], batch),
        params["lambda_v"],
        config.alpha,
        divergence=config.divergence,
        form=config.value_form,
    )
    at_start = jnp.where(batch.first, value, 0.0) / jnp.maximum(estimates.starts, 1e-8)
    by_name = {
        "value/start": (1.0 - config.gamma) * at_start,
        "value/loss": jnp.mean(each, axis=-1) + params["lambda_v"],
    }
    return by_name, {"value/v": value}


def multiplier_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return lambda_e (1 - w(x)), w stopped: [B, N]."""
    shortage = 1.0 - jax.lax.stop_gradient(_weight(state, params["lambda_e"], estimates))
    return {"policy/multiplier": params["lambda_e"] * shortage}, {}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -omega log pi_i(a_i|o_i): [B, N]."""
    network = backbone(state.spec, state.config).policy
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -estimates.omega * policy.log_prob(batch.action)}, {"policy/weight": estimates.omega}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take steps of critic, value with lambda_v, lambda_e and policy, in this order, then of the target networks.

    Arguments and results are those of `omcda_jax.update`.
    """
    barred, mask = state.target_params, has_choice(batch.avail, state.spec.discrete)

    estimates = estimate(state, batch, axis_name)
    state, of_critic = training.gradient_step(state, batch, [critic_loss], estimates, axis_name, ["critic"])
    state, of_value = training.gradient_step(state, batch, [value_loss], estimates, axis_name, ["value", "lambda_v"])

    estimates = estimates._replace(advantage=_advantage(state, barred["critic"], state.params["value"], batch))
    state, _ = training.gradient_step(state, batch, [multiplier_loss], estimates, axis_name, ["lambda_e"])

    each = _weight(state, state.params["lambda_e"], estimates)
    each = jnp.minimum(each, state.config.max_weight) if state.spec.discrete else each
    omega = jnp.sum(jnp.where(mask, each, 0.0), axis=-1, keepdims=True)
    estimates = estimates._replace(omega=jnp.broadcast_to(omega, mask.shape))
    state, of_policy = training.gradient_step(state, batch, [policy_loss], estimates, axis_name, ["policy"])

    multipliers = {f"value/{name}": state.params[name] for name in ("lambda_v", "lambda_e")}
    return training.advance(state), of_critic | of_value | of_policy | multipliers


ALGORITHM = Algorithm(ComadiceConfig, init, update, acting.policy_of, acting.act_by_policy, needs=("first",))
