"""A simulator in Python: the game of environment_in_jax.py. Train on the episodes in FILE:

python experiments/run.py --config=smac_3m --config.data.path=FILE \\
    --config.data.environment=examples.environment_in_python/9
"""

import numpy as np

from omcda_jax import EnvSpec, HostEnvironment, TimeStep
from omcda_jax.envs.copies import host_environment

SPEC = EnvSpec(num_agents=2, obs_dim=2, state_dim=2, action_dim=3, discrete=True)


class Line:
    """One copy of the simulator; the ends of the line are `middle` places from its middle."""

    def __init__(self, middle: int):
        self.middle = middle

    def reset(self, seed: int) -> TimeStep:
        """Begin an episode."""
        self.places = np.random.default_rng(seed).integers(-self.middle, self.middle + 1, 2)
        return self.show(0.0, False)

    def step(self, action: np.ndarray) -> TimeStep:
        """Move both agents; `host_environment` takes care of the time limit."""
        self.places = np.clip(self.places + action - 1, -self.middle, self.middle)
        return self.show(-np.abs(self.places).mean() / self.middle, not self.places.any())

    def show(self, reward: float, end: bool) -> TimeStep:
        """Return what the team sees."""
        obs = np.stack([self.places, self.places[::-1]], axis=1) / self.middle
        return TimeStep(obs, self.places / self.middle, np.ones((2, 3), bool), reward, end, False, end)


def make(scenario: str) -> HostEnvironment:
    """Return a line of `scenario` places. A simulator of many copies at once returns a HostEnvironment directly."""
    name = f"examples.environment_in_python/{scenario}"
    return host_environment(name, SPEC, 20, lambda: Line(int(scenario) // 2))
