"""What every algorithm's update shares: numbers out of a config, keys, per-group optimisers, target networks."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

MAX_GRADIENT_NORM = 1.0


def split_config(config: Any) -> tuple[Any, dict[str, chex.Array]]:
    """Part a config into static structure and numeric hyper-parameters.

    Args:
        config: a frozen dataclass; its fields annotated `float` are the numbers.

    Returns:
        The same dataclass with None for every number, so that states with different numbers share one tree
        structure, and {field: [] float32}.
    """
    names = [field.name for field in dataclasses.fields(config) if field.type is float]
    hyper = {name: jnp.asarray(getattr(config, name), jnp.float32) for name in names}
    return dataclasses.replace(config, **dict.fromkeys(names)), hyper


def step_key(key: chex.PRNGKey, step: chex.Array, axis_name: str | None = None) -> chex.PRNGKey:
    """The key of one update: a pure function of the run's key, the step and, on a mapped axis, the device's index."""
    key = jax.random.fold_in(key, step)
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def optimiser() -> optax.GradientTransformation:
    """Adam on gradients clipped to global norm 1; the learning rate is applied by `apply_gradients`."""
    return optax.chain(optax.clip_by_global_norm(MAX_GRADIENT_NORM), optax.scale_by_adam())


def init_optimiser(params: dict[str, Any]) -> dict[str, Any]:
    """One optimiser state per parameter group."""
    return {group: optimiser().init(group_params) for group, group_params in params.items()}


def apply_gradients(
    params: dict[str, Any], gradients: dict[str, Any], opt_state: dict[str, Any], learning_rate: chex.Numeric
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One clipped Adam step, each group on its own.

    Args:
        params: parameters by group.
        gradients: the same structure.
        opt_state: from `init_optimiser`.
        learning_rate: may be traced.

    Returns:
        New parameters and optimiser state.
    """
    new_params, new_opt_state = {}, {}
    for group, group_params in params.items():
        updates, new_opt_state[group] = optimiser().update(gradients[group], opt_state[group])
        new_params[group] = jax.tree.map(lambda p, u: p - learning_rate * u, group_params, updates)
    return new_params, new_opt_state


def polyak(target_params: Any, params: Any, rate: chex.Numeric) -> Any:
    """target <- (1 - rate) target + rate params, leaf by leaf; `params` may hold more groups than `target_params`."""
    return {
        group: jax.tree.map(lambda t, p: t + rate * (p - t), target, params[group])
        for group, target in target_params.items()
    }
