"""Multi-agent MuJoCo: the robots of Gymnasium with their joints divided among agents, as in gymnasium-robotics.

Gymnasium's single-agent simulators are stepped in threads, because the physics releases Python's lock. For the robots
in `VECTORISED`, MuJoCo's `Batch` steps all copies in one call instead, and NumPy computes rewards and endings. Every
number is that of gymnasium-robotics; `benchmarks/mamujoco.py` measures how much faster this is.

An agent observes its own joints, the next joints and the torso (`agent_obsk=1`). The team's reward is the robot's. An
agent with fewer observations or joints than another is padded with zeros; `avail` is False where it has no joint.
"""

import concurrent.futures
import contextlib
import io
import os
import re
import warnings
from typing import NamedTuple

import numpy as np

from omcda_jax.envs.base import HostEnvironment, Simulators, TimeStep
from omcda_jax.envs.versions import installed
from omcda_jax.system import cores, one_line
from omcda_jax.types import ConfigError, EnvSpec, suggestion

# Without CoupledHalfCheetah, which fails with MuJoCo 4, and Pusher, where an agent sees joints in an order that differs
# from copy to copy.
SCENARIOS = (
    "Ant_2x4",
    "Ant_2x4d",
    "Ant_4x2",
    "HalfCheetah_2x3",
    "HalfCheetah_6x1",
    "Hopper_3x1",
    "HumanoidStandup_9|8",
    "Humanoid_9|8",
    "Reacher_2x1",
    "Swimmer_2x1",
    "Walker2d_2x3",
)
VECTORISED = ("HalfCheetah", "Hopper", "Swimmer")  # qpos and qvel determine their results, see `_outcome`
PACKAGES = ("mujoco", "gymnasium", "gymnasium-robotics")
PICTURE_SIZE = 320  # pixels, width and height
_SEGMENTS = re.compile(r"ManySegment(Ant|Swimmer)_[1-9]\d*x[1-9]\d*")  # any number of agents x segments per agent


def make(scenario: str) -> HostEnvironment:
    """Build one robot with one partition of its joints.

    Args:
        scenario: robot, underscore, partition: one of `SCENARIOS`, or for instance `ManySegmentSwimmer_10x2`.

    Raises:
        ConfigError: unknown scenario, or as `build`.
    """
    if scenario not in SCENARIOS and not _SEGMENTS.fullmatch(scenario):
        known = (*SCENARIOS, "ManySegmentAnt_<N>x<M>", "ManySegmentSwimmer_<N>x<M>")
        raise ConfigError(f"mamujoco: no scenario {scenario!r}; {suggestion(scenario, known)}")
    env = build(scenario)
    team = shared_out(env)
    env.close()
    is_vectorised = scenario.partition("_")[0] in VECTORISED and team.selection is not None
    robots = _VectorisedRobots if is_vectorised else _Robots
    return HostEnvironment(
        name=f"mamujoco/{scenario}",
        spec=team.spec,
        horizon=team.horizon,
        max_return=None,
        versions=installed(*PACKAGES),
        open=lambda copies: robots(scenario, team, copies).simulators(),
    )


class Team(NamedTuple):
    """How a robot is divided among agents.

    Attributes:
        spec: sizes.
        horizon: steps after which an episode is truncated.
        selection: [N, O], index into [state, 0] of what each agent observes, or None if that is not a selection.
        has: [N, A] bool, which action dimensions of an agent move a joint.
        joint: [J], the joint that each of these dimensions moves, in the order of `has`.
    """

    spec: EnvSpec
    horizon: int
    selection: np.ndarray | None
    has: np.ndarray
    joint: np.ndarray


def shared_out(env) -> Team:
    """Return how a robot is divided among agents; `env` must be reset afterwards.

    Args:
        env: as `build` returns it.
    """
    parts = [[node.act_ids for node in part] for part in env.agent_action_partitions]
    spec = EnvSpec(
        num_agents=len(parts),
        obs_dim=max(env.observation_space(agent).shape[0] for agent in env.possible_agents),
        state_dim=env.single_agent_env.observation_space.shape[0],
        action_dim=max(map(len, parts)),
        discrete=False,
    )
    has = np.array([[k < len(part) for k in range(spec.action_dim)] for part in parts])
    horizon = env.single_agent_env._max_episode_steps
    return Team(spec, horizon, _selection(env, spec), has, np.concatenate(parts))


