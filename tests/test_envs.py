"""The simulators' adapters: what a step shows, how an episode ends, and the messages for users' mistakes."""

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
    return jax.jit(jax.vmap(environment.step))


@pytest.fixture(scope="module")
def start(environment):
    return jax.jit(jax.vmap(environment.reset))(keys(0))


@pytest.fixture(scope="module")
def battles(start, step):
    """Rollouts [STEPS, EPISODES, ...] in which all agents shoot the first enemy in range, or else stand still."""
    env_state, now = start
    shown = []
    for index in range(STEPS):
        avail = np.asarray(now.avail)
        action = np.where(avail[..., 5:].any(-1), 5 + avail[..., 5:].argmax(-1), 4)
        env_state, now = step(keys(index + 1), env_state, jnp.asarray(action, jnp.int32))
        shown.append(jax.tree.map(np.asarray, now))
    shown = jax.tree.map(lambda *leaves: np.stack(leaves), *shown)
    ended = shown.terminated | shown.truncated
    last = ended.argmax(0)
    assert ended.any(0).all()
    return shown, last, np.arange(STEPS)[:, None] <= last


def keys(seed):
    return jax.random.split(jax.random.key(seed), EPISODES)


STOP = np.full((EPISODES, ALLIES), 4, np.int32)


def with_battle(env_state, **changes):
    changes = {name: jnp.broadcast_to(value, (EPISODES, *np.shape(value))) for name, value in changes.items()}
    return env_state.replace(state=env_state.state.replace(**changes))


def units(state):
    """The per-unit part of a global state [..., S]: [..., units, 10], allies first."""
    return np.asarray(state)[..., : 10 * (ALLIES + ENEMIES)].reshape(*state.shape[:-1], ALLIES + ENEMIES, 10)


def test_reset_shows_the_announced_sizes(environment, start):
    _, now = start
    spec = environment.spec
    assert (spec.num_agents, spec.obs_dim, spec.state_dim, spec.action_dim, spec.discrete) == (3, 75, 72, 8, True)
    assert now.obs.shape == (EPISODES, 3, 75) and now.obs.dtype == jnp.float32
    assert now.global_state.shape == (EPISODES, 72) and now.global_state.dtype == jnp.float32
    assert now.avail.shape == (EPISODES, 3, 8) and now.avail.dtype == jnp.bool_
    assert not (now.reward.any() or now.terminated.any() or now.truncated.any() or now.won.any())
    assert environment.name == "smax/3m" and environment.horizon == 100 and environment.max_return == 2.0
    assert set(environment.versions) == {"jaxmarl", "jax"}


def test_a_scan_carries_the_state_without_a_second_trace(environment):
    traced = []

    def body(carry, key):
        traced.append(key)
        env_state, then = environment.step(key, carry[0], jnp.array([0, 1, 4]))
        return (env_state, then), then.reward

    def play(key):
        return jax.lax.scan(body, environment.reset(key), jax.random.split(key, 5))

    (_, last), reward = jax.eval_shape(play, jax.random.key(2))
    assert reward.shape == (5,) and last.obs.shape == (3, 75)
    # a weakly typed leaf would make the scan trace its body again
    assert len(traced) == 1


def test_an_episode_of_a_dataset_is_brought_onto_the_map_as_it_was_played(environment, start, step):
    env_state, now = start
    states, shown, actions = [env_state], [now.global_state], []
    for index in range(20):
        avail = np.asarray(now.avail)
        actions.append(np.where(avail[..., 5:].any(-1), 5 + avail[..., 5:].argmax(-1), 4).astype(np.int32))
        env_state, now = step(keys(index + 1), env_state, jnp.asarray(actions[-1]))
        states.append(env_state)
        shown.append(now.global_state)
    played = jax.vmap(jax.vmap(environment.map.units))(jax.tree.map(lambda *each: jnp.stack(each), *states))
    targets, dead = 0, 0
    for episode in range(EPISODES):
        own = jax.tree.map(lambda values: np.asarray(values[:, episode]), played)  # noqa: B023 called at once
        action = np.stack(actions)[:, episode]
        found = environment.map.recorded(np.stack(shown)[:, episode], action)
        there = own.health > 0
        for key in ("radius", "health", "team", "kind"):
            np.testing.assert_allclose(getattr(found, key), getattr(own, key), rtol=1e-5, err_msg=key)
        np.testing.assert_allclose(found.position[there], own.position[there], rtol=1e-5)
        alive = there[:, :ALLIES]
        np.testing.assert_array_equal(found.target[:, :ALLIES][alive], own.target[:, :ALLIES][alive])
        np.testing.assert_array_equal(found.target[:, ALLIES:], np.arange(ALLIES, ALLIES + ENEMIES)[None].repeat(21, 0))
        targets, dead = targets + (found.target >= ALLIES)[:, :ALLIES].sum(), dead + (~there).sum()
        # a unit that dies stays where it was last seen
        fallen = ~there[1:] & ~there[:-1]
        np.testing.assert_array_equal(found.position[1:][fallen], found.position[:-1][fallen])
    assert targets > 100 and dead > 100


