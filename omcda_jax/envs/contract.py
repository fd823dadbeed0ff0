"""Checks of a simulator of the user's own: that it is what its spec says, found out before anything is learned."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.envs.base import Environment, HostEnvironment, TimeStep
from omcda_jax.types import ConfigError, EnvSpec

_KINDS = {
    "floats": jnp.floating,
    "a number": jnp.number,
    "booleans": jnp.bool_,
    "a boolean": jnp.bool_,
}


def check(environment: Any, name: str) -> None:
    """Check what a user's `make` returned: one in JAX by its shapes alone, one on the host by a reset and a step.

    Args:
        environment: what was made.
        name: that it was asked for by.

    Raises:
        ConfigError: it is no environment, has another name, or shows something other than its spec says.
    """
    if not isinstance(environment, Environment | HostEnvironment):
        found = "None" if environment is None else f"a {type(environment).__name__}"
        raise ConfigError(
            f"environment {name}: expected make(scenario) to return an Environment or a HostEnvironment, found {found}"
        )
    if environment.name != name:
        raise ConfigError(f"environment {name}: expected its name to be {name!r}, found {environment.name!r}")
    if not isinstance(environment.spec, EnvSpec):
        raise ConfigError(f"environment {name}: expected spec to be an EnvSpec, found {environment.spec!r}")
    if not environment.horizon >= 1:
        raise ConfigError(f"environment {name}: expected a horizon of at least 1 step, found {environment.horizon!r}")
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
    if _form(after) != _form(env_state):
        raise ConfigError(
            f"environment {environment.name}: step: expected an env_state of the shapes and types that reset gives, "
            f"{_form(env_state)}, found {_form(after)}"
        )


def _pair(environment: Environment, function: str, found: Any) -> tuple[Any, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
        raise ConfigError(f"environment {environment.name}: {function}: expected (env_state, TimeStep), found {found}")
    return found


def _form(env_state: Any) -> Any:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", env_state)


def _check_on_host(environment: HostEnvironment) -> None:
    spec, copy = environment.spec, np.arange(1)
    with contextlib.closing(environment.open(1)) as simulators:
        shown = simulators.reset(copy, np.zeros(1, np.int64))
        _check_shown(environment, "reset", shown, copies=1)
        action = np.asarray(shown.avail).argmax(axis=-1).astype(np.int32)
        if not spec.discrete:
            action = np.zeros((1, spec.num_agents, spec.action_dim), np.float32)
        _check_shown(environment, "step", simulators.step(copy, action), copies=1)


def _check_shown(environment: Environment | HostEnvironment, function: str, shown: Any, copies: int = 0) -> None:
    """Compare a time step with the spec; with `copies`, arrays lead with them."""
    name, spec = f"environment {environment.name}: {function}", environment.spec
    if not isinstance(shown, TimeStep):
        raise ConfigError(f"{name}: expected a TimeStep, found a {type(shown).__name__}")
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
            found = f"{list(value.shape)} of {value.dtype}" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise ConfigError(f"{name}: {field}: expected {list(shape)} of {kind}, found {found}")
        if copies and not np.isfinite(value).all():
            raise ConfigError(f"{name}: {field}: expected finite numbers, found {np.asarray(value).tolist()}")
