"""Offline selection: what the data alone say about trained policies, so that one can be chosen without a simulator.

Three estimates of the discounted value of a policy from an episode's first state s_0:

    fitted Q evaluation   Q_tot(s,o,a) -> r + gamma nu Q_tot(s',o',pi(o')),  V(s_0) = Q_tot(s_0,o_0,pi(o_0))
    own critic            the same V(s_0) by the critic that the policy was trained with, the smallest of several
    doubly robust         E sum_t gamma^t [ w_t (r_t - Q(s_t,a_t)) + w_{t-1} V(s_t) ]

The first two take the greedy action pi(o), because returns are those of greedy episodes. The third judges the
stochastic policy if there is a policy network: w_t is the product, up to step t, of its ratios pi(a|o) / b(a|o) to the
clone b of the data, divided by its mean over episodes; Q is the fitted one (the weighted estimate of Thomas and
Brunskill 2016, "Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning"). Fitted Q evaluation is that
of Le, Voloshin and Yue 2019, "Batch Policy Learning under Constraints", on the common backbone; it may start from the
data's returns-to-go. Its state is a `TrainState` with the judged policy in `extra`, so that a population of trials is
one compiled program.

No estimate knows what happens where the data never went. There critics extrapolate, mostly upwards, so the policy that
leaves the data most often may have the highest value. `departs` finds the steps at which a policy does.
"""

from typing import Any, ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import algorithms, networks, training
from omcda_jax.distributions import Policy, expectation, greedy, has_choice, support_rows
from omcda_jax.types import Actor, Algorithm, Batch, Losses, Metrics, Params, TrainState

NUM_SAMPLES = 16  # actions drawn for an expectation over a stochastic policy, where they are continuous
LEAST_LIKELY = 0.2  # an action leaves the data if the clone's likeliest is more than five times as likely
LARGEST_DEPARTURE = 0.02  # share of actions; critics know too little of a policy that leaves the data more often
LEAST_EFFECTIVE_SHARE = 0.1  # below this share, importance weights leave too few episodes to say anything
RESAMPLES = 2_000
_IMPOSSIBLE = -1e8  # log ratios below it belong to actions that the policy never takes


@flax.struct.dataclass(kw_only=True)
class FqeConfig(training.CriticSettings):
    """Settings of fitted Q evaluation: those of the common backbone."""

    name: ClassVar[str] = "fqe"

    target_rate: float = 0.01

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_numbers(self)


def init(key: chex.PRNGKey, policy: Actor, config: FqeConfig) -> TrainState:
    """Return the state before the first update of the evaluation of a policy.

    Args:
        key: typed PRNG key; batches follow from it, so that trials with the same key see the same batches.
        policy: the actor, from `omcda_jax.policy`; the critic uses its normaliser too.
        config: settings of the critic that is fitted.
    """
    params = networks.init_params(key, policy.spec, critic=networks.mixed_critic(policy.spec, config))
    return training.new_state(key, policy.spec, config, params, targets=["critic"], extra=policy)


def critic_loss(params: Params, state: TrainState, batch: Batch, target: chex.Array) -> Losses:
    """Return (Q_tot - target)^2: [B]."""
    critic = networks.mixed_critic(state.spec, state.config)
    q_tot = critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
    return {"fqe/td": jnp.square(q_tot - target)}, {"fqe/q": q_tot}


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of fitted Q evaluation. Arguments and results are those of `omcda_jax.update`."""
    critic = networks.mixed_critic(state.spec, state.config)
    next_action = algorithms.act(state.extra, batch.next_obs, batch.next_avail)
    batch = algorithms.normalise(state.extra, batch)
    next_value = critic.q_tot(state.target_params["critic"], batch.next_obs, batch.next_global_state, next_action)
    target = training.bootstrap(state, batch, next_value)
    return training.descend(state, batch, [critic_loss], target, axis_name)


FQE = Algorithm(FqeConfig, init, update, lambda state: state.extra, algorithms.act)


def value(state: TrainState, batch: Batch) -> jax.Array:
    """Return V(s) [B] of the greedy policy at the batch's states, from a state of fitted Q evaluation."""
    critic = networks.mixed_critic(state.spec, state.config)
    action = algorithms.act(state.extra, batch.obs, batch.avail)
    batch = algorithms.normalise(state.extra, batch)
    return critic.q_tot(state.target_params["critic"], batch.obs, batch.global_state, action)


