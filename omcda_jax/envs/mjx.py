"""Ant and HalfCheetah of `mamujoco` in JAX, stepped by MJX, so that their episodes are played where the policy is.

Models, sizes, rewards and endings are those of `mamujoco`, with Gymnasium's robots (v5; the rules here follow its
`ant_v5.py` and `half_cheetah_v5.py`). So datasets and policies of `mamujoco/X` also work for `mjx/X`. Physics is in
single precision: from the same state, both show the same step up to rounding, but two episodes drift apart. The
exception is an Ant's leg that stands within 30 degrees of upright: MuJoCo aligns the friction pyramid with the leg, MJX
with the axes of the world.
"""

import contextlib
import dataclasses
import functools
import io
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.envs import mamujoco
from omcda_jax.envs.base import Environment, TimeStep
from omcda_jax.envs.versions import installed
from omcda_jax.types import ConfigError, suggestion

SCENARIOS = ("Ant_2x4", "Ant_2x4d", "Ant_4x2", "HalfCheetah_2x3", "HalfCheetah_6x1")


class State(NamedTuple):
    """The part of a robot's past that determines its future.

    Attributes:
        qpos: [nq] positions of the joints.
        qvel: [nv] their velocities.
        warm: [nv] accelerations from which the solver starts.
        x: [] forward position, from which the next reward is measured.
        time: [] int32, steps since the reset.
    """

    qpos: chex.Array
    qvel: chex.Array
    warm: chex.Array
    x: chex.Array
    time: chex.Array


@dataclasses.dataclass(frozen=True)
class _Robot:
    """One robot divided among agents; `model` and `data` contain NumPy arrays, so they belong to no device."""

    is_ant: bool
    gym: Any  # Gymnasium's simulator, for its constants
    team: mamujoco.Team
    model: Any
    data: Any


def make(scenario: str) -> Environment:
    """Build one robot with one partition of its joints as two pure functions.

    Args:
        scenario: robot, underscore, partition: one of `SCENARIOS`.

    Raises:
        ConfigError: unknown scenario, or MJX or gymnasium-robotics is not installed.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"mjx: no scenario {scenario!r}; {suggestion(scenario, SCENARIOS)}")
    mjx = _mjx()
    env = mamujoco.build(scenario)
    gym = env.single_agent_env.unwrapped
    model = mjx.put_model(gym.model, impl="jax")
    model, data = jax.tree.map(np.asarray, (model, mjx.make_data(model, impl="jax")))
    robot = _Robot(scenario.startswith("Ant_"), gym, mamujoco.shared_out(env), model, data)
    return Environment(
        name=f"mjx/{scenario}",
        spec=robot.team.spec,
        horizon=robot.team.horizon,
        max_return=None,
        versions=installed(*mamujoco.PACKAGES, "mujoco-mjx", "jax"),
        reset=functools.partial(_reset, robot),
        step=_exact(functools.partial(_step, robot)),
    )


def _mjx():
    try:
        # the import prints which of its optional packages are missing
        with contextlib.redirect_stdout(io.StringIO()):
            import mujoco.mjx
    except ImportError as error:
        raise ConfigError(f"environment mjx needs a package ({error}): pip install 'omcda-jax[mjx]'") from error
    return mujoco.mjx


def _reset(robot, key):
    gym, scale = robot.gym, robot.gym._reset_noise_scale
    position_key, velocity_key = jax.random.split(key)
    noise = jax.random.uniform(position_key, gym.init_qpos.shape, jnp.float32, -scale, scale)
    qvel = scale * jax.random.normal(velocity_key, gym.init_qvel.shape, jnp.float32)
    qpos = jnp.asarray(gym.init_qpos, jnp.float32) + noise
    state = State(qpos, qvel, jnp.zeros_like(qvel), qpos[0], jnp.int32(0))
    # Gymnasium shows an Ant's contacts from its first step on
    return state, _show(robot, state, jnp.zeros((gym.model.nbody, 6)), jnp.float32(0.0), jnp.zeros((), bool))


def _step(robot, key, state, action):
    mjx, team, gym = _mjx(), robot.team, robot.gym
    model, data = jax.tree.map(jnp.asarray, (robot.model, robot.data))
    torque = jnp.zeros(len(team.joint)).at[team.joint].set(jnp.clip(action, -1.0, 1.0)[team.has])
    data = data.replace(qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warm, ctrl=torque)
    data = jax.lax.fori_loop(0, gym.frame_skip, lambda _, data: mjx.step(model, data), data)
    # Gymnasium takes an Ant's position from its body, which is that before the last substep's movement
    x = data.xpos[1, 0] if robot.is_ant else data.qpos[0]
    after = State(data.qpos, data.qvel, data.qacc_warmstart, x, state.time + 1)
    reward = gym._forward_reward_weight * (x - state.x) / gym.dt - gym._ctrl_cost_weight * jnp.sum(torque**2)
    if not robot.is_ant:
        return after, _show(robot, after, None, reward, jnp.zeros((), bool))
    low, high = gym._healthy_z_range
    healthy = jnp.isfinite(after.qpos).all() & jnp.isfinite(after.qvel).all()
    healthy &= (low <= after.qpos[2]) & (after.qpos[2] <= high)
    contacts = jnp.clip(mjx.rne_postconstraint(model, data)._impl.cfrc_ext, *gym._contact_force_range)
    reward += gym._healthy_reward * healthy - gym._contact_cost_weight * jnp.sum(contacts**2)
    return after, _show(robot, after, contacts, reward, ~healthy)


def _show(robot, state, contacts, reward, terminated):
    parts = [state.qpos[robot.gym.observation_structure["skipped_qpos"] :], state.qvel]
    seen = jnp.concatenate([*parts, contacts[1:].reshape(-1)] if robot.is_ant else parts)
    return TimeStep(
        obs=jnp.append(seen, 0.0)[robot.team.selection],
        global_state=seen,
        avail=jnp.asarray(robot.team.has),
        reward=reward,
        terminated=terminated,
        truncated=(state.time >= robot.team.horizon) & ~terminated,
        won=jnp.zeros((), bool),
    )


def _exact(function):
    """Multiply in single precision on accelerators too, and let MJX broadcast where the caller makes JAX refuse it."""

    @functools.wraps(function)
    def wrapped(*arguments):
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return wrapped
