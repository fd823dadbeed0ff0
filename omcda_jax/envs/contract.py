"""Checks of a simulator of the user's own: it must be what its spec says, before anything is learned."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.envs.base import Environment, HostEnvironment, Simulators, TimeStep
from omcda_jax.types import ConfigError, EnvSpec

_KINDS = {
    "floats": jnp.floating,
    "a number": jnp.number,
    "booleans": jnp.bool_,
    "a boolean": jnp.bool_,
}


def check(environment: Any, name: str) -> None:
    """Check what a user's `make` returned: in JAX by its shapes alone, on the host by a reset and a step.

    Args:
        environment: what `make` returned.
        name: the requested name.

    Raises:
        ConfigError: it is not an environment, has another name, or does not show what its spec says.
    """
    if not isinstance(environment, Environment | HostEnvironment):
        found = type(environment).__name__
        raise ConfigError(
            f"environment {name}: expected make(scenario) to return an Environment or a HostEnvironment, found {found}"
        )
    if environment.name != name:
        raise ConfigError(f"environment {name}: expected its name to be {name!r}, found {environment.name!r}")
    if not isinstance(environment.spec, EnvSpec):
        raise ConfigError(f"environment {name}: expected spec to be an EnvSpec, found {environment.spec!r}")
    horizon = environment.horizon
    if not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ConfigError(f"environment {name}: expected a horizon of at least 1 step, found {horizon!r}")
    for function in ("reset", "step") if isinstance(environment, Environment) else ("open",):
        if not callable(getattr(environment, function)):
            found = getattr(environment, function)
            raise ConfigError(f"environment {name}: expected {function} to be a function, found {found!r}")
    if isinstance(environment, Environment):
        _check_in_jax(environment)
    else:
        _check_on_host(environment)


def _check_in_jax(environment: Environment) -> None:
    spec, key = environment.spec, jax.eval_shape(lambda: jax.random.key(0))
    shape, kind = (spec.num_agents,), jnp.int32
    if not spec.discrete:
        shape, kind = (spec.num_agents, spec.action_dim), jnp.float32
    env_state, shown = _pair(environment, "reset", jax.eval_shape(environment.reset, key))
    _check_shown(environment, "reset", shown)
    stepped = jax.eval_shape(environment.step, key, env_state, jax.ShapeDtypeStruct(shape, kind))
    after, shown = _pair(environment, "step", stepped)
    _check_shown(environment, "step", shown)
    if jax.tree.structure(after) != jax.tree.structure(env_state):
        raise ConfigError(f"environment {environment.name}: step: expected an env_state of the form that reset gives")
    leaves = zip(jax.tree.leaves_with_path(env_state), jax.tree.leaves(after), strict=True)
    for (path, before), now in leaves:
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            raise ConfigError(
                f"environment {environment.name}: step: env_state{jax.tree_util.keystr(path)}: expected "
                f"{list(before.shape)} of {before.dtype}, as reset gives, found {list(now.shape)} of {now.dtype}"
            )


def _pair(environment: Environment, function: str, found: Any) -> tuple[Any, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
        raise ConfigError(f"environment {environment.name}: {function}: expected (env_state, TimeStep), found {found}")
    return found


def _check_on_host(environment: HostEnvironment) -> None:
    spec, copy, opened = environment.spec, np.arange(1), environment.open(1)
    if not isinstance(opened, Simulators):
        raise ConfigError(
            f"environment {environment.name}: expected open(copies) to return Simulators, found {type(opened).__name__}"
        )
    with contextlib.closing(opened) as simulators:
        shown = simulators.reset(copy, np.zeros(1, np.int64))
        _check_shown(environment, "reset", shown, copies=1)
        action = np.asarray(shown.avail).argmax(axis=-1).astype(np.int32)
        if not spec.discrete:
            action = np.zeros((1, spec.num_agents, spec.action_dim), np.float32)
        _check_shown(environment, "step", simulators.step(copy, action), copies=1)


def _check_shown(environment: Environment | HostEnvironment, function: str, shown: Any, copies: int = 0) -> None:
    """Compare a time step with the spec; with `copies`, arrays have a leading axis of that size."""
    name, spec = f"environment {environment.name}: {function}", environment.spec
    if not isinstance(shown, TimeStep):
        raise ConfigError(f"{name}: expected a TimeStep, found {type(shown).__name__}")
    agents = (spec.num_agents,)
    expected = {
        "obs": ((*agents, spec.obs_dim), "floats"),
        "global_state": ((spec.state_dim,), "floats"),
        "avail": ((*agents, spec.action_dim), "booleans"),
        "reward": ((), "a number"),
        **dict.fromkeys(("terminated", "truncated", "won"), ((), "a boolean")),
    }
    for field, (shape, kind) in expected.items():
        value, shape = getattr(shown, field), (copies,) * bool(copies) + shape
        if not hasattr(value, "shape") or tuple(value.shape) != shape or not jnp.issubdtype(value.dtype, _KINDS[kind]):
            found = f"{list(value.shape)} of {value.dtype}" if hasattr(value, "shape") else type(value).__name__
            raise ConfigError(f"{name}: {field}: expected {list(shape)} of {kind}, found {found}")
        if copies and not np.isfinite(value).all():
            raise ConfigError(f"{name}: {field}: expected finite numbers, found {np.asarray(value).tolist()}")