def test_the_horizon_truncates(start, step):
    _, then = step(keys(3), with_battle(start[0], step=np.int32(98)), STOP)
    assert not then.terminated.any() and not then.truncated.any()
    _, then = step(keys(3), with_battle(start[0], step=np.int32(99)), STOP)
    assert then.truncated.all() and not then.terminated.any() and not then.won.any()


@pytest.mark.parametrize(
    ("ally", "enemy", "won", "reward"),
    [(45.0, 0.0, True, 1.0), (0.0, 45.0, False, 0.0), (0.0, 0.0, False, 0.0)],
    ids=["victory", "defeat", "both wiped out"],
)
def test_a_wiped_out_side_terminates_even_at_the_horizon(start, step, ally, enemy, won, reward):
    health = np.array([ally] * ALLIES + [enemy] * ENEMIES, np.float32)
    _, then = step(keys(4), with_battle(start[0], unit_health=health, step=np.int32(99)), STOP)
    assert then.terminated.all() and not then.truncated.any()
    assert (then.won == won).all() and (then.reward == reward).all()


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
    final = units(shown.global_state[last, episode])
    won = shown.won[last, episode]
    assert shown.terminated[last, episode].all()
    assert (final[won, ALLIES:] == 0).all() and (final[won, :ALLIES, 0].max(-1) > 0).all()
    assert (final[~won, :ALLIES] == 0).all()


def test_the_dead_have_one_legal_action_and_the_living_can_move(battles):
    shown, _, running = battles
    alive = units(shown.global_state)[..., :ALLIES, 0] > 0
    choices = shown.avail.sum(-1)
    assert (~alive & running[..., None]).any()
    assert (choices[~alive] == 1).all() and shown.avail[~alive][:, 4].all()
    assert (choices[alive] >= 5).all()
    assert (shown.obs[~alive] == 0).all()


def test_features_are_of_order_one(battles):
    shown, _, running = battles
    assert np.abs(shown.obs[running]).max() <= 1 + 1e-6
    state = shown.global_state[running]
    assert state.min() >= 0 and state.max() <= 1
    # both teams start in the middle of the map's height, a quarter of its width from their side
    first = units(shown.global_state)[0]
    assert 0.15 < first[:, :ALLIES, 1].mean() < 0.35 and 0.4 < first[:, :, 2].mean() < 0.6


def test_a_shift_moves_the_team_and_nobody_else(environment):
    shifted = smax.make("3m", shift=(0.5, 6.0, 12.0))
    assert shifted.name != environment.name
    _, now = jax.jit(jax.vmap(shifted.reset))(keys(5))
    height = 32 * units(now.global_state)[..., 2]
    # units start within two map units of the middle, 16, and are pushed apart a little
    assert np.abs(height[:, ALLIES:] - 16).max() < 3
    centre = height[:, :ALLIES].mean(1)
    assert centre.min() > 13 and 25 < centre.max() < 31 and not ((centre > 19) & (centre < 21)).any()
    assert np.ptp(height[:, :ALLIES], axis=1).max() < 6
    moved = centre > 19
    assert 0.2 < moved.mean() < 0.7
    # the observation shows the same battle as the state
    np.testing.assert_allclose(now.obs[:, :, -8], units(now.global_state)[:, :ALLIES, 2], rtol=1e-5)


def test_fewer_enemies_are_dead_from_the_start_and_the_battle_goes_on(environment):
    easier = smax.make("3m", fewer=(0.5, 0.9))
    assert easier.name != environment.name
    env_state, now = jax.jit(jax.vmap(easier.reset))(keys(5))
    health = units(now.global_state)[..., 0]
    assert (health[:, : ALLIES + 1] > 0).all()
    dead = (health[:, ALLIES + 1 :] == 0).mean()
    # half of the starts; in the others, .45 of the two that may be dead
    assert 0.1 < dead < 0.35
    action = jnp.full((len(health), ALLIES), 4)
    _, after = jax.jit(jax.vmap(easier.step))(keys(6), env_state, action)
    still = health[:, ALLIES:] == 0
    assert (units(after.global_state)[:, ALLIES:, 0][still] == 0).all() and not after.terminated.any()
    # a legal attack on an enemy in range never targets a dead one
    assert not after.avail[..., 5:][np.broadcast_to(still[:, None], (len(health), ALLIES, 3))].any()


