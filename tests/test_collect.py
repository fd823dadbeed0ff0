import dataclasses
import functools
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax import data, envs
from omcda_jax.behaviour import acts, policies
from omcda_jax.data import rollouts
from omcda_jax.data.episodes import check
from omcda_jax.envs.base import Environment, HostEnvironment, Simulators, TimeStep
from omcda_jax.files import sha256
from omcda_jax.runner import behaviours
from omcda_jax.runner import collect as script
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

collect = importlib.import_module("omcda_jax.data.collect")

ROOT = Path(__file__).parent.parent
HORIZON = 10
SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=3, action_dim=3, discrete=True)


def make_toy(name="toy/sum"):
    """Adds up the actions; ends by itself after 3..12 steps, drawn at reset, but no later than the horizon.

    Agent 1 may choose action 2 at even times only. The reward is the sum of the actions; the team wins if the total
    is odd when the task ends. It continues to step after the end, as simulators do.
    """

    def show(env_state, reward, terminated, truncated):
        time, total, limit = env_state
        state = jnp.stack([time, total, limit]).astype(jnp.float32)
        obs = jnp.stack([jnp.stack([time, total, jnp.full((), agent)]) for agent in range(2)]).astype(jnp.float32)
        avail = jnp.ones((2, 3), bool).at[1, 2].set(time % 2 == 0)
        won = terminated & (total % 2 == 1)
        return TimeStep(obs, state, avail, reward, terminated, truncated, won)

    def reset(key):
        env_state = (jnp.int32(0), jnp.int32(0), jax.random.randint(key, (), 3, 13))
        return env_state, show(env_state, jnp.float32(0), jnp.zeros((), bool), jnp.zeros((), bool))

    def step(_, env_state, action):
        time, total, limit = env_state
        env_state = (time + 1, total + action.sum(), limit)
        terminated = time + 1 >= limit
        truncated = (time + 1 >= HORIZON) & ~terminated
        return env_state, show(env_state, action.sum().astype(jnp.float32), terminated, truncated)

    return Environment(name, SPEC, HORIZON, None, {"toy": "1.0"}, reset, step)


HOST_SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=3, action_dim=2, discrete=False)


def make_host(name="toy/drift", opened=None):
    """Adds up the actions on the host; the reward is their sum, and the seed says when the task ends: in 3..12 steps.

    Agent 1 has one dimension of the two. As in real simulators, a copy that is stepped after its end continues. The
    list `opened` records every opening and closing.
    """

    def start(copies):
        time, total, limit = np.zeros(copies, int), np.zeros(copies), np.zeros(copies, int)
        if opened is not None:
            opened.append(copies)

        def show(index, reward):
            state = np.stack([time[index], total[index], limit[index]], axis=-1).astype(np.float32)
            obs = np.stack([state, state], axis=1)
            obs[:, 1, 2] = 0
            terminated = (time[index] >= limit[index]) & (limit[index] > 0)
            truncated = (time[index] >= HORIZON) & ~terminated
            avail = np.tile(np.array([[True, True], [True, False]]), (len(index), 1, 1))
            won = terminated & (total[index] > 0)
            return TimeStep(obs, state, avail, reward.astype(np.float32), terminated, truncated, won)

        def reset(index, seed):
            time[index], total[index], limit[index] = 0, 0, 3 + np.asarray(seed) % 10
            return show(index, np.zeros(len(index)))

        def step(index, action):
            assert action.shape == (len(index), 2, 2) and (np.abs(action) <= 1).all() and not action[:, 1, 1].any()
            reward = action.astype(np.float64).sum(axis=(1, 2))
            time[index] += 1
            total[index] += reward
            return show(index, reward)

        return Simulators(reset, step, None, lambda: None if opened is None else opened.append("closed"))

    return HostEnvironment(name, HOST_SPEC, HORIZON, None, {"toy": "1.0"}, start)


