import dataclasses
import gc
import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax.envs.base import Environment, HostEnvironment, Map, Simulators, TimeStep
from omcda_jax.evaluate import (
    EpisodeResults,
    check_video,
    greedily,
    make_evaluate,
    record,
    record_video,
    summarise,
    watch,
)
from omcda_jax.metrics import standard_deviation
from omcda_jax.types import ConfigError, EnvSpec

SPEC = EnvSpec(num_agents=2, obs_dim=1, state_dim=1, action_dim=2, discrete=True)
LENGTHS = (1, 2, 4, 5, 9)


def countdown(horizon=6, truncates_itself=True):
    """Episodes with a length drawn at the reset; shorter than 5 is won, longer than the horizon is cut.

    Every step pays the sum of the actions plus 0.5. An episode that is stepped after its end still pays and wins, so
    that a missing mask is noticed.
    """

    def show(length, time, reward):
        return TimeStep(
            obs=jnp.array([[0.0], [1.0]]),
            global_state=length[None].astype(jnp.float32),
            avail=jnp.array([[True, True], [True, False]]),
            reward=reward,
            terminated=time == length,
            truncated=(time == horizon) & (time != length) & truncates_itself,
            won=((time >= length) & (length < 5)) | (time > length),
        )

    def reset(key):
        length = jnp.array(LENGTHS)[jax.random.randint(key, (), 0, len(LENGTHS))]
        return (length, jnp.int32(0)), show(length, jnp.int32(0), jnp.float32(0))

    def step(key, env_state, action):
        length, time = env_state[0], env_state[1] + 1
        return (length, time), show(length, time, action.sum() + 0.5)

    return Environment("toy/countdown", SPEC, horizon, None, {}, reset, step)


def first_agent_acts(weight, obs, avail):
    """Agent 0 plays 1 if `weight` is positive, agent 1 has no choice; a float, so that the reward can sum it."""
    return jnp.where(avail[..., 1], (weight > 0).astype(jnp.float32), 0.0)


def host_countdown(horizon=6, truncates_itself=True, log=None):
    """The same on the host; `log` collects the calls to the simulators. A picture shows the elapsed time."""
    log = [] if log is None else log

    def open_copies(copies):
        log.append(("open", copies))
        length, time = np.zeros(copies, int), np.zeros(copies, int)

        def show(index, reward):
            now, end = time[index], length[index]
            return TimeStep(
                obs=np.tile(np.array([[0.0], [1.0]], np.float32), (len(index), 1, 1)),
                global_state=end[:, None].astype(np.float32),
                avail=np.tile(np.array([[True, True], [True, False]]), (len(index), 1, 1)),
                reward=reward,
                terminated=now == end,
                truncated=(now == horizon) & (now != end) & truncates_itself,
                won=((now >= end) & (end < 5)) | (now > end),
            )

        def reset(index, seed):
            length[index], time[index] = np.array(LENGTHS)[seed % len(LENGTHS)], 0
            return show(index, np.zeros(len(index), np.float32))

        def step(index, action):
            log.append(("step", index.tolist()))
            time[index] += 1
            return show(index, action.sum(-1) + np.float32(0.5))

        def render():
            return np.full((16, 16, 3), 10 * time[0], np.uint8)

        return Simulators(reset, step, render, lambda: log.append(("close",)))

    return HostEnvironment("toy/host", SPEC, horizon, None, {}, open_copies)


COUNTDOWNS = pytest.mark.parametrize("make", [countdown, host_countdown])


@COUNTDOWNS
@pytest.mark.parametrize("truncates_itself", [True, False])
def test_every_episode_is_counted_up_to_its_own_end(make, truncates_itself):
    evaluate = make_evaluate(first_agent_acts, make(truncates_itself=truncates_itself), 40)
    episodes = evaluate(jnp.float32(1.0), jax.random.key(0))
    length = np.asarray(episodes.length)
    assert set(length.tolist()) == {1, 2, 4, 5, 6}, "every kind of episode occurs, the 9 cut at 6"
    np.testing.assert_array_equal(episodes.returns, 1.5 * length)
    np.testing.assert_array_equal(episodes.won, length < 5)
    np.testing.assert_array_equal(episodes.truncated, length == 6)


def test_stops_when_the_last_episode_has_ended():
    taken = []

    def counting(weight, obs, avail):
        jax.debug.callback(lambda: taken.append(1))
        return first_agent_acts(weight, obs, avail)

    episodes = make_evaluate(counting, countdown(horizon=1000), 16)(jnp.float32(1.0), jax.random.key(1))
    jax.effects_barrier()
    assert len(taken) == int(episodes.length.max()) <= 9


def test_ended_copies_on_the_host_are_left_alone():
    log = []
    episodes = make_evaluate(first_agent_acts, host_countdown(1000, log=log), 16)(jnp.float32(1.0), jax.random.key(1))
    steps = [running for name, *running in log if name == "step"]
    assert len(steps) == episodes.length.max() == 9
    for time, (running,) in enumerate(steps):
        assert running == np.flatnonzero(episodes.length > time).tolist()


