"""OMAR: the critic of CQL-MA, and a policy that follows both the value and the best action that a search found.

Source: Pan, Huang, Ma, Xu, "Plan Better Amid Conservatism: Offline Multi-Agent Reinforcement Learning with Actor
Rectification" (ICML 2022). c is the mixing coefficient:

    continuous   L_pi = c mean |pi(o_i) - a*_i|^2 - (1 - c) mean q_i(o_i, pi(o_i)),   pi(o) = tanh(mean)
                 with the square averaged over an agent's dimensions
                 a*_i is the better, by q_i, of the policy's action and the best one of the cross-entropy method
                 the policy is deterministic: targets take its action, and noise around it gives the proposals
    discrete     L_pi = -c log pi(a*_i|o_i) - (1 - c) E_pi q_i
                 a*_i is the legal argmax of q_i, because the actions can be enumerated

CFCQL's code, the only discrete form in use, has -adv_i log pi(a_i|o_i) on the data's actions instead of -E_pi q_i. This
loss has no lower bound: it makes every action worse than average less and less likely. In a bandit, the logits grew to
tens of thousands and ended at the wrong action. Search and values are frozen in the policy's loss. The critic, its
target (double Q-learning, or the policy's action) and its penalty are those of CQL-MA.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, networks, training
from omcda_jax.acting import value_policy
from omcda_jax.distributions import (
    Categorical,
    Measure,
    Policy,
    Support,
    TanhGaussian,
    expectation,
    greedy,
    log_integral,
    measure_rows,
)
from omcda_jax.networks import backbone
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Actor, Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState


@flax.struct.dataclass(kw_only=True)
class OmarConfig(CriticSettings):
    """Settings of OMAR.

    Attributes:
        coefficient: c, weight of the search's action in the policy's loss.
        penalty: weight of the conservative penalty.
        num_samples: actions drawn from each of the three proposals of the penalty, where actions are continuous.
        search_rounds: rounds of the cross-entropy method.
        search_samples: actions drawn in each round.
        search_elites: number of best actions of a round to which the next round is fitted.
        search_spread: standard deviation of the first round's draws, before clipping to [-1, 1].
        proposal_spread: standard deviation of the penalty's proposals around the policy's action, before the tanh.
    """

    name: ClassVar[str] = "omar"

    coefficient: float = 0.5
    penalty: float = 1.0
    num_samples: int = static(10)
    search_rounds: int = static(2)
    search_samples: int = static(20)
    search_elites: int = static(5)
    search_spread: float = 2.0
    proposal_spread: float = 0.2

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.require(self, "search_elites", lambda x: 2 <= x <= self.search_samples, "2 up to search_samples")
        positive, shares, counts = (
            ["search_spread", "proposal_spread"],
            ["coefficient"],
            ["num_samples", "search_rounds"],
        )
        training.check_numbers(self, positive=positive, nonnegative=["penalty"], shares=shares, counts=counts)


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmarConfig) -> TrainState:
    """Initialise networks for the task's sizes; `key` is also the run's key."""
    nets = backbone(spec, config)
    params = networks.init_params(key, spec, policy=nets.policy, critic=nets.critic)
    return training.new_state(key, spec, config, params, targets=["policy", "critic"])


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
    """Search by the cross-entropy method in [-1, 1]^A, independently for every [...].

    Args:
        score: [..., K, A] actions to [..., K] values.
        key: typed PRNG key.
        shape: (..., A).
        rounds: number of rounds; each draws from a normal and fits it to the elites (mean, unbiased deviation).
        samples: number of actions drawn per round.
        elites: number of actions kept per round; they compete in the next round.
        spread: standard deviation of the first round; its mean is 0.

    Returns:
        [..., A] the best action of all rounds.
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
    policy: TanhGaussian, value: Callable[[chex.Array], chex.Array], best: chex.Array, coefficient: chex.Numeric
) -> chex.Array:
    """Return c |pi(o) - a*|^2 - (1 - c) q(o, pi(o)), with the square averaged over an agent's dimensions: [B, N].

    Args:
        policy: [B, N] continuous policies, with their gradient.
        value: [B, N, A] actions to [B, N] frozen q_i.
        best: [B, N, A] the actions that the search found.
        coefficient: c.
    """
    action = policy.mode()
    q, q_best = value(action), value(best)
    better = jax.lax.stop_gradient(jnp.where((q_best > q)[..., None], best, action))
    dimensions = jnp.maximum(jnp.sum(policy.avail, axis=-1), 1)
    distance = jnp.sum(jnp.where(policy.avail, jnp.square(action - better), 0.0), axis=-1) / dimensions
    return coefficient * distance - (1 - coefficient) * q