def make_gaussian(seed=0):
    rng = np.random.default_rng(seed)
    sizes = ((3, 4), (4, 4), (4, 2))
    layers = tuple((rng.normal(size=(2, *size)), rng.normal(size=(2, size[1]))) for size in sizes)
    return jax.tree.map(
        jnp.float32, policies.Gaussian(layers, np.full((2, 2), -0.7), rng.normal(size=(2, 3)), np.full((2, 3), 5.0))
    )


def make_params(seed=0, inputs=5, outputs=3):
    rng = np.random.default_rng(seed)
    sizes = ((inputs, 4), (4, 4), (4, outputs))
    return tuple((jnp.float32(rng.normal(size=size)), jnp.float32(rng.normal(size=size[1]))) for size in sizes)


@pytest.fixture(scope="module", autouse=True)
def few_compilations():
    """Plays twenty episodes at once and compiles the toy's rollouts once for each temperature."""
    real = rollouts._rollout_functions
    cached = functools.cache(lambda temperature: real(make_toy(), temperature))

    def cheap(environment, temperature):
        return cached(temperature) if environment.name == "toy/sum" else real(environment, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "CHUNK", 20)
        patch.setattr(rollouts, "_rollout_functions", cheap)
        yield real


def split(episodes):
    """Cuts episodes apart, one dict of arrays with L + 1 rows each."""
    ends = np.cumsum(episodes.length + 1)
    return [
        {
            key: getattr(episodes, key)[end - length - 1 : end]
            for key in ("obs", "global_state", "avail", "action", "reward")
        }
        for end, length in zip(ends, episodes.length, strict=True)
    ]


PLAIN = policies.Quality(("only",))


@pytest.fixture(scope="module")
def plain():
    return collect.collect(make_toy(), [make_params()], PLAIN, episodes=60, seed=5)


def test_every_row_follows_from_the_one_before(plain):
    episodes, _ = plain
    check(SPEC, episodes, "toy")
    for e, rows in enumerate(split(episodes)):
        length, limit = episodes.length[e], rows["global_state"][0, 2]
        # limits 11 and 12 are beyond the horizon
        assert length == min(limit, HORIZON)
        assert episodes.terminated[e] == (limit <= HORIZON)
        np.testing.assert_array_equal(rows["global_state"][:, 0], np.arange(length + 1))
        np.testing.assert_array_equal(rows["reward"][:-1], rows["action"][:-1].sum(axis=1))
        np.testing.assert_array_equal(rows["global_state"][:, 1], np.append(0, np.cumsum(rows["reward"][:-1])))
        np.testing.assert_array_equal(rows["obs"][:, 1], np.c_[rows["global_state"][:, :2], np.ones(length + 1)])
        np.testing.assert_array_equal(rows["avail"][:, 1, 2], np.arange(length + 1) % 2 == 0)
        assert episodes.won[e] == (episodes.terminated[e] and rows["global_state"][-1, 1] % 2 == 1)
    # every length occurs, including those that end with a segment (8) or one step after it
    assert set(episodes.length) == set(range(3, HORIZON + 1))
    assert 0 < episodes.won.sum() < episodes.terminated.sum() < 60


def test_illegal_actions_are_never_taken(plain):
    episodes, _ = plain
    odd = episodes.global_state[:, 0] % 2 == 1
    assert (episodes.action[~odd, 1] == 2).any()
    assert not (episodes.action[odd, 1] == 2).any()


def test_metadata_of_the_rollouts(plain):
    _, metadata = plain
    assert metadata["environment"] == "toy/sum" and metadata["seed"] == 5 and metadata["rollouts"] == 60
    assert metadata["versions"]["toy"] == "1.0" and metadata["temperature"] == 1.0 and not metadata["won_only"]
    assert metadata["description"] == "actions sampled from the only policy at temperature 1; every episode kept"