class _Robots:
    """Copies of one robot; each is a Gymnasium simulator, and threads step them."""

    def __init__(self, scenario: str, team: Team, copies: int):
        self._team = team
        self._envs = [build(scenario) for _ in range(copies)]
        self._bodies = [env.single_agent_env.unwrapped for env in self._envs]
        self._time = np.zeros(copies, np.int64)
        self._threads = _threads(copies)
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads)
        self._renderer = None

    def simulators(self) -> Simulators:
        return Simulators(self.reset, self.step, self.render, self.close)

    def reset(self, index: np.ndarray, seed: np.ndarray) -> TimeStep:
        index = np.asarray(index)
        state = np.empty((len(index), self._team.spec.state_dim))
        for row, (copy, number) in enumerate(zip(index, seed, strict=True)):
            state[row] = self._begin(copy, int(number))
        self._time[index] = 0
        return self._show(index, state, np.zeros(len(index)), np.zeros(len(index), bool))

    def step(self, index: np.ndarray, action: np.ndarray) -> TimeStep:
        index, action = np.asarray(index), np.asarray(action, np.float64)
        space = self._bodies[0].action_space
        whole = np.empty((len(index), len(self._team.joint)))
        whole[:, self._team.joint] = np.clip(action, -1.0, 1.0)[:, self._team.has]
        whole = (space.high + space.low) / 2.0 + (space.high - space.low) / 2.0 * whole
        outcome = self._advance(index, whole)
        self._time[index] += 1
        return self._show(index, *outcome)

    def render(self) -> np.ndarray:
        import mujoco

        body = self._bodies[0]
        # no graphics are loaded before the first picture
        if self._renderer is None:
            self._renderer = _renderer(body)
        camera = mujoco.mj_name2id(body.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")  # if missing -1, a free camera
        self._renderer.update_scene(body.data, camera=camera)
        return self._renderer.render()

    def close(self) -> None:
        self._pool.shutdown()
        if self._renderer is not None:
            self._renderer.close()
        for env in self._envs:
            env.close()

    def _begin(self, copy: int, seed: int) -> np.ndarray:
        return self._bodies[copy].reset(seed=seed)[0]

    def _advance(self, index: np.ndarray, torque: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step copies with torques [n, nu]; return their states, rewards and endings."""
        state = np.empty((len(index), self._team.spec.state_dim))
        reward, terminated = np.empty(len(index)), np.empty(len(index), bool)

        def advance(rows):
            for row in rows:
                state[row], reward[row], terminated[row], _, _ = self._bodies[index[row]].step(torque[row])

        # the caller's thread steps a share of the copies too
        mine, *others = np.array_split(np.arange(len(index)), self._threads)
        running = self._pool.map(advance, others)
        advance(mine)
        list(running)
        return state, reward, terminated

    def _show(self, index: np.ndarray, state: np.ndarray, reward: np.ndarray, terminated: np.ndarray) -> TimeStep:
        return TimeStep(
            obs=self._observe(index, state).astype(np.float32),
            global_state=state.astype(np.float32),
            avail=np.broadcast_to(self._team.has, (len(index), *self._team.has.shape)).copy(),
            reward=reward.astype(np.float32),
            terminated=terminated,
            truncated=(self._time[index] >= self._team.horizon) & ~terminated,
            won=np.zeros(len(index), bool),
        )

    def _observe(self, index: np.ndarray, state: np.ndarray) -> np.ndarray:
        if self._team.selection is not None:
            return np.concatenate([state, np.zeros((len(state), 1))], axis=1)[:, self._team.selection]
        obs = np.zeros((len(index), self._team.spec.num_agents, self._team.spec.obs_dim))
        for row, copy in enumerate(index):
            for agent, values in enumerate(self._envs[copy]._get_obs().values()):
                obs[row, agent, : len(values)] = values
        return obs


class _VectorisedRobots(_Robots):
    """Copies of one robot in `VECTORISED`: rows of a batch, and one simulator for initial states and constants."""

    def __init__(self, scenario: str, team: Team, copies: int):
        from mujoco.batch import Batch

        super().__init__(scenario, team, 1)
        self._robot, _, _ = scenario.partition("_")
        self._time = np.zeros(copies, np.int64)
        self._batch = Batch(self._bodies[0].model, copies, _threads(copies))
        self._qpos, self._qvel, self._ctrl = map(self._batch.bind, ("qpos", "qvel", "ctrl"))

    def render(self) -> np.ndarray:
        from mujoco import mj_forward

        body = self._bodies[0]
        self._batch.get_data(0, body.data)
        mj_forward(body.model, body.data)
        return super().render()

    def close(self) -> None:
        super().close()
        del self._batch, self._qpos, self._qvel, self._ctrl

    def _begin(self, copy: int, seed: int) -> np.ndarray:
        from mujoco import mj_getState, mjtState

        body, state = self._bodies[0], super()._begin(0, seed)
        mj_getState(body.model, body.data, self._batch.state[copy], mjtState.mjSTATE_INTEGRATION)
        return state

    def _advance(self, index: np.ndarray, torque: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before, self._ctrl[index] = self._qpos[index], torque
        self._batch.step(np.sort(index), nstep=self._bodies[0].frame_skip)
        return _outcome(self._robot, self._bodies[0], before, self._qpos[index], self._qvel[index], torque)


def _threads(copies: int) -> int:
    return min(copies, len(cores()) or os.cpu_count() or 1)


def _outcome(
    robot: str, body, before: np.ndarray, qpos: np.ndarray, qvel: np.ndarray, torque: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states [n, S], rewards [n] and endings [n] of n copies after a step, by the rules of Gymnasium's v5.

    Args:
        robot: one of `VECTORISED`.
        body: Gymnasium's simulator, for its constants.
        before: [n, nq], positions before the step.
        qpos, qvel: [n, nq] and [n, nv], positions and velocities after the step.
        torque: [n, nu].
    """
    seen = qpos[:, body.observation_structure["skipped_qpos"] :]
    reward = body._forward_reward_weight * ((qpos[:, 0] - before[:, 0]) / body.dt)
    cost = body._ctrl_cost_weight * np.sum(np.square(torque), axis=1)
    if robot != "Hopper":
        return np.concatenate([seen, qvel], axis=1), reward - cost, np.zeros(len(qpos), bool)
    inside = lambda values, limits: (limits[0] < values) & (values < limits[1])
    healthy = inside(np.concatenate([qpos, qvel], axis=1)[:, 2:], body._healthy_state_range).all(axis=1)
    healthy &= inside(qpos[:, 1], body._healthy_z_range) & inside(qpos[:, 2], body._healthy_angle_range)
    state = np.concatenate([seen, np.clip(qvel, -10.0, 10.0)], axis=1)
    return state, reward + healthy * body._healthy_reward - cost, ~healthy


def build(scenario: str):
    """Build gymnasium-robotics' own environment of a scenario, a `MultiAgentMujocoEnv`, without printing anything.

    The package prints a notice when it is imported. For every copy, MuJoCo writes a notice about a deprecated attribute
    of Gymnasium's models to standard error and to a log file.

    Args:
        scenario: as for `make`.

    Raises:
        ConfigError: gymnasium-robotics is not installed or cannot build the scenario, or MuJoCo does not find the
            graphics that MUJOCO_GL names.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            import mujoco
            from gymnasium_robotics import mamujoco_v1
    except ModuleNotFoundError as error:
        raise ConfigError(f"environment mamujoco needs a package ({error}): pip install 'omcda-jax[mujoco]'") from error
    except Exception as error:
        raise _no_graphics(error) from error
    robot, _, partition = scenario.partition("_")
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        return mamujoco_v1.parallel_env(robot, partition, disable_env_checker=True)
    except ValueError as error:
        raise ConfigError(f"mamujoco: scenario {scenario!r} has no robot: {one_line(error)}") from error
    finally:
        mujoco.set_mju_user_warning(handler)


def _renderer(body):
    """Return a renderer; multisampling and shadows are off, because without a graphics card they take longest."""
    import mujoco

    quality = body.model.vis.quality
    quality.offsamples = quality.shadowsize = 0
    try:
        with warnings.catch_warnings(action="ignore"):
            return mujoco.Renderer(body.model, PICTURE_SIZE, PICTURE_SIZE)
    except Exception as error:
        raise _no_graphics(error) from error


def _no_graphics(error: Exception) -> ConfigError:
    """Return the error for missing graphics: MuJoCo reads MUJOCO_GL at its import and again for the first picture."""
    return ConfigError(
        f"environment mamujoco: no graphics with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} "
        f"({one_line(error)}); to see pictures set MUJOCO_GL=egl (Debian: apt-get install libegl1) or "
        "MUJOCO_GL=osmesa (libosmesa6) before Python starts"
    )


def _selection(env, spec: EnvSpec) -> np.ndarray | None:
    """Return an index [N, O] into [state, 0] of what every agent observes; None if that is not a mere selection.

    For some robots the simulator computes local observations, or takes them from velocities that the state clips. So
    this function tests the index on extreme values, which it leaves in `env`.
    """
    if env.observation_factorization is None:
        return None
    data, random = env.single_agent_env.unwrapped.data, np.random.default_rng(0)
    for field in ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext"):
        getattr(data, field)[...] = 100.0 * random.normal(size=getattr(data, field).shape)
    state, obs = env.state(), env._get_obs()
    selection = np.full((spec.num_agents, spec.obs_dim), spec.state_dim)
    for row, (agent, index) in zip(selection, env.observation_factorization.items(), strict=True):
        if not np.array_equal(state[index], obs[agent]):
            return None
        row[: len(index)] = index
    return selection
