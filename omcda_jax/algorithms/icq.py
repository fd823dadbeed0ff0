"""MA-ICQ: implicit constraint Q-learning, weights from a softmax over the batch and no action outside the data.

Source: Yang, Ma, Li, Zheng, Zhang, Huang, Yang, Zhao, "Believe What You See: Implicit Constraint Approach for Offline
Multi-Agent Reinforcement Learning" (NeurIPS 2021), on the common backbone: feed-forward, one-step targets, the linear
mixer with its bias. rho(X) is B times the softmax of X over the batch, gradient stopped, so the weights average one (in
the target, over the rows that bootstrap):

    y     = r + gamma nu rho(Q_tot(s',a') / beta_Q) Q_tot(s',a')            target networks, a' the data's next action
    L_q   = mean (Q_tot - y)^2
    L_pi  = -mean [ k_i rho(adv_i / beta_pi) log pi_i(a_i|o_i) ]            k_i = w_i / sum_j w_j
    adv_i = q_i(a_i) - E_pi q_i                                             continuous: times w_i

Continuous actions have two local critics under one mixer, each with its own regression; values take the smaller one.
`variant="released"` (continuous only) is the form of the OMIGA authors' comparison, in which value_temperature is 10.
Its weights sum to about one over the batch instead of averaging one, and in the target they decay by 0.8 gamma along
the (shuffled) batch. Only the smaller critic is regressed, and the advantage has no baseline.
"""

import functools
from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, networks, training
from omcda_jax.distributions import expectation, has_choice, support_rows
from omcda_jax.networks import Backbone, backbone
from omcda_jax.reductions import batch_log_weights, masked_mean
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState

VARIANTS = ("corrected", "released")
RELEASED_DECAY = 0.8


