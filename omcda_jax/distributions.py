"""Policies as distributions over one agent's action, and the exact or sampled support of their expectations."""

import chex
import flax.struct
import jax
import jax.numpy as jnp

ILLEGAL_LOGIT = -1e9


@flax.struct.dataclass
class Support:
    """Points and weights of an expectation over one agent's actions, the same for every use within an update.

    Attributes:
        actions: None where the points are all discrete actions in order, else [..., K, A] sampled actions.
        probabilities: [..., K], summing to one over K; 0 on illegal actions.
    """

    actions: chex.Array | None
    probabilities: chex.Array


def expectation(values: chex.Array, support: Support) -> chex.Array:
    """E_pi[values]: [..., K] values at the support points to [...]."""
    chex.assert_equal_shape([values, support.probabilities])
    return jnp.sum(support.probabilities * values, axis=-1)


@flax.struct.dataclass
class Categorical:
    """A distribution over discrete actions, [...] of them at once.

    Attributes:
        log_probs: [..., A] normalised; about ILLEGAL_LOGIT, hence probability exactly 0, on illegal actions.
    """

    log_probs: chex.Array

    def log_prob(self, action: chex.Array) -> chex.Array:
        """Log-probability in nats of `action` [...] int: [...]."""
        return jnp.take_along_axis(self.log_probs, action[..., None], axis=-1)[..., 0]

    def sample(self, key: chex.PRNGKey) -> chex.Array:
        """One action each: [...] int32."""
        return jax.random.categorical(key, self.log_probs).astype(jnp.int32)

    def mode(self) -> chex.Array:
        """The likeliest action each, the first among equals: [...] int32."""
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def kl(self, other: "Categorical") -> chex.Array:
        """KL(self || other) in nats: [...]. Exactly 0 where only one action is legal."""
        chex.assert_equal_shape([self.log_probs, other.log_probs])
        return jnp.sum(jnp.exp(self.log_probs) * (self.log_probs - other.log_probs), axis=-1)

    def support(self, key: chex.PRNGKey | None = None) -> Support:
        """All actions with their probabilities: expectations are exact and `key` is not used."""
        del key
        return Support(actions=None, probabilities=jnp.exp(self.log_probs))

    def support_log_probs(self, support: Support) -> chex.Array:
        """Log-probabilities in nats at the support points: [..., K]."""
        del support
        return self.log_probs


def categorical(logits: chex.Array, avail: chex.Array) -> Categorical:
    """Categorical over the legal actions only.

    Args:
        logits: [..., A] unnormalised, nats.
        avail: [..., A] bool, legal actions. Where none is legal all are treated as equally likely, to stay finite.

    Returns:
        The distribution; illegal actions are masked before normalising.
    """
    chex.assert_equal_shape([logits, avail])
    return Categorical(jax.nn.log_softmax(jnp.where(avail, logits, ILLEGAL_LOGIT)))


def has_choice(avail: chex.Array) -> chex.Array:
    """[..., A] legal actions to [...] bool: more than one is legal. A dead unit has none to make."""
    return jnp.sum(avail, axis=-1) > 1
