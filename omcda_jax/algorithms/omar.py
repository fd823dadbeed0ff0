"""OMAR: the conservative critic of CQL-MA, and an actor drawn both uphill and to the best action a search found.

Source: Pan, Huang, Ma, Xu, "Plan Better Amid Conservatism: Offline Multi-Agent Reinforcement Learning with Actor
Rectification" (ICML 2022). With c the mixing coefficient:

    continuous   L_pi = c mean |pi(o_i) - a*_i|^2 - (1 - c) mean q_i(o_i, pi(o_i)),   pi(o) = tanh(mean)
                 a*_i the better, by q_i, of the policy's action and the best found by the cross-entropy method;
                 the policy is deterministic: targets take its action, the penalty's proposals are that with noise
    discrete     L_pi = -c log pi(a*_i|o_i) - (1 - c) E_pi q_i
                 a*_i the legal argmax of q_i, for the actions can be enumerated

CFCQL's code, the one discrete form in use, has -adv_i log pi(a_i|o_i) on the data's actions in place of -E_pi q_i. That
has no lower bound: it makes whatever is worse than average ever less likely, and in a bandit the logits grew into the
tens of thousands and ended at the wrong action. Search and values are frozen in the actor's loss. The critic, its
target (double Q-learning, or the policy's action) and its penalty are those described for CQL-MA.
"""

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from omcda_jax import networks
from omcda_jax.distributions import (
    Categorical,
    Policy,
    Support,
    TanhGaussian,
    expectation,
    greedy,
    log_integral,
    measure_rows,
)
from omcda_jax.networks import Backbone, backbone
from omcda_jax.training import CriticSettings, check_numbers, descend, new_state, require, row_keys
from omcda_jax.types import Batch, EnvSpec, Metrics, TrainState


@dataclasses.dataclass(frozen=True)
class OmarConfig(CriticSettings):
    """Settings of OMAR.

    Attributes:
        coefficient: c, weight of the search's action in the actor's loss.
        penalty: weight of the conservative penalty.
        num_samples: actions drawn from each of the three proposals of the penalty, where actions are continuous.
        search_rounds, search_samples, search_elites: rounds of the cross-entropy method, actions drawn in each, and
            how many of the best the next round is fitted to.
        search_spread: standard deviation of the first round's draws, before clipping to [-1, 1].
        proposal_spread: standard deviation of the penalty's proposals about the policy's action, before the tanh.
        name: key of the algorithm.
    """

    coefficient: float = 0.5
    penalty: float = 1.0
    num_samples: int = 10
    search_rounds: int = 2
    search_samples: int = 20
    search_elites: int = 5
    search_spread: float = 2.0
    proposal_spread: float = 0.2
    name: str = "omar"

    def __post_init__(self):
        for key in ("num_samples", "search_rounds"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        require(self, "search_elites", 2 <= self.search_elites <= self.search_samples, "2 up to search_samples")
        check_numbers(self, positive=["search_spread", "proposal_spread"])
        if self.coefficient is not None:
            require(self, "coefficient", 0 <= self.coefficient <= 1, "between 0 and 1")
            require(self, "penalty", self.penalty >= 0, "0 or more")


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmarConfig) -> TrainState:
    """Fresh networks for the task's sizes; `key` is also the run's key."""
    nets, (policy_key, critic_key) = backbone(spec, config), jax.random.split(key)
    params = {
        "policy": networks.initialise(nets.policy, policy_key, jnp.zeros((1, spec.num_agents, spec.obs_dim))),
        "critic": networks.init_mixed_critic(nets.critic, critic_key, spec),
    }
    return new_state(key, spec, config, params, targets=["policy", "critic"])


def search(
    score: Callable[[chex.Array], chex.Array],
    key: chex.PRNGKey,
    shape: tuple[int, ...],
    *,
    rounds: int,
    samples: int,
    elites: int,
    spread: chex.Numeric,
) -> chex.Array:
    """The cross-entropy method in [-1, 1]^A, for every [...] on its own.

    Args:
        score: [..., K, A] actions to [..., K] values.
        key: typed PRNG key.
        shape: (..., A).
        rounds: draws from a normal, fits it to the elites (mean, unbiased standard deviation), and again.
        samples: drawn per round.
        elites: kept per round; they compete in the next one.
        spread: standard deviation of the first round, whose mean is 0.

    Returns:
        [..., A] the best action found.
    """
    mean, std = jnp.zeros(shape), jnp.full(shape, spread)
    best_actions, best_scores = jnp.zeros((*shape[:-1], 0, shape[-1])), jnp.zeros((*shape[:-1], 0))
    for round_key in jax.random.split(key, rounds):
        noise = jax.random.normal(round_key, (*shape[:-1], samples, shape[-1]))
        drawn = jnp.clip(mean[..., None, :] + std[..., None, :] * noise, -1.0, 1.0)
        actions = jnp.concatenate([best_actions, drawn], axis=-2)
        scores = jnp.concatenate([best_scores, score(drawn)], axis=-1)
        best_scores, index = jax.lax.top_k(scores, elites)
        best_actions = jnp.take_along_axis(actions, index[..., None], axis=-2)
        mean, std = jnp.mean(best_actions, axis=-2), jnp.std(best_actions, axis=-2, ddof=1)
    return best_actions[..., 0, :]


