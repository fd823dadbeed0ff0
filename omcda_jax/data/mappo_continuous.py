"""MAPPO for continuous actions on a simulator that runs on the host; makes behaviour policies, like `mappo`.

One actor per agent (its standardised observation -> two hidden tanh layers -> the centre of a Gaussian of learned,
state-independent width, with a tanh over the draw), one central value of the standardised state, the team's advantage
shared by every agent. The moments used to standardise run over all of training and go with the weights. Rewards are
divided by the running standard deviation of the discounted return. The simulator is stepped in Python; choosing a
step's actions is one compiled call, learning from a rollout another.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omcda_jax.data import behaviour, mappo
from omcda_jax.envs.base import HostEnvironment, TimeStep
from omcda_jax.types import ConfigError, EnvSpec

LEAST_STD = 1e-3  # a feature that varies less is padding, or as good as


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
    """What one update hands to the next.

    Attributes:
        params: `layers` and `log_std` of the actors, `critic`.
        opt_state: the optimiser's.
        obs: moments of the observations [N, O].
        state: moments of the state [S].
        returns: moments of the discounted return [].
        discounted: [num_envs] each environment's discounted return so far.
    """

    params: dict
    opt_state: optax.OptState
    obs: Moments
    state: Moments
    returns: Moments
    discounted: chex.Array


def merge(moments: Moments, rows: chex.Array) -> Moments:
    """Adds rows to running moments.

    Args:
        moments: so far.
        rows: [R, ...].

    Returns:
        The moments of everything seen. Chan et al. 1983, equation 2.1.
    """
    chex.assert_equal_shape([moments.mean, rows[0]])
    new, count = len(rows), moments.count + len(rows)
    gap = rows.mean(axis=0) - moments.mean
    spread = moments.variance * moments.count + rows.var(axis=0) * new + jnp.square(gap) * (moments.count * new / count)
    return Moments(count, moments.mean + gap * (new / count), spread / count)


def divisor(moments: Moments) -> jax.Array:
    """Returns the standard deviation, or 1 where a feature hardly varies.

    Args:
        moments: of the features.
    """
    std = jnp.sqrt(moments.variance)
    return jnp.where(std < LEAST_STD, 1.0, std)


def policy(learner: Learner) -> behaviour.Gaussian:
    """Returns the policy as it is stored and rolled out.

    Args:
        learner: the trainer's state.
    """
    return behaviour.Gaussian(
        learner.params["layers"], learner.params["log_std"], learner.obs.mean, divisor(learner.obs)
    )


def log_prob(params: behaviour.Gaussian, obs: chex.Array, avail: chex.Array, draw: chex.Array) -> jax.Array:
    """Returns the log-density of draws, before the tanh: its Jacobian cancels in every ratio of two policies.

    Args:
        params: the policy.
        obs: [R, N, O].
        avail: [R, N, A] bool, the dimensions an agent has; the others count for nothing.
        draw: [R, N, A].

    Returns:
        [R, N].
    """
    chex.assert_equal_shape([avail, draw])
    log_std = params.log_std[None]
    error = (draw - behaviour.mean(params, obs)) * jnp.exp(-log_std)
    return jnp.where(avail, -0.5 * jnp.square(error) - log_std - 0.5 * jnp.log(2 * jnp.pi), 0.0).sum(-1)


def init(key: chex.PRNGKey, spec: EnvSpec, settings: mappo.Settings) -> Learner:
    """Draws orthogonal initial weights; the actors' last layers are nearly zero.

    Args:
        key: typed PRNG key.
        spec: the task's sizes.
        settings: the recipe.
    """
    actor_key, critic_key = jax.random.split(key)
    hidden = (settings.hidden, settings.hidden)
    agents, sizes = spec.num_agents, (spec.obs_dim, *hidden, spec.action_dim)
    params = {
        "layers": jax.vmap(lambda key: mappo.init_layers(key, sizes, 0.01))(jax.random.split(actor_key, agents)),
        "log_std": jnp.full((agents, spec.action_dim), settings.initial_log_std),
        "critic": mappo.init_layers(critic_key, (spec.state_dim, *hidden, 1), 1.0),
    }
    empty = lambda *shape: Moments(jnp.float32(1e-4), jnp.zeros(shape), jnp.ones(shape))
    return Learner(
        params,
        mappo.make_optimiser(settings).init(params),
        empty(agents, spec.obs_dim),
        empty(spec.state_dim),
        empty(),
        jnp.zeros(settings.num_envs),
    )


def make_learn(settings: mappo.Settings) -> Callable:
    """Builds one update from a rollout.

    Args:
        settings: the recipe.

    Returns:
        The jitted `learn(learner, now, draw, then, key) -> Learner`: `now` and `then` are the time steps before and
        after the actions, before any reset, [rollout, num_envs, ...]; `draw` the actions before the tanh.
    """
    optimiser = mappo.make_optimiser(settings)

    def loss(params, rows, settings, obs_mean, obs_std):
        actor = behaviour.Gaussian(params["layers"], params["log_std"], obs_mean, obs_std)
        gain = mappo.clipped_gain(log_prob(actor, rows.obs, rows.avail, rows.action), rows, settings.clip)
        entropy = jnp.where(rows.avail[0], params["log_std"], 0.0).sum(-1)
        value = mappo.values(params["critic"], rows.state, jnp.tanh)
        policy_loss = -gain.mean() - settings.entropy * entropy.mean()
        return policy_loss + settings.value_weight * jnp.square(value - rows.target).mean()

    @jax.jit
    def learn(learner, now, draw, then, key):
        actor = policy(learner)
        flat = lambda x: x.reshape(-1, *x.shape[2:])

        def accumulate(total, step):
            reward, ended = step
            total = settings.discount * total + reward
            return jnp.where(ended, 0.0, total), total

        ended = then.terminated | then.truncated
        discounted, totals = jax.lax.scan(accumulate, learner.discounted, (then.reward, ended))
        returns = merge(learner.returns, totals.reshape(-1))
        mean, std = learner.state.mean[None], divisor(learner.state)[None]
        standard = lambda x: jnp.clip((flat(x) - mean) / std, -behaviour.CLIP, behaviour.CLIP)
        state = standard(now.global_state)
        value, next_value = (
            mappo.values(learner.params["critic"], x, jnp.tanh).reshape(ended.shape)
            for x in (state, standard(then.global_state))
        )
        advantage = mappo.advantages(
            then.reward / jnp.sqrt(returns.variance + 1e-8),
            value,
            next_value,
            then.terminated,
            ended,
            discount=settings.discount,
            trace=settings.trace,
        )
        obs, avail, draw = flat(now.obs), flat(now.avail), flat(draw)
        rows = mappo.Rollout(
            obs, state, avail, draw, log_prob(actor, obs, avail, draw), flat(advantage), flat(advantage + value)
        )
        params, opt_state = mappo.improve(
            lambda params, rows, settings: loss(params, rows, settings, actor.obs_mean, actor.obs_std),
            optimiser,
            settings,
            learner.params,
            learner.opt_state,
            rows,
            key,
        )
        params["log_std"] = jnp.maximum(params["log_std"], settings.log_std_floor)
        moments = merge(learner.obs, obs), merge(learner.state, flat(now.global_state))
        return Learner(params, opt_state, *moments, returns, discounted)

    return learn


@jax.jit
def draw_actions(learner: Learner, obs: chex.Array, key: chex.PRNGKey) -> jax.Array:
    """Draws actions, before the tanh.

    Args:
        learner: the trainer's state.
        obs: [E, N, O].
        key: typed PRNG key.

    Returns:
        [E, N, A].
    """
    actor = policy(learner)
    centre = behaviour.mean(actor, obs)
    return centre + jnp.exp(actor.log_std)[None] * jax.random.normal(key, centre.shape)


def train(
    environment: HostEnvironment,
    settings: mappo.Settings,
    key: chex.PRNGKey,
    *,
    report: Callable[[int, behaviour.Gaussian], bool | None] = lambda steps, actor: None,
    log: Callable[[str], None] = print,
    log_every: int = 50_000,
) -> behaviour.Gaussian:
    """Trains for `settings.steps` environment steps.

    Args:
        environment: where to learn; continuous actions.
        settings: the recipe.
        key: typed PRNG key.
        report: called after each update with (environment steps so far, the policy); ends the training by True.
        log: takes the progress lines.
        log_every: environment steps between two progress lines.

    Returns:
        The trained policy.

    Raises:
        ConfigError: the environment's actions are discrete.
    """
    if environment.spec.discrete:
        raise ConfigError(f"continuous behaviour policy: expected continuous actions, {environment.name} has discrete")
    init_key, reset_key, key = jax.random.split(key, 3)
    learner, learn = init(init_key, environment.spec, settings), make_learn(settings)
    seeds = np.random.default_rng(np.asarray(jax.random.key_data(reset_key)))
    everyone = np.arange(settings.num_envs)
    per_update = settings.num_envs * settings.rollout
    simulators = environment.open(settings.num_envs)
    try:
        now = simulators.reset(everyone, seeds.integers(2**31, size=len(everyone)))
        totals, finished, began = np.zeros((2, len(everyone))), [], time.monotonic()
        for index in range(settings.num_updates):
            learn_key, *keys = jax.random.split(jax.random.fold_in(key, index), settings.rollout + 1)
            rows = []
            for step_key in keys:
                draw = np.asarray(draw_actions(learner, now.obs, step_key))
                then = simulators.step(everyone, np.tanh(draw))
                rows.append((now, draw, then))
                totals += np.stack([then.reward, np.ones(len(everyone))])
                ended = np.flatnonzero(then.terminated | then.truncated)
                now = then
                if len(ended):
                    finished.extend(totals[:, ended].T)
                    totals[:, ended] = 0
                    now = replace(then, ended, simulators.reset(ended, seeds.integers(2**31, size=len(ended))))
            learner = learn(learner, *jax.tree.map(lambda *x: np.stack(x), *rows), learn_key)
            steps = (index + 1) * per_update
            if steps // log_every > (steps - per_update) // log_every or index + 1 == settings.num_updates:
                seconds = time.monotonic() - began
                total, length = np.mean(finished, axis=0) if finished else (np.nan, np.nan)
                log(
                    f"{environment.name} steps {steps:,} return {total:.1f} length {length:.0f} "
                    f"std {np.exp(np.asarray(learner.params['log_std'])).mean():.2f} {steps / seconds:,.0f} steps/s "
                    f"left {(settings.num_updates - index - 1) * seconds / (index + 1):.0f} s"
                )
                finished = []
            if report(steps, policy(learner)):
                break
    finally:
        simulators.close()
    return policy(learner)


def replace(steps: TimeStep, index: np.ndarray, fresh: TimeStep) -> TimeStep:
    """Returns time steps with some of them exchanged; the arrays given are left as they are.

    Args:
        steps: [E, ...] NumPy arrays.
        index: [M] int, which ones.
        fresh: [M, ...] what takes their place.
    """

    def exchange(old, new):
        mixed = np.array(old)
        mixed[index] = new
        return mixed

    return jax.tree.map(exchange, steps, fresh)