def test_neither_chunk_nor_number_changes_an_episode(plain, monkeypatch, few_compilations):
    monkeypatch.setattr(rollouts, "_rollout_functions", few_compilations)
    monkeypatch.setattr(rollouts, "CHUNK", 7)
    monkeypatch.setattr(rollouts, "SEGMENT", 3)
    fewer, _ = collect.collect(make_toy(), [make_params()], PLAIN, episodes=20, seed=5)
    for one, other in zip(split(fewer), split(plain[0]), strict=False):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    np.testing.assert_array_equal(fewer.length, plain[0].length[:20])


def test_seeds_differ_and_repeat(plain):
    again, _ = collect.collect(make_toy(), [make_params()], PLAIN, episodes=60, seed=5)
    jax.tree.map(np.testing.assert_array_equal, again, plain[0])
    other, _ = collect.collect(make_toy(), [make_params()], PLAIN, episodes=20, seed=6)
    assert not np.array_equal(other.length, plain[0].length[:20])


def test_won_only_keeps_exactly_the_won_episodes(plain):
    wanted = int(plain[0].won.sum())
    calls = []
    recipe = policies.Quality(("only",), won_only=True)
    progress = lambda *call: calls.append(call)
    kept, metadata = collect.collect(make_toy(), [make_params()], recipe, episodes=wanted, seed=5, progress=progress)
    assert kept.won.all() and len(kept.length) == wanted
    won = [rows for rows, flag in zip(split(plain[0]), plain[0].won, strict=True) if flag]
    for one, other in zip(split(kept), won, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert metadata["rollouts"] == np.flatnonzero(plain[0].won)[-1] + 1
    assert metadata["won_only"] and calls[-1] == (wanted, wanted, metadata["rollouts"])


def early_win(environment):
    """The same, but the goal is reached at the second step and never after it."""
    won = lambda shown: shown.replace(won=shown.global_state[..., 0] == 2)
    if isinstance(environment, Environment):
        stepped = lambda env_state, shown: (env_state, won(shown))
        return dataclasses.replace(environment, step=lambda *inputs: stepped(*environment.step(*inputs)))

    def start(copies):
        simulators = environment.open(copies)
        return simulators._replace(step=lambda *inputs: won(simulators.step(*inputs)))

    return dataclasses.replace(environment, open=start)


def test_an_episode_is_won_whenever_the_goal_was_reached(monkeypatch, few_compilations):
    monkeypatch.setattr(rollouts, "_rollout_functions", few_compilations)
    for environment, params in ((make_toy(), make_params()), (make_host(), make_gaussian())):
        recipe = policies.Quality(("only",))
        episodes, *_ = collect.collect(early_win(environment), [params], recipe, episodes=8, seed=0)
        assert episodes.won.all()


@pytest.mark.parametrize("name", ["environment_in_jax", "environment_in_python"])
@pytest.mark.parametrize("horizon", [8, 18])
def test_an_episode_that_does_not_end_is_reported(name, horizon):
    # the simulator's clock is at 20, and eight steps are played at a time
    game = dataclasses.replace(envs.make(f"examples.{name}/9"), horizon=horizon)
    behaviour = collect.of_chance(game)
    with pytest.raises(ConfigError, match="expected every episode to end, terminated or truncated, within its horizon"):
        collect.collect(game, behaviour.params, behaviour.recipe, act=behaviour.act, seed=0, episodes=8)


def test_hopeless_filter_is_reported(monkeypatch):
    monkeypatch.setattr(collect, "TRIES_AT_LEAST", 8)
    monkeypatch.setattr(collect, "TRIES_PER_EPISODE", 2)
    # a huge bias makes both agents choose action 0: the total stays 0, which is even, and nobody wins
    (w, b), hidden, (last, bias) = make_params()
    params = ((w, b), hidden, (last * 0, jnp.array([99.0, 0.0, 0.0])))
    with pytest.raises(ConfigError, match="kept 0 of 4 episodes after 8 episodes; the policy wins too rarely"):
        collect.collect(make_toy(), [params], policies.Quality(("only",), won_only=True), episodes=4, seed=0)


def test_a_hopeless_filter_of_transitions_counts_episodes(monkeypatch):
    monkeypatch.setattr(collect, "TRIES_AT_LEAST", 1)
    monkeypatch.setattr(collect, "TRIES_PER_EPISODE", 2)
    lost = collect.Episodes(*[None] * 6, terminated=None, won=[False])._replace(length=[10])
    judged = collect._judged(iter([lost] * 99), True, "transitions", 40, "toy")
    with pytest.raises(ConfigError, match="kept 0 of 40 transitions after 8 episodes"):
        list(judged)


def test_stages_share_the_episodes(plain):
    zero = jax.tree.map(jnp.zeros_like, make_params())
    first, second = ((*zero[:2], (zero[2][0], jnp.eye(3)[k] * 99)) for k in (0, 1))
    episodes, metadata = collect.collect(
        make_toy(), [first, second], policies.Quality(("zero", "one")), episodes=5, seed=0
    )
    chosen = [int(rows["action"][:-1].max()) for rows in split(episodes)]
    assert chosen == [0, 0, 0, 1, 1] and metadata["rollouts"] == 5
    assert "zero and one" in metadata["description"]


def test_low_temperature_is_greedy():
    params, recipe = make_params(), policies.Quality(("only",), temperature=1e-4)
    episodes, _ = collect.collect(make_toy(), [params], recipe, episodes=10, seed=0)
    greedy = policies.logits(params, jnp.asarray(episodes.obs), jnp.asarray(episodes.avail)).argmax(-1)
    steps = data.from_arrays(SPEC, episodes).rows
    np.testing.assert_array_equal(episodes.action[steps], greedy[steps])


def test_logits_by_hand():
    params = make_params()
    obs = np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32)
    avail = np.ones((4, 2, 3), bool)
    avail[:, 1, 2] = False
    found = policies.logits(params, jnp.asarray(obs), jnp.asarray(avail))
    for row in range(4):
        for agent in range(2):
            x = np.append(obs[row, agent], np.eye(2)[agent])
            for w, b in params[:-1]:
                x = np.maximum(x @ np.asarray(w) + np.asarray(b), 0)
            expected = np.where(avail[row, agent], x @ np.asarray(params[-1][0]) + np.asarray(params[-1][1]), -1e9)
            np.testing.assert_allclose(found[row, agent], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def hosted():
    return collect.collect(make_host(), [make_gaussian()], PLAIN, episodes=60, seed=5)


def test_every_row_of_the_host_follows_from_the_one_before(hosted):
    episodes, metadata = hosted
    check(HOST_SPEC, episodes, "toy")
    for e, rows in enumerate(split(episodes)):
        length, limit = episodes.length[e], rows["global_state"][0, 2]
        assert length == min(limit, HORIZON)
        assert episodes.terminated[e] == (limit <= HORIZON)
        np.testing.assert_array_equal(rows["global_state"][:, 0], np.arange(length + 1))
        np.testing.assert_allclose(rows["reward"][:-1], rows["action"][:-1].sum(axis=(1, 2)), rtol=1e-5, atol=1e-6)
        total = np.append(0, np.cumsum(rows["reward"][:-1]))
        np.testing.assert_allclose(rows["global_state"][:, 1], total, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(rows["obs"][:, 0], rows["global_state"])
        assert not rows["action"][:, 1, 1].any() and not rows["avail"][:, 1, 1].any() and rows["avail"][:, 0].all()
        assert not rows["action"][-1].any() and rows["reward"][-1] == 0
        assert episodes.won[e] == (episodes.terminated[e] and rows["global_state"][-1, 1] > 0)
    assert set(episodes.length) == set(range(3, HORIZON + 1))
    assert 0 < episodes.terminated.sum() < 60 and len(np.unique(episodes.action)) > 200
    assert metadata["rollouts"] == 60 and metadata["versions"]["toy"] == "1.0"


def test_draws_of_the_host_are_those_of_the_policy(hosted):
    episodes, params = hosted[0], make_gaussian()
    steps = data.from_arrays(HOST_SPEC, episodes).rows
    draws = np.arctanh(np.clip(episodes.action[steps].astype(np.float64), -1 + 1e-7, 1 - 1e-7))
    error = (draws - policies.mean(params, jnp.asarray(episodes.obs[steps]))) / np.exp(-0.7)
    error = error.reshape(len(steps), 4)[:, :3]
    # a sample beyond +-7 before the tanh cannot be recovered from a float32 action
    error = error[(np.abs(draws.reshape(len(steps), 4)) < 7).all(axis=1)]
    assert len(error) > 300 and np.abs(error.mean(axis=0)).max() < 4 / len(error) ** 0.5
    assert np.abs(np.cov(error.T) - np.eye(3)).max() < 0.25


def test_a_function_in_python_is_asked_for_copies_that_play_only():
    asked = []

    def act(obs, avail, key):
        asked.append(obs)
        return np.where(avail, 0.5, 0.0)

    behaviour = acts.InPython(act, discrete=False)
    episodes, _ = collect.collect(make_host(), [()], PLAIN, act=behaviour, episodes=3, seed=5)
    assert len(asked) == episodes.length.sum()


@pytest.mark.parametrize("copies", [1, 7, 50])
def test_neither_copies_nor_number_change_an_episode_of_the_host(hosted, monkeypatch, copies):
    monkeypatch.setattr(rollouts, "COPIES", copies)
    fewer, _ = collect.collect(make_host(), [make_gaussian()], PLAIN, episodes=20, seed=5)
    np.testing.assert_array_equal(fewer.length, hosted[0].length[:20])
    for one, other in zip(split(fewer), split(hosted[0]), strict=False):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), one, other)