def test_corridor_is_ours():
    spec = envs.make("smax/corridor").spec
    assert (spec.num_agents, spec.action_dim) == (6, 5 + 24)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smax/5m_vs_6n", r"smax: no scenario '5m_vs_6n'; did you mean '5m_vs_6m'\?"),
        ("smax/nowhere", "corridor"),
        ("smx/3m", r"found 'smx/3m'; did you mean 'smax'\?"),
        ("smax", "smax/<scenario>"),
        ("smax/", "smax/<scenario>"),
    ],
)
def test_unknown_names_say_what_there_is(name, says):
    with pytest.raises(ConfigError, match=says) as error:
        envs.make(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "starts",
    [
        {"shift": (1.5, 0.0, 5.0)},
        {"shift": (0.5, 0.0, 13.0)},
        {"shift": (0.5, -1.0, 5.0)},
        {"shift": (0.5, 6.0, 5.0)},
        {"fewer": (1.5, 0.5)},
        {"fewer": (0.5, -0.5)},
    ],
)
def test_starts_that_cannot_be_are_refused(starts):
    with pytest.raises(ConfigError, match=f"smax {next(iter(starts))}: expected 0 <= probability"):
        smax.make("3m", **starts)


def test_missing_jaxmarl_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl.environments.smax", None)
    with pytest.raises(ConfigError, match=r"pip install 'omcda-jax\[smax\]'"):
        envs.make("smax/3m")


MAKING = """
import io, pickle, sys
sys.stdout, sys.stderr = streams = io.StringIO(), io.StringIO()
import jax
from omcda_jax import envs
assert "jaxmarl" not in sys.modules
here = envs.make("smax/3m")
assert "jaxmarl.environments.hanabi" not in sys.modules
assert (sys.stdout, sys.stderr) == streams and not any(stream.getvalue() for stream in streams)
env_state, shown = here.reset(jax.random.key(0))
pickle.loads(pickle.dumps(jax.tree.structure(env_state)))
import jaxmarl
assert not hasattr(jaxmarl, "no_such_name") and not hasattr(jaxmarl.environments, "no_such_name")
from jaxmarl.environments import Hanabi
scenario = jaxmarl.environments.smax.map_name_to_scenario("3m")
theirs = jaxmarl.make("HeuristicEnemySMAX", scenario=scenario)
assert shown.obs.shape == (theirs.num_allies, theirs.obs_size)
assert jax.tree.structure(env_state) == jax.tree.structure(theirs.reset(jax.random.key(0))[1])
jaxmarl.environments.smax.register_scenario("mine", scenario)
assert envs.make("smax/mine").spec == here.spec
"""


def test_an_environment_is_made_silently_and_the_rest_of_jaxmarl_is_there_for_who_asks():
    done = subprocess.run([sys.executable, "-c", MAKING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_jaxmarl_that_was_imported_before_is_used():
    code = """if True:
        import jaxmarl
        from omcda_jax.envs import smax
        simulator, _ = smax._jaxmarl()
        assert simulator is jaxmarl.environments.smax.HeuristicEnemySMAX
        assert type(jaxmarl) is type(smax.types)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_units_on_the_map_are_those_of_the_battle(environment, start, step):
    env_state, now = start
    before = jax.vmap(environment.map.units)(env_state)
    assert environment.map.kinds[int(before.kind[0, 0])] == "marine"
    np.testing.assert_array_equal(before.team[0], [0] * ALLIES + [1] * ENEMIES)
    np.testing.assert_array_equal(before.health, 1.0)
    np.testing.assert_array_equal(before.target, np.tile(np.arange(6), (EPISODES, 1)))
    # both sides within reach of each other; every ally shoots the last enemy, and the enemies shoot back
    positions = np.concatenate([np.tile([14.0, 16.0], (ALLIES, 1)), np.tile([17.0, 16.0], (ENEMIES, 1))])
    positions[:, 1] += np.tile([-1.0, 0.0, 1.0], 2)
    near = with_battle(env_state, unit_positions=positions.astype(np.float32))
    after, _ = step(keys(1), near, jnp.full((EPISODES, ALLIES), 5 + ENEMIES - 1, jnp.int32))
    seen = jax.vmap(environment.map.units)(after)
    np.testing.assert_array_equal(seen.target[:, :ALLIES], ALLIES + ENEMIES - 1)
    struck = np.asarray(seen.health < 1)
    assert (struck[:, -1] & ~struck[:, ALLIES:-1].any(1)).all(), "the health lost is that of the unit aimed at"
    aimed = np.zeros_like(struck)
    for episode, targets in enumerate(np.asarray(seen.target)):
        aimed[episode, targets[ALLIES:]] = True
    assert (struck[:, :ALLIES] <= aimed[:, :ALLIES]).all() and struck[:, :ALLIES].any()
    assert not aimed[:, ALLIES:].any(), "enemies shoot at the team"
