"""CFCQL: conservative Q-learning with a counterfactual penalty, in which one agent at a time leaves the data.

Source: Shao, Qu, Chen, Zhang, Ji, "Counterfactual Conservative Q Learning for Offline Multi-Agent Reinforcement
Learning" (NeurIPS 2023). Agent i's action varies while the others keep the data's actions. Under the linear mixer

    P        = sum_i lambda_i [ log sum_a exp(w_i q_i(o_i,a)) - w_i q_i(o_i,a_i) ]
    lambda   = softmax_i( temperature KL(mu_i || b_i) ), stopped
    L_q      = mean (Q_tot - y)^2 + penalty mean P,          y as in CQL-MA

where mu_i is the policy that the values favour (discrete: softmax of w_i q_i over legal actions; continuous: the policy
network, for which the KL has a closed form) and b_i is a clone of the data, fitted first and then frozen. n P is the
penalty of CQL-MA at temperature 0. Under the linear mixer the counterfactual actor maximises w_i q_i.
"""

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, networks, training
from omcda_jax.acting import value_policy
from omcda_jax.distributions import Measure, Policy, categorical, log_integral, measure_rows, sample_rows
from omcda_jax.networks import Backbone, backbone
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState


@flax.struct.dataclass(kw_only=True)
class CfcqlConfig(CriticSettings):
    """Settings of CFCQL.

    Attributes:
        penalty: weight of the counterfactual penalty, the paper's alpha.
        temperature: T of the agents' weights. 0 weights them equally. At 100, nearly all weight is on the agent with
            the largest KL once it leads by a few hundredths, like the hard choice of the released code.
        behaviour_updates: number of first updates, in which only the clone learns.
        num_samples: actions drawn from each of the three proposals, where actions are continuous.
    """

    name: ClassVar[str] = "cfcql"

    penalty: float = 5.0
    temperature: float = 0.5
    behaviour_updates: int = static(4_000, warmup=True)
    num_samples: int = static(10)

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.require(self, "behaviour_updates", lambda x: x >= 0, "a number of updates >= 0")
        waits = f"0 or more than behaviour_updates={self.behaviour_updates}, during which the critic waits"
        training.require(self, "priming", lambda x: x <= 0 or x > self.behaviour_updates, waits)
        training.check_numbers(self, nonnegative=["penalty", "temperature"], counts=["num_samples"])
        cloned = "0 with behaviour_updates=0, which trains no clone to compare with"
        training.require(self, "temperature", lambda x: (x == 0) | (self.behaviour_updates > 0), cloned)


def init(key: chex.PRNGKey, spec: EnvSpec, config: CfcqlConfig) -> TrainState:
    """Initialise networks for the task's sizes, a policy network only where actions are continuous."""
    nets = backbone(spec, config)
    parts = {"behaviour": nets.policy, "critic": nets.critic} | ({} if spec.discrete else {"policy": nets.policy})
    params = networks.init_params(key, spec, **parts)
    return training.new_state(key, spec, config, params, targets=sorted(params.keys() - {"behaviour"}))


def agent_weights(divergence: chex.Array, temperature: chex.Numeric) -> chex.Array:
    """Return lambda_i: [..., N] divergences in nats to [..., N] weights that sum to one."""
    return jax.lax.stop_gradient(jax.nn.softmax(temperature * divergence, axis=-1))


def counterfactual_penalty(gap: chex.Array, weights: chex.Array) -> chex.Array:
    """Return P = sum_i lambda_i gap_i; gap_i is agent i's log-sum-exp above the data's action: [..., N] to [...]."""
    return jnp.sum(weights * gap, axis=-1)


def _favoured(state: TrainState, nets: Backbone, batch: Batch, weights: chex.Array) -> Policy:
    """Return mu_i."""
    if state.spec.discrete:
        local = state.params["critic"]["local"]
        return categorical(weights[..., None] * nets.critic.local.apply(local, batch.obs), batch.avail)
    return networks.action_distribution(nets.policy, state.params["policy"], batch.obs, batch.avail)


class Estimates(NamedTuple):
    """Constants of the step: the critic's target, the points and weights of the penalty, keys for the policy."""

    target: chex.Array  # [B] y
    measure: Measure  # over the actions of [B, N] agents
    agents: chex.Array  # [B, N] lambda_i
    weights: chex.Array  # [B, N] w_i
    policy_keys: chex.PRNGKey  # [B] keys of the actions at which the policy is improved


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute the target by the current policy, the points of the penalty, and the agents' weights in it."""
    nets, params = backbone(state.spec, state.config), state.params
    next_keys, sample_keys, policy_keys = training.row_keys(state, batch, 3, axis_name)
    now = value_policy(nets.policy, nets.critic, params, batch.obs, batch.avail)
    then = value_policy(nets.policy, nets.critic, params, batch.next_obs, batch.next_avail)
    next_value = nets.critic.q_tot(
        state.target_params["critic"], batch.next_obs, batch.next_global_state, sample_rows(then, next_keys)
    )
    weights = nets.critic.weights(params["critic"], batch.global_state)
    clone = networks.action_distribution(nets.policy, params["behaviour"], batch.obs, batch.avail)
    return Estimates(
        target=training.bootstrap(state, batch, next_value),
        measure=measure_rows(now, batch.avail, sample_keys, state.config.num_samples, then),
        agents=agent_weights(_favoured(state, nets, batch, weights).kl(clone), state.config.temperature),
        weights=weights,
        policy_keys=policy_keys,
    )


def behaviour_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -log b_i(a_i|o_i): [B, N]."""
    network = backbone(state.spec, state.config).policy
    clone = networks.action_distribution(network, params["behaviour"], batch.obs, batch.avail)
    return {"behaviour/loss": -clone.log_prob(batch.action)}, {}


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q_tot - y)^2 and the penalty P: [B] each."""
    critic = backbone(state.spec, state.config).critic
    q_tot, values, chosen = critic.parts(params["critic"], batch, estimates.measure)
    penalty = counterfactual_penalty(log_integral(values, estimates.measure) - chosen, estimates.agents)
    by_name = {"critic/td": jnp.square(q_tot - estimates.target), "critic/conservative": state.config.penalty * penalty}
    largest_share = jnp.max(estimates.agents, axis=-1)
    return by_name, {"critic/q": q_tot, "critic/gap": penalty, "critic/largest_share": largest_share}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -w_i q_i(o_i, a~) with a~ drawn with its gradient and values frozen: [B, N]."""
    nets = backbone(state.spec, state.config)
    policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
    drawn = sample_rows(policy, estimates.policy_keys)
    q = networks.action_values(nets.critic.local, state.params["critic"]["local"], batch.obs, drawn)
    return {"policy/loss": -estimates.weights * q}, {}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take a step of the clone or, once it is frozen, of critic and policy; losses are at the parameters before it.

    Arguments and results are those of `omcda_jax.update`.
    """
    losses = [behaviour_loss, critic_loss] + ([] if state.spec.discrete else [policy_loss])
    after, metrics = training.descend(state, batch, losses, estimate(state, batch, axis_name), axis_name)
    cloning = state.step < state.config.behaviour_updates
    return training.hold(after, state, {group: cloning == (group != "behaviour") for group in state.params}), metrics


ALGORITHM = Algorithm(CfcqlConfig, init, update, acting.values_of, acting.act_by_value)