def test_transitions_are_the_shortest_run_of_whole_episodes(hosted, plain):
    cases = [(make_host(), make_gaussian(), hosted[0]), (make_toy(), make_params(), plain[0])]
    for environment, params, longer in cases:
        episodes, metadata = collect.collect(environment, [params], PLAIN, transitions=100, seed=5)
        count = len(episodes.length)
        assert episodes.length[:-1].sum() < 100 <= episodes.length.sum()
        np.testing.assert_array_equal(episodes.length, longer.length[:count])
        np.testing.assert_allclose(episodes.reward, longer.reward[: len(episodes.reward)], rtol=1e-5, atol=1e-5)
        assert metadata["rollouts"] == count and metadata["transitions"] == 100


def test_stages_share_the_transitions():
    low, high = (make_gaussian()._replace(log_std=jnp.full((2, 2), -9.0)) for _ in range(2))
    low, high = (
        params._replace(layers=jax.tree.map(lambda x, sign=sign: x * 0 + 0.2 * sign, params.layers))
        for params, sign in ((low, -1), (high, 1))
    )
    opened, calls = [], []
    episodes, metadata = collect.collect(
        make_host(opened=opened),
        [low, high],
        policies.Quality(("low", "high")),
        transitions=101,
        seed=0,
        progress=lambda *call: calls.append(call),
    )
    negative = data.returns(episodes) < 0
    half = int(negative.sum())
    assert negative[:half].all() and not negative[half:].any()
    for part, share in ((episodes.length[:half], 51), (episodes.length[half:], 50)):
        assert part[:-1].sum() < share <= part.sum()
    assert opened == [rollouts.COPIES, "closed"]
    assert calls[-1] == (episodes.length.sum(), 101, metadata["rollouts"])


