"""A compact MAPPO, used only to make the behaviour policies that datasets are collected with.

All agents share one actor (local observation and one-hot agent id -> two hidden layers -> logits over legal actions).
There is one central value of the global state, and every agent that has a choice shares the team's advantage. The whole
update, rollout included, is one compiled function.

`mappo_separate` uses the parts that do not depend on the kind of action or of simulator.

Sources: Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Yu et al. 2022 (MAPPO).
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from omcda_jax.behaviour import policies
from omcda_jax.behaviour.settings import Settings
from omcda_jax.envs.base import Environment, TimeStep
from omcda_jax.types import EnvSpec


class Rollout(NamedTuple):
    """R transitions of the team; leading axes [rollout, num_envs] or flattened [R]."""

    obs: chex.Array
    global_state: chex.Array
    avail: chex.Array
    action: chex.Array
    log_prob: chex.Array
    advantage: chex.Array
    target: chex.Array


class Loop(NamedTuple):
    """What one update passes to the next; `time_step` and `env_state` have a leading axis num_envs."""

    params: dict
    opt_state: optax.OptState
    env_state: chex.ArrayTree
    time_step: TimeStep
    episode_return: chex.Array
    key: chex.PRNGKey


def init_layers(key: chex.PRNGKey, sizes: tuple[int, ...], last_scale: float) -> tuple:
    """Draw orthogonal weights, scaled by the square root of 2 before the last layer; biases are zero.

    Args:
        key: typed PRNG key.
        sizes: inputs, units of each hidden layer, outputs.
        last_scale: scale of the last layer.

    Returns:
        (w [in, out], b [out]) of each layer.
    """
    layers = []
    for index, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        scale = last_scale if index == len(sizes) - 2 else 2.0**0.5
        w = jax.nn.initializers.orthogonal(scale)(jax.random.fold_in(key, index), (fan_in, fan_out), jnp.float32)
        layers.append((w, jnp.zeros(fan_out)))
    return tuple(layers)


def init_params(key: chex.PRNGKey, spec: EnvSpec, hidden: int) -> dict:
    """Draw orthogonal initial weights; the actor's last layer is nearly zero, so the first policy is nearly uniform.

    Args:
        key: typed PRNG key.
        spec: the task's sizes.
        hidden: units in each hidden layer.

    Returns:
        `{"actor": layers, "critic": layers}`, each a tuple of three (w [in, out], b [out]).
    """

    actor_key, critic_key = jax.random.split(key)
    return {
        "actor": init_layers(actor_key, (spec.obs_dim + spec.num_agents, hidden, hidden, spec.action_dim), 0.01),
        "critic": init_layers(critic_key, (spec.state_dim, hidden, hidden, 1), 1.0),
    }


def values(critic: tuple, global_state: chex.Array, activation: Callable = jax.nn.relu) -> jax.Array:
    """Return the estimated discounted return from global states.

    Args:
        critic: (w, b) of each layer, as from `init_layers`, with one output.
        global_state: [..., S].
        activation: activation of the hidden layers.

    Returns:
        [...].
    """
    rows = global_state.reshape(-1, global_state.shape[-1])
    return policies.forward(critic, rows, activation).reshape(global_state.shape[:-1])


def advantages(
    reward: chex.Array,
    value: chex.Array,
    next_value: chex.Array,
    terminated: chex.Array,
    ended: chex.Array,
    *,
    gamma: float,
    trace: float,
) -> chex.Array:
    """Return generalised advantage estimates. They bootstrap an episode that the time limit cut, not one that ended.

    Args:
        reward: [T, E] rewards of the steps.
        value: [T, E] values of the states acted in.
        next_value: [T, E] values of the states stepped into (before any reset).
        terminated: [T, E] bool, the task ended with the step.
        ended: [T, E] bool, the episode ended with the step, for any reason.
        gamma: discount factor.
        trace: lambda, between one-step errors (0) and whole returns (1).

    Returns:
        [T, E] advantages. Schulman et al. 2016, equation 16.
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, ended])
    error = reward + gamma * jnp.where(terminated, 0.0, next_value) - value

    def backwards(following, now):
        error, ended = now
        advantage = error + gamma * trace * jnp.where(ended, 0.0, following)
        return advantage, advantage

    return jax.lax.scan(backwards, jnp.zeros_like(reward[0]), (error, ended), reverse=True)[1]


def clipped_gain(log_prob: chex.Array, rows: Rollout, clip: float) -> chex.Array:
    """Return the clipped surrogate of each agent, with the team's advantage standardised over the rows.

    Args:
        log_prob: [R, N] log-probability of the taken actions under the current policy.
        rows: flattened transitions; log_prob [R, N] from when the actions were taken and advantage [R] are used.
        clip: bound on the change of the probability ratio.

    Returns:
        [R, N]. Schulman et al. 2017, equation 7.
    """
    chex.assert_equal_shape([log_prob, rows.log_prob])
    ratio = jnp.exp(log_prob - rows.log_prob)
    advantage = ((rows.advantage - rows.advantage.mean()) / (rows.advantage.std() + 1e-8))[:, None]
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def make_optimiser(settings: Settings) -> optax.GradientTransformation:
    """Build Adam with a clipped gradient and a learning rate that falls linearly over the whole training.

    Args:
        settings: the learning rates, max_norm and the number of steps are used.
    """
    total = settings.num_updates * settings.epochs * settings.minibatches
    rate = optax.linear_schedule(settings.learning_rate, settings.final_learning_rate, total)
    return optax.chain(optax.clip_by_global_norm(settings.max_norm), optax.adam(rate, eps=1e-5))