@COUNTDOWNS
def test_other_parameters_need_no_new_compilation(make):
    traced = []

    def act(weight, obs, avail):
        traced.append(1)
        return first_agent_acts(weight, obs, avail)

    evaluate = make_evaluate(act, make(), 8)
    busy = evaluate(jnp.float32(1.0), jax.random.key(2))
    once = len(traced)
    idle = evaluate(jnp.float32(-1.0), jax.random.key(2))
    assert len(traced) == once > 0
    np.testing.assert_array_equal(busy.length, idle.length)
    np.testing.assert_array_equal(idle.returns, 0.5 * idle.length)


@COUNTDOWNS
@pytest.mark.parametrize("population", [True, False])
def test_options_of_compilation_are_handed_on(make, population):
    weights, options = jnp.ones(2) if population else jnp.float32(1.0), {"xla_backend_optimization_level": 1}
    plain, quick, wrong = (
        make_evaluate(first_agent_acts, make(), 8, population=population, compiler_options=chosen)
        for chosen in ({}, options, {"xla_no_such_option": 1})
    )
    chex.assert_trees_all_equal(plain(weights, jax.random.key(2)), quick(weights, jax.random.key(2)))
    with pytest.raises(RuntimeError, match="xla_no_such_option"):
        wrong(weights, jax.random.key(2))


@COUNTDOWNS
def test_trials_of_a_population_play_side_by_side_what_each_plays_alone(make):
    weights, key = jnp.array([1.0, -1.0, 2.0]), jax.random.key(2)
    together, alone = (make_evaluate(first_agent_acts, make(), 8, population=several) for several in (True, False))
    for some in (weights, weights[1:]):
        population = together(some, key)
        for trial, weight in enumerate(some):
            chex.assert_trees_all_equal(jax.tree.map(lambda rows: rows[trial], population), alone(weight, key))  # noqa: B023 called at once