def test_won_only_on_the_host(hosted):
    wanted = int(hosted[0].won.sum())
    recipe = policies.Quality(("only",), won_only=True)
    kept, metadata = collect.collect(make_host(), [make_gaussian()], recipe, episodes=wanted, seed=5)
    assert 0 < wanted < 60 and kept.won.all()
    np.testing.assert_array_equal(kept.length, hosted[0].length[hosted[0].won])
    assert metadata["rollouts"] == np.flatnonzero(hosted[0].won)[-1] + 1


def test_temperature_zero_is_the_centre_of_a_continuous_policy():
    params = make_gaussian()
    recipe = policies.Quality(("only",), temperature=0.0)
    episodes, _ = collect.collect(make_host(), [params], recipe, episodes=5, seed=0)
    steps = data.from_arrays(HOST_SPEC, episodes).rows
    centre = np.tanh(policies.mean(params, jnp.asarray(episodes.obs[steps]))) * episodes.avail[steps]
    np.testing.assert_allclose(episodes.action[steps], centre, rtol=1e-4, atol=1e-5)


def test_mean_by_hand():
    params = make_gaussian()
    obs = np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32)
    obs[0, 0, 0] = 1e6
    found = policies.mean(params, jnp.asarray(obs))
    for row in range(4):
        for agent in range(2):
            x = np.clip((obs[row, agent] - params.obs_mean[agent]) / params.obs_std[agent], -10, 10)
            for k, (w, b) in enumerate(params.layers):
                x = x @ w[agent] + b[agent]
                x = np.tanh(x) if k < 2 else x
            np.testing.assert_allclose(found[row, agent], x, rtol=1e-4, atol=1e-4)


