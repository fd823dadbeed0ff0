"""Any environment of PettingZoo's parallel API, by the name of its module: `pettingzoo/mpe2.simple_spread_v3?N=3`.

What follows the question mark goes to the module's `parallel_env`; `horizon` stays here, for environments that do not
tell theirs by `max_cycles`. The team's reward is the mean of the agents'. Agents of different sizes are padded; one
that is gone observes zeros and has action 0 only. The state is the environment's own, or else all observations.
Continuous actions in [-1, 1] are stretched to the space's bounds. An `action_mask` beside an `observation` gives the
legal actions.
"""

import importlib
from ast import literal_eval
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from omcda_jax.envs.base import HostEnvironment, TimeStep
from omcda_jax.envs.copies import host_environment
from omcda_jax.envs.versions import installed
from omcda_jax.types import ConfigError, EnvSpec


def make(scenario: str) -> HostEnvironment:
    """Build an environment.

    Args:
        scenario: a module with a `parallel_env`, and options as of a URL.

    Raises:
        ConfigError: no such module, options it does not take, spaces other than Discrete and Box or both at once, or no
            horizon.
    """
    module_name, _, query = scenario.partition("?")
    options = {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    horizon = options.pop("horizon", None)
    try:
        module = importlib.import_module(module_name)
        build = module.parallel_env
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"environment pettingzoo/{scenario}: expected a module with parallel_env: {error}") from error
    try:
        env = build(**options)
    except TypeError as error:
        raise ConfigError(f"environment pettingzoo/{scenario}: options: {error}") from error
    single = _Single(env, scenario)
    horizon = horizon or getattr(env.unwrapped, "max_cycles", None)
    if not isinstance(horizon, int) or horizon < 1:
        raise ConfigError(
            f"environment pettingzoo/{scenario}: expected ?horizon=STEPS, because the environment does not declare one"
        )
    spec = single.spec
    single.close()
    return host_environment(
        f"pettingzoo/{scenario}",
        spec,
        horizon,
        lambda: _Single(build(**options), scenario),
        versions=installed("pettingzoo", module_name.partition(".")[0]),
    )


class _Single:
    def __init__(self, env: Any, scenario: str):
        from gymnasium import spaces

        self._env, self._agents = env, tuple(env.possible_agents)
        actions = [env.action_space(agent) for agent in self._agents]
        kinds = {type(space) for space in actions}
        if kinds not in ({spaces.Discrete}, {spaces.Box}):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ConfigError(
                f"environment pettingzoo/{scenario}: actions: expected all Discrete or all Box, found {names}"
            )
        self._discrete = kinds == {spaces.Discrete}
        self._spaces = actions
        self._sizes = [int(space.n) if self._discrete else int(np.prod(space.shape)) for space in actions]
        step = self.reset(0)
        self.spec = EnvSpec(*step.obs.shape, len(step.global_state), max(self._sizes), self._discrete)

    def reset(self, seed: int) -> TimeStep:
        obs, _ = self._env.reset(seed=seed)
        return self._show(obs, {}, False, False)

    def step(self, action: np.ndarray) -> TimeStep:
        chosen = {agent: self._own(k, action[k]) for k, agent in enumerate(self._agents) if agent in self._env.agents}
        obs, reward, _, truncations, _ = self._env.step(chosen)
        ended = not self._env.agents
        truncated = ended and any(truncations.values())
        return self._show(obs, reward, ended and not truncated, truncated)

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
        unit = np.clip(action[: self._sizes[k]], -1.0, 1.0).reshape(space.shape)
        return (space.low + (unit + 1.0) / 2.0 * (space.high - space.low)).astype(space.dtype)

    def _show(self, shown: dict, reward: dict, terminated: bool, truncated: bool) -> TimeStep:
        avail = np.zeros((len(self._agents), max(self._sizes)), bool)
        parts = []
        for k, agent in enumerate(self._agents):
            space = self._env.observation_space(agent)
            inner = space["observation"] if _masked(space) else space
            here = agent in shown and (terminated or truncated or agent in self._env.agents)
            own = (shown[agent]["observation"] if _masked(space) else shown[agent]) if here else np.zeros(inner.shape)
            parts.append(np.asarray(own, np.float32).ravel())
            if not self._discrete or (here and not _masked(space)):
                avail[k, : self._sizes[k]] = True
            elif here:
                avail[k, : self._sizes[k]] = np.asarray(shown[agent]["action_mask"], bool)
            # nobody is without an action, not even who is gone
            if not avail[k].any():
                avail[k, 0] = True
        width = max(len(part) for part in parts)
        obs = np.stack([np.pad(part, (0, width - len(part))) for part in parts])
        return TimeStep(
            obs=obs,
            global_state=self._state(obs),
            avail=avail,
            reward=np.float32(sum(reward.values()) / len(self._agents)),
            terminated=terminated,
            truncated=truncated,
            won=False,
        )

    def _state(self, obs: np.ndarray) -> np.ndarray:
        try:
            state = np.asarray(self._env.state(), np.float32).ravel()
        except (NotImplementedError, AttributeError):
            return obs.ravel()
        return state


def _masked(space: Any) -> bool:
    return hasattr(space, "spaces") and "action_mask" in getattr(space, "spaces", {})


def _value(text: str) -> Any:
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
