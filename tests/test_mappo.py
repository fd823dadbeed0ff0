"""The behaviour trainer: its advantages against a plain loop, its masks, and a game it must learn."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax.data import behaviour, mappo
from omcda_jax.types import ConfigError, Environment, EnvSpec, TimeStep

TARGETS = (2, 0)
HORIZON = 3


def counting_game() -> Environment:
    """Two agents, three actions of which the second is illegal: a step pays the share of agents on their target.

    An episode ends after three steps, and is won when both choose their target in the last of them.
    """

    def show(count, reward, terminated, truncated, won):
        return TimeStep(
            obs=jnp.full((2, 1), count / HORIZON),
            state=jax.nn.one_hot(count, HORIZON + 1),
            avail=jnp.tile(jnp.array([[True, False, True]]), (2, 1)),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            won=won,
        )

    def reset(key):
        del key
        no = jnp.zeros((), bool)
        return jnp.zeros((), jnp.int32), show(jnp.zeros((), jnp.int32), jnp.zeros(()), no, no, no)

    def step(key, count, action):
        del key
        hits = action == jnp.array(TARGETS)
        last = count + 1 == HORIZON
        return count + 1, show(count + 1, hits.mean(), last, jnp.zeros((), bool), last & hits.all())

    spec = EnvSpec(num_agents=2, obs_dim=1, state_dim=HORIZON + 1, action_dim=3, discrete=True)
    return Environment("test/counting", spec, HORIZON, 3.0, {}, reset, step)


SMALL = mappo.Settings(steps=4_000, num_envs=8, rollout=10, minibatches=2, hidden=16, learning_rate=1e-2)


def test_advantages_equal_a_plain_loop():
    generator = np.random.default_rng(0)
    shape, discount, trace = (7, 3), 0.9, 0.8
    reward, value, next_value = (generator.normal(size=shape).astype(np.float32) for _ in range(3))
    terminated = generator.random(shape) < 0.2
    ended = terminated | (generator.random(shape) < 0.2)
    assert terminated.any() and (ended & ~terminated).any()
    expected = np.zeros(shape)
    for column in range(shape[1]):
        for t in range(shape[0]):
            factor = 1.0
            for later in range(t, shape[0]):
                bootstrap = 0.0 if terminated[later, column] else next_value[later, column]
                error = reward[later, column] + discount * bootstrap - value[later, column]
                expected[t, column] += factor * error
                factor *= discount * trace
                if ended[later, column]:
                    break
    found = mappo.advantages(reward, value, next_value, terminated, ended, discount=discount, trace=trace)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_agents_without_a_choice_do_not_enter_the_policy_loss():
    game = counting_game()
    params = mappo.init_params(jax.random.key(2), game.spec, 16)
    generator = np.random.default_rng(1)
    avail = np.ones((4, 2, 3), bool)
    avail[:, 1] = [True, False, False]
    rows = mappo.Rollout(
        obs=generator.random((4, 2, 1), np.float32),
        state=generator.random((4, 4), np.float32),
        avail=avail,
        action=np.zeros((4, 2), np.int32),
        log_prob=np.full((4, 2), -1.0, np.float32),
        advantage=np.arange(4, dtype=np.float32),
        target=np.zeros(4, np.float32),
    )
    changed = rows.log_prob.copy()
    changed[:, 1] = -3.0
    assert mappo.ppo_loss(params, rows, SMALL) == mappo.ppo_loss(params, rows._replace(log_prob=changed), SMALL)
    changed[:, 0] = -3.0
    assert mappo.ppo_loss(params, rows, SMALL) != mappo.ppo_loss(params, rows._replace(log_prob=changed), SMALL)


def test_it_learns_each_agents_own_action():
    game = counting_game()
    seen, lines = [], []
    given = mappo.init_params(jax.random.key(3), game.spec, SMALL.hidden)
    params = mappo.train(
        game,
        SMALL,
        jax.random.key(4),
        given,
        report=lambda steps, params: seen.append((steps, params)),
        log=lines.append,
        log_every=2_000,
    )
    assert [steps for steps, _ in seen] == list(range(80, 4_001, 80)) and len(lines) == 2
    # the returns in the log are those of whole episodes of three steps
    assert 2.5 < float(re.search(r"return ([\d.]+)", lines[-1])[1]) <= 3
    for old, new in zip(jax.tree.leaves(given), jax.tree.leaves(seen[0][1]), strict=True):
        assert old.shape == new.shape and np.isfinite(new).all() and (old != new).any()
    obs = jnp.linspace(0, 2 / HORIZON, 3)[:, None, None] * jnp.ones((1, 2, 1))
    logits = behaviour.logits(params["actor"], obs, jnp.ones((3, 2, 3), bool).at[..., 1].set(False))
    chances = jax.nn.softmax(logits)
    assert chances[:, 0, TARGETS[0]].min() > 0.9 and chances[:, 1, TARGETS[1]].min() > 0.9


def test_evaluation_is_exact_where_the_policy_is_certain():
    game = counting_game()
    layers = mappo.init_params(jax.random.key(5), game.spec, 16)["actor"]
    # zero weights and one large bias: both agents always choose action 2, the first one's target only
    certain = jax.tree.map(jnp.zeros_like, layers)
    certain = (*certain[:-1], (certain[-1][0], jnp.array([0.0, 0.0, 50.0])))
    result = mappo.make_evaluate(game, episodes=6, segment=2)(certain, jax.random.key(6))
    assert result == {"return": 1.5, "won": 0.0, "length": 3.0}


def test_settings_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="minibatches"):
        mappo.Settings(num_envs=3, rollout=3, minibatches=2)
    assert mappo.Settings(steps=100, num_envs=8, rollout=10).num_updates == 2
