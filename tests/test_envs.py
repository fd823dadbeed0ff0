"""The simulators' adapters: what a step shows, how an episode ends, and what a user's mistake says."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax import envs
from omcda_jax.envs import smax
from omcda_jax.types import ConfigError

pytest.importorskip("jaxmarl")

ALLIES, ENEMIES, EPISODES, STEPS = 3, 3, 64, 40


@pytest.fixture(scope="module")
def environment():
    return envs.make("smax/3m")


@pytest.fixture(scope="module")
def step(environment):
    return jax.jit(environment.step)


@pytest.fixture(scope="module")
def start(environment):
    return jax.jit(environment.reset)(jax.random.key(0))


@pytest.fixture(scope="module")
def battles(environment):
    """Rollouts [STEPS, EPISODES, ...] in which everyone shoots the first enemy in range, or else stands still."""

    def act(carry, key):
        env_state, now = carry
        action = jnp.where(now.avail[..., 5:].any(-1), 5 + now.avail[..., 5:].argmax(-1), 4)
        env_state, then = jax.vmap(environment.step)(jax.random.split(key, EPISODES), env_state, action)
        return (env_state, then), then

    @jax.jit
    def play(key):
        carry = jax.vmap(environment.reset)(jax.random.split(key, EPISODES))
        return jax.lax.scan(act, carry, jax.random.split(key, STEPS))[1]

    shown = jax.tree.map(np.asarray, play(jax.random.key(1)))
    ended = shown.terminated | shown.truncated
    last = ended.argmax(0)
    running = np.arange(STEPS)[:, None] <= last
    assert ended.any(0).all()
    return shown, last, running


def with_battle(env_state, **changes):
    return env_state.replace(state=env_state.state.replace(**changes))


def units(state):
    """The per-unit part of a global state [..., S]: [..., units, 10], allies first."""
    return np.asarray(state)[..., : 10 * (ALLIES + ENEMIES)].reshape(*state.shape[:-1], ALLIES + ENEMIES, 10)


def test_reset_shows_the_announced_sizes(environment, start):
    _, now = start
    spec = environment.spec
    assert (spec.num_agents, spec.obs_dim, spec.state_dim, spec.action_dim, spec.discrete) == (3, 75, 72, 8, True)
    assert now.obs.shape == (3, 75) and now.obs.dtype == jnp.float32
    assert now.state.shape == (72,) and now.state.dtype == jnp.float32
    assert now.avail.shape == (3, 8) and now.avail.dtype == jnp.bool_
    assert now.reward == 0 and not (now.terminated or now.truncated or now.won)
    assert environment.name == "smax/3m" and environment.horizon == 100 and environment.max_return == 2.0
    assert set(environment.versions) == {"jaxmarl", "jax"}


def test_step_keeps_shapes_types_and_weakness(start, step):
    described = [
        jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), shown)
        for shown in (start, step(jax.random.key(2), start[0], jnp.array([0, 1, 4])))
    ]
    assert described[0] == described[1]


def test_the_horizon_truncates(start, step):
    _, then = step(jax.random.key(3), with_battle(start[0], step=jnp.array(98)), jnp.full(3, 4))
    assert not then.terminated and not then.truncated
    _, then = step(jax.random.key(3), with_battle(start[0], step=jnp.array(99)), jnp.full(3, 4))
    assert then.truncated and not then.terminated and not then.won


@pytest.mark.parametrize(
    ("ally", "enemy", "won", "reward"),
    [(45.0, 0.0, True, 1.0), (0.0, 45.0, False, 0.0), (0.0, 0.0, False, 0.0)],
    ids=["victory", "defeat", "both wiped out"],
)
def test_a_wiped_out_side_terminates_even_at_the_horizon(start, step, ally, enemy, won, reward):
    health = jnp.array([ally] * ALLIES + [enemy] * ENEMIES)
    battle = with_battle(start[0], unit_health=health, step=jnp.array(99))
    _, then = step(jax.random.key(4), battle, jnp.full(3, 4))
    assert then.terminated and not then.truncated
    assert bool(then.won) == won and float(then.reward) == reward


def test_returns_are_two_when_won_and_at_most_one_otherwise(battles):
    shown, last, running = battles
    returns = (shown.reward * running).sum(0)
    won = shown.won[last, np.arange(EPISODES)]
    assert 0 < won.sum() < EPISODES
    np.testing.assert_allclose(returns[won], 2.0, rtol=1e-5)
    assert returns[~won].max() <= 1 + 1e-5 and returns.min() >= 0


def test_the_last_step_shows_the_end_and_not_the_next_episode(battles):
    shown, last, _ = battles
    episode = np.arange(EPISODES)
    final = units(shown.state[last, episode])
    won = shown.won[last, episode]
    assert shown.terminated[last, episode].all()
    assert (final[won, ALLIES:] == 0).all() and (final[won, :ALLIES, 0].max(-1) > 0).all()
    assert (final[~won, :ALLIES] == 0).all()


def test_the_dead_have_one_legal_action_and_the_living_can_move(battles):
    shown, _, running = battles
    alive = units(shown.state)[..., :ALLIES, 0] > 0
    choices = shown.avail.sum(-1)
    assert (~alive & running[..., None]).any()
    assert (choices[~alive] == 1).all() and shown.avail[~alive][:, 4].all()
    assert (choices[alive] >= 5).all()
    assert (shown.obs[~alive] == 0).all()


def test_features_are_of_order_one(battles):
    shown, _, running = battles
    assert np.abs(shown.obs[running]).max() <= 1 + 1e-6
    state = shown.state[running]
    assert state.min() >= 0 and state.max() <= 1
    # both teams start in the middle of the map's height, a quarter of its width from their side
    first = units(shown.state)[0]
    assert 0.15 < first[:, :ALLIES, 1].mean() < 0.35 and 0.4 < first[:, :, 2].mean() < 0.6


def test_a_handicap_weakens_the_enemies_and_nobody_else(environment):
    reset = jax.jit(smax.make("3m", handicap=(0.5, 0.4, 0.6)).reset)
    shown = [reset(jax.random.key(seed))[1] for seed in range(20)]
    health = np.stack([units(now.state)[:, 0] for now in shown])
    assert (health[:, :ALLIES] == 1).all()
    enemies = health[:, ALLIES:]
    np.testing.assert_array_equal(enemies, enemies[:, :1].repeat(ENEMIES, 1))
    weakened = enemies[:, 0] < 1
    assert 2 <= weakened.sum() <= 18
    assert (enemies[weakened] >= 0.4).all() and (enemies[weakened] <= 0.6).all()
    assert smax.make("3m", handicap=(0.5, 0.4, 0.6)).name != environment.name


def test_corridor_is_ours():
    spec = envs.make("smax/corridor").spec
    assert (spec.num_agents, spec.action_dim) == (6, 5 + 24)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smax/5m_vs_6n", "did you mean 5m_vs_6m"),
        ("smax/nowhere", "corridor"),
        ("smx/3m", "did you mean smax/3m"),
        ("smax", "smax/<scenario>"),
        ("smax/", "smax/<scenario>"),
    ],
)
def test_unknown_names_say_what_there_is(name, says):
    with pytest.raises(ConfigError, match=says) as error:
        envs.make(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("handicap", [(1.5, 0.5, 1.0), (0.5, 0.0, 1.0), (0.5, 0.9, 0.8), (0.5, 0.9, 1.1)])
def test_bad_handicaps_are_refused(handicap):
    with pytest.raises(ConfigError, match="handicap"):
        smax.make("3m", handicap=handicap)


def test_missing_jaxmarl_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl.environments.smax", None)
    with pytest.raises(ConfigError, match=r"pip install 'omcda-jax\[smax\]'"):
        envs.make("smax/3m")


def test_making_an_environment_is_silent_and_keeps_the_streams():
    script = (
        "import io, sys; sys.stdout = out = io.StringIO(); sys.stderr = err = io.StringIO();"
        "from omcda_jax import envs; assert 'jaxmarl' not in sys.modules; envs.make('smax/3m');"
        "assert sys.stdout is out and sys.stderr is err and not out.getvalue(), out.getvalue()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