def rectified_loss(
    policy: TanhGaussian, value: Callable[[chex.Array], chex.Array], found: chex.Array, coefficient: chex.Numeric
) -> chex.Array:
    """c |pi(o) - a*|^2 - (1 - c) q(o, pi(o)), the square averaged over an agent's dimensions: [B, N].

    Args:
        policy: [B, N] continuous policies, with their gradient.
        value: [B, N, A] actions to [B, N] frozen q_i.
        found: [B, N, A] the search's action.
        coefficient: c.
    """
    action = policy.mode()
    q, q_found = value(action), value(found)
    better = jax.lax.stop_gradient(jnp.where((q_found > q)[..., None], found, action))
    dimensions = jnp.maximum(jnp.sum(policy.avail, axis=-1), 1)
    distance = jnp.sum(jnp.where(policy.avail, jnp.square(action - better), 0.0), axis=-1) / dimensions
    return coefficient * distance - (1 - coefficient) * q


def enumerated_loss(policy: Categorical, q: chex.Array, avail: chex.Array, coefficient: chex.Numeric) -> chex.Array:
    """-c log pi(a*) - (1 - c) E_pi q, a* the legal argmax of the frozen q [B, N, A]: [B, N]."""
    best = greedy(q, avail).mode()
    return -coefficient * policy.log_prob(best) - (1 - coefficient) * expectation(q, policy.support())


def policy_loss(state: TrainState, nets: Backbone, policy: Policy, batch: Batch, keys: chex.PRNGKey) -> chex.Array:
    """The actor's loss of the kind of actions at hand: [B, N]."""
    config, hyper = state.config, state.hyper
    local = functools.partial(nets.critic.local.apply, state.params["critic"]["local"])
    if state.spec.discrete:
        return enumerated_loss(policy, local(batch.obs), batch.avail, hyper["coefficient"])

    def best(key, obs, avail):
        def score(actions):
            points = Support(jnp.where(avail[:, None], actions, 0.0), None)
            return networks.support_values(nets.critic.local, state.params["critic"]["local"], obs, points)

        return search(
            score,
            key,
            avail.shape,
            rounds=config.search_rounds,
            samples=config.search_samples,
            elites=config.search_elites,
            spread=hyper["search_spread"],
        )

    found = jax.vmap(best)(keys, batch.obs, policy.avail)
    found = jnp.where(policy.avail, found, 0.0)
    return rectified_loss(policy, lambda a: local(batch.obs, a)[..., 0], found, hyper["coefficient"])


def proposals(policy: Policy, spread: chex.Numeric) -> Policy:
    """What the penalty draws actions from: a continuous policy's mean with noise, for its own width is not learnt."""
    if isinstance(policy, Categorical):
        return policy
    return dataclasses.replace(policy, log_std=jnp.full_like(policy.mean, jnp.log(spread)))


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One step of critic and policy, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    config, nets, now = state.config, backbone(state.spec, state.config), state.params
    measure_keys, search_keys = row_keys(state, batch, 2, axis_name)

    here = networks.action_distribution(nets.policy, now["policy"], batch.obs, batch.avail)
    there = networks.action_distribution(nets.policy, now["policy"], batch.next_obs, batch.next_avail)
    proposal, next_proposal = (proposals(policy, state.hyper["proposal_spread"]) for policy in (here, there))
    next_action = networks.value_policy(nets.policy, nets.critic, now, batch.next_obs, batch.next_avail).mode()
    y = nets.critic.td_target(state, batch, next_action)
    measure = measure_rows(proposal, batch.avail, measure_keys, config.num_samples, next_proposal)

    def objective(params):
        q_tot, values, chosen = nets.critic.parts(params["critic"], batch, measure)
        gap = jnp.sum(log_integral(values, measure) - chosen, axis=-1)
        policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
        by_name = {
            "critic/td": jnp.square(q_tot - y),
            "critic/conservative": state.hyper["penalty"] * gap,
            "policy/loss": policy_loss(state, nets, policy, batch, search_keys),
        }
        return by_name, {"critic/q": q_tot, "critic/gap": gap}

    return descend(state, batch, objective, axis_name)


act = networks.act_by_policy