def test_weights_survive_the_file(tmp_path):
    for params in (make_params(), make_gaussian()):
        policies.write_weights(tmp_path / "new" / "policy.npz", params, env_steps=3)
        found = policies.read_weights(tmp_path / "new" / "policy.npz")
        assert type(found) is type(params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3), found, params)
    with np.load(tmp_path / "new" / "policy.npz") as file:
        assert file["env_steps"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": None}, "size: expected one of episodes and transitions, found neither"),
        ({"transitions": 3}, "size: expected one of episodes and transitions, found episodes and transitions"),
        ({"episodes": None, "transitions": 0}, "transitions: expected at least 1, found 0"),
        ({"params": [make_gaussian()]}, r"policy only .*: expected \(5,\) .* discrete outputs, found \(2, 3\) .* cont"),
        ({"episodes": 0}, "episodes: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 4294967295, found -1"),
        ({"params": [make_params(inputs=6)]}, r"policy only for toy/sum: expected \(5,\) inputs and 3 disc"),
    ],
)
def test_bad_requests_are_refused(change, message):
    request = {"params": [make_params()], "episodes": 2, "seed": 0} | change
    with pytest.raises(ConfigError, match=message):
        collect.collect(make_toy(), recipe=PLAIN, **request)


@pytest.fixture
def toy_shop(tmp_path, monkeypatch):
    """A working directory, a toy environment and a behaviour policy for `ensure`."""
    weights = {f"actor_{k}_{name}": pair[i] for k, pair in enumerate(make_params()) for i, name in enumerate("wb")}
    np.savez(tmp_path / "toy_sum_medium.npz", **weights)
    monkeypatch.setattr(policies, "WEIGHTS", tmp_path)
    monkeypatch.setattr(policies, "QUALITIES", {("toy/sum", "medium"): policies.Quality(("medium",))})
    monkeypatch.setattr(collect, "make", make_toy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_time_left_counts_from_the_first_line_on(monkeypatch):
    lines, clock = [], [0.0]
    monkeypatch.setattr(collect.time, "monotonic", lambda: clock[0])
    show = collect._Progress("episodes", lines.append)
    for seconds, kept in ((36, 1), (38, 100), (42, 301), (56, 1000)):
        clock[0] = seconds
        show(kept, 1000, 2 * kept)
    assert lines == [
        "  kept 1 of 1000 episodes, episodes played: 2, 36 s",
        "  kept 301 of 1000 episodes, episodes played: 602, 42 s, left 14 s",
        "  kept 1000 of 1000 episodes, episodes played: 2000, 56 s, left 0 s",
    ]


def test_ensure_collects_once(toy_shop):
    lines = []
    path = data.ensure("toy/sum", "medium", 12, 5, log=lines.append)
    assert path == data.default_path("toy/sum", "medium", 12, 5) == Path("datasets/toy/sum/medium_12_seed5.h5")
    assert "collecting 12 episodes of toy/sum" in lines[0] and str(path) in lines[-1]
    _, episodes, metadata = data.read(path, spec=SPEC, environment="toy/sum")
    direct, _ = collect.collect(make_toy(), [make_params()], PLAIN, episodes=12, seed=5)
    jax.tree.map(np.testing.assert_array_equal, episodes, direct)
    assert metadata["quality"] == "medium" and metadata["rollouts"] == 12
    assert "--environment=toy/sum --quality=medium --episodes=12 --seed=5" in metadata["generator"]
    assert metadata["weights"] == {"medium": sha256(toy_shop / "toy_sum_medium.npz")}
    stamp, told = path.stat().st_mtime_ns, len(lines)
    assert data.ensure("toy/sum", "medium", 12, 5, log=lines.append) == path
    assert path.stat().st_mtime_ns == stamp and len(lines) == told


def test_of_two_who_want_a_dataset_one_collects_and_the_other_waits(toy_shop):
    told, found = [], []

    def ensure(log):
        found.append(data.ensure("toy/sum", "medium", 12, 5, log=log))

    waits = threading.Event()
    second = threading.Thread(target=ensure, args=[lambda line: (told.append(line), waits.set())])

    def begin(line):
        if "collecting" in line:
            second.start()
            assert waits.wait(60)

    first = threading.Thread(target=ensure, args=[begin])
    first.start()
    first.join(60)
    second.join(60)
    assert len(found) == 2 and found[0] == found[1] and found[0].exists()
    assert len(told) == 1 and "waiting for another process that collects it" in told[0]
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]