@COUNTDOWNS
def test_the_key_decides_the_episodes(make):
    evaluate = make_evaluate(first_agent_acts, make(), 32)
    first, again, other = (evaluate(jnp.float32(1.0), jax.random.key(seed)).length for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_simulators_on_the_host_are_opened_once_and_closed_with_the_function():
    log = []
    evaluate = make_evaluate(first_agent_acts, host_countdown(log=log), 3)
    assert log == []
    for seed in range(2):
        evaluate(jnp.float32(1.0), jax.random.key(seed))
    assert log.count(("open", 3)) == 1 and ("close",) not in log
    del evaluate
    gc.collect()
    assert log[-1] == ("close",) and log.count(("close",)) == 1


def test_an_action_that_fails_is_not_swallowed():
    def fail(weight, obs, avail):
        raise RuntimeError("no action")

    log = []
    with pytest.raises(RuntimeError, match="no action"):
        record(fail, host_countdown(log=log), jnp.float32(1.0), seed=1)
    assert log[-1] == ("close",)


# seed 3 lasts 5 steps, seed 4 is cut after 6
@pytest.mark.parametrize(
    ("seed", "every", "times"),
    [(3, 1, [0, 1, 2, 3, 4, 5]), (3, 2, [0, 2, 4, 5]), (4, 3, [0, 3, 6]), (4, 4, [0, 4, 6])],
)
@pytest.mark.parametrize("truncates_itself", [True, False])
def test_pictures_of_an_episode(seed, every, times, truncates_itself):
    log = []
    environment = host_countdown(truncates_itself=truncates_itself, log=log)
    frames = record(first_agent_acts, environment, jnp.float32(1.0), seed=seed, every=every)
    assert [int(frame[0, 0, 0]) // 10 for frame in frames] == times
    assert log[-1] == ("close",)


def test_a_video_is_a_file_of_those_pictures(tmp_path):
    import imageio.v3

    path = tmp_path / "new" / "hop.gif"
    record_video(first_agent_acts, host_countdown(), jnp.float32(1.0), str(path), seed=3)
    frames = imageio.v3.imread(path)
    np.testing.assert_array_equal(frames[:, 0, 0, 0], [0, 10, 20, 30, 40, 50])


def test_a_video_that_cannot_be_made_is_refused_before_any_step(tmp_path, monkeypatch):
    log = []
    environment = host_countdown(log=log)

    def refuse(message, environment, path):
        with pytest.raises(ConfigError, match=message):
            record_video(first_agent_acts, environment, jnp.float32(1.0), str(path), seed=3)

    refuse("environment toy/countdown has no renderer", countdown(), tmp_path / "a.gif")
    refuse(r"ending in .gif or .mp4, found '.*a.avi'", environment, tmp_path / "a.avi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else name)
    refuse("a.mp4 needs a package: pip install imageio-ffmpeg", environment, tmp_path / "a.mp4")
    check_video(environment, str(tmp_path / "a.gif"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse("a.gif needs a package: pip install imageio$", environment, tmp_path / "a.gif")
    assert log == [("open", 1), ("close",)] and not list(tmp_path.iterdir())


def test_a_video_where_no_file_can_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="video: cannot write .*a.gif"):
        record_video(first_agent_acts, host_countdown(), jnp.float32(1.0), str(tmp_path / "file" / "a.gif"), seed=3)


def test_summary_of_known_episodes():
    episodes = EpisodeResults(
        returns=jnp.array([1.0, 2.0, 3.0, 6.0]),
        won=jnp.array([False, True, True, True]),
        length=jnp.array([3, 4, 5, 8]),
        truncated=jnp.array([True, False, False, False]),
    )
    # mean 3, squared deviations 4 + 1 + 0 + 9 = 14 over 3
    sd = (14 / 3) ** 0.5
    assert summarise(episodes) == pytest.approx(
        {
            "episodes": 4,
            "return_mean": 3.0,
            "return_sd": sd,
            "return_se": sd / 2,
            "win_rate": 0.75,
            "length_mean": 5.0,
            "truncated_rate": 0.25,
        }
    )
    one = summarise(EpisodeResults(*(values[:1] for values in episodes)))
    assert (one["return_sd"], one["return_se"], one["return_mean"]) == (0.0, 0.0, 1.0)


def test_a_standard_deviation_divides_by_one_less_than_the_number():
    # 1 2 3 6: mean 3, squared deviations 14; 0 4: mean 2, squared deviations 8
    assert standard_deviation([1.0, 2.0, 3.0, 6.0]) == pytest.approx((14 / 3) ** 0.5)
    assert standard_deviation([[0.0], [4.0]]) == pytest.approx(8**0.5)
    assert standard_deviation([7.0]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_what_is_watched_is_the_first_episode_of_an_evaluation(seed):
    seen = dataclasses.replace(countdown(truncates_itself=False), map=Map((), lambda env_state: env_state))
    shown = watch(greedily(first_agent_acts), seen, jnp.float32(1.0), seed=seed, episodes=5, places=[0, 3])
    episodes = make_evaluate(first_agent_acts, seen, 5)(jnp.float32(1.0), jax.random.key(seed))
    for place, (reward, action, won, units, _) in zip((0, 3), shown, strict=True):
        assert reward.sum() == episodes.returns[place] and len(reward) == episodes.length[place]
        assert won == episodes.won[place]
        np.testing.assert_array_equal(action, [[1, 0]] * len(reward))
        np.testing.assert_array_equal(units[1], np.arange(len(reward) + 1))


def coins(env_steps=4):
    """Each step pays 1 if its own coin equals the reset's, or the one that the action's key would have given."""
    coin = lambda key: jax.random.bernoulli(jax.random.split(key)[1]).astype(jnp.int32)

    def show(time, reward):
        end = time == env_steps
        seen = dict(obs=jnp.zeros((2, 1)), global_state=jnp.zeros(1), avail=jnp.ones((2, 2), bool))
        return TimeStep(**seen, reward=reward, terminated=end, truncated=end & False, won=end & False)

    def reset(key):
        return (jnp.int32(0), coin(key)), show(jnp.int32(0), jnp.float32(0))

    def step(key, env_state, action):
        time, first = env_state
        reward = (jax.random.bernoulli(key) == first) + 10.0 * (coin(key) == action[0])
        return (time + 1, first), show(time + 1, reward)

    return Environment("toy/coins", SPEC, env_steps, None, {}, reset, step)


def test_what_a_step_draws_is_independent_of_the_reset_and_of_the_action():
    play = make_evaluate(lambda state, obs, avail: jnp.zeros(obs.shape[:-1], jnp.int32), coins(1), 4000)
    returns = np.asarray(play(jnp.float32(0), jax.random.key(0)).returns)
    assert abs((returns % 10).mean() - 0.5) < 0.05
    coin = lambda state, obs, avail, key: jnp.full(2, jax.random.bernoulli(key).astype(jnp.int32))
    seen = watch(coin, coins(200), jnp.float32(0), seed=0)[0]
    assert abs((seen.reward // 10).mean() - 0.5) < 0.15


def test_what_is_watched_on_the_host_are_the_episodes_of_an_evaluation():
    log = []
    environment = host_countdown(truncates_itself=False, log=log)
    shown = watch(greedily(first_agent_acts), environment, jnp.float32(1.0), seed=2, episodes=5, places=range(5))
    episodes = make_evaluate(first_agent_acts, environment, 5)(jnp.float32(1.0), jax.random.key(2))
    for place, seen in enumerate(shown):
        assert seen.reward.sum() == episodes.returns[place] and len(seen.reward) == episodes.length[place]
        assert seen.won == episodes.won[place] and not len(seen.frames) and seen.units is None
    assert log[:1] == [("open", 1)] and ("close",) in log
