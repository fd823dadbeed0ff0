"""Mathematics of the losses: every function returns per-row or per-agent arrays and averages nothing."""

import chex
import jax
import jax.numpy as jnp

from omcda_jax.reductions import largest

MAX_EXPONENT = 10.0


def mix(values: chex.Array, weights: chex.Array, bias: chex.Array) -> chex.Array:
    """Mix values linearly, Q_tot = sum_i w_i(s) q_i + b(s).

    Args:
        values: [..., N] local values.
        weights: [..., N] one mixture, or [..., N, N] with row i the weights of mixture i.
        bias: [...] or [..., N].

    Returns:
        [...] or [..., N], the shape of `bias`.
    """
    if weights.ndim == values.ndim + 1:
        values = values[..., None, :]
    return jnp.sum(weights * values, axis=-1) + bias


def bellman_target(reward: chex.Array, discount: chex.Array, gamma: chex.Numeric, next_value: chex.Array) -> chex.Array:
    """Return r + gamma nu V(s'), gradient stopped; all arguments are [B], or share further trailing axes."""
    chex.assert_equal_shape([reward, discount, next_value])
    return jax.lax.stop_gradient(reward + gamma * discount * next_value)


def conservatism_coupling(alpha: chex.Array, deviation_weights: chex.Array) -> chex.Array:
    """Return kappa_j(s) = sum_i alpha_i w^c_ij(s) / alpha_j: how much q^c_j counts in agent j's own exponent.

    Args:
        alpha: [N] conservatism levels.
        deviation_weights: [..., N, N] w^c, row i the weights of Q^{c,i}.

    Returns:
        [..., N]; all ones when w^c is the identity (paper Proposition 3.2).
    """
    return jnp.einsum("i,...ij->...j", alpha, deviation_weights) / alpha


def largest_exponent(exponent: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Return M = max(max z, -1) [] of exponents [...] clipped to +-MAX_EXPONENT, over all devices of `axis_name`."""
    clipped = jnp.clip(exponent, -MAX_EXPONENT, MAX_EXPONENT)
    return largest(jnp.max(clipped, initial=-1.0), axis_name)


def normalisation_loss(exponent: chex.Array, linear_term: chex.Array, largest_exponent: chex.Array) -> chex.Array:
    """Return exp(z - M) + exp(-M) kappa v, minimal where the mean of exp(z) is one (paper Proposition 3.4 and Eq. 25).

    Args:
        exponent: [...] z = log(pi*/b), which falls with v at slope kappa.
        linear_term: [...] kappa v, with the same slope.
        largest_exponent: [] M, which only scales the loss; its gradient is stopped here.

    Returns:
        [...] loss; exponents are clipped to +-MAX_EXPONENT.
    """
    scale = jax.lax.stop_gradient(largest_exponent)
    clipped = jnp.clip(exponent, -MAX_EXPONENT, MAX_EXPONENT)
    return jnp.exp(clipped - scale) + jnp.exp(-scale) * linear_term


def best_and_worst(values: chex.Array, share: chex.Numeric) -> chex.Array:
    """Return share min + (1 - share) max over an ensemble, [E, ...] to [...] (BCQ, Fujimoto et al. 2019)."""
    return share * jnp.min(values, axis=0) + (1 - share) * jnp.max(values, axis=0)


def soft_chi_square(x: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Return w = f'^-1(x) and g = f(w) of the soft chi-square divergence: exponential below 0, linear above."""
    exponential = jnp.exp(jnp.minimum(x, 0.0))
    return (
        jnp.where(x < 0, exponential, x + 1.0),
        jnp.where(x < 0, exponential * (jnp.minimum(x, 0.0) - 1.0) + 1.0, jnp.square(x) / 2),
    )


def chi_square(x: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Return w = max(0, f'^-1(x)) and g = f(w) of the chi-square divergence."""
    w = jnp.maximum(x + 1.0, 0.0)
    return w, jnp.square(w - 1.0) / 2


def kullback_leibler(x: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Return w = f'^-1(x) and g = f(w) of the KL divergence; x is clipped at MAX_EXPONENT to stay finite."""
    w = jnp.exp(jnp.minimum(x, MAX_EXPONENT) - 1.0)
    return w, (jnp.minimum(x, MAX_EXPONENT) - 1.0) * w


F_DIVERGENCES = {"soft_chi_square": soft_chi_square, "chi_square": chi_square, "kl": kullback_leibler}