def test_ensure_counts_transitions(toy_shop):
    lines, asked = [], {"seed": 5, "transitions": 100}
    path = data.ensure("toy/sum", "medium", **asked, log=lines.append)
    assert path == Path("datasets/toy/sum/medium_100_transitions_seed5.h5")
    assert "collecting 100 transitions of toy/sum" in lines[0]
    metadata = data.read_metadata(path)
    assert metadata["statistics"]["transitions"] >= 100 and metadata["transitions"] == 100
    assert "--transitions=100 --seed=5" in metadata["generator"]


def test_random_play_is_a_quality_of_every_environment(toy_shop, monkeypatch):
    path = data.ensure("toy/sum", "random", 40, 5, log=lambda line: None)
    _, episodes, metadata = data.read(path, environment="toy/sum")
    assert metadata["quality"] == "random" and metadata["description"].startswith("actions drawn at random")
    assert "--policy=random --quality=random --episodes=40" in metadata["generator"]
    legal = episodes.avail.sum(-1) > 1
    assert (np.bincount(episodes.action[legal], minlength=3) > 0.1 * legal.sum()).all()
    # the command names the same dataset by its quality and by its policy
    monkeypatch.setattr(behaviours.envs, "make", make_toy)
    for words in ({"quality": "random"}, {"policy": "random", "quality": None}):
        name, found = behaviours.behaviour(environment="toy/sum", **words)
        assert name == "random" and found.facts["description"] == metadata["description"]
        assert list(found.flags) == ["--policy=random", *(["--quality=random"] if words["quality"] else [])]


def test_ensure_refuses_what_it_cannot_make(toy_shop):
    with pytest.raises(ConfigError, match="quality: expected one of medium, random, found 'godo' of 'toy/sum'"):
        data.ensure("toy/sum", "godo", 3, 0)
    (toy_shop / "blocked").write_text("a file")
    with pytest.raises(ConfigError, match="blocked: expected a folder to write to"):
        data.ensure("toy/sum", "medium", 3, 0, path=toy_shop / "blocked" / "data.h5")
    (toy_shop / "toy_sum_medium.npz").write_text("not weights")
    with pytest.raises(ConfigError, match="toy_sum_medium.npz: expected actor_0_w"):
        data.ensure("toy/sum", "medium", 3, 0)
    (toy_shop / "toy_sum_medium.npz").unlink()
    with pytest.raises(ConfigError, match="expected a stage of toy/sum among none, found 'medium'"):
        data.ensure("toy/sum", "medium", 3, 0)


