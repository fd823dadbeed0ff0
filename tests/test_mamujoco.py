"""Multi-agent MuJoCo against gymnasium-robotics' own stepping, and what the batch of copies adds."""

import sys

import gymnasium
import jax
import mujoco
import numpy as np
import pytest

from omcda_jax import envs
from omcda_jax.envs import mamujoco as adapter
from omcda_jax.types import ConfigError

COPIES = 2


def violent_actions(spec, steps, copies=COPIES, seed=0):
    """Actions [steps, copies, N, A], half of them at the limits, each kept for five steps to throw the robots about."""
    random = np.random.default_rng(seed)
    shape = (-(-steps // 5), copies, spec.num_agents, spec.action_dim)
    actions = np.where(random.random(shape) < 0.5, random.uniform(-1, 1, shape), random.choice([-1.0, 1.0], shape))
    return actions.astype(np.float32).repeat(5, axis=0)[:steps]


def opened(name, copies=COPIES):
    environment = envs.make(f"mamujoco/{name}")
    return environment.spec, environment.open(copies)


def padded(spec, observations):
    out = np.zeros((spec.num_agents, spec.obs_dim), np.float32)
    for row, values in zip(out, observations.values(), strict=True):
        row[: len(values)] = values
    return out


@pytest.mark.parametrize(
    "name",
    ["Hopper_3x1", "HalfCheetah_6x1", "Swimmer_2x1", "Ant_2x4", "Walker2d_2x3", "Humanoid_9|8", "Reacher_2x1"],
)
def test_every_row_is_gymnasium_robotics_own(name):
    spec, simulators = opened(name)
    references = [adapter.build(name) for _ in range(COPIES)]
    agents = references[0].possible_agents
    limit = references[0].action_space(agents[0]).high[0]
    shown = simulators.reset(np.arange(COPIES), np.arange(COPIES))
    expected = [reference.reset(seed=seed)[0] for seed, reference in enumerate(references)]
    ends, observed, clipped = 0, 0.0, 0.0
    for time, actions in enumerate(violent_actions(spec, 120)):
        for copy, reference in enumerate(references):
            np.testing.assert_array_equal(shown.obs[copy], padded(spec, expected[copy]))
            np.testing.assert_array_equal(shown.global_state[copy], reference.state().astype(np.float32))
        observed, clipped = max(observed, np.abs(shown.obs).max()), max(clipped, np.abs(shown.global_state).max())
        shown = simulators.step(np.arange(COPIES), actions)
        for copy, reference in enumerate(references):
            local = {
                agent: np.float64(limit) * actions[copy, i, : reference.action_space(agent).shape[0]]
                for i, agent in enumerate(agents)
            }
            expected[copy], reward, terminated, truncated, _ = reference.step(local)
            assert shown.reward[copy] == np.float32(reward[agents[0]])
            assert shown.terminated[copy] == terminated[agents[0]]
            assert shown.truncated[copy] == (truncated[agents[0]] and not terminated[agents[0]])
            if shown.terminated[copy] or shown.truncated[copy]:
                np.testing.assert_array_equal(shown.obs[copy], padded(spec, expected[copy]), "the true last one")
                ends += 1
                seed = 1000 * (time + 1) + copy
                expected[copy], _ = reference.reset(seed=seed)
                new = simulators.reset(np.array([copy]), np.array([seed]))
                for kept, values in zip(jax.tree.leaves(shown), jax.tree.leaves(new), strict=True):
                    kept[copy] = values[0]
    simulators.close()
    assert (ends > 0) == (name not in ("HalfCheetah_6x1", "Swimmer_2x1")), "robots that can fall do"
    if name in ("Hopper_3x1", "Walker2d_2x3"):
        assert clipped == 10.0, "velocities are clipped in the state,"
        assert (observed > 10.0) == (name == "Walker2d_2x3"), "but not in what this robot's agents observe"


def test_sizes_and_types():
    environment = envs.make("mamujoco/HalfCheetah_6x1")
    spec = environment.spec
    assert (spec.num_agents, spec.obs_dim, spec.state_dim, spec.action_dim, spec.discrete) == (6, 9, 17, 1, False)
    assert (environment.name, environment.horizon, environment.max_return) == ("mamujoco/HalfCheetah_6x1", 1000, None)
    assert set(environment.versions) == {"mujoco", "gymnasium", "gymnasium-robotics"}
    simulators = environment.open(3)
    simulators.reset(np.arange(3), np.arange(3))
    shown = simulators.step(np.array([2, 0]), np.zeros((2, 6, 1), np.float32))
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shown)] == [
        ((2, 6, 9), np.float32),
        ((2, 17), np.float32),
        ((2, 6, 1), bool),
        ((2,), np.float32),
        ((2,), bool),
        ((2,), bool),
        ((2,), bool),
    ]
    assert not shown.won.any()
    simulators.close()


