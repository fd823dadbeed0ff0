"""MAPPO with standardised inputs to the actors, for any simulator; makes behaviour policies, like `mappo`.

There is one actor per agent: its standardised observation -> two hidden tanh layers -> logits or, with continuous
actions, the centre of a Gaussian with learned, state-independent width and a tanh over the sample. There is one central
value of the standardised state, and all agents share the team's advantage. The moments for standardising run over all
of training and are stored with the weights. Rewards are divided by the running standard deviation of the discounted
return. With a simulator in JAX, stepping and learning are one compiled call. A simulator on the host is stepped in
Python: choosing a step's actions is one compiled call, and learning from a rollout is another. Similar actors may share
a network, which then also sees the agent's identity; it is stored as one network per agent.
"""

import contextlib
import functools
import itertools
import types
from collections.abc import Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omcda_jax.behaviour import mappo, policies
from omcda_jax.behaviour.settings import Settings
from omcda_jax.envs.base import Environment, HostEnvironment, Simulators, TimeStep
from omcda_jax.types import EnvSpec

LEAST_STD = 1e-3  # a feature that varies less is treated as padding


class Moments(NamedTuple):
    """Running mean and variance of an array of features.

    Attributes:
        count: [] rows seen.
        mean: [...].
        variance: [...].
    """

    count: chex.Array
    mean: chex.Array
    variance: chex.Array


class Learner(NamedTuple):
    """What one update passes to the next.

    Attributes:
        params: `layers` of the actors, their `log_std` with continuous actions, and `critic`.
        opt_state: the optimiser's state.
        obs: moments of the observations [N, O].
        global_state: moments of the global state [S].
        returns: moments of the discounted return [].
        discounted: [num_envs] each environment's discounted return so far.
    """

    params: dict
    opt_state: optax.OptState
    obs: Moments
    global_state: Moments
    returns: Moments
    discounted: chex.Array


def merge(moments: Moments, rows: chex.Array) -> Moments:
    """Add rows to running moments.

    Args:
        moments: the moments so far.
        rows: [R, ...].

    Returns:
        The moments of all rows. Chan et al. 1983, equation 2.1.
    """
    chex.assert_equal_shape([moments.mean, rows[0]])
    new, count = len(rows), moments.count + len(rows)
    gap = rows.mean(axis=0) - moments.mean
    spread = moments.variance * moments.count + rows.var(axis=0) * new + jnp.square(gap) * (moments.count * new / count)
    return Moments(count, moments.mean + gap * (new / count), spread / count)


def divisor(moments: Moments) -> jax.Array:
    """Return the standard deviation, or 1 where a feature hardly varies.

    Args:
        moments: the features' moments.
    """
    std = jnp.sqrt(moments.variance)
    return jnp.where(std < LEAST_STD, 1.0, std)


def policy(learner: Learner) -> policies.Gaussian | policies.Categorical:
    """Return the policy in the form that is stored and rolled out.

    Args:
        learner: the trainer's state.
    """
    kind = policies.Gaussian if "log_std" in learner.params else policies.Categorical
    agents = len(learner.obs.mean)
    return kind(**_actor(learner.params, agents), obs_mean=learner.obs.mean, obs_std=divisor(learner.obs))


def _actor(params: dict, agents: int) -> dict:
    """The actors' part of a learner's params; a network that all agents share becomes one network per agent."""
    layers = params["layers"]
    if layers[0][0].ndim == 2:
        (w, b), *later = layers
        features = len(w) - agents
        # an agent's one-hot identity picks a row of the weights, which is equivalent to a bias of its own
        first = (jnp.broadcast_to(w[:features], (agents, *w[:features].shape)), b[None] + w[features:])
        layers = (first, *jax.tree.map(lambda x: jnp.broadcast_to(x, (agents, *x.shape)), tuple(later)))
    return {"layers": layers} | {key: params[key] for key in ("log_std",) if key in params}


