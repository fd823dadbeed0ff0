"""A PettingZoo environment for the tests: bodies that walk, and one that leaves early."""

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Walk(ParallelEnv):
    metadata = {"name": "walk"}

    def __init__(self, continuous=False, masked=False, mixed=False, limit=4):
        self.possible_agents = ["tall", "short"]
        self.continuous, self.masked, self.mixed, self.limit = continuous, masked, mixed, limit
        self.agents, self.last = [], None

    def observation_space(self, agent):
        seen = spaces.Box(-np.inf, np.inf, (3 if agent == "tall" else 2,))
        return spaces.Dict({"observation": seen, "action_mask": spaces.MultiBinary(3)}) if self.masked else seen

    def action_space(self, agent):
        if self.continuous or (self.mixed and agent == "short"):
            return (
                spaces.Box(np.array([0.0, -2.0]), np.array([1.0, 6.0])) if agent == "tall" else spaces.Box(2, 4, (1,))
            )
        return spaces.Discrete(3, start=5)

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        self.start = float(np.random.default_rng(seed).integers(10))
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.last, self.t = actions, self.t + 1
        rewards = {agent: 1.0 if agent == "tall" else 3.0 for agent in self.agents}
        left = self.t == 2
        cut = self.t == self.limit
        ended = {agent: left and agent == "short" for agent in self.agents}
        truncated = {agent: cut for agent in self.agents}
        seen = self._seen()
        self.agents = [agent for agent in self.agents if not (ended[agent] or truncated[agent])]
        return seen, rewards, ended, truncated, {agent: {} for agent in seen}

    def _seen(self):
        seen = {agent: np.full(3 if agent == "tall" else 2, self.start + self.t) for agent in self.agents}
        if self.masked:
            mask = np.array([0, 1, 1], np.int8)
            return {agent: {"observation": value, "action_mask": mask} for agent, value in seen.items()}
        return seen


def parallel_env(continuous=False, masked=False, mixed=False, limit=4):
    return Walk(continuous, masked, mixed, limit)