def test_an_episode_is_a_function_of_its_seed_and_actions():
    """Copy 2 of 3, after another episode and stepped with others, shows the same as a single fresh copy."""
    spec, alone = opened("Ant_2x4", 1)
    _, crowd = opened("Ant_2x4", 3)
    actions = violent_actions(spec, 40, 3)
    crowd.reset(np.arange(3), np.array([5, 6, 7]))
    for action in violent_actions(spec, 30, 3, seed=1):
        crowd.step(np.arange(3), action)
    first, second = alone.reset(np.array([0]), np.array([11])), crowd.reset(np.array([2]), np.array([11]))
    order = np.array([1, 2, 0])
    rewards = []
    for action in actions:
        np.testing.assert_array_equal(first.obs[0], second.obs[-1])
        np.testing.assert_array_equal(first.global_state[0], second.global_state[-1])
        assert first.reward[0] == second.reward[-1]
        first = alone.step(np.array([0]), action[1:2])
        shown = crowd.step(order, action)
        second = jax.tree.map(lambda leaf: leaf[1:2], shown)
        rewards.append(shown.reward)
    rewards = np.array(rewards)
    assert (rewards[:, 0] != rewards[:, 1]).all() and (rewards[:, 2] != rewards[:, 1]).all()
    other = alone.reset(np.array([0]), np.array([12]))
    assert (other.global_state != alone.reset(np.array([0]), np.array([11])).global_state).any()
    alone.close()
    crowd.close()


def test_padding():
    """The lower body has 8 joints and observes 170 features, the upper body 9 and 242."""
    spec, simulators = opened("Humanoid_9|8")
    shown = simulators.reset(np.arange(2), np.array([3, 3]))
    np.testing.assert_array_equal(shown.avail[0], [[True] * 9, [True] * 8 + [False]])
    assert shown.obs[0, 1, 169] != 0 and not shown.obs[0, 1, 170:].any() and spec.obs_dim == 242
    actions = violent_actions(spec, 1)[0]
    actions[1] = actions[0]
    actions[1, 1, 8] = 0.5 - actions[0, 1, 8]
    shown = simulators.step(np.arange(2), actions)
    np.testing.assert_array_equal(shown.global_state[0], shown.global_state[1])
    actions[1, 1, 7] = 0.5 - actions[0, 1, 7]
    shown = simulators.step(np.arange(2), actions)
    assert (shown.global_state[0] != shown.global_state[1]).any()
    simulators.close()


def test_actions_are_scaled_to_the_robot_and_clipped():
    """A torque of the Humanoid is 0.4 at most; its cost is 0.1 times the sum of 17 squares."""
    spec, simulators = opened("Humanoid_9|8")
    simulators.reset(np.arange(2), np.array([1, 1]))
    action = np.ones((2, 2, 9), np.float32)
    action[1] *= 7.0
    shown = simulators.step(np.arange(2), action)
    np.testing.assert_array_equal(shown.global_state[0], shown.global_state[1])
    reference = adapter.build("Humanoid_9|8").single_agent_env
    reference.reset(seed=1)
    _, reward, _, _, info = reference.step(np.full(17, reference.action_space.high[0]))
    assert info["reward_ctrl"] == pytest.approx(-0.1 * 17 * 0.4**2)
    assert shown.reward[0] == np.float32(reward)
    simulators.close()


def test_the_time_limit_is_no_ending_of_the_task():
    spec, simulators = opened("HalfCheetah_6x1", 1)
    index, still = np.array([0]), np.zeros((1, 6, 1), np.float32)
    simulators.reset(index, np.array([0]))
    flags = []
    for _ in range(1000):
        shown = simulators.step(index, still)
        flags.append((bool(shown.terminated[0]), bool(shown.truncated[0])))
    assert flags == [(False, False)] * 999 + [(False, True)]
    simulators.reset(index, np.array([0]))
    assert not simulators.step(index, still).truncated[0], "the clock starts anew"
    simulators.close()


