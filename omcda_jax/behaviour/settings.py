"""Settings of the trainers of behaviour policies."""

import dataclasses
import math

from omcda_jax.config import require
from omcda_jax.types import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """How one training phase runs.

    Attributes:
        steps: total number of environment steps (a step moves the whole team once).
        num_envs: environments stepped in parallel.
        rollout: steps per environment and update.
        epochs: passes over each rollout.
        minibatches: parts that a pass is split into.
        learning_rate: Adam's learning rate at the start.
        final_learning_rate: learning rate at the end; linear in between.
        gamma: discount factor of the return that the values estimate.
        trace: lambda of the advantage estimate.
        clip: bound on the change of the probability ratio.
        entropy: weight of the entropy bonus, per agent.
        value_weight: weight of the value loss.
        max_norm: global gradient norm bound.
        hidden: units in each of the two hidden layers.
        initial_log_std: initial log standard deviation of continuous actions, before the tanh.
        log_std_floor: lower bound of the log standard deviation.
        shared: all agents share one actor, which also sees their identity; only in `mappo_separate`.
    """

    steps: int = 1_500_000
    num_envs: int = 64
    rollout: int = 128
    epochs: int = 2
    minibatches: int = 4
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    gamma: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value_weight: float = 0.5
    max_norm: float = 0.5
    hidden: int = 128
    initial_log_std: float = -0.5
    log_std_floor: float = -1.6
    shared: bool = False

    def __post_init__(self):
        counts = ("steps", "num_envs", "rollout", "epochs", "minibatches", "hidden")
        for names, holds, expected in (
            (counts, lambda x: x >= 1, "at least 1"),
            (("learning_rate", "clip", "max_norm"), lambda x: 0 < x < math.inf, "a positive number"),
            (("final_learning_rate", "entropy", "value_weight"), lambda x: 0 <= x < math.inf, "a number >= 0"),
            (("gamma", "trace"), lambda x: 0 <= x <= 1, "a number from 0 to 1"),
            (("initial_log_std", "log_std_floor"), math.isfinite, "a finite number"),
        ):
            for name in names:
                require(holds(getattr(self, name)), f"--{name}", expected, getattr(self, name))
        if self.num_envs * self.rollout % self.minibatches:
            raise ConfigError(
                f"--minibatches: expected a divisor of num_envs * rollout = {self.num_envs} * {self.rollout}, found "
                f"{self.minibatches}"
            )

    @property
    def num_updates(self) -> int:
        """Number of updates needed for at least `steps` environment steps."""
        return -(-self.steps // (self.num_envs * self.rollout))

    @property
    def total_steps(self) -> int:
        """Environment steps of these updates."""
        return self.num_updates * self.num_envs * self.rollout