@flax.struct.dataclass(kw_only=True)
class IcqConfig(CriticSettings):
    """Settings of MA-ICQ.

    Attributes:
        policy_temperature: beta_pi, in units of the advantage; the released codes use .1 on SMAC and 100 on MuJoCo.
        value_temperature: beta_Q, in units of return.
        num_samples: actions drawn for the baseline E_pi q, where actions are continuous.
        variant: "corrected" or "released", see the module.
    """

    name: ClassVar[str] = "icq"

    policy_temperature: float = 0.1
    value_temperature: float = 1000.0
    num_samples: int = static(4)
    variant: str = static("corrected", VARIANTS)

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_choices(self)
        training.check_numbers(self, positive=["policy_temperature", "value_temperature"], counts=["num_samples"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: IcqConfig) -> TrainState:
    """Initialise networks for the task's sizes; `key` is also the run's key.

    Raises:
        ConfigError: actions are discrete and the variant is the released one.
    """
    if spec.discrete:
        training.require_choice(config, "variant", ["corrected"])
    nets = _networks(spec, config)
    params = networks.init_params(key, spec, policy=nets.policy, critic=nets.critic)
    return training.new_state(key, spec, config, params, targets=["policy", "critic"])


def _networks(spec: EnvSpec, config: IcqConfig) -> Backbone:
    nets = backbone(spec, config)
    return nets._replace(critic=nets.critic._replace(members=1 if spec.discrete else 2))


def td_target(state: TrainState, batch: Batch, axis_name: str | None = None) -> chex.Array:
    """Return y [B], in which rho weights the next values."""
    config, critic, barred = state.config, _networks(state.spec, state.config).critic, state.target_params["critic"]
    q = networks.of_ensemble(networks.action_values, critic.local, barred["local"], batch.next_obs, batch.next_action)
    next_value = critic.mix(barred, batch.next_global_state, jnp.min(q, axis=0))
    bootstraps = (batch.discount > 0) & ~batch.last
    weights = jnp.exp(batch_log_weights(next_value / config.value_temperature, bootstraps, axis_name))
    if config.variant == "released":
        place, size = training.row_places(batch, axis_name)
        weights = weights / size * (RELEASED_DECAY * config.gamma) ** place
    return training.bootstrap(state, batch, weights * next_value)


def policy_log_weights(state: TrainState, batch: Batch, mask: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return log rho(adv_i / beta_pi) of the online critics and policy: [B, N]."""
    config, nets, critic = state.config, _networks(state.spec, state.config), state.params["critic"]
    policy = networks.action_distribution(nets.policy, state.params["policy"], batch.obs, batch.avail)
    (keys,) = training.row_keys(state, batch, 1, axis_name)
    support = support_rows(policy, keys, config.num_samples)
    values, chosen = networks.of_ensemble(
        networks.support_and_action_values, nets.critic.local, critic["local"], batch.obs, support, batch.action
    )
    advantage = jnp.min(chosen, axis=0)
    if config.variant == "corrected":
        advantage = advantage - expectation(jnp.min(values, axis=0), support)
    if not state.spec.discrete:
        advantage = advantage * nets.critic.weights(critic, batch.global_state)
    return batch_log_weights(advantage / config.policy_temperature, mask, axis_name)


class Estimates(NamedTuple):
    """Constants of the step: the weighted target, and the weights of the data's actions."""

    target: chex.Array  # [B] y
    weights: chex.Array  # [B, N] rho(adv_i / beta_pi), 0 where the agent has no choice
    factor: chex.Array  # [B, N] factor of the policy's log-likelihood, k_i times the weights


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute the weighted target, and the weights of the data's actions."""
    mask = has_choice(batch.avail, state.spec.discrete)
    weights = jnp.where(mask, jnp.exp(policy_log_weights(state, batch, mask, axis_name)), 0.0)
    mixture = _networks(state.spec, state.config).critic.weights(state.params["critic"], batch.global_state)
    shares = mixture / (jnp.sum(mixture, axis=-1, keepdims=True) + 1e-8)
    scale = 1.0 / training.row_places(batch, axis_name)[1] if state.config.variant == "released" else 1.0
    return Estimates(td_target(state, batch, axis_name), weights, scale * shares * weights)


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the sum of the critics' squared errors or, if released, the squared error of the smaller one: [B].

    A last row that a time limit cut has no next action in the data, so it is left out.
    """
    critic = _networks(state.spec, state.config).critic
    q = networks.of_ensemble(networks.action_values, critic.local, params["critic"]["local"], batch.obs, batch.action)
    q_min = critic.mix(params["critic"], batch.global_state, jnp.min(q, axis=0))
    if state.config.variant == "released":
        squared = jnp.square(q_min - estimates.target)
    else:
        each = jax.vmap(functools.partial(critic.mix, params["critic"], batch.global_state))(q)
        squared = jnp.sum(jnp.square(each - estimates.target), axis=0)
    cut = batch.last & (batch.discount > 0)
    return {"critic/td": jnp.where(cut, 0.0, squared)}, {"critic/q": q_min}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -k_i rho(adv_i / beta_pi) log pi_i(a_i|o_i): [B, N]."""
    network = _networks(state.spec, state.config).policy
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -estimates.factor * policy.log_prob(batch.action)}, {}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of critics and policy, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`; `policy/effective_share` [N] is the effective sample size of
    the policy's weights, as a share of the rows.
    """
    estimates = estimate(state, batch, axis_name)
    after, metrics = training.descend(state, batch, [critic_loss, policy_loss], estimates, axis_name)
    mask = has_choice(batch.avail, state.spec.discrete)
    mean = lambda values: masked_mean(values, mask, axis_name)
    weights = estimates.weights
    share = jnp.square(mean(weights)) / jnp.maximum(mean(jnp.square(weights)), 1e-8)
    return after, metrics | {"policy/effective_share": share}


ALGORITHM = Algorithm(IcqConfig, init, update, acting.policy_of, acting.act_by_policy, needs=("next_action", "last"))
