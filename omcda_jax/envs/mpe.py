"""The particle worlds of offline multi-agent learning, `mpe/simple_spread` and `mpe/simple_tag`, through `mpe2`.

Both have continuous actions and last 25 steps, as in OMAR's datasets. Only the time limit ends an episode, so every
last state is bootstrapped.

In `simple_tag`, the team is the three predators, and the prey belongs to the simulator. OMAR's prey is a trained
network. This prey follows a rule like that of FACMAC's predator-prey task: it heads for the place nearby that is
farthest from the nearest predator. It moves at half thrust, which makes it a little slower than the predators; at full
thrust, three predators that run straight at it touch it in one episode out of twelve. A step pays the predators 10 for
each that touches the prey, minus a tenth of their summed distances from it, a term that mpe2 has but leaves out.

Sources: Pan et al. 2022 (OMAR), Peng et al. 2021 (FACMAC), Lowe et al. 2017 (the worlds).
"""

import dataclasses
from typing import Any

import numpy as np

from omcda_jax.envs import pettingzoo
from omcda_jax.envs.base import HostEnvironment
from omcda_jax.envs.versions import installed
from omcda_jax.types import ConfigError, suggestion

MODULES = {
    "simple_spread": "mpe2.simple_spread_v3?continuous_actions=True&render_mode=rgb_array",
    "simple_tag": __name__,
}
REACH = 0.4  # how far the prey looks for a place, about three of its steps
BORDER = 0.9  # the prey stays within this; mpe2 punishes a prey beyond it
THRUST = 0.5  # 0.8 units of length per second; a predator reaches 1.0
PER_DISTANCE = 0.1  # a step costs each predator this much per unit of the summed distances
_ANGLES = np.arange(16) * (2 * np.pi / 16)
DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)


def make(scenario: str) -> HostEnvironment:
    """Build one of the two worlds.

    Args:
        scenario: `simple_spread` or `simple_tag`.

    Raises:
        ConfigError: no such scenario, or mpe2 is not installed.
    """
    if scenario not in MODULES:
        raise ConfigError(f"mpe: no scenario {scenario!r}; {suggestion(scenario, MODULES)}")
    try:
        import mpe2  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"environment mpe needs a package ({error}): pip install 'omcda-jax[mpe]'") from error
    environment = pettingzoo.make(MODULES[scenario])
    return dataclasses.replace(environment, name=f"mpe/{scenario}", versions=installed("mpe2", "pettingzoo"))


def parallel_env() -> "Predators":
    """Build one copy of simple_tag, for the adapter of PettingZoo's parallel API."""
    from mpe2 import simple_tag_v3

    return Predators(simple_tag_v3.parallel_env(continuous_actions=True, render_mode="rgb_array"))


class Predators:
    """`simple_tag` for its predators: a parallel environment in which the prey moves by itself.

    Args:
        env: mpe2's, with continuous actions and one prey.
    """

    def __init__(self, env: Any):
        self._env = env
        self.unwrapped = env.unwrapped
        *self.possible_agents, self._prey = env.possible_agents
        self.action_space, self.observation_space = env.action_space, env.observation_space
        self.render, self.close = env.render, env.close
        self._observed = None  # by the prey

    @property
    def agents(self) -> list[str]:
        """The predators of the episode; none once it is over."""
        return [agent for agent in self._env.agents if agent != self._prey]

    def reset(self, seed: int | None = None) -> tuple[dict, dict]:
        """Begin an episode; return PettingZoo's observations and infos, without the prey's."""
        return self._team(*self._env.reset(seed=seed))

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, ...]:
        """Move everyone; return PettingZoo's observations, rewards, ends and infos, without the prey's."""
        seen, reward, *others = self._env.step({**actions, self._prey: flee(self._observed)})
        cost = PER_DISTANCE * np.linalg.norm(_predators(seen[self._prey]), axis=-1).sum()
        return self._team(seen, {agent: own - cost for agent, own in reward.items()}, *others)

    def _team(self, seen, *others):
        self._observed = seen[self._prey]
        return tuple({agent: told[agent] for agent in self.possible_agents} for told in (seen, *others))


def flee(observed: np.ndarray) -> np.ndarray:
    """Return the prey's action: thrust towards the place in reach that is farthest from the nearest predator.

    Args:
        observed: [14], the prey's velocity and position, and two obstacles' and three predators' relative positions.

    Returns:
        [5] float32 thrusts in [0, 1]: none, left, right, down, up.
    """
    position = observed[2:4]
    places = np.clip(position + REACH * DIRECTIONS, -BORDER, BORDER) - position
    nearest = np.linalg.norm(places[:, None] - _predators(observed), axis=-1).min(axis=1)
    x, y = THRUST * DIRECTIONS[nearest.argmax()]
    return np.array([0.0, max(-x, 0.0), max(x, 0.0), max(-y, 0.0), max(y, 0.0)], np.float32)


def _predators(observed):
    """Return the predators' positions [3, 2] relative to the prey."""
    return observed[8:14].reshape(3, 2)
