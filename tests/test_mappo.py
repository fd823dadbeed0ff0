"""The behaviour trainers: their advantages against a plain loop, their masks, and games they must learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax.behaviour import mappo, mappo_separate, policies, training
from omcda_jax.behaviour.recipes import Phase, Recipe
from omcda_jax.envs.base import Environment, HostEnvironment, Simulators, TimeStep
from omcda_jax.types import ConfigError, EnvSpec

TARGETS = (2, 0)
HORIZON = 3


def counting_game() -> Environment:
    """Two agents with three actions; the second is illegal. A step pays the share of agents on their target.

    An episode ends after three steps, and is won if both choose their target in the last step.
    """

    def show(count, reward, terminated, truncated, won):
        return TimeStep(
            obs=jnp.full((2, 1), count / HORIZON),
            global_state=jax.nn.one_hot(count, HORIZON + 1),
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
    shape, gamma, trace = (7, 3), 0.9, 0.8
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
                error = reward[later, column] + gamma * bootstrap - value[later, column]
                expected[t, column] += factor * error
                factor *= gamma * trace
                if ended[later, column]:
                    break
    found = mappo.advantages(reward, value, next_value, terminated, ended, gamma=gamma, trace=trace)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_agents_without_a_choice_do_not_enter_the_policy_loss():
    game = counting_game()
    params = mappo.init_params(jax.random.key(2), game.spec, 16)
    generator = np.random.default_rng(1)
    avail = np.ones((4, 2, 3), bool)
    avail[:, 1] = [True, False, False]
    rows = mappo.Rollout(
        obs=generator.random((4, 2, 1), np.float32),
        global_state=generator.random((4, 4), np.float32),
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
    given = mappo.init_params(jax.random.key(3), game.spec, SMALL.hidden)
    seen = list(mappo.train(game, SMALL, jax.random.key(4), given))
    assert [steps for steps, _, _ in seen] == list(range(80, 4_001, 80))
    _, params, metrics = seen[-1]
    # the returns are those of whole episodes of three steps
    assert metrics["episodes"] > 20 and 2.5 < metrics["return"] / metrics["episodes"] <= 3
    for old, new in zip(jax.tree.leaves(given), jax.tree.leaves(seen[0][1]), strict=True):
        assert old.shape == new.shape and np.isfinite(new).all() and (old != new).any()
    obs = jnp.linspace(0, 2 / HORIZON, 3)[:, None, None] * jnp.ones((1, 2, 1))
    logits = policies.logits(params["actor"], obs, jnp.ones((3, 2, 3), bool).at[..., 1].set(False))
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


AIMS = np.array([[0.6, -0.5], [0.3, 0.0]], np.float32)


def reaching_game(closed: list) -> HostEnvironment:
    """Two agents, the second with one dimension of two: a step pays 1 minus the squared distances from their aims.

    An episode is cut after five steps. The first observation and the state are the step, far from unit scale.
    """

    def start(copies):
        time = np.zeros(copies, int)

        def show(index, reward):
            obs = np.zeros((len(index), 2, 2), np.float32)
            obs[:, :, 0] = 1000 + 100 * time[index, None]
            no = np.zeros(len(index), bool)
            avail = np.tile(np.array([[True, True], [True, False]]), (len(index), 1, 1))
            return TimeStep(obs, obs[:, 0], avail, np.float32(reward), no, time[index] >= 5, no)

        def reset(index, seed):
            assert len(index) == len(seed) == len(np.unique(seed))
            time[index] = 0
            return show(index, np.zeros(len(index)))

        def step(index, action):
            time[index] += 1
            gap = np.square(action - AIMS)
            return show(index, 1 - gap[:, 0].sum(-1) - gap[:, 1, 0])

        return Simulators(reset, step, None, lambda: closed.append(copies))

    spec = EnvSpec(num_agents=2, obs_dim=2, state_dim=2, action_dim=2, discrete=False)
    return HostEnvironment("test/reaching", spec, 5, None, {}, start)


REACHING = mappo.Settings(
    steps=10_000, num_envs=8, rollout=25, epochs=4, minibatches=4, hidden=8, learning_rate=1e-2, entropy=0.0
)


def test_it_reaches_each_agents_own_aim():
    closed = []
    seen = list(mappo_separate.train(reaching_game(closed), REACHING, jax.random.key(0)))
    assert [steps for steps, _, _ in seen] == list(range(200, 10_001, 200)) and closed == [8]
    _, actor, metrics = seen[-1]
    # an episode of five steps on target pays 5, less 15 times the variance of an action
    assert metrics["episodes"] == 40 and metrics["length"] == 200 and 4 < metrics["return"] / 40 <= 5
    obs = jnp.zeros((5, 2, 2)).at[..., 0].set(1000 + 100 * jnp.arange(5.0)[:, None])
    centre = np.tanh(policies.mean(actor, obs))
    assert np.abs(centre - AIMS)[:, [0, 0, 1], [0, 1, 0]].max() < 0.15
    # mean and spread of 1000, 1100, .. 1400; a feature that never varies does not change
    np.testing.assert_allclose(actor.obs_mean, [[1200, 0]] * 2, rtol=1e-4)
    np.testing.assert_allclose(actor.obs_std, [[100 * 2**0.5, 1]] * 2, rtol=1e-3)
    # the width can shrink to its floor but not below; that of the missing dimension stays
    assert REACHING.log_std_floor <= actor.log_std.min() < REACHING.initial_log_std == actor.log_std[1, 1]


def test_the_simulators_are_closed_after_an_error():
    closed = []
    with pytest.raises(KeyboardInterrupt):
        for _ in mappo_separate.train(reaching_game(closed), REACHING, jax.random.key(0)):
            raise KeyboardInterrupt
    assert closed == [8]


def test_the_caller_can_end_the_training():
    closed = []
    for steps, _, _ in mappo_separate.train(reaching_game(closed), REACHING, jax.random.key(0)):
        if steps >= 400:
            break
    assert steps == 400 and closed == [8]


def test_a_recipe_s_stages_are_taken_in_order_and_saved_as_they_are_judged(tmp_path, monkeypatch, capsys):
    stages = {"early": 300, "able": 0.5, "late": 1_200}
    recipe = Recipe(phases=(Phase(REACHING),), stages=stages, check_every=400, episodes=9, check_episodes=3)
    monkeypatch.setattr(training, "RECIPES", {"test/reaching": recipe})
    monkeypatch.setattr(training.envs, "make", lambda name: reaching_game([]))
    judged = []

    def make_evaluate(environment, episodes):
        def evaluate(actor, key):
            judged.append((episodes, actor))
            # the second check finds a high enough win rate
            return {"win_rate": sum(count == 3 for count, _ in judged) / 4}

        return evaluate

    training.train("test/reaching", tmp_path, make_evaluate, every=500)
    written = {path.stem.removeprefix("test_reaching_"): np.load(path) for path in tmp_path.iterdir()}
    steps = {stage: int(file["env_steps"]) for stage, file in written.items()}
    assert steps == {"early": 400, "000000600": 600, "000001000": 1_000, "able": 1_200, "late": 1_400}
    # checks at 800 and 1,200 steps
    assert [episodes for episodes, _ in judged] == [9, 9, 3, 9, 3, 9, 9]
    assert capsys.readouterr().out.count("saved ") == 5
    stored = policies.read_weights(tmp_path / "test_reaching_late.npz")
    jax.tree.map(np.testing.assert_array_equal, stored, judged[-1][1])


def test_running_moments_equal_those_of_all_rows(random):
    rows = random.normal(3.0, 2.0, size=(50, 4)).astype(np.float32)
    moments = mappo_separate.Moments(jnp.float32(1e-4), jnp.zeros(4), jnp.ones(4))
    for part in np.split(rows, [10, 13, 40]):
        moments = mappo_separate.merge(moments, jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, rows.var(axis=0), rtol=1e-3)


def test_log_probability_of_the_dimensions_an_agent_has(random):
    layers = tuple((jnp.zeros((2, *size)), jnp.full((2, size[1]), 0.3)) for size in ((3, 4), (4, 4), (4, 2)))
    log_std = np.array([[-1.0, 0.5], [0.2, 0.0]], np.float32)
    actor = policies.Gaussian(layers, jnp.asarray(log_std), jnp.zeros((2, 3)), jnp.ones((2, 3)))
    draw = random.normal(size=(5, 2, 2)).astype(np.float32)
    avail = np.ones((5, 2, 2), bool)
    avail[:, 1, 1] = False
    found = mappo_separate.log_prob(actor, jnp.zeros((5, 2, 3)), jnp.asarray(avail), jnp.asarray(draw))
    # all weights are zero, so the centre is the last bias, 0.3
    density = np.exp(-((draw - 0.3) ** 2) / (2 * np.exp(2 * log_std))) / (np.exp(log_std) * (2 * np.pi) ** 0.5)
    density[:, 1, 1] = 1
    np.testing.assert_allclose(found, np.log(density).sum(-1), rtol=1e-4, atol=1e-5)


def reaching_game_in_jax() -> Environment:
    """The game of `reaching_game` at unit scale; using the dimension that an agent lacks costs much."""

    def show(time, reward):
        obs = jnp.full((2, 2), time / 5)
        avail = jnp.array([[True, True], [True, False]])
        no = jnp.zeros((), bool)
        return TimeStep(obs, obs[0], avail, reward, no, time >= 5, no)

    def reset(key):
        del key
        return jnp.int32(0), show(jnp.int32(0), jnp.float32(0))

    def step(key, time, action):
        del key
        return time + 1, show(time + 1, 1 - jnp.square(action - AIMS).sum() - 100 * action[1, 1] ** 2)

    spec = EnvSpec(num_agents=2, obs_dim=2, state_dim=2, action_dim=2, discrete=False)
    return Environment("test/reaching", spec, 5, None, {}, reset, step)


def test_it_reaches_each_agents_own_aim_in_jax():
    *_, (steps, actor, metrics) = mappo_separate.train(reaching_game_in_jax(), REACHING, jax.random.key(0))
    # episodes of five steps; actions that an agent does not have are zero
    assert steps == 10_000 and metrics["episodes"] == 40 and metrics["length"] == 200
    assert 4 < metrics["return"] / 40 <= 5
    centre = np.tanh(policies.mean(actor, jnp.linspace(0, 0.8, 5)[:, None, None] * jnp.ones((1, 2, 2))))
    assert np.abs(centre - AIMS)[:, [0, 0, 1], [0, 1, 0]].max() < 0.15


def test_one_network_learns_each_agents_own_action_and_is_stored_as_two(tmp_path):
    settings = dataclasses.replace(SMALL, shared=True)
    *_, (_, actor, metrics) = mappo_separate.train(counting_game(), settings, jax.random.key(0))
    assert isinstance(actor, policies.Categorical) and 2.5 < metrics["return"] / metrics["episodes"] <= 3
    assert [w.shape[:2] for w, _ in actor.layers] == [(2, 1), (2, 16), (2, 16)]
    policies.write_weights(tmp_path / "policy.npz", actor)
    stored = policies.read_weights(tmp_path / "policy.npz")
    policies.check(stored, counting_game().spec, "both")
    obs = jnp.linspace(0, 2 / HORIZON, 3)[:, None, None] * jnp.ones((1, 2, 1))
    avail = jnp.ones((3, 2, 3), bool).at[..., 1].set(False)
    chances = jax.nn.softmax(policies.logits(stored, obs, avail))
    assert chances[:, 0, TARGETS[0]].min() > 0.9 and chances[:, 1, TARGETS[1]].min() > 0.9
    greedy = policies.sample(stored, obs, avail, jax.random.key(0), 0.0)
    np.testing.assert_array_equal(greedy, [TARGETS] * 3)


def test_a_shared_network_is_the_same_as_one_for_each_agent(random):
    layers = mappo.init_layers(jax.random.key(0), (5, 4, 4, 3), 1.0)
    layers = tuple((w, jnp.asarray(random.normal(size=b.shape), jnp.float32)) for w, b in layers)
    obs = jnp.asarray(random.normal(size=(6, 2, 3)), jnp.float32)
    unshared = mappo_separate._actor({"layers": layers}, 2)["layers"]
    actor = policies.Categorical(unshared, jnp.zeros((2, 3)), jnp.ones((2, 3)))
    identity = jnp.broadcast_to(jnp.eye(2), (6, 2, 2))
    inputs = jnp.concatenate([obs, identity], axis=-1).reshape(12, 5)
    expected = policies.forward(layers, inputs, jnp.tanh).reshape(6, 2, 3)
    np.testing.assert_allclose(policies.logits(actor, obs, jnp.ones((6, 2, 3), bool)), expected, rtol=1e-4, atol=1e-5)
