"""CFCQL: conservative Q-learning with a counterfactual penalty, one agent off the data at a time.

Source: Shao, Qu, Chen, Zhang, Ji, "Counterfactual Conservative Q Learning for Offline Multi-Agent Reinforcement
Learning" (NeurIPS 2023). Agent i's action varies while the others keep the data's; under the linear mixer

    P        = sum_i lambda_i [ log sum_a exp(w_i q_i(o_i,a)) - w_i q_i(o_i,a_i) ]
    lambda   = softmax_i( temperature KL(mu_i || b_i) ), stopped
    L_q      = mean (Q_tot - y)^2 + penalty mean P,          y as in CQL-MA

with mu_i the policy that the values favour (discrete: softmax of w_i q_i over legal actions; continuous: the policy
network, for which the KL is closed) and b_i a clone of the data, fitted first and then frozen. At temperature 0,
n P is the penalty of CQL-MA. Under the linear mixer the counterfactual actor is the maximiser of w_i q_i.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from omcda_jax import networks
from omcda_jax.distributions import Policy, categorical, log_integral, measure_rows, sample_rows
from omcda_jax.networks import Backbone, backbone
from omcda_jax.training import CriticSettings, check_numbers, descend, hold, new_state, require, row_keys
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class CfcqlConfig(CriticSettings):
    """Settings of CFCQL.

    Attributes:
        penalty: weight of the counterfactual penalty, the paper's alpha.
        temperature: T of the agents' weights; 0 weighs them alike; 100, for which the released code chooses one agent,
            all but chooses it where its KL is larger than the others' by some hundredths.
        behaviour_updates: first updates, in which only the clone learns.
        num_samples: actions drawn from each of the three proposals, where actions are continuous.
        name: key of the algorithm.
    """

    penalty: float = 5.0
    temperature: float = 0.5
    behaviour_updates: int = 4_000
    num_samples: int = 10
    name: str = "cfcql"

    def __post_init__(self):
        require(self, "num_samples", self.num_samples >= 1, "at least 1")
        require(self, "behaviour_updates", self.behaviour_updates >= 0, "a number of updates >= 0")
        for key in ("penalty", "temperature"):
            require(self, key, getattr(self, key) is None or getattr(self, key) >= 0, "0 or more")
        check_numbers(self)


def init(key: chex.PRNGKey, spec: EnvSpec, config: CfcqlConfig) -> TrainState:
    """Fresh networks for the task's sizes, a policy network only where actions are continuous."""
    nets, keys = backbone(spec, config), jax.random.split(key, 3)
    obs = jnp.zeros((1, spec.num_agents, spec.obs_dim))
    params = {
        "behaviour": networks.initialise(nets.policy, keys[0], obs),
        "critic": networks.init_mixed_critic(nets.critic, keys[1], spec),
    }
    if not spec.discrete:
        params["policy"] = networks.initialise(nets.policy, keys[2], obs)
    return new_state(key, spec, config, params, targets=sorted(params.keys() - {"behaviour"}))


def agent_weights(divergence: chex.Array, temperature: chex.Numeric) -> chex.Array:
    """lambda_i: [..., N] divergences in nats to [..., N] weights that sum to one."""
    return jax.lax.stop_gradient(jax.nn.softmax(temperature * divergence, axis=-1))


def counterfactual_penalty(gap: chex.Array, weights: chex.Array) -> chex.Array:
    """P = sum_i lambda_i gap_i, gap_i the log-sum-exp of agent i's actions above the data's: [..., N] each to [...]."""
    return jnp.sum(weights * gap, axis=-1)


def _favoured(state: TrainState, nets: Backbone, batch: Batch, weights: chex.Array) -> Policy:
    """mu_i."""
    if state.spec.discrete:
        local = state.params["critic"]["local"]
        return categorical(weights[..., None] * nets.critic.local.apply(local, batch.obs), batch.avail)
    return networks.action_distribution(nets.policy, state.params["policy"], batch.obs, batch.avail)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One step of the clone, or when it is frozen of critic and policy network, losses at the parameters before it.

    Arguments and results are those of `omcda_jax.update`.
    """
    config, hyper, nets = state.config, state.hyper, backbone(state.spec, state.config)
    next_keys, sample_keys, policy_keys = row_keys(state, batch, 3, axis_name)
    frozen = state.params["critic"]

    here = networks.value_policy(nets.policy, nets.critic, state.params, batch.obs, batch.avail)
    there = networks.value_policy(nets.policy, nets.critic, state.params, batch.next_obs, batch.next_avail)
    y = nets.critic.td_target(state, batch, sample_rows(there, next_keys))
    measure = measure_rows(here, batch.avail, sample_keys, config.num_samples, there)

    weights = nets.critic.weights(frozen, batch.global_state)
    behaviour = networks.action_distribution(nets.policy, state.params["behaviour"], batch.obs, batch.avail)
    agents = agent_weights(_favoured(state, nets, batch, weights).kl(behaviour), hyper["temperature"])

    def objective(params):
        clone = networks.action_distribution(nets.policy, params["behaviour"], batch.obs, batch.avail)
        q_tot, values, chosen = nets.critic.parts(params["critic"], batch, measure)
        penalty = counterfactual_penalty(log_integral(values, measure) - chosen, agents)
        by_name = {
            "behaviour/loss": -clone.log_prob(batch.action),
            "critic/td": jnp.square(q_tot - y),
            "critic/conservative": hyper["penalty"] * penalty,
        }
        if not state.spec.discrete:
            policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
            drawn = sample_rows(policy, policy_keys)
            value = networks.action_values(nets.critic.local, frozen["local"], batch.obs, drawn)
            by_name["policy/loss"] = -weights * value
        return by_name, {"critic/q": q_tot, "critic/gap": penalty, "critic/largest_share": jnp.max(agents, axis=-1)}

    cloning = state.step < config.behaviour_updates
    new, metrics = descend(state, batch, objective, axis_name)
    return hold(new, state, {group: cloning == (group != "behaviour") for group in state.params}), metrics


act = networks.act_by_value
