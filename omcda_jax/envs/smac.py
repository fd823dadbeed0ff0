"""SMAC in StarCraft II itself, by oxwhirl's smac: `smac/5m_vs_6m`.

It follows smac's documented interface and was tested with a stand-in, not with the game. The game plays one stream of
episodes from the seed that it starts with, so here an episode is not a function of its own seed.
"""

import os
from pathlib import Path

import numpy as np

from omcda_jax.envs.base import HostEnvironment, TimeStep
from omcda_jax.envs.copies import host_environment
from omcda_jax.envs.versions import installed
from omcda_jax.types import ConfigError, EnvSpec

MAX_RETURN = 20.0  # smac scales its rewards to this by default


def make(scenario: str) -> HostEnvironment:
    """Build one SMAC map; the game starts with the first episode.

    Args:
        scenario: a map's name such as `5m_vs_6m`.

    Raises:
        ConfigError: smac is not installed, or does not know the map.
    """
    try:
        from smac.env import StarCraft2Env
        from smac.env.starcraft2.maps import get_map_params
    except ImportError as error:
        raise ConfigError(
            f"environment smac needs a package ({error}): pip install git+https://github.com/oxwhirl/smac.git, and"
            " StarCraft II with SMAC's maps where SC2PATH says (see github.com/oxwhirl/smac)"
        ) from error
    try:
        get_map_params(scenario)
    except KeyError as error:
        raise ConfigError(f"smac scenario: expected one of SMAC's maps, found {scenario!r}") from error
    info = StarCraft2Env(map_name=scenario).get_env_info()
    spec = EnvSpec(info["n_agents"], info["obs_shape"], info["state_shape"], info["n_actions"], discrete=True)
    # without continuing_episode smac does not say that the time limit ended an episode
    build = lambda: _Single(lambda seed: StarCraft2Env(map_name=scenario, seed=seed, continuing_episode=True))
    return host_environment(
        f"smac/{scenario}",
        spec,
        info["episode_limit"],
        build,
        max_return=MAX_RETURN,
        versions=installed("smac", "pysc2") | _game(),
    )


def _game() -> dict[str, str]:
    """The newest build of the game that is installed, which is the one that pysc2 starts; nothing if none is found."""
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser() / "Versions"
    names = [path.name.removeprefix("Base") for path in folder.glob("Base*")]
    builds = [int(name) for name in names if name.isdigit()]
    return {"StarCraft II": f"build {max(builds)}"} if builds else {}


class _Single:
    def __init__(self, start):
        self._start, self._env = start, None

    def reset(self, seed: int) -> TimeStep:
        if self._env is None:
            self._env = self._start(seed)
        self._env.reset()
        return self._show(0.0, False, {})

    def step(self, action: np.ndarray) -> TimeStep:
        return self._show(*self._env.step([int(own) for own in action]))

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _show(self, reward: float, ended: bool, info: dict) -> TimeStep:
        cut = bool(info.get("episode_limit", False))
        return TimeStep(
            obs=np.asarray(self._env.get_obs()),
            global_state=np.asarray(self._env.get_state()),
            avail=np.asarray(self._env.get_avail_actions()) != 0,
            reward=reward,
            terminated=ended and not cut,
            truncated=cut,
            won=bool(info.get("battle_won", False)),
        )