def log_prob(
    params: policies.Gaussian | policies.Categorical, obs: chex.Array, avail: chex.Array, draw: chex.Array
) -> jax.Array:
    """Return the log-probability of samples; for continuous actions, the log-density before the tanh.

    The tanh's Jacobian cancels in every ratio of two policies.

    Args:
        params: the policy.
        obs: [R, N, O].
        avail: [R, N, A] bool, legal actions, or the dimensions that an agent has; other dimensions do not count.
        draw: [R, N] int32, or [R, N, A].

    Returns:
        [R, N].
    """
    if isinstance(params, policies.Categorical):
        log_probs = jax.nn.log_softmax(policies.logits(params, obs, avail))
        return jnp.take_along_axis(log_probs, draw[..., None], -1)[..., 0]
    chex.assert_equal_shape([avail, draw])
    log_std = params.log_std[None]
    error = (draw - policies.mean(params, obs)) * jnp.exp(-log_std)
    return jnp.where(avail, -0.5 * jnp.square(error) - log_std - 0.5 * jnp.log(2 * jnp.pi), 0.0).sum(-1)


def init(key: chex.PRNGKey, spec: EnvSpec, settings: Settings) -> Learner:
    """Draw orthogonal initial weights; the actors' last layers are nearly zero.

    Args:
        key: typed PRNG key.
        spec: the task's sizes.
        settings: the recipe.
    """
    actor_key, critic_key = jax.random.split(key)
    hidden = (settings.hidden, settings.hidden)
    agents, sizes = spec.num_agents, (*hidden, spec.action_dim)
    if settings.shared:
        layers = mappo.init_layers(actor_key, (spec.obs_dim + agents, *sizes), 0.01)
    else:
        draw = jax.vmap(lambda key: mappo.init_layers(key, (spec.obs_dim, *sizes), 0.01))
        layers = draw(jax.random.split(actor_key, agents))
    params = {
        "layers": layers,
        "critic": mappo.init_layers(critic_key, (spec.state_dim, *hidden, 1), 1.0),
    }
    if not spec.discrete:
        params["log_std"] = jnp.full((agents, spec.action_dim), settings.initial_log_std)
    empty = lambda *shape: Moments(jnp.float32(1e-4), jnp.zeros(shape), jnp.ones(shape))
    return Learner(
        params,
        mappo.make_optimiser(settings).init(params),
        empty(agents, spec.obs_dim),
        empty(spec.state_dim),
        empty(),
        jnp.zeros(settings.num_envs),
    )


def ppo_loss(
    params: dict,
    rows: mappo.Rollout,
    settings: Settings,
    actor: policies.Gaussian | policies.Categorical,
) -> jax.Array:
    """Clipped policy loss minus entropy bonus plus the squared value error.

    With discrete actions, only the agents that have a choice count; with continuous actions, all agents count.

    Args:
        params: as in `Learner`.
        rows: flattened transitions [R, ...], with standardised global states, and actions before the tanh.
        settings: clip, entropy and value_weight are used.
        actor: the policy that acted; its moments of the observations are used.
    """
    now = actor._replace(**_actor(params, rows.avail.shape[1]))
    if isinstance(now, policies.Categorical):
        policy_loss = mappo.discrete_policy_loss(policies.logits(now, rows.obs, rows.avail), rows, settings)
    else:
        gain = mappo.clipped_gain(log_prob(now, rows.obs, rows.avail, rows.action), rows, settings.clip)
        entropy = jnp.where(rows.avail[0], params["log_std"], 0.0).sum(-1)
        policy_loss = -gain.mean() - settings.entropy * entropy.mean()
    value = mappo.values(params["critic"], rows.global_state, jnp.tanh)
    return policy_loss + settings.value_weight * jnp.square(value - rows.target).mean()


def discounted_returns(start: chex.Array, reward: chex.Array, ended: chex.Array, gamma: float) -> tuple:
    """Return each environment's discounted return since its last reset: after the last step, and after each step.

    Args:
        start: [E] discounted returns before the first step.
        reward: [T, E].
        ended: [T, E] bool, the episode ended with the step.
        gamma: discount factor.

    Returns:
        [E], [T, E].
    """

    def accumulate(total, step):
        reward, ended = step
        total = gamma * total + reward
        return jnp.where(ended, 0.0, total), total

    return jax.lax.scan(accumulate, start, (reward, ended))


