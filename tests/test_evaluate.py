import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax.evaluate import Episodes, make_evaluate, summarise
from omcda_jax.types import Environment, EnvSpec, TimeStep

SPEC = EnvSpec(num_agents=2, obs_dim=1, state_dim=1, action_dim=2, discrete=True)
LENGTHS = (1, 2, 4, 5, 9)


def countdown(horizon=6, truncates_itself=True):
    """Episodes of a length drawn at the reset; shorter than 5 is won, longer than the horizon is cut.

    Every step pays the sum of the actions plus 0.5. An episode that is stepped on after its end goes on paying, and
    winning, so that a missing mask shows.
    """

    def show(length, time, reward):
        return TimeStep(
            obs=jnp.array([[0.0], [1.0]]),
            state=length[None].astype(jnp.float32),
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
    """Agent 0 plays 1 where `weight` is positive, agent 1 has no choice; a float, to be summed by the reward."""
    return jnp.where(avail[..., 1], (weight > 0).astype(jnp.float32), 0.0)


@pytest.mark.parametrize("truncates_itself", [True, False])
def test_every_episode_is_counted_up_to_its_own_end(truncates_itself):
    evaluate = make_evaluate(first_agent_acts, countdown(truncates_itself=truncates_itself), 40)
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


def test_other_parameters_need_no_new_compilation():
    evaluate = make_evaluate(first_agent_acts, countdown(), 8)
    busy = evaluate(jnp.float32(1.0), jax.random.key(2))
    idle = evaluate(jnp.float32(-1.0), jax.random.key(2))
    np.testing.assert_array_equal(busy.length, idle.length)
    np.testing.assert_array_equal(idle.returns, 0.5 * idle.length)
    assert evaluate._cache_size() == 1


def test_the_key_decides_the_episodes():
    evaluate = make_evaluate(first_agent_acts, countdown(), 32)
    first, again, other = (evaluate(jnp.float32(1.0), jax.random.key(seed)).length for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_summary_of_known_episodes():
    episodes = Episodes(
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
    one = summarise(Episodes(*(values[:1] for values in episodes)))
    assert (one["return_sd"], one["return_se"], one["return_mean"]) == (0.0, 0.0, 1.0)