def test_falling_at_the_time_limit_is_an_ending(monkeypatch):
    def steps_to_the_end():
        spec, simulators = opened("Hopper_3x1", 1)
        simulators.reset(np.array([0]), np.array([0]))
        for time, action in enumerate(violent_actions(spec, 100, 1), 1):
            shown = simulators.step(np.array([0]), action)
            if shown.terminated[0] or shown.truncated[0]:
                simulators.close()
                return time, bool(shown.terminated[0]), bool(shown.truncated[0])

    fall, *_ = steps_to_the_end()
    assert fall > 2
    for limit, ending in ((fall + 1, (fall, True, False)), (fall, (fall, True, False)), (2, (2, False, True))):
        monkeypatch.setattr(gymnasium.spec("Hopper-v5"), "max_episode_steps", limit)
        assert envs.make("mamujoco/Hopper_3x1").horizon == limit
        assert steps_to_the_end() == ending


def test_unknown_scenarios_are_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no scenario 'Hoper_3x1'; did you mean 'Hopper_3x1'\? valid: .*Hopper_3x1"):
        envs.make("mamujoco/Hoper_3x1")
    with pytest.raises(ConfigError, match="no scenario 'ManySegmentSwimmer_x2'"):
        envs.make("mamujoco/ManySegmentSwimmer_x2")
    assert envs.make("mamujoco/ManySegmentSwimmer_3x2").spec.num_agents == 3


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ConfigError, match=r"gymnasium_robotics.*pip install 'omcda-jax\[mujoco\]'"):
        envs.make("mamujoco/Hopper_3x1")


def test_nothing_is_printed(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    before = mujoco.get_mju_user_warning()
    _, simulators = opened("HalfCheetah_6x1")
    simulators.reset(np.arange(2), np.arange(2))
    simulators.close()
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir()), "MuJoCo's log file"
    assert mujoco.get_mju_user_warning() == before


class FakeRenderer:
    """Replaces MuJoCo's renderer, which needs graphics; its picture is the first joint's position."""

    made = closed = 0

    def __init__(self, model, height, width):
        FakeRenderer.made += 1
        self.shape = (height, width, 3)

    def update_scene(self, data, camera):
        self.position, self.camera = data.qpos[1], camera

    def render(self):
        assert self.camera == 0, "the camera that follows the robot"
        return np.full(self.shape, 100 * self.position).astype(np.uint8)

    def close(self):
        FakeRenderer.closed += 1


def test_pictures_are_of_copy_0_by_a_renderer_made_when_asked_for(monkeypatch):
    monkeypatch.setattr(mujoco, "Renderer", FakeRenderer)
    spec, simulators = opened("Hopper_3x1")
    simulators.reset(np.arange(2), np.arange(2))
    assert FakeRenderer.made == 0
    first = simulators.render()
    for action in violent_actions(spec, 20):
        simulators.step(np.array([1]), action[1:])
    np.testing.assert_array_equal(simulators.render(), first)
    for action in violent_actions(spec, 20):
        simulators.step(np.array([0]), action[:1])
    assert (simulators.render() != first).all()
    assert (FakeRenderer.made, FakeRenderer.closed) == (1, 0)
    simulators.close()
    assert FakeRenderer.closed == 1


@pytest.mark.parametrize("name", ["Hopper_3x1", "Ant_2x4"])
def test_a_picture_shows_where_the_robot_is_and_changes_nothing(monkeypatch, name):
    seen = []
    monkeypatch.setattr(mujoco, "Renderer", FakeRenderer)
    monkeypatch.setattr(FakeRenderer, "update_scene", lambda self, data, camera: seen.append(data.xpos[1].copy()))
    monkeypatch.setattr(FakeRenderer, "render", lambda self: None)
    spec, filmed = opened(name, 1)
    _, unseen = opened(name, 1)
    first, index = {}, np.array([0])
    for seed in (7, 8, 7):  # the third episode begins like the first, after another one
        for simulators in (filmed, unseen):
            simulators.reset(index, np.array([seed]))
        filmed.render()
        np.testing.assert_array_equal(first.setdefault(seed, seen[-1]), seen[-1])
        for action in violent_actions(spec, 3, 1, seed):
            shown, expected = filmed.step(index, action), unseen.step(index, action)
            for one, other in zip(jax.tree.leaves(shown), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(one, other)
            filmed.render()
    assert (first[7] != first[8]).any()
    assert np.abs(np.diff(seen[:4], axis=0)).max(axis=1).all(), "every step moves it"
    filmed.close()
    unseen.close()


def test_without_graphics_the_message_says_how_to_get_them(monkeypatch):
    def fail(*_):
        raise mujoco.FatalError("no OpenGL\nanywhere")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    _, simulators = opened("Hopper_3x1")
    with pytest.raises(ConfigError, match=r"MUJOCO_GL=glfw \(no OpenGL anywhere\).*MUJOCO_GL=egl .*apt-get install"):
        simulators.render()
    simulators.close()
