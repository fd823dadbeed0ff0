"""Masked averages that stay right when the batch is spread over devices.

Every loss and statistic of the library is averaged here and nowhere else. With `axis_name=None` the batch is whole;
with the name of a mapped axis, the counts (and for statistics the sums) run over all devices. An average of each
device's own masked mean would weight a row by the number of other valid rows on its device.
"""

import chex
import jax
import jax.numpy as jnp


def total(values: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return the sum of `values` over the devices of `axis_name`; `values` itself if `axis_name` is None."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)


def largest(values: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return the maximum of `values` over the devices of `axis_name`; `values` itself if `axis_name` is None."""
    return values if axis_name is None else jax.lax.pmax(values, axis_name)


def valid_rows(mask: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return how many entries of the batch axis are valid: mask [B, ...] to [...]."""
    return total(jnp.sum(mask, axis=0), axis_name)


def masked_mean(values: chex.Array, mask: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return the mean over the batch axis of the valid entries.

    Args:
        values: [B, ...].
        mask: [B, ...], same shape; True or 1 where the entry counts.
        axis_name: mapped device axis the batch is spread over.

    Returns:
        [...], 0 where nothing is valid.
    """
    chex.assert_equal_shape([values, mask])
    summed = total(jnp.sum(jnp.where(mask, values, 0.0), axis=0), axis_name)
    return summed / jnp.maximum(valid_rows(mask, axis_name), 1)


def loss_share(values: chex.Array, mask: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return this device's share of the mean of all valid entries; sum shares and gradients over devices.

    Args:
        values: any shape.
        mask: same shape; True or 1 where the entry counts.
        axis_name: mapped device axis the batch is spread over.

    Returns:
        [] local sum divided by the global count.
    """
    chex.assert_equal_shape([values, mask])
    count = total(jnp.sum(mask), axis_name)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1)


def batch_log_weights(logits: chex.Array, mask: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return the log of (softmax over the valid rows of the batch, times their number): weights with mean one.

    Args:
        logits: [B, ...].
        mask: [B, ...] bool, same shape.
        axis_name: mapped device axis the batch is spread over.

    Returns:
        [B, ...]; about -1e30 on invalid rows.
    """
    chex.assert_equal_shape([logits, mask])
    count = jnp.maximum(valid_rows(mask, axis_name), 1)
    logits = jnp.where(mask, logits, -1e30)
    logits = logits - largest(jnp.max(logits, axis=0), axis_name)
    return logits - jnp.log(total(jnp.sum(jnp.exp(logits), axis=0), axis_name)) + jnp.log(count)