def enumerated_loss(policy: Categorical, q: chex.Array, avail: chex.Array, coefficient: chex.Numeric) -> chex.Array:
    """Return -c log pi(a*) - (1 - c) E_pi q [B, N]; a* is the legal argmax of the frozen q [B, N, A]."""
    best = greedy(q, avail).mode()
    return -coefficient * policy.log_prob(best) - (1 - coefficient) * expectation(q, policy.support())


def best_actions(state: TrainState, batch: Batch, keys: chex.PRNGKey) -> chex.Array:
    """Return the actions that a search by q_i finds, each row by its own key [B]: [B, N, A], 0 in the padding."""
    config, local = state.config, state.params["critic"]["local"]
    network = backbone(state.spec, config).critic.local

    def of_row(key, obs, avail):
        def score(actions):
            points = Support(jnp.where(avail[:, None], actions, 0.0), None)
            return networks.support_values(network, local, obs, points)

        return search(
            score,
            key,
            avail.shape,
            rounds=config.search_rounds,
            samples=config.search_samples,
            elites=config.search_elites,
            spread=config.search_spread,
        )

    return jnp.where(batch.avail, jax.vmap(of_row)(keys, batch.obs, batch.avail), 0.0)


def proposals(policy: Policy, spread: chex.Numeric) -> Policy:
    """Return the penalty's proposals: a continuous policy's mean with noise, because its own width is not learnt."""
    if isinstance(policy, Categorical):
        return policy
    return dataclasses.replace(policy, log_std=jnp.full_like(policy.mean, jnp.log(spread)))


class Estimates(NamedTuple):
    """Constants of the step: the critic's target, the points of the penalty, the search's actions."""

    target: chex.Array  # [B] y, by the current policy
    measure: Measure  # over the actions of [B, N] agents
    best: chex.Array | None  # [B, N, A] the search's actions; None where actions are discrete


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute the target by the current policy, the points of the penalty, and the search's actions."""
    config, nets, params = state.config, backbone(state.spec, state.config), state.params
    measure_keys, search_keys = training.row_keys(state, batch, 2, axis_name)
    here, there = (
        proposals(networks.action_distribution(nets.policy, params["policy"], obs, avail), config.proposal_spread)
        for obs, avail in ((batch.obs, batch.avail), (batch.next_obs, batch.next_avail))
    )
    next_action = value_policy(nets.policy, nets.critic, params, batch.next_obs, batch.next_avail).mode()
    barred = state.target_params["critic"]
    next_value = nets.critic.q_tot(barred, batch.next_obs, batch.next_global_state, next_action)
    return Estimates(
        target=training.bootstrap(state, batch, next_value),
        measure=measure_rows(here, batch.avail, measure_keys, config.num_samples, there),
        best=None if state.spec.discrete else best_actions(state, batch, search_keys),
    )


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q_tot - y)^2 and CQL-MA's penalty: [B] each."""
    q_tot, values, chosen = backbone(state.spec, state.config).critic.parts(params["critic"], batch, estimates.measure)
    gap = jnp.sum(log_integral(values, estimates.measure) - chosen, axis=-1)
    by_name = {"critic/td": jnp.square(q_tot - estimates.target), "critic/conservative": state.config.penalty * gap}
    return by_name, {"critic/q": q_tot, "critic/gap": gap}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the policy's loss for the task's kind of actions: [B, N]."""
    nets, coefficient = backbone(state.spec, state.config), state.config.coefficient
    policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
    local = functools.partial(nets.critic.local.apply, state.params["critic"]["local"])
    if state.spec.discrete:
        return {"policy/loss": enumerated_loss(policy, local(batch.obs), batch.avail, coefficient)}, {}
    value = lambda action: local(batch.obs, action)[..., 0]
    return {"policy/loss": rectified_loss(policy, value, estimates.best, coefficient)}, {}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of critic and policy, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    return training.descend(state, batch, [critic_loss, policy_loss], estimate(state, batch, axis_name), axis_name)


def act(actor: Actor, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None) -> chex.Array:
    """Act as `acting.act_by_policy`; continuous actions ignore the key, because no loss trains their spread."""
    return acting.act_by_policy(actor, obs, avail, key if actor.spec.discrete else None)


ALGORITHM = Algorithm(OmarConfig, init, update, acting.policy_of, act)