def has_critic(state: TrainState) -> bool:
    """Return whether `critic_value` can read a training state: one of a library algorithm that has a critic."""
    return state.config.name in algorithms.ALGORITHMS and _critics(state) is not None


def _critics(state: TrainState) -> Any:
    """Return the target critic, for OMCDA the return critics; None if there is no critic."""
    return state.target_params.get("return", state.target_params.get("critic"))


def critic_value(state: TrainState, batch: Batch) -> jax.Array:
    """Return V(s) [B] of the greedy policy by the critic that it was trained with, the smallest of several.

    Args:
        state: a training state for which `has_critic` holds.
        batch: B transitions, raw.
    """
    critic, params = networks.mixed_critic(state.spec, state.config), _critics(state)
    action = algorithms.act(state, batch.obs, batch.avail)
    batch = algorithms.normalise(state, batch)
    # a kernel has two axes, and one more in an ensemble; the members may share a mixer
    stacked = {part: 0 if max(x.ndim for x in jax.tree.leaves(params[part])) > 2 else None for part in params}
    inputs = batch.obs, batch.global_state, action
    if stacked["local"] is None:
        return critic.q_tot(params, *inputs)
    return jax.vmap(lambda member: critic.q_tot(member, *inputs), in_axes=(stacked,))(params).min(axis=0)


def has_density(policy: Actor) -> bool:
    """Return whether a policy's actions have probabilities or densities: all except continuous BCQ and OMAR."""
    return policy.spec.discrete or (_has_network(policy) and policy.config.name != "omar")


def _has_network(policy: Actor) -> bool:
    return policy.config.name in algorithms.ALGORITHMS and "policy" in policy.params


def distribution(policy: Actor, batch: Batch) -> Policy:
    """Return the policies [B, N] at a raw batch's states: from the policy network, else all on the greedy action.

    Args:
        policy: a policy for which `has_density` holds.
        batch: B transitions, raw.
    """
    if not _has_network(policy):
        action = algorithms.act(policy, batch.obs, batch.avail)
        return greedy(jax.nn.one_hot(action, policy.spec.action_dim), batch.avail)
    network = networks.policy_network(policy.spec, policy.config.hidden_sizes)
    obs = algorithms.normalise(policy, batch).obs
    return networks.action_distribution(network, policy.params["policy"], obs, batch.avail)


def departs(policy: Actor, behaviour: Actor, batch: Batch) -> jax.Array:
    """Return where greedy actions leave the data, [B, N]: 1 if rare in the data's policy, else 0; nan without choice.

    Args:
        policy: the judged policy; its actions need no densities.
        behaviour: clone of the data's policy.
        batch: B transitions, raw.
    """
    action = algorithms.act(policy, batch.obs, batch.avail)
    rare = distribution(behaviour, batch).relative_log_prob(action) < jnp.log(LEAST_LIKELY)
    return jnp.where(has_choice(batch.avail, policy.spec.discrete), rare.astype(jnp.float32), jnp.nan)


class Terms(NamedTuple):
    """What a doubly robust estimate needs from B steps, [B] each."""

    action_value: chex.Array  # Q_tot(s, a) of the data's action
    state_value: chex.Array  # E_pi Q_tot(s, .), the stochastic policy
    log_ratio: chex.Array  # sum_i log pi_i(a_i|o_i) - log b_i(a_i|o_i), nats


def terms(state: TrainState, behaviour: Actor, batch: Batch, keys: chex.PRNGKey) -> Terms:
    """Return the terms of a doubly robust estimate.

    Args:
        state: state of the fitted Q evaluation of a policy for which `has_density` holds.
        behaviour: clone of the data's policy.
        batch: B transitions, raw.
        keys: [B] keys of the draws where actions are continuous.
    """
    critic, params = networks.mixed_critic(state.spec, state.config), state.target_params["critic"]
    policy, clone = (distribution(actor, batch) for actor in (state.extra, behaviour))
    batch = algorithms.normalise(state.extra, batch)
    support = support_rows(policy, keys, NUM_SAMPLES)
    local, chosen = networks.support_and_action_values(critic.local, params["local"], batch.obs, support, batch.action)
    ratio = policy.log_prob(batch.action) - clone.log_prob(batch.action)
    return Terms(
        action_value=critic.mix(params, batch.global_state, chosen),
        state_value=critic.mix(params, batch.global_state, expectation(local, support)),
        log_ratio=jnp.sum(jnp.where(has_choice(batch.avail, state.spec.discrete), ratio, 0.0), axis=-1),
    )