def improve(
    loss: Callable,
    optimiser: optax.GradientTransformation,
    settings: Settings,
    params: dict,
    opt_state: optax.OptState,
    rows: Rollout,
    key: chex.PRNGKey,
) -> tuple[dict, optax.OptState]:
    """Make `epochs * minibatches` steps on the transitions of one rollout, shuffled anew in each epoch.

    Args:
        loss: `loss(params, rows, settings) -> []`.
        optimiser: optimiser of the params.
        settings: the recipe.
        params: params before the steps.
        opt_state: optimiser state before the steps.
        rows: flattened transitions [num_envs * rollout, ...].
        key: typed PRNG key.

    Returns:
        params and opt_state after the steps.
    """

    def learn(carry, chosen):
        params, opt_state = carry
        grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[chosen], rows), settings)
        updates, opt_state = optimiser.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, settings.num_envs * settings.rollout)
        return jax.lax.scan(learn, carry, order.reshape(settings.minibatches, -1))

    return jax.lax.scan(epoch, (params, opt_state), jax.random.split(key, settings.epochs))[0]


def discrete_policy_loss(scores: chex.Array, rows: Rollout, settings: Settings) -> chex.Array:
    """Clipped policy loss minus entropy bonus, over the agents that have a choice.

    Args:
        scores: [R, N, A] logits of the actions under the current policy.
        rows: flattened transitions; avail [R, N, A], action and log_prob [R, N] and advantage [R] are used.
        settings: clip and entropy are used.
    """
    log_probs = jax.nn.log_softmax(scores)
    log_prob = jnp.take_along_axis(log_probs, rows.action[..., None], -1)[..., 0]
    chooses = (rows.avail.sum(-1) > 1).astype(jnp.float32)
    total = jnp.maximum(chooses.sum(), 1.0)
    gain = clipped_gain(log_prob, rows, settings.clip)
    entropy = -jnp.where(rows.avail, jnp.exp(log_probs) * log_probs, 0.0).sum(-1)
    return -(chooses * (gain + settings.entropy * entropy)).sum() / total


def ppo_loss(params: dict, rows: Rollout, settings: Settings) -> chex.Array:
    """Clipped policy loss minus entropy bonus, over the agents that have a choice, plus the squared value error.

    Args:
        params: as from `init_params`.
        rows: flattened transitions, obs [R, N, O], global_state [R, S], avail [R, N, A], action and log_prob [R, N],
            advantage and target [R].
        settings: clip, entropy and value_weight are used.
    """
    policy_loss = discrete_policy_loss(policies.logits(params["actor"], rows.obs, rows.avail), rows, settings)
    value = values(params["critic"], rows.global_state)
    return policy_loss + settings.value_weight * jnp.square(value - rows.target).mean()


def start(environment: Environment, settings: Settings, key: chex.PRNGKey, params: dict) -> Loop:
    """Return what the first update starts from: fresh episodes and a fresh optimiser.

    Args:
        environment: where to learn.
        settings: the recipe.
        key: typed PRNG key.
        params: as from `init_params`.
    """
    key, reset_key = jax.random.split(key)
    env_state, time_step = jax.jit(jax.vmap(environment.reset))(jax.random.split(reset_key, settings.num_envs))
    opt_state = make_optimiser(settings).init(params)
    return Loop(params, opt_state, env_state, time_step, jnp.zeros(settings.num_envs), key)


def advance(
    environment: Environment,
    env_state: chex.ArrayTree,
    action: chex.Array,
    step_key: chex.PRNGKey,
    reset_key: chex.PRNGKey,
) -> tuple[chex.ArrayTree, TimeStep, TimeStep]:
    """Take one step in each of E environments and reset those with an ended episode.

    Args:
        environment: the simulator.
        env_state: state of each environment, [E, ...].
        action: [E, N] or [E, N, A].
        step_key, reset_key: typed PRNG keys.

    Returns:
        The environments' states and time steps after resets, and the time steps before any reset.
    """
    env_state, then = jax.vmap(environment.step)(jax.random.split(step_key, len(action)), env_state, action)
    ended = then.terminated | then.truncated
    fresh = jax.vmap(environment.reset)(jax.random.split(reset_key, len(action)))
    pick = lambda new, old: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return *jax.tree.map(pick, fresh, (env_state, then)), then


