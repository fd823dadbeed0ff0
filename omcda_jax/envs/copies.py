"""Host environments made of simulators that play one episode at a time."""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from omcda_jax.envs.base import HostEnvironment, Simulators, TimeStep
from omcda_jax.types import ConfigError, EnvSpec


class Single(Protocol):
    """One copy of a simulator; `render` and `close` are optional."""

    def reset(self, seed: int) -> TimeStep:
        """Begin an episode that is a function of only the seed and the actions; arrays as in `TimeStep`."""

    def step(self, action: np.ndarray) -> TimeStep:
        """Take the team's actions, [N] or [N, A]; `host_environment` cuts at the horizon."""


def host_environment(
    name: str,
    spec: EnvSpec,
    horizon: int,
    build: Callable[[], Single],
    *,
    max_return: float | None = None,
    versions: Mapping[str, str] | None = None,
) -> HostEnvironment:
    """Return a host environment whose copies are stepped one after another and cut at the horizon.

    Args:
        name: `family/scenario`.
        spec: the task's sizes.
        horizon: steps after which an episode is truncated.
        build: makes one copy.
        max_return: the largest possible return, if there is one.
        versions: versions of its packages, recorded with datasets and results.
    """

    def open_copies(copies: int) -> Simulators:
        simulators = [build() for _ in range(copies)]
        time = np.zeros(copies, np.int64)

        def show(steps):
            return TimeStep(
                obs=np.stack([step.obs for step in steps]).astype(np.float32),
                global_state=np.stack([step.global_state for step in steps]).astype(np.float32),
                avail=np.stack([step.avail for step in steps]).astype(bool),
                reward=np.array([step.reward for step in steps], np.float32),
                terminated=np.array([step.terminated for step in steps], bool),
                truncated=np.array([step.truncated and not step.terminated for step in steps], bool),
                won=np.array([step.won for step in steps], bool),
            )

        def reset(index, seed):
            time[index] = 0
            return show([simulators[copy].reset(int(number)) for copy, number in zip(index, seed, strict=True)])

        def step(index, action):
            time[index] += 1
            shown = show([simulators[copy].step(np.asarray(own)) for copy, own in zip(index, action, strict=True)])
            return shown.replace(truncated=(shown.truncated | (time[index] >= horizon)) & ~shown.terminated)

        def render():
            if not hasattr(simulators[0], "render"):
                raise ConfigError(f"environment {name}: expected a renderer, found none")
            return simulators[0].render()

        def close():
            for simulator in simulators:
                getattr(simulator, "close", lambda: None)()

        return Simulators(reset, step, render, close)

    return HostEnvironment(name, spec, horizon, max_return, dict(versions or {}), open_copies)