@pytest.mark.parametrize(("environment", "quality"), policies.QUALITIES)
def test_every_quality_has_its_weights(environment, quality):
    for stage in policies.QUALITIES[environment, quality].stages:
        params = policies.load(environment, stage)
        assert isinstance(params, policies.Gaussian) == environment.startswith(("mamujoco/", "mjx/", "mpe/"))
        assert all(np.isfinite(leaf).all() and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("environment", dict.fromkeys(environment for environment, _ in policies.QUALITIES))
def test_better_stages_earn_more(environment):
    def earned(stage):
        with np.load(policies.weights_path(environment, stage)) as file:
            return float(file["return_mean"])

    names = {name for where, name in policies.QUALITIES if where == environment}
    order = ("poor", "medium", "good") if "good" in names else ("replay_1", "medium", "expert")
    assert earned(order[0]) < earned(order[1]) < earned(order[2])


def test_real_battles(tmp_path):
    environment = envs.make("smax/3m")
    recipe = policies.quality("smax/3m", "good")
    params = [policies.load("smax/3m", stage) for stage in recipe.stages]
    episodes, metadata = collect.collect(environment, params, recipe, episodes=24, seed=0)
    data.write(tmp_path / "3m.h5", environment.spec, episodes, metadata)
    dataset, metadata = data.load(tmp_path / "3m.h5", spec=environment.spec, environment="smax/3m", reward_scale=10.0)
    found = metadata["statistics"]
    # a won battle returns 2, a lost one at most 2/3 of the enemies' health plus most of the last third
    np.testing.assert_array_equal(data.returns(episodes) > 1.99, episodes.won)
    assert found["return_max"] <= 2.0001 and found["win_rate"] > 0.3
    assert 8 <= found["length_min"] <= found["length_max"] <= 100
    # all units of one side are dead in every final state: its health features are zero
    health = episodes.global_state[np.cumsum(episodes.length + 1) - 1, :60:10]
    np.testing.assert_array_equal((health[:, 3:] <= 0).all(axis=1), episodes.won)
    assert data.max_return_to_go(dataset, 1.0) == pytest.approx(10 * found["return_max"], rel=1e-5)


def test_script_makes_describes_and_refuses(toy_shop, capsys):
    request = {"environment": "toy/sum", "quality": "medium", "episodes": 12, "seed": 5}
    found = collect.of_stages("toy/sum", "medium")
    script.run(request, found)
    made = capsys.readouterr().out
    assert "collecting 12 episodes" in made and "12 kept of 12 played" in made
    script.run(request, found)
    again = capsys.readouterr().out
    assert "exists: checking it" in again and "collecting" not in again and "12 kept of 12 played" in again
    with pytest.raises(ConfigError, match="size: expected one of"):
        script.run(request | {"transitions": 30}, found)
    path = data.default_path(**request)
    with pytest.raises(DatasetError, match="transitions: expected 30, found None; name another --out"):
        script.run(request | {"transitions": 30, "episodes": None}, found, path)
    with pytest.raises(DatasetError, match="seed: expected 6, found 5; name another --out"):
        script.run(request | {"seed": 6}, found, path)
    with pytest.raises(DatasetError, match="weights: expected"):
        script.run(request, found._replace(facts=found.facts | {"weights": {"medium": "of another policy"}}))


def test_script_exits_with_78_and_one_line(tmp_path):
    path = tmp_path / "page.h5"
    path.write_text("<html>404</html>")
    command = [sys.executable, str(ROOT / "experiments" / "collect.py"), f"--out={path}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 78
    assert done.stderr.startswith(f"error: {path}: expected an HDF5 file") and done.stderr.count("\n") == 1