def play(environment: Environment, settings: Settings, loop: Loop, key: chex.PRNGKey) -> tuple[Loop, dict]:
    """Take one step with sampled actions in each environment, and reset those with an ended episode.

    Args:
        environment: where to learn.
        settings: the recipe.
        loop: before the step.
        key: typed PRNG key.

    Returns:
        The loop with new environments, time steps and returns so far; and a record of the step: what was seen and done
        (`now`), the time steps before any reset (`then`), and sums over the episodes that ended (`metrics`).
    """
    now = loop.time_step
    act_key, step_key, reset_key = jax.random.split(key, 3)
    scores = policies.logits(loop.params["actor"], now.obs, now.avail)
    action = jax.random.categorical(act_key, scores)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(scores), action[..., None], -1)[..., 0]
    env_state, time_step, then = advance(environment, loop.env_state, action, step_key, reset_key)
    ended = then.terminated | then.truncated
    episode_return = loop.episode_return + then.reward
    record = {
        "now": (now.obs, now.global_state, now.avail, action, log_prob),
        "then": (then.reward, then.global_state, then.terminated, ended),
        "metrics": (ended.sum(), (ended * episode_return).sum(), (ended & then.won).sum()),
    }
    episode_return = jnp.where(ended, 0.0, episode_return)
    return loop._replace(env_state=env_state, time_step=time_step, episode_return=episode_return), record


def update(environment: Environment, settings: Settings, loop: Loop) -> tuple[Loop, dict]:
    """Play `rollout` steps in each of `num_envs` environments and make `epochs * minibatches` Adam steps on them.

    Args:
        environment: where to learn.
        settings: the recipe.
        loop: before the update.

    Returns:
        The loop after it, and metrics: `episodes`, `return` and `won`, summed over the episodes that ended.
    """
    key, play_key, shuffle_key = jax.random.split(loop.key, 3)
    loop, record = jax.lax.scan(
        functools.partial(play, environment, settings), loop, jax.random.split(play_key, settings.rollout)
    )
    obs, global_state, avail, action, log_prob = record["now"]
    reward, next_global_state, terminated, ended = record["then"]
    critic = loop.params["critic"]
    value, next_value = values(critic, global_state), values(critic, next_global_state)
    advantage = advantages(reward, value, next_value, terminated, ended, gamma=settings.gamma, trace=settings.trace)
    rows = Rollout(obs, global_state, avail, action, log_prob, advantage, advantage + value)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    optimiser = make_optimiser(settings)
    params, opt_state = improve(ppo_loss, optimiser, settings, loop.params, loop.opt_state, rows, shuffle_key)
    metrics = dict(zip(("episodes", "return", "won"), (x.sum() for x in record["metrics"]), strict=True))
    return loop._replace(params=params, opt_state=opt_state, key=key), metrics


def make_evaluate(environment: Environment, episodes: int, segment: int = 20) -> Callable:
    """Build a function that plays whole episodes with sampled actions.

    Args:
        environment: where to play.
        episodes: number of parallel episodes.
        segment: steps between two checks that every episode is over.

    Returns:
        `evaluate(actor, key)`, which returns the means over the episodes of `return`, `won` and `length` (steps).
    """

    reset = jax.jit(jax.vmap(environment.reset))

    @jax.jit
    def play(actor, carry, key):
        def step(carry, key):
            env_state, now, running, total, won, length = carry
            act_key, step_key = jax.random.split(key)
            action = jax.random.categorical(act_key, policies.logits(actor, now.obs, now.avail))
            env_state, then = jax.vmap(environment.step)(jax.random.split(step_key, episodes), env_state, action)
            total, length = total + running * then.reward, length + running
            won = won | (running & then.won)
            return (env_state, then, running & ~(then.terminated | then.truncated), total, won, length), None

        return jax.lax.scan(step, carry, jax.random.split(key, segment))[0]

    def evaluate(actor, key):
        reset_key, play_key = jax.random.split(key)
        env_state, now = reset(jax.random.split(reset_key, episodes))
        none = jnp.zeros(episodes, bool)
        carry = (env_state, now, ~none, jnp.zeros(episodes), none, jnp.zeros(episodes, jnp.int32))
        for index in range(-(-environment.horizon // segment)):
            carry = play(actor, carry, jax.random.fold_in(play_key, index))
            if not carry[2].any():
                break
        return {"return": float(carry[3].mean()), "won": float(carry[4].mean()), "length": float(carry[5].mean())}

    return evaluate


def train(
    environment: Environment, settings: Settings, key: chex.PRNGKey, params: dict | None = None
) -> Iterator[tuple[int, dict, dict[str, float]]]:
    """Train for `settings.steps` environment steps, or until the caller stops iterating.

    Args:
        environment: where to learn.
        settings: the recipe.
        key: typed PRNG key.
        params: weights to resume from; None: fresh weights.

    Yields:
        After each update: environment steps so far, the params as from `init_params`, the metrics of `update`.
    """
    start_key, init_key = jax.random.split(key)
    if params is None:
        params = init_params(init_key, environment.spec, settings.hidden)
    loop = start(environment, settings, start_key, params)
    compiled = jax.jit(functools.partial(update, environment, settings))
    for index in range(settings.num_updates):
        loop, metrics = compiled(loop)
        steps = (index + 1) * settings.num_envs * settings.rollout
        yield steps, loop.params, {name: float(value) for name, value in metrics.items()}
