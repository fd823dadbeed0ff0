"""Checks of the inputs of `update` and `act` while tracing: shapes and kinds of numbers, at no cost at run time."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from omcda_jax.types import Batch, BatchError, EnvSpec

_OPTIONAL = ("next_action", "first", "last", "return_to_go")
_KINDS = {
    "floats": jnp.floating,
    "integers": jnp.integer,
    "booleans": jnp.bool_,
}


def check_batch(batch: Batch, spec: EnvSpec, algorithm: str, needs: Sequence[str]) -> None:
    """Check every field of a batch; optional fields only if they are present or read.

    Args:
        batch: B transitions; B is taken from `obs`.
        spec: the task's sizes.
        algorithm: the algorithm's name, for messages.
        needs: optional fields that the algorithm reads.

    Raises:
        BatchError: naming the first field that is missing or differs, with its expected shape in letters and numbers.
    """
    sizes = _sizes(spec) | {"B": (getattr(batch.obs, "shape", ()) or (0,))[0]}
    action = ("BN", "integers") if spec.discrete else ("BNA", "floats")
    expected = {
        "obs": ("BNO", "floats"),
        "global_state": ("BS", "floats"),
        "avail": ("BNA", "booleans"),
        "action": action,
        "reward": ("B", "floats"),
        "discount": ("B", "floats"),
        "next_obs": ("BNO", "floats"),
        "next_global_state": ("BS", "floats"),
        "next_avail": ("BNA", "booleans"),
        "next_action": action,
        "first": ("B", "booleans"),
        "last": ("B", "booleans"),
        "return_to_go": ("B", "floats"),
    }
    for name, (letters, kind) in expected.items():
        value = getattr(batch, name)
        if value is None and name in _OPTIONAL:
            if name in needs:
                raise BatchError(f"batch.{name}: {algorithm} needs {_shape(letters, sizes)} of {kind}, found None")
            continue
        _check(f"batch.{name}", value, letters, sizes, kind)
    if sizes["B"] == 0:
        raise BatchError("batch: expected at least one transition, found none")


def check_single(name: str, config: Any) -> None:
    """Refuse the settings of a population: only below vmap does each trial have its own numbers.

    Args:
        name: what has the settings, for the message.
        config: an algorithm's settings.

    Raises:
        BatchError: a field that is a single number by default is an array.
    """
    for field in dataclasses.fields(config):
        shape = jnp.shape(getattr(config, field.name)) if isinstance(field.default, float) else ()
        if shape:
            found = f"{field.name} of shape {list(shape)}"
            raise BatchError(f"{name}: expected one trial, found {found}; use jax.vmap over trials")


def check_key(key: Any) -> None:
    """Refuse what is no PRNG key, such as a seed; keys of `jax.random.PRNGKey` are keys.

    Raises:
        TypeError: it is something else, or several keys.
    """
    kind, shape = getattr(key, "dtype", jnp.int32), jnp.shape(key)
    typed = jnp.issubdtype(kind, jax.dtypes.prng_key) and len(shape) == 0
    if not typed and not (kind == jnp.uint32 and len(shape) == 1):
        found = key if len(shape) == 0 else f"{kind} of shape {list(shape)}"
        raise TypeError(f"key: expected jax.random.key(seed), found {found!r}")


def check_axis(batch: Batch, axis_name: str | None) -> None:
    """Refuse an axis of `jax.shard_map` with check_vma: JAX then sums gradients itself, so they would be summed twice.

    Args:
        batch: a device's part of the batch, checked.
        axis_name: axis of the devices, or None.

    Raises:
        BatchError: JAX tracks what varies over this axis.
    """
    of_shards = getattr(jax.typeof(batch.reward), "manual_axis_type", None)
    if axis_name is not None and axis_name in getattr(of_shards, "varying", ()):
        raise BatchError(f"axis_name={axis_name!r}: expected jax.shard_map(..., check_vma=False), found check_vma=True")


def check_observation(obs: Any, avail: Any, spec: EnvSpec) -> None:
    """Check the observations and available actions that a policy acts on.

    Args:
        obs: [..., N, O].
        avail: [..., N, A] bool, or None.
        spec: the task's sizes.

    Raises:
        BatchError: as `check_batch`.
    """
    _check("obs", obs, "...NO", _sizes(spec), "floats")
    if avail is None:
        return
    _check("avail", avail, "...NA", _sizes(spec), "booleans")
    if avail.shape[:-1] != obs.shape[:-1]:
        raise BatchError(f"avail: expected the leading axes of obs {list(obs.shape)}, found {list(avail.shape)}")


def _sizes(spec: EnvSpec) -> dict[str, int]:
    return {"N": spec.num_agents, "O": spec.obs_dim, "S": spec.state_dim, "A": spec.action_dim}


def _check(name: str, value: Any, letters: str, sizes: dict[str, int], kind: str) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        found = "None" if value is None else f"a {type(value).__name__}"
        raise BatchError(f"{name}: expected {_shape(letters, sizes)} of {kind}, found {found}")
    wanted = tuple(sizes[letter] for letter in letters.removeprefix("..."))
    shape = value.shape[-len(wanted) :] if letters.startswith("...") else value.shape
    if tuple(shape) != wanted or not jnp.issubdtype(value.dtype, _KINDS[kind]):
        raise BatchError(
            f"{name}: expected {_shape(letters, sizes)} of {kind}, found {list(value.shape)} of {value.dtype}"
        )


def _shape(letters: str, sizes: dict[str, int]) -> str:
    lead = ["..."] if letters.startswith("...") else []
    letters = letters.removeprefix("...")
    numbers = [str(sizes[letter]) for letter in letters]
    return f"[{', '.join([*lead, *letters])}] = [{', '.join([*lead, *numbers])}]"