def doubly_robust(
    log_ratio: np.ndarray,
    surprise: np.ndarray,
    state_value: np.ndarray,
    length: np.ndarray,
    gamma: float,
) -> tuple[np.ndarray, float]:
    """Return every episode's part in the weighted doubly robust estimate, which is their mean; and how reliable it is.

    Args:
        log_ratio: [E, T] nats, as in `Terms`; entries after an episode's end are not read.
        surprise: [E, T] r_t - Q(s_t, a_t); entries after an episode's end are not read.
        state_value: [E, T + 1] V(s_t); at the end, 0 if the task ended, else the value of what would have followed.
        length: [E] steps, at most T.
        gamma: discount factor per step.

    Returns:
        [E] parts, each to first order what its episode adds, so that resampling them resamples the estimate; and the
        effective share of the episodes, 1 over the weights' mean square, at the step where it is smallest.
    """
    steps = np.arange(log_ratio.shape[1])
    live = steps < length[:, None]
    ratio = np.where(live, np.where(log_ratio < _IMPOSSIBLE, -np.inf, log_ratio), 0.0)
    path = np.cumsum(ratio.astype(np.float64), axis=1)
    largest = path.max(axis=0)
    if not np.isfinite(largest).all():
        return np.full(len(length), np.nan), 0.0
    weights = np.exp(path - largest)
    weights = np.concatenate([np.ones((len(length), 1)), weights / weights.mean(axis=0)], axis=1)

    def parts(weights, values):
        mean = np.mean(weights * values, axis=0)
        return weights * (values - mean) + mean

    discounts = gamma ** np.arange(len(steps) + 1)
    inside = np.arange(len(steps) + 1) <= length[:, None]
    gains = parts(weights[:, 1:], np.where(live, surprise, 0.0)) @ discounts[:-1]
    values = parts(weights, np.where(inside, state_value, 0.0)) @ discounts
    return gains + values, float(1.0 / np.square(weights).mean(axis=0).max())


class Comparison(NamedTuple):
    """P trials by one estimate, [P] each; nan if a trial has no estimate.

    Attributes:
        value: the estimate.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        best: probability of being the best of the trials that have an estimate, 0 for the others.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: np.ndarray

    @property
    def chosen(self) -> int | None:
        """The trial with the highest estimate, the first among equals; None if no trial has an estimate."""
        return int(np.nanargmax(self.value)) if np.isfinite(self.value).any() else None


def compare(values: np.ndarray, seed: int = 0) -> Comparison:
    """Compare trials by bootstrap: draw episodes with replacement, the same for all trials, and one fit of each trial.

    Args:
        values: [P, F, E] of P trials by F fits in E episodes; a trial with a number that is not finite has no estimate.
        seed: seed of the draws.
    """
    random = np.random.default_rng(seed)
    trials, fits, episodes = values.shape
    sound = np.isfinite(values).all(axis=(1, 2))
    values = np.where(sound[:, None, None], values, np.nan)
    counts = random.multinomial(episodes, np.full(episodes, 1 / episodes), size=RESAMPLES)
    means = np.einsum("pfe,re->rpf", values, counts / episodes)
    fit = random.integers(fits, size=(RESAMPLES, trials, 1))
    drawn = np.take_along_axis(means, fit, axis=2)[..., 0]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    ranked = np.where(sound, drawn, -np.inf)
    first = sound & (ranked == ranked.max(axis=1, keepdims=True))
    best = np.mean(first / np.maximum(first.sum(axis=1, keepdims=True), 1), axis=0)
    return Comparison(values.mean(axis=(1, 2)), low, high, best)