@functools.partial(jax.jit, static_argnames="settings")
def learn(
    learner: Learner, now: TimeStep, draw: chex.Array, then: TimeStep, key: chex.PRNGKey, *, settings: Settings
) -> Learner:
    """Learn from one rollout.

    Args:
        learner: the learner before the rollout.
        now: the time steps that were acted on, [rollout, num_envs, ...].
        draw: samples as from `draw_actions`, [rollout, num_envs, ...].
        then: the time steps after the actions, before any reset.
        key: typed PRNG key.
        settings: the recipe.
    """
    actor = policy(learner)
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    ended = then.terminated | then.truncated
    discounted, totals = discounted_returns(learner.discounted, then.reward, ended, settings.gamma)
    returns = merge(learner.returns, totals.reshape(-1))
    mean, std = learner.global_state.mean[None], divisor(learner.global_state)[None]
    standard = lambda x: jnp.clip((flat(x) - mean) / std, -policies.CLIP, policies.CLIP)
    critic, global_state = learner.params["critic"], standard(now.global_state)
    value, next_value = (
        mappo.values(critic, x, jnp.tanh).reshape(ended.shape) for x in (global_state, standard(then.global_state))
    )
    reward = then.reward / jnp.sqrt(returns.variance + 1e-8)
    advantage = mappo.advantages(
        reward, value, next_value, then.terminated, ended, gamma=settings.gamma, trace=settings.trace
    )
    obs, avail, draw = flat(now.obs), flat(now.avail), flat(draw)
    chances = log_prob(actor, obs, avail, draw)
    rows = mappo.Rollout(obs, global_state, avail, draw, chances, flat(advantage), flat(advantage + value))
    loss, optimiser = functools.partial(ppo_loss, actor=actor), mappo.make_optimiser(settings)
    params, opt_state = mappo.improve(loss, optimiser, settings, learner.params, learner.opt_state, rows, key)
    if "log_std" in params:
        params["log_std"] = jnp.maximum(params["log_std"], settings.log_std_floor)
    moments = merge(learner.obs, obs), merge(learner.global_state, flat(now.global_state))
    return Learner(params, opt_state, *moments, returns, discounted)


@jax.jit
def draw_actions(learner: Learner, now: TimeStep, key: chex.PRNGKey) -> jax.Array:
    """Sample actions; continuous actions are returned before the tanh.

    Args:
        learner: the trainer's state.
        now: the time steps to act on, [E, ...].
        key: typed PRNG key.

    Returns:
        [E, N] int32, or [E, N, A].
    """
    actor = policy(learner)
    if isinstance(actor, policies.Categorical):
        return jax.random.categorical(key, policies.logits(actor, now.obs, now.avail)).astype(jnp.int32)
    centre = policies.mean(actor, now.obs)
    return centre + jnp.exp(actor.log_std)[None] * jax.random.normal(key, centre.shape)


def action_of(draw: chex.Array, avail: chex.Array, numpy: types.ModuleType) -> chex.Array:
    """Return the action that a sample stands for, zero in dimensions that an agent does not have.

    Args:
        draw: as from `draw_actions`.
        avail: [E, N, A] bool.
        numpy: `jax.numpy`, or NumPy if the arrays are NumPy's.
    """
    return draw if draw.ndim < avail.ndim else numpy.where(avail, numpy.tanh(draw), numpy.float32(0))


def rollout(
    simulators: Simulators,
    learner: Learner,
    now: TimeStep,
    progress: np.ndarray,
    keys: chex.PRNGKey,
    seeds: np.random.Generator,
) -> tuple[TimeStep, np.ndarray, tuple, dict[str, float]]:
    """Take one step with each key in all simulators, and start a new episode wherever one ended.

    Args:
        simulators: E simulators.
        learner: the learner that acts.
        now: their time steps, [E, ...].
        progress: [2, E] return and length of each running episode.
        keys: typed PRNG keys.
        seeds: generator of the seeds of new episodes.

    Returns:
        `now` and `progress` after the steps; the arguments `now`, `draw` and `then` of `learn`; and metrics:
        `episodes`, `return` and `length`, summed over the episodes that ended.
    """
    everyone, rows, finished = np.arange(progress.shape[1]), [], np.zeros(3)
    for key in keys:
        draw = np.asarray(draw_actions(learner, now, key))
        then = simulators.step(everyone, action_of(draw, now.avail, np))
        rows.append((now, draw, then))
        progress = progress + np.stack([then.reward, np.ones(len(everyone))])
        ended = np.flatnonzero(then.terminated | then.truncated)
        now = then
        if len(ended):
            finished += [len(ended), *progress[:, ended].sum(axis=1)]
            progress[:, ended] = 0
            now = replace(then, ended, simulators.reset(ended, seeds.integers(2**31, size=len(ended))))
    stacked = jax.tree.map(lambda *x: np.stack(x), *rows)
    return now, progress, stacked, dict(zip(("episodes", "return", "length"), finished.tolist(), strict=True))


