"""Your simulator in Python: python experiments/run.py --config.data.environment=templates.in_python/9 ...

The game of templates/in_jax.py. A simulator with arrays of its own for many copies returns a HostEnvironment directly.
"""

import numpy as np

from omcda_jax.envs.base import HostEnvironment, TimeStep
from omcda_jax.envs.copies import host_environment
from omcda_jax.types import EnvSpec

SPEC = EnvSpec(num_agents=2, obs_dim=2, state_dim=2, action_dim=3, discrete=True)


class Line:
    """One copy."""

    def __init__(self, middle: int):
        """Takes the distance from the middle to an end."""
        self.middle = middle

    def reset(self, seed: int) -> TimeStep:
        """Begins an episode."""
        self.places = np.random.default_rng(seed).integers(-self.middle, self.middle + 1, 2)
        return self.show(0.0, False)

    def step(self, action: np.ndarray) -> TimeStep:
        """Moves both agents; the episode's time limit is the environment's business."""
        self.places = np.clip(self.places + action - 1, -self.middle, self.middle)
        return self.show(-np.abs(self.places).mean() / self.middle, not self.places.any())

    def show(self, reward: float, end: bool) -> TimeStep:
        """Returns what the team sees."""
        obs = np.stack([self.places, self.places[::-1]], axis=1) / self.middle
        return TimeStep(obs, self.places / self.middle, np.ones((2, 3), bool), reward, end, False, end)


def make(scenario: str) -> HostEnvironment:
    """Builds a line of so many places."""
    return host_environment(f"templates.in_python/{scenario}", SPEC, 20, lambda: Line(int(scenario) // 2))
