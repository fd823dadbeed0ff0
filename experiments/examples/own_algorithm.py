"""An algorithm of your own in one file: critic-regularised regression (Wang et al., NeurIPS 2020) for a team.

    python experiments/run.py --config=smac_3m --config.algorithm.name=examples.own_algorithm:ALGORITHM

The policy clones an action of the data only if its value exceeds the expected value of the policy:

    y    = r + gamma nu [ sum_i w_i(s') E_pi q_i(o'_i, .) + b(s') ]         target networks
    L_q  = mean (Q_tot - y)^2
    L_pi = -mean [ 1{q_i(o_i, a_i) > E_pi q_i(o_i, .)} log pi_i(a_i|o_i) ]
"""

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, networks, training
from omcda_jax.distributions import expectation, support_rows
from omcda_jax.types import Algorithm


@flax.struct.dataclass
class CrrConfig(training.CriticSettings):
    """Settings.

    Attributes:
        least_weight: weight of the actions that are not better, between 0 and 1; 1 is behaviour cloning.
        num_samples: actions drawn for E_pi q if actions are continuous.
    """

    name: ClassVar[str] = "examples.own_algorithm:ALGORITHM"

    least_weight: float = 0.0  # a number: a leaf, which a population may vary
    num_samples: int = training.static(4)  # structure: compiled in

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_numbers(self, shares=["least_weight"], counts=["num_samples"])


class Estimates(NamedTuple):
    """What the losses treat as constant."""

    target: chex.Array  # [B] y
    weight: chex.Array  # [B, N] of log pi_i(a_i|o_i)


def init(key, spec, config):
    """Return fresh networks; `policy` and `critic` are the groups of parameters, each with an optimiser of its own."""
    nets = networks.backbone(spec, config)
    params = networks.init_params(key, spec, policy=nets.policy, critic=nets.critic)
    return training.new_state(key, spec, config, params, targets=["policy", "critic"])


def estimate(state, batch, axis_name=None):
    """Return targets and weights at the parameters before the step."""
    nets, barred = networks.backbone(state.spec, state.config), state.target_params["critic"]
    keys, next_keys = training.row_keys(state, batch, 2, axis_name)

    def support(obs, avail, keys):
        policy = networks.action_distribution(nets.policy, state.params["policy"], obs, avail)
        return support_rows(policy, keys, state.config.num_samples)

    here = support(batch.obs, batch.avail, keys)
    there = support(batch.next_obs, batch.next_avail, next_keys)
    values, chosen = networks.support_and_action_values(
        nets.critic.local, barred["local"], batch.obs, here, batch.action
    )
    next_values = expectation(networks.support_values(nets.critic.local, barred["local"], batch.next_obs, there), there)
    better = chosen > expectation(values, here)
    next_value = nets.critic.mix(barred, batch.next_global_state, next_values)
    return Estimates(
        target=training.bootstrap(state, batch, next_value),
        weight=jax.lax.stop_gradient(jnp.where(better, 1.0, state.config.least_weight)),
    )


def critic_loss(params, state, batch, estimates):
    """Return (Q_tot - y)^2, [B], and Q_tot as a statistic."""
    critic = networks.backbone(state.spec, state.config).critic
    q_tot = critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
    return {"critic/td": jnp.square(q_tot - estimates.target)}, {"critic/q": q_tot}


def policy_loss(params, state, batch, estimates):
    """Return the weighted negative log-likelihood, [B, N]; the mean leaves out rows in which an agent has no choice."""
    network = networks.backbone(state.spec, state.config).policy
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -estimates.weight * policy.log_prob(batch.action)}, {"policy/weight": estimates.weight}


def update(state, batch, *, axis_name=None):
    """Return the next state and the metrics."""
    estimates = estimate(state, batch, axis_name)
    return training.descend(state, batch, [critic_loss, policy_loss], estimates, axis_name)


ALGORITHM = Algorithm(CrrConfig, init, update, acting.policy_of, acting.act_by_policy)
