"""Robots in JAX against those on the host: the same steps from the same states."""

import contextlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from omcda_jax import data, envs
from omcda_jax.envs import mamujoco
from omcda_jax.types import ConfigError, DatasetError

pytest.importorskip("mujoco.mjx")

from omcda_jax.envs import mjx as adapter

KEY = jax.random.key(0)
NAME = "HalfCheetah_6x1"


def violent(spec, random, steps):
    """Actions [steps, N, A], half of them at the limits, each kept for five steps."""
    shape = (steps // 5, spec.num_agents, spec.action_dim)
    return np.where(random.random(shape) < 0.5, random.uniform(-2, 2, shape), 1.0).astype(np.float32).repeat(5, axis=0)


@pytest.fixture
def opened():
    """Open one robot of mamujoco."""
    with contextlib.ExitStack() as stack:

        def open_one(name):
            robots = mamujoco._Robots(name, mamujoco.shared_out(mamujoco.build(name)), 1)
            stack.callback(robots.close)
            return robots

        yield open_one


def state_of(host):
    """The state from which the next step of a robot of mamujoco starts, in the adapter's form."""
    data = host._bodies[0].data
    x = data.xpos[1, 0] if host._bodies[0].spec.id.startswith("Ant") else data.qpos[0]
    return adapter.State(*map(np.float32, (data.qpos, data.qvel, data.qacc_warmstart, x)), np.int32(host._time[0]))


@pytest.mark.slow
def test_a_step_is_that_of_the_host(opened, random, strict_ranks):
    """From the host's own states, on the ground and in the air; one compilation, with the time limit included."""
    environment, index, host = envs.make(f"mjx/{NAME}"), np.arange(1), opened(NAME)
    step, touched = jax.jit(environment.step), 0
    for seed in range(6):
        host.reset(index, np.array([seed]))
        for action in violent(environment.spec, random, 40):
            after, shown = step(KEY, state_of(host), action)
            expected = jax.tree.map(lambda leaf: leaf[0], host.step(index, action[None]))
            np.testing.assert_array_equal(shown.avail, expected.avail)
            np.testing.assert_allclose(shown.obs, expected.obs, atol=5e-3)
            np.testing.assert_allclose(shown.global_state, expected.global_state, atol=5e-3)
            np.testing.assert_allclose(shown.reward, expected.reward, atol=1e-3)
            np.testing.assert_allclose(after.qpos, state_of(host).qpos, atol=5e-3)
            assert not (shown.terminated or shown.truncated or shown.won)
            touched += host._bodies[0].data.ncon > 0
    assert 0 < touched < 240
    last = [step(KEY, state_of(host)._replace(time=np.int32(time)), action)[1] for time in (998, 999)]
    assert [(bool(shown.terminated), bool(shown.truncated)) for shown in last] == [(False, False), (False, True)]


@pytest.mark.slow
def test_an_ants_step_is_that_of_the_host(opened, random, strict_ranks, monkeypatch):
    """With friction cones, which need no directions, until it falls; contact forces round the most."""
    pyramids = mamujoco.build

    def cones(scenario):
        env = pyramids(scenario)
        env.single_agent_env.unwrapped.model.opt.cone = 1
        return env

    monkeypatch.setattr(mamujoco, "build", cones)
    environment, index, host = envs.make("mjx/Ant_2x4"), np.arange(1), opened("Ant_2x4")
    step, errors, falls, touched = jax.jit(environment.step), [], 0, 0
    for seed in range(4):
        host.reset(index, np.array([seed]))
        for action in violent(environment.spec, random, 40):
            after, shown = step(KEY, state_of(host), action)
            expected = jax.tree.map(lambda leaf: leaf[0], host.step(index, action[None]))
            assert (shown.terminated, shown.truncated, shown.won) == (expected.terminated, False, False)
            np.testing.assert_array_equal(shown.avail, expected.avail)
            pairs = [(shown.obs, expected.obs), (shown.global_state, expected.global_state)]
            pairs += [(shown.reward, expected.reward), (after.qpos, state_of(host).qpos)]
            pairs += [(after.qvel, state_of(host).qvel), (after.x, state_of(host).x)]
            errors.append([np.abs(np.asarray(ours) - theirs).max() for ours, theirs in pairs])
            touched += host._bodies[0].data.ncon > 0
            if expected.terminated:
                falls += 1
                break
    assert falls and 0 < touched < len(errors)
    contacts, motion = np.split(np.array(errors), [2], axis=1)
    np.testing.assert_array_less(motion, 5e-3)
    np.testing.assert_array_less(np.quantile(contacts, 0.9, axis=0), 1e-2)
    np.testing.assert_array_less(contacts, 0.2)


@pytest.mark.slow
def test_nothing_is_printed():
    program = f"from omcda_jax import envs; envs.make('mjx/{NAME}')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize("name", [NAME, "Ant_4x2"])
def test_sizes_and_starts_are_the_hosts(name):
    environment, host = envs.make(f"mjx/{name}"), envs.make(f"mamujoco/{name}")
    assert (environment.spec, environment.horizon, environment.name) == (host.spec, host.horizon, f"mjx/{name}")
    assert environment.versions.items() > host.versions.items() and "mujoco-mjx" in environment.versions
    state, shown = jax.vmap(environment.reset)(jax.random.split(KEY, 400))
    simulators = host.open(400)
    expected = simulators.reset(np.arange(400), np.arange(400))
    simulators.close()
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shown)] == [
        (leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(expected)
    ]
    np.testing.assert_array_equal(shown.avail, expected.avail)
    # positions are uniform in [-0.1, 0.1], velocities normal with a standard deviation of 0.1
    for of in (np.mean, np.std, lambda values, axis: np.quantile(np.abs(values), 0.98, axis)):
        np.testing.assert_allclose(of(shown.obs, axis=0), of(expected.obs, axis=0), atol=0.04)
    np.testing.assert_array_equal(state.x, state.qpos[:, 0])


def test_data_of_the_host_serve(tmp_path):
    rows = [np.zeros((2, *shape), np.float32) for shape in ((6, 9), (17,))]
    ends = np.array([1], np.int32), np.array([True]), np.array([False])
    action = np.zeros((2, 6, 1), np.float32)
    episodes = data.Episodes(*rows, np.ones((2, 6, 1), bool), action, np.zeros(2, np.float32), *ends)
    data.write(tmp_path / "a.h5", envs.make(f"mamujoco/{NAME}").spec, episodes, {"environment": f"mamujoco/{NAME}"})
    assert data.read(tmp_path / "a.h5", environment=f"mjx/{NAME}")[0].num_agents == 6
    with pytest.raises(DatasetError, match="environment: expected 'mjx/HalfCheetah_2x3'"):
        data.read(tmp_path / "a.h5", environment="mjx/HalfCheetah_2x3")


def test_unknown_scenarios_are_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"mjx: no scenario 'HalfCheeta_6x1'; did you mean 'HalfCheetah_6x1'\?"):
        envs.make("mjx/HalfCheeta_6x1")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)
    with pytest.raises(ConfigError, match=r"mujoco.mjx.*pip install 'omcda-jax\[mjx\]'"):
        envs.make("mjx/HalfCheetah_6x1")
