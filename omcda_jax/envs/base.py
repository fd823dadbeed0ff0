"""What an environment is: data types of simulators written in JAX and of simulators that run on the host."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax.struct

from omcda_jax.types import EnvSpec


def task(name: str) -> str:
    """Return the name of an environment's task, which simulators of the same robot share: `mamujoco/X` for `mjx/X`.

    Args:
        name: name of the environment.
    """
    return re.sub("^mjx/", "mamujoco/", name)


@flax.struct.dataclass
class TimeStep:
    """What one environment shows after a reset or a step; E environments stepped together have a leading axis [E].

    Attributes:
        obs: [N, O] floats.
        global_state: [S] floats.
        avail: [N, A] bool, see `Batch`.
        reward: [] team reward of the step that led here (0 after a reset).
        terminated: [] bool, the task itself ended.
        truncated: [] bool, the time limit cut the episode; never together with `terminated`.
        won: [] bool, the team reached the task's goal with this step (always False if the task has no goal).
    """

    obs: chex.Array
    global_state: chex.Array
    avail: chex.Array
    reward: chex.Array
    terminated: chex.Array
    truncated: chex.Array
    won: chex.Array


class Units(NamedTuple):
    """What U units show on a map at one moment.

    Attributes:
        position: [U, 2], in the map's units.
        radius: [U], in the map's units.
        health: [U], from 1 down to 0; at 0 a unit is gone.
        team: [U] int, 0 is the learner's team.
        kind: [U] int, index into the map's `kinds`.
        target: [U] int, the unit that each unit acts on; itself if there is none.
    """

    position: chex.Array
    radius: chex.Array
    health: chex.Array
    team: chex.Array
    kind: chex.Array
    target: chex.Array


class Map(NamedTuple):
    """How episodes of an environment are drawn from above.

    Attributes:
        kinds: names of the kinds of units.
        units: `units(env_state) -> Units`.
        recorded: `recorded(global_state [L + 1, S], action [L, N] or [L, N, A]) -> Units [L + 1, U, ...]` puts an
            episode of a dataset on the map, as far as its arrays tell; None if they do not tell.
    """

    kinds: tuple[str, ...]
    units: Callable[[Any], Units]
    recorded: Callable[[Any, Any], Units] | None = None


@dataclasses.dataclass(frozen=True)
class Environment:
    """A simulator written in JAX as two pure functions; it never resets by itself, so final observations are true.

    Attributes:
        name: `family/scenario`, for instance `smax/3m`; for a simulator of your own, the name passed to `make`.
        spec: sizes.
        horizon: steps after which an episode is truncated.
        max_return: the largest possible undiscounted return, or None if there is no such bound.
        versions: package name to version, recorded with every dataset and result.
        reset: `reset(key) -> (env_state, TimeStep)`.
        step: `step(key, env_state, action [N] or [N, A]) -> (env_state, TimeStep)`.
        map: how its episodes are drawn, or None if they cannot be drawn.
    """

    name: str
    spec: EnvSpec
    horizon: int
    max_return: float | None
    versions: Mapping[str, str]
    reset: Callable[..., tuple[Any, TimeStep]]
    step: Callable[..., tuple[Any, TimeStep]]
    map: Map | None = None


class Simulators(NamedTuple):
    """E copies of a host simulator, stepped together; arrays are NumPy's.

    Attributes:
        reset: `reset(index [M] int, seed [M] int) -> TimeStep [M, ...]` starts new episodes in the copies `index`; an
            episode is a function of only its seed and its actions.
        step: `step(index [M] int, action [M, N] or [M, N, A]) -> TimeStep [M, ...]` steps the copies `index`. No copy
            resets by itself.
        render: `render() -> [H, W, 3] uint8`, a frame of copy 0; ConfigError if no renderer is available.
        close: `close()` frees the resources of the copies.
    """

    reset: Callable[..., TimeStep]
    step: Callable[..., TimeStep]
    render: Callable[[], Any]
    close: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class HostEnvironment:
    """A simulator that runs outside JAX, on the host.

    Attributes:
        name, spec, horizon, max_return, versions: as `Environment`.
        open: `open(copies) -> Simulators`.
    """

    name: str
    spec: EnvSpec
    horizon: int
    max_return: float | None
    versions: Mapping[str, str]
    open: Callable[[int], Simulators]
