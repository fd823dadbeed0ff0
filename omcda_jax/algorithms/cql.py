"""CQL-MA: value decomposition whose team value is pushed down on actions the data do not show.

Source: Kumar, Zhou, Tucker, Levine, "Conservative Q-Learning for Offline Reinforcement Learning" (NeurIPS 2020), on
the joint action. Under the linear mixer the log-sum-exp over joint actions of Q_tot is b + sum_i log-sum-exp over
a_i of w_i q_i, so the penalty is exact without sampling joint actions:

    P   = sum_i [ log sum_a exp(w_i q_i(o_i,a)) - w_i q_i(o_i,a_i) ]        L_q = mean (Q_tot - y)^2 + penalty mean P
    y   = r + gamma nu [ sum_i w_i(s') q_i(o'_i,a'_i) + b(s') ]             targets barred; a' from the policy now

Discrete: the sum runs over legal actions, a' is the legal argmax of the online q_i (double Q-learning), which is the
policy too. Continuous: importance sampling from uniform, pi(.|o) and pi(.|o'), and a policy network that maximises
w_i q_i. `variant="released"` (continuous only) is the form of the OMIGA authors' comparison: no importance weights,
the bias b inside every agent's term, and a policy that clones actions with their raw values as weights.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from omcda_jax import networks
from omcda_jax.distributions import Measure, log_integral, measure_rows, sample_rows
from omcda_jax.networks import Backbone, backbone
from omcda_jax.training import CriticSettings, check_numbers, descend, new_state, require, row_keys
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState

VARIANTS = ("corrected", "released")


@dataclasses.dataclass(frozen=True)
class CqlConfig(CriticSettings):
    """Settings of CQL-MA.

    Attributes:
        penalty: weight of the conservative penalty, CQL's alpha; 0 is plain value decomposition.
        num_samples: actions drawn from each of the three proposals, where actions are continuous.
        variant: "corrected" or "released", see the module.
        name: key of the algorithm.
    """

    penalty: float = 1.0
    num_samples: int = 10
    variant: str = "corrected"
    name: str = "cql"

    def __post_init__(self):
        require(self, "variant", self.variant in VARIANTS, f"one of {', '.join(VARIANTS)}")
        require(self, "num_samples", self.num_samples >= 1, "at least 1")
        require(self, "penalty", self.penalty is None or self.penalty >= 0, "0 or more")
        check_numbers(self)


def init(key: chex.PRNGKey, spec: EnvSpec, config: CqlConfig) -> TrainState:
    """Fresh networks for the task's sizes, a policy network only where actions are continuous.

    Raises:
        ConfigError: the released variant, where actions are discrete.
    """
    require(config, "variant", not (spec.discrete and config.variant == "released"), "corrected (discrete actions)")
    nets, (critic_key, policy_key) = backbone(spec, config), jax.random.split(key)
    params = {"critic": networks.init_mixed_critic(nets.critic, critic_key, spec)}
    if not spec.discrete:
        obs = jnp.zeros((1, spec.num_agents, spec.obs_dim))
        params["policy"] = networks.initialise(nets.policy, policy_key, obs)
    return new_state(key, spec, config, params, targets=list(params))


def conservative_penalty(
    values: chex.Array, measure: Measure, chosen: chex.Array, bias: chex.Array | None = None
) -> chex.Array:
    """P_i = log-sum-exp of w_i q_i over an agent's actions, above that of the data's action.

    Args:
        values: [B, N, K] w_i q_i at the measure's points.
        measure: over the actions.
        chosen: [B, N] w_i q_i of the data's actions.
        bias: [B] b(s) for the released form: it ignores the measure's weights (the log of a sum over samples) and
            counts b once per agent but takes it off once per team.

    Returns:
        [B, N], exactly 0 where the only legal action is the data's.
    """
    if bias is None:
        return log_integral(values, measure) - chosen
    surplus = (1.0 - 1.0 / chosen.shape[-1]) * bias[:, None]
    return jax.nn.logsumexp(values, axis=-1) - chosen + surplus


def policy_loss(state: TrainState, nets: Backbone, params, batch: Batch, keys: chex.PRNGKey) -> chex.Array:
    """-w_i q_i(o_i, a~), a~ drawn with its gradient, values frozen: [B, N].

    Released: the sum over agents of -q_i(a_i) log pi_i(a_i|o_i), [B].
    """
    policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
    local = state.params["critic"]["local"]
    if state.config.variant == "released":
        q = networks.action_values(nets.critic.local, local, batch.obs, batch.action)
        return -jnp.sum(q * policy.log_prob(batch.action), axis=-1)
    weights = nets.critic.weights(state.params["critic"], batch.global_state)
    drawn = sample_rows(policy, keys)
    return -weights * networks.action_values(nets.critic.local, local, batch.obs, drawn)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One step of critic and, where there is one, policy network, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    config, nets = state.config, backbone(state.spec, state.config)
    next_keys, sample_keys, policy_keys = row_keys(state, batch, 3, axis_name)

    here = networks.value_policy(nets.policy, nets.critic, state.params, batch.obs, batch.avail)
    there = networks.value_policy(nets.policy, nets.critic, state.params, batch.next_obs, batch.next_avail)
    y = nets.critic.td_target(state, batch, sample_rows(there, next_keys))
    measure = measure_rows(here, batch.avail, sample_keys, config.num_samples, there)

    def objective(params):
        q_tot, values, chosen = nets.critic.parts(params["critic"], batch, measure)
        released = config.variant == "released"
        bias = nets.critic.mixer.apply(params["critic"]["mixer"], batch.global_state)[1] if released else None
        penalty = jnp.sum(conservative_penalty(values, measure, chosen, bias), axis=-1)
        by_name = {
            "critic/td": jnp.square(q_tot - y),
            "critic/conservative": state.hyper["penalty"] * penalty,
        }
        if not state.spec.discrete:
            by_name["policy/loss"] = policy_loss(state, nets, params, batch, policy_keys)
        return by_name, {"critic/q": q_tot, "critic/gap": penalty}

    return descend(state, batch, objective, axis_name)


act = networks.act_by_value