def rollout_in_jax(
    environment: Environment, learner: Learner, carry: tuple, keys: chex.PRNGKey
) -> tuple[tuple, tuple, dict[str, jax.Array]]:
    """Take one step with each key in all environments, and start a new episode wherever one ended.

    Args:
        environment: the simulator.
        learner: the learner that acts.
        carry: states and time steps of E environments, and [2, E] return and length of each running episode.
        keys: typed PRNG keys [rollout].

    Returns:
        As `rollout`: the carry after the steps, the arguments of `learn`, and metrics.
    """

    def step(carry, key):
        env_state, now, progress = carry
        act_key, step_key, reset_key = jax.random.split(key, 3)
        draw = draw_actions(learner, now, act_key)
        action = action_of(draw, now.avail, jnp)
        env_state, fresh, then = mappo.advance(environment, env_state, action, step_key, reset_key)
        progress = progress + jnp.stack([then.reward, jnp.ones_like(then.reward)])
        ended = then.terminated | then.truncated
        finished = jnp.stack([ended.sum(), *(ended * progress).sum(axis=1)])
        return (env_state, fresh, jnp.where(ended, 0.0, progress)), ((now, draw, then), finished)

    carry, (rows, finished) = jax.lax.scan(step, carry, keys)
    return carry, rows, dict(zip(("episodes", "return", "length"), finished.sum(axis=0), strict=True))


def train(
    environment: Environment | HostEnvironment, settings: Settings, key: chex.PRNGKey
) -> Iterator[tuple[int, policies.Gaussian | policies.Categorical, dict[str, float]]]:
    """Train for `settings.steps` environment steps, or until the caller stops iterating.

    Args:
        environment: where to learn.
        settings: the recipe.
        key: typed PRNG key.

    Yields:
        After each update: environment steps so far, the policy, the metrics of `rollout`.
    """
    init_key, reset_key, key = jax.random.split(key, 3)
    learner = init(init_key, environment.spec, settings)
    keys = (jax.random.split(jax.random.fold_in(key, index), settings.rollout + 1) for index in itertools.count())
    train = _train_on_host if isinstance(environment, HostEnvironment) else _train_in_jax
    with contextlib.closing(train(environment, settings, learner, reset_key, keys)) as updates:
        for index, (learner, metrics) in zip(range(settings.num_updates), updates, strict=False):
            yield (index + 1) * settings.num_envs * settings.rollout, policy(learner), metrics


def _train_on_host(environment, settings, learner, reset_key, keys):
    """Yield the learner after each update, and metrics, without end."""
    seeds = np.random.default_rng(np.asarray(jax.random.key_data(reset_key)))
    everyone, progress = np.arange(settings.num_envs), np.zeros((2, settings.num_envs))
    simulators = environment.open(settings.num_envs)
    try:
        now = simulators.reset(everyone, seeds.integers(2**31, size=len(everyone)))
        for learn_key, *act_keys in keys:
            now, progress, rows, metrics = rollout(simulators, learner, now, progress, act_keys, seeds)
            learner = learn(learner, *rows, learn_key, settings=settings)
            yield learner, metrics
    finally:
        simulators.close()


def _train_in_jax(environment, settings, learner, reset_key, keys):
    """Yield the learner after each update, and metrics, without end."""

    @jax.jit
    def update(learner, carry, keys):
        carry, rows, metrics = rollout_in_jax(environment, learner, carry, keys[1:])
        return learn(learner, *rows, keys[0], settings=settings), carry, metrics

    fresh = jax.jit(jax.vmap(environment.reset))(jax.random.split(reset_key, settings.num_envs))
    carry = (*fresh, jnp.zeros((2, settings.num_envs)))
    for both in keys:
        learner, carry, metrics = update(learner, carry, both)
        yield learner, {name: float(value) for name, value in metrics.items()}


def replace(steps: TimeStep, index: np.ndarray, fresh: TimeStep) -> TimeStep:
    """Return time steps with some of them replaced; the given arrays do not change.

    Args:
        steps: [E, ...] NumPy arrays.
        index: [M] int, the time steps to replace.
        fresh: [M, ...] their replacements.
    """

    def exchange(old, new):
        mixed = np.array(old)
        mixed[index] = new
        return mixed

    return jax.tree.map(exchange, steps, fresh)
