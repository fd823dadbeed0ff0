"""Any environment of PettingZoo's parallel API, by the name of its module: `pettingzoo/mpe2.simple_spread_v3?N=3`.

The options after the question mark go to the module's `parallel_env`, except `horizon`, which is for environments
without `max_cycles`. The team's reward is the mean of the agents' rewards. Agents of different sizes are padded. An
agent that is gone observes zeros and has only action 0, or no action dimension. The state is the environment's own, or
else all observations. Continuous actions in [-1, 1] are scaled to the space's bounds. An `action_mask`, next to an
`observation` or in the agent's info, gives the legal actions.

An episode ends when every agent is terminated or truncated. It is terminated if every agent was, each at its last step;
if one was only truncated, the time limit cut the team's task. An agent that is both at once counts as terminated.
"""

import importlib
from ast import literal_eval
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from omcda_jax.envs.base import HostEnvironment, TimeStep
from omcda_jax.envs.copies import host_environment
from omcda_jax.envs.versions import installed
from omcda_jax.system import one_line
from omcda_jax.types import ConfigError, EnvSpec


def make(scenario: str) -> HostEnvironment:
    """Build an environment.

    Args:
        scenario: a module with a `parallel_env`, and options as in a URL.

    Raises:
        ConfigError: no such module, options it does not take, actions that are not all Discrete or all Box with finite
            bounds, observations that are not arrays, or no horizon.
    """
    module_name, _, query = scenario.partition("?")
    options = {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    horizon = options.pop("horizon", None)
    try:
        module = importlib.import_module(module_name)
        build = module.parallel_env
    except Exception as error:  # any error of the module
        lacks = isinstance(error, ImportError)
        advice = "; pip install what it needs, such as 'omcda-jax[pettingzoo]' and mpe2" if lacks else ""
        raise ConfigError(
            f"environment pettingzoo/{scenario}: expected a module with parallel_env: {one_line(error)}{advice}"
        ) from error
    try:
        env = build(**options)
    except (TypeError, ValueError, LookupError, AssertionError) as error:
        raise ConfigError(f"environment pettingzoo/{scenario}: options: {one_line(error)}") from error
    if not hasattr(env, "possible_agents"):
        raise ConfigError(
            f"environment pettingzoo/{scenario}: expected an environment with possible_agents, found none"
        )
    single = _Single(env, scenario)
    if horizon is None:
        horizon = getattr(env.unwrapped, "max_cycles", "none declared by the environment")
    if not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ConfigError(f"environment pettingzoo/{scenario}: expected ?horizon=STEPS, at least 1, found {horizon}")
    spec = single.spec
    single.close()
    return host_environment(
        f"pettingzoo/{scenario}",
        spec,
        int(horizon),
        lambda: _Single(build(**options), scenario),
        versions=installed("pettingzoo", module_name.partition(".")[0]),
    )


class _Single:
    def __init__(self, env: Any, scenario: str):
        self._env, self._agents = env, tuple(env.possible_agents)
        self._name = f"environment pettingzoo/{scenario}"
        self._spaces = [env.action_space(agent) for agent in self._agents]
        self._discrete = _is_discrete(self._spaces, self._name)
        self._sizes = [int(space.n) if self._discrete else int(np.prod(space.shape)) for space in self._spaces]
        self._seen = {agent: _observed(env.observation_space(agent), agent, self._name) for agent in self._agents}
        # agents that have ended, and whether by termination
        self._over: dict[Any, bool] = {}
        # in some environments, `state` is not a method
        self._tells_state = callable(getattr(env, "state", None))
        step = self.reset(0)
        self.spec = EnvSpec(*step.obs.shape, len(step.global_state), max(self._sizes), self._discrete)

    def reset(self, seed: int) -> TimeStep:
        self._over = {}
        obs, infos = self._env.reset(seed=seed)
        return self._show(obs, infos, {}, False, False)

    def step(self, action: np.ndarray) -> TimeStep:
        playing = [agent for agent in self._agents if agent in self._env.agents]
        chosen = {agent: self._own(k, action[k]) for k, agent in enumerate(self._agents) if agent in playing}
        obs, reward, terminations, truncations, infos = self._env.step(chosen)
        for agent in playing:
            terminated, truncated = bool(terminations.get(agent)), bool(truncations.get(agent))
            if terminated or truncated or agent not in self._env.agents:
                self._over[agent] = terminated or not truncated
            else:
                self._over.pop(agent, None)
        ended = all(agent in self._over for agent in self._env.agents)
        task_ended = all(self._over.values())
        return self._show(obs, infos, reward, ended and task_ended, ended and not task_ended)

    def render(self) -> np.ndarray:
        picture = self._env.render()
        if not isinstance(picture, np.ndarray):
            raise ConfigError(
                "environment pettingzoo: expected pictures, found none; add render_mode=rgb_array to its name"
            )
        return picture

    def close(self) -> None:
        self._env.close()

    def _own(self, k: int, action: np.ndarray) -> Any:
        space = self._spaces[k]
        if self._discrete:
            return int(action) + int(space.start)
        unit = np.clip(action[: self._sizes[k]], -1.0, 1.0).astype(np.float64).reshape(space.shape)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return np.clip((low + (unit + 1.0) / 2.0 * (high - low)).astype(space.dtype), space.low, space.high)

    def _show(self, shown: dict, infos: dict, reward: dict, terminated: bool, truncated: bool) -> TimeStep:
        avail = np.zeros((len(self._agents), max(self._sizes)), bool)
        parts = []
        for k, agent in enumerate(self._agents):
            here = agent in shown and (terminated or truncated or agent in self._env.agents)
            space, is_dict = self._seen[agent]
            own = np.zeros(space.shape)
            if here:
                own = shown[agent]["observation"] if is_dict else shown[agent]
            parts.append(np.asarray(own, np.float32).ravel())
            if here:
                own = self._mask(k, shown[agent] if is_dict else {}, infos.get(agent) or {}) if self._discrete else True
                avail[k, : self._sizes[k]] = own
            # one action is always legal, even for an agent that is gone
            if self._discrete and not avail[k].any():
                avail[k, 0] = True
        width = max(len(part) for part in parts)
        obs = np.stack([np.pad(part, (0, width - len(part))) for part in parts])
        return TimeStep(
            obs=obs,
            global_state=self._state(obs),
            avail=avail,
            reward=np.float32(sum(self._number(*item) for item in reward.items()) / len(self._agents)),
            terminated=terminated,
            truncated=truncated,
            won=False,
        )

    def _mask(self, k: int, observation: dict, info: dict) -> np.ndarray | bool:
        """Return the legal actions of one agent, wherever the environment gives them."""
        mask = observation.get("action_mask", info.get("action_mask"))
        if mask is None:
            return True
        mask = np.asarray(mask)
        if mask.shape != (self._sizes[k],):
            raise ConfigError(
                f"{self._name}: action_mask of agent {self._agents[k]!r}: expected {self._sizes[k]} entries, one per "
                f"action, found shape {list(mask.shape)}"
            )
        return mask.astype(bool)

    def _number(self, agent: Any, reward: Any) -> float:
        if np.size(reward) != 1:
            raise ConfigError(
                f"{self._name}: reward of agent {agent!r}: expected a number, found shape {list(np.shape(reward))}"
            )
        return float(np.asarray(reward).item())

    def _state(self, obs: np.ndarray) -> np.ndarray:
        if not self._tells_state:
            return obs.ravel()
        try:
            return np.asarray(self._env.state(), np.float32).ravel()
        except NotImplementedError:
            return obs.ravel()


def _is_discrete(actions: list, name: str) -> bool:
    """Return whether actions are indices; refuse those that are neither indices nor boxes with finite bounds."""
    from gymnasium import spaces

    kinds = {type(space) for space in actions}
    if kinds not in ({spaces.Discrete}, {spaces.Box}):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ConfigError(f"{name}: actions: expected all Discrete or all Box, found {names}")
    if kinds == {spaces.Discrete}:
        return True
    for space in actions:
        # [-1, 1] cannot be scaled to infinite bounds
        with np.errstate(over="ignore", invalid="ignore"):
            is_bounded = np.isfinite(space.high - space.low).all()
        if not is_bounded:
            raise ConfigError(
                f"{name}: actions: expected boxes with finite bounds, to which [-1, 1] is stretched, found bounds "
                f"{space.low.min():g} and {space.high.max():g}; clip or rescale them in the environment"
            )
    return False


def _observed(space: Any, agent: Any, name: str) -> tuple[Any, bool]:
    """Return the space of an agent's observations, and whether it is in a dict with an action mask."""
    is_dict = hasattr(space, "spaces") and "observation" in space.spaces
    inner = space["observation"] if is_dict else space
    if inner.shape is None:
        keys = " of " + ", ".join(map(str, inner.spaces)) if isinstance(getattr(inner, "spaces", None), dict) else ""
        raise ConfigError(
            f"{name}: observation of agent {agent!r}: expected an array, or a Dict of observation and action_mask, "
            f"found a {type(inner).__name__}{keys}; flatten it in the environment"
        )
    return inner, is_dict


def _value(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
