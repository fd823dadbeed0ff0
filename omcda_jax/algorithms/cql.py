"""CQL-MA: value decomposition with a team value that is pushed down on actions outside the data.

Source: Kumar, Zhou, Tucker, Levine, "Conservative Q-Learning for Offline Reinforcement Learning" (NeurIPS 2020), on
the joint action. Under the linear mixer, the log-sum-exp of Q_tot over joint actions is b + sum_i (log-sum-exp of
w_i q_i over a_i), so the penalty is exact without sampling joint actions:

    P   = sum_i [ log sum_a exp(w_i q_i(o_i,a)) - w_i q_i(o_i,a_i) ]        L_q = mean (Q_tot - y)^2 + penalty mean P
    y   = r + gamma nu [ sum_i w_i(s') q_i(o'_i,a'_i) + b(s') ]             targets barred; a' from the policy now

Discrete: the sum runs over legal actions. a' is the legal argmax of the online q_i (double Q-learning), which is also
the policy. Continuous: importance sampling from uniform, pi(.|o) and pi(.|o'), and a policy network that maximises
w_i q_i. `variant="released"` (continuous only) is the form of the OMIGA authors' comparison: no importance weights,
the bias b inside every agent's term, and a policy that clones actions with their raw values as weights.
"""

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, networks, training
from omcda_jax.acting import value_policy
from omcda_jax.distributions import Measure, log_integral, measure_rows, sample_rows
from omcda_jax.networks import backbone
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState

VARIANTS = ("corrected", "released")


@flax.struct.dataclass(kw_only=True)
class CqlConfig(CriticSettings):
    """Settings of CQL-MA.

    Attributes:
        penalty: weight of the conservative penalty, CQL's alpha; 0 is plain value decomposition.
        num_samples: actions drawn from each of the three proposals, where actions are continuous.
        variant: "corrected" or "released", see the module.
    """

    name: ClassVar[str] = "cql"

    penalty: float = 1.0
    num_samples: int = static(10)
    variant: str = static("corrected", VARIANTS)

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_choices(self)
        training.check_numbers(self, nonnegative=["penalty"], counts=["num_samples"])


def init(key: chex.PRNGKey, spec: EnvSpec, config: CqlConfig) -> TrainState:
    """Initialise networks for the task's sizes, a policy network only where actions are continuous.

    Raises:
        ConfigError: actions are discrete and the variant is the released one.
    """
    nets = backbone(spec, config)
    parts = {"critic": nets.critic} | ({} if spec.discrete else {"policy": nets.policy})
    if spec.discrete:
        training.require_choice(config, "variant", ["corrected"])
    params = networks.init_params(key, spec, **parts)
    return training.new_state(key, spec, config, params, targets=list(params))


def conservative_penalty(
    values: chex.Array, measure: Measure, chosen: chex.Array, bias: chex.Array | None = None
) -> chex.Array:
    """Return P_i, the log-sum-exp of w_i q_i over an agent's actions minus w_i q_i of the data's action.

    Args:
        values: [B, N, K] w_i q_i at the measure's points.
        measure: over the actions.
        chosen: [B, N] w_i q_i of the data's actions.
        bias: [B] b(s) for the released form, which ignores the measure's weights (the log of a sum over samples), adds
            b once per agent, and subtracts it only once per team.

    Returns:
        [B, N], exactly 0 where the only legal action is the data's.
    """
    if bias is None:
        return log_integral(values, measure) - chosen
    surplus = (1.0 - 1.0 / chosen.shape[-1]) * bias[:, None]
    return jax.nn.logsumexp(values, axis=-1) - chosen + surplus


class Estimates(NamedTuple):
    """Constants of the step: the critic's target, the points of the penalty, keys for the policy."""

    measure: Measure  # over the actions of [B, N] agents
    target: chex.Array  # [B] y, by the current policy
    policy_keys: chex.PRNGKey  # [B] keys of the actions at which the policy is improved


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute the target by the current policy, and the points of the penalty."""
    nets, barred = backbone(state.spec, state.config), state.target_params["critic"]
    next_keys, sample_keys, policy_keys = training.row_keys(state, batch, 3, axis_name)
    here = value_policy(nets.policy, nets.critic, state.params, batch.obs, batch.avail)
    there = value_policy(nets.policy, nets.critic, state.params, batch.next_obs, batch.next_avail)
    next_action = sample_rows(there, next_keys)
    next_value = nets.critic.q_tot(barred, batch.next_obs, batch.next_global_state, next_action)
    return Estimates(
        target=training.bootstrap(state, batch, next_value),
        measure=measure_rows(here, batch.avail, sample_keys, state.config.num_samples, there),
        policy_keys=policy_keys,
    )


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q_tot - y)^2 and the penalty sum_i P_i: [B] each."""
    critic = backbone(state.spec, state.config).critic
    q_tot, values, chosen = critic.parts(params["critic"], batch, estimates.measure)
    released = state.config.variant == "released"
    bias = critic.mixer.apply(params["critic"]["mixer"], batch.global_state)[1] if released else None
    penalty = jnp.sum(conservative_penalty(values, estimates.measure, chosen, bias), axis=-1)
    by_name = {"critic/td": jnp.square(q_tot - estimates.target), "critic/conservative": state.config.penalty * penalty}
    return by_name, {"critic/q": q_tot, "critic/gap": penalty}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -w_i q_i(o_i, a~) with a~ drawn with its gradient and values frozen: [B, N].

    Released: the sum over agents of -q_i(a_i) log pi_i(a_i|o_i), [B].
    """
    nets, frozen = backbone(state.spec, state.config), state.params["critic"]
    policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
    if state.config.variant == "released":
        q = networks.action_values(nets.critic.local, frozen["local"], batch.obs, batch.action)
        return {"policy/loss": -jnp.sum(q * policy.log_prob(batch.action), axis=-1)}, {}
    drawn = sample_rows(policy, estimates.policy_keys)
    q = networks.action_values(nets.critic.local, frozen["local"], batch.obs, drawn)
    return {"policy/loss": -nets.critic.weights(frozen, batch.global_state) * q}, {}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of the critic and the policy network, if any, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    losses = [critic_loss] if state.spec.discrete else [critic_loss, policy_loss]
    return training.descend(state, batch, losses, estimate(state, batch, axis_name), axis_name)


ALGORITHM = Algorithm(CqlConfig, init, update, acting.values_of, acting.act_by_value)
