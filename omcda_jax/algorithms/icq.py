"""MA-ICQ: implicit constraint Q-learning, weights from a softmax over the batch and no action outside the data.

Source: Yang, Ma, Li, Zheng, Zhang, Huang, Yang, Zhao, "Believe What You See: Implicit Constraint Approach for Offline
Multi-Agent Reinforcement Learning" (NeurIPS 2021), on the matched backbone: feed-forward, one-step targets, the linear
mixer with its bias. With rho(X) = B softmax over the batch of X, stopped, so that weights average one (in the target
over the rows that bootstrap):

    y     = r + gamma nu rho(Q_tot(s',a') / beta_Q) Q_tot(s',a')            target networks, a' the data's next action
    L_q   = mean (Q_tot - y)^2
    L_pi  = -mean [ k_i rho(adv_i / beta_pi) log pi_i(a_i|o_i) ]            k_i = w_i / sum_j w_j
    adv_i = q_i(a_i) - E_pi q_i                                             continuous: times w_i

Continuous actions have two local critics under one mixer, each with its own regression; values take the smaller.
`variant="released"` (continuous only) is the form of the OMIGA authors' comparison, where value_temperature is 10:
weights that sum to about one over the batch instead of averaging one, decaying by 0.8 gamma along the (shuffled) batch
in the target, the smaller critic regressed alone, and no baseline in the advantage.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from omcda_jax import losses, networks
from omcda_jax.distributions import expectation, has_choice, support_rows
from omcda_jax.networks import Backbone, backbone
from omcda_jax.reductions import batch_log_weights, masked_mean
from omcda_jax.training import CriticSettings, check_numbers, descend, new_state, require, row_keys, row_places
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState

VARIANTS = ("corrected", "released")
RELEASED_DECAY = 0.8


@dataclasses.dataclass(frozen=True)
class IcqConfig(CriticSettings):
    """Settings of MA-ICQ.

    Attributes:
        policy_temperature: beta_pi, in units of the advantage; SMAC .1, MuJoCo 100 in the released codes.
        value_temperature: beta_Q, in units of return.
        num_samples: actions drawn for the baseline E_pi q, where actions are continuous.
        variant: "corrected" or "released", see the module.
        name: key of the algorithm.
    """

    policy_temperature: float = 0.1
    value_temperature: float = 1000.0
    num_samples: int = 4
    variant: str = "corrected"
    name: str = "icq"

    def __post_init__(self):
        require(self, "variant", self.variant in VARIANTS, f"one of {', '.join(VARIANTS)}")
        require(self, "num_samples", self.num_samples >= 1, "at least 1")
        check_numbers(self, positive=["policy_temperature", "value_temperature"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: IcqConfig) -> TrainState:
    """Fresh networks for the task's sizes; `key` is also the run's key.

    Raises:
        ConfigError: the released variant, where actions are discrete.
    """
    require(config, "variant", not (spec.discrete and config.variant == "released"), "corrected (discrete actions)")
    nets, (policy_key, critic_key) = backbone(spec, config), jax.random.split(key)
    params = {
        "policy": networks.initialise(nets.policy, policy_key, jnp.zeros((1, spec.num_agents, spec.obs_dim))),
        "critic": networks.init_mixed_critic(nets.critic, critic_key, spec, ensemble=1 if spec.discrete else 2),
    }
    return new_state(key, spec, config, params, targets=["policy", "critic"])


def td_target(state: TrainState, nets: Backbone, batch: Batch, axis_name: str | None) -> tuple[chex.Array, chex.Array]:
    """y and the weights rho of the next values, both [B]."""
    target, hyper = state.target_params["critic"], state.hyper
    q = networks.of_ensemble(
        networks.action_values, nets.critic.local, target["local"], batch.next_obs, batch.next_action
    )
    next_value = nets.critic.mix(target, batch.next_global_state, jnp.min(q, axis=0))
    bootstraps = (batch.discount > 0) & ~batch.last
    weights = jnp.exp(batch_log_weights(next_value / hyper["value_temperature"], bootstraps, axis_name))
    if state.config.variant == "released":
        place, size = row_places(batch, axis_name)
        weights = weights / size * (RELEASED_DECAY * hyper["discount"]) ** place
    return losses.bellman_target(batch.reward, batch.discount, hyper["discount"], weights * next_value), weights


def critic_loss(state: TrainState, nets: Backbone, params, batch: Batch, target: chex.Array):
    """Squared errors of the critics, summed, and the smaller Q_tot, both [B]; released: of the smaller one alone."""
    q = networks.of_ensemble(
        networks.action_values, nets.critic.local, params["critic"]["local"], batch.obs, batch.action
    )
    q_min = nets.critic.mix(params["critic"], batch.global_state, jnp.min(q, axis=0))
    if state.config.variant == "released":
        return jnp.square(q_min - target), q_min
    each = jax.vmap(functools.partial(nets.critic.mix, params["critic"], batch.global_state))(q)
    return jnp.sum(jnp.square(each - target), axis=0), q_min


def policy_log_weights(state: TrainState, nets: Backbone, batch: Batch, mask: chex.Array, axis_name: str | None):
    """log rho(adv_i / beta_pi) of the online critics and policy: [B, N]."""
    critic = state.params["critic"]
    policy = networks.action_distribution(nets.policy, state.params["policy"], batch.obs, batch.avail)
    (keys,) = row_keys(state, batch, 1, axis_name)
    support = support_rows(policy, keys, state.config.num_samples)
    values, chosen = networks.of_ensemble(
        networks.support_and_action_values, nets.critic.local, critic["local"], batch.obs, support, batch.action
    )
    advantage = jnp.min(chosen, axis=0)
    if state.config.variant == "corrected":
        advantage = advantage - expectation(jnp.min(values, axis=0), support)
    if not state.spec.discrete:
        advantage = advantage * nets.critic.weights(critic, batch.global_state)
    return batch_log_weights(advantage / state.hyper["policy_temperature"], mask, axis_name)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One step of critics and policy, each loss at the parameters before the step.

    A last row that a time limit cut has no next action in the data: it is left out of the critic's regression.

    Args:
        state: from `init` or an earlier update.
        batch: B transitions; this device's part of them when `axis_name` is given.
        axis_name: mapped device axis to reduce over.

    Returns:
        The next state, and metrics: [], and the effective share of the rows in the policy's weights [N].
    """
    nets = backbone(state.spec, state.config)
    mask = has_choice(batch.avail, state.spec.discrete)
    usable = ~(batch.last & (batch.discount > 0))

    y, _ = td_target(state, nets, batch, axis_name)
    mixture = nets.critic.weights(state.params["critic"], batch.global_state)
    shares = mixture / (jnp.sum(mixture, axis=-1, keepdims=True) + 1e-8)
    weights = jnp.where(mask, jnp.exp(policy_log_weights(state, nets, batch, mask, axis_name)), 0.0)
    scale = 1.0 / row_places(batch, axis_name)[1] if state.config.variant == "released" else 1.0
    factor = jax.lax.stop_gradient(scale * shares * weights)

    def objective(params):
        squared, q_tot = critic_loss(state, nets, params, batch, y)
        policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
        by_name = {
            "critic/td": jnp.where(usable, squared, 0.0),
            "policy/loss": -factor * policy.log_prob(batch.action),
        }
        return by_name, {"critic/q": q_tot}

    new, metrics = descend(state, batch, objective, axis_name)
    square = jnp.maximum(masked_mean(jnp.square(weights), mask, axis_name), 1e-8)
    return new, metrics | {"policy/effective_share": jnp.square(masked_mean(weights, mask, axis_name)) / square}


act = networks.act_by_policy
