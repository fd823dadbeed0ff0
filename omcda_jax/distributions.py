"""Policies as distributions over one agent's action, and the exact or sampled support of their expectations."""

import chex
import flax.struct
import jax
import jax.numpy as jnp

ILLEGAL_LOGIT = -1e9
MAX_MEAN = 9.0
LOG_STD_BOUNDS = (-5.0, 2.0)
ACTION_MARGIN = 1e-6
BOUND_MARGIN = 1e-2  # two actions that are both this near to a bound are not told apart


@flax.struct.dataclass
class Support:
    """Points and weights of an expectation over one agent's actions, the same for every use within an update.

    Attributes:
        actions: None if the points are all discrete actions in order, else [..., K, A] sampled actions.
        probabilities: [..., K], summing to one over K; 0 on illegal actions.
    """

    actions: chex.Array | None
    probabilities: chex.Array


@flax.struct.dataclass
class Measure:
    """Points and weights of an integral over one agent's actions, sum_k exp(log_weight_k) f(a_k).

    Attributes:
        actions: None if the points are all discrete actions in order, else [..., K, A] sampled actions.
        log_weights: [..., K]; 0 for legal discrete actions, which makes the sum exact; for a sampled action
            -log(K times the density it was drawn from).
    """

    actions: chex.Array | None
    log_weights: chex.Array


def expectation(values: chex.Array, support: Support) -> chex.Array:
    """Return E_pi[values]: [..., K] values at the support points to [...]; points of probability 0 do not count."""
    chex.assert_equal_shape([values, support.probabilities])
    probabilities = support.probabilities
    # this also keeps XLA on a CPU from fusing a whole network and this sum into one slow kernel
    taken = jnp.where(probabilities > 0, probabilities * values, 0.0)
    return jnp.sum(taken, axis=-1)


def moved_expectation(values: chex.Array, slopes: chex.Array, before: Support, after: Support) -> chex.Array:
    """Return E[values] under a support that moved since the values were taken: to first order in continuous actions.

    If the two supports are equal, the gradient in `after` is that of the expectation itself.

    Args:
        values: [..., K] values at `before`.
        slopes: [..., K, A] gradients of the values in the actions; not used if actions are discrete.
        before: support at which the values were taken.
        after: the same draws, or all the discrete actions, of another policy.

    Returns:
        [...].
    """
    if after.actions is not None:
        values = values + jnp.sum(slopes * (after.actions - before.actions), axis=-1)
    return expectation(values, after)


@flax.struct.dataclass
class Categorical:
    """Distributions [...] over discrete actions.

    Attributes:
        log_probs: [..., A] normalised; about ILLEGAL_LOGIT on illegal actions, so their probability is exactly 0.
    """

    log_probs: chex.Array

    def log_prob(self, action: chex.Array) -> chex.Array:
        """Return the log-probability in nats of `action` [...] int: [...]."""
        return jnp.take_along_axis(self.log_probs, action[..., None], axis=-1)[..., 0]

    def relative_log_prob(self, action: chex.Array) -> chex.Array:
        """Return log p(action) - log p(likeliest action) in nats, at most 0: [...]."""
        return self.log_prob(action) - jnp.max(self.log_probs, axis=-1)

    def sample(self, key: chex.PRNGKey) -> chex.Array:
        """Draw one action from each: [...] int32."""
        return jax.random.categorical(key, self.log_probs).astype(jnp.int32)

    def mode(self) -> chex.Array:
        """Return the likeliest action of each, the first among equals: [...] int32."""
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def kl(self, other: "Categorical") -> chex.Array:
        """Return KL(self || other) in nats: [...]. Exactly 0 where only one action is legal."""
        chex.assert_equal_shape([self.log_probs, other.log_probs])
        return jnp.sum(jnp.exp(self.log_probs) * (self.log_probs - other.log_probs), axis=-1)

    def support(self, key: chex.PRNGKey | None = None, num_samples: int | None = None) -> Support:
        """Return all actions with their probabilities: expectations are exact, and neither argument is used."""
        del key, num_samples
        return Support(actions=None, probabilities=jnp.exp(self.log_probs))

    def support_log_probs(self, support: Support) -> chex.Array:
        """Return the log-probabilities in nats at the support points: [..., K]."""
        del support
        return self.log_probs

    def measure(
        self,
        avail: chex.Array,
        key: chex.PRNGKey | None = None,
        num_samples: int | None = None,
        other: "Categorical | None" = None,
    ) -> Measure:
        """Return all legal actions, each counted once: sums are exact, and only `avail` [..., A] is used."""
        del key, num_samples, other
        return Measure(actions=None, log_weights=jnp.where(avail, 0.0, ILLEGAL_LOGIT))


def categorical(logits: chex.Array, avail: chex.Array) -> Categorical:
    """Return a categorical over the legal actions only.

    Args:
        logits: [..., A] unnormalised, nats.
        avail: [..., A] bool, legal actions. If none is legal, all count as equally likely, so that numbers stay finite.

    Returns:
        The distribution; illegal actions are masked before normalising.
    """
    chex.assert_equal_shape([logits, avail])
    return Categorical(jax.nn.log_softmax(jnp.where(avail, logits, ILLEGAL_LOGIT)))


def greedy(values: chex.Array, avail: chex.Array) -> Categorical:
    """Put all probability on the legal action with the highest value, the first among equals.

    Args:
        values: [..., A].
        avail: [..., A] bool, legal actions.
    """
    best = jnp.argmax(jnp.where(avail, values, ILLEGAL_LOGIT), axis=-1)
    return Categorical(jnp.where(jax.nn.one_hot(best, values.shape[-1], dtype=bool), 0.0, ILLEGAL_LOGIT))


@flax.struct.dataclass
class TanhGaussian:
    """Distributions [...] over continuous actions a = tanh(u), where u is normal with independent dimensions.

    Attributes:
        mean: [..., A] mean of u.
        log_std: [..., A] log standard deviation of u.
        avail: [..., A] bool, the dimensions an agent has. The others are padding: always 0, and counted nowhere.
    """

    mean: chex.Array
    log_std: chex.Array
    avail: chex.Array

    def log_prob(self, action: chex.Array) -> chex.Array:
        """Return the log-density in nats of `action` [..., A], clipped to +-(1 - ACTION_MARGIN): [...]."""
        return self._log_density(_unsquashed(action, ACTION_MARGIN))

    def relative_log_prob(self, action: chex.Array) -> chex.Array:
        """Return the log-density of u = arctanh(action) minus that at the mode, in nats, at most 0: [...].

        It is the mean over an agent's dimensions, so that one limit suits any number of them. Both actions are clipped
        to +-(1 - BOUND_MARGIN), so two actions at the same bound are equal.
        """
        steps = _unsquashed(action, BOUND_MARGIN) - _unsquashed(self.mode(), BOUND_MARGIN)
        each = jnp.where(self.avail, jnp.square(steps * jnp.exp(-self.log_std)), 0.0)
        return -0.5 * jnp.sum(each, axis=-1) / jnp.maximum(jnp.sum(self.avail, axis=-1), 1)

    def _log_density(self, u):
        """Return the log-density of tanh(u)."""
        normal = -0.5 * jnp.square((u - self.mean) * jnp.exp(-self.log_std)) - self.log_std - 0.5 * jnp.log(2 * jnp.pi)
        # log(1 - tanh(u)^2), in a form that is exact for large |u|
        log_slope = 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))
        return jnp.sum(jnp.where(self.avail, normal - log_slope, 0.0), axis=-1)

    def sample(self, key: chex.PRNGKey) -> chex.Array:
        """Draw one action from each: [..., A]."""
        return self._squash(self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape))

    def mode(self) -> chex.Array:
        """Return tanh of the mean of each: [..., A]."""
        return self._squash(self.mean)

    def kl(self, other: "TanhGaussian") -> chex.Array:
        """Return KL(self || other) in nats [...], in closed form, because tanh does not change it."""
        chex.assert_equal_shape([self.mean, other.mean])
        ratio = self.log_std - other.log_std
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        each = 0.5 * (jnp.exp(2.0 * ratio) + jnp.square(shift) - 1.0) - ratio
        return jnp.sum(jnp.where(self.avail, each, 0.0), axis=-1)

    def support(self, key: chex.PRNGKey, num_samples: int) -> Support:
        """Draw K = num_samples points, equally probable, in pairs that mirror each other about the mean.

        The mirroring cancels everything odd in the noise from expectations, above all the linear part of an action
        value. This removes the variance that matters most, at no cost.
        """
        noise = jax.random.normal(key, (-(-num_samples // 2), *self.mean.shape))
        noise = jnp.moveaxis(jnp.concatenate([noise, -noise])[:num_samples], 0, -2)
        u = self.mean[..., None, :] + jnp.exp(self.log_std)[..., None, :] * noise
        probabilities = jnp.full(u.shape[:-1], 1.0 / num_samples, u.dtype)
        return Support(actions=_at_points(self)._squash(u), probabilities=probabilities)

    def support_log_probs(self, support: Support) -> chex.Array:
        """Return the log-densities in nats at the support points: [..., K]."""
        return _at_points(self).log_prob(support.actions)

    def measure(self, avail: chex.Array, key: chex.PRNGKey, num_samples: int, other: "TanhGaussian") -> Measure:
        """Importance-sample over all actions: num_samples draws each from uniform, this policy and the other."""
        keys = jax.random.split(key, 3)
        shape = (*self.mean.shape[:-1], num_samples, self.mean.shape[-1])
        avail = jnp.broadcast_to(avail[..., None, :], shape)
        uniform = jnp.where(avail, jax.random.uniform(keys[0], shape, minval=-1.0), 0.0)
        actions, log_densities = [uniform], [-jnp.log(2.0) * jnp.sum(avail, axis=-1)]
        for policy, policy_key in zip((self, other), keys[1:], strict=True):
            spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), _at_points(policy))
            spread = spread.replace(avail=avail)  # at the next state the agent may have ended
            u = spread.mean + jnp.exp(spread.log_std) * jax.random.normal(policy_key, shape)
            actions.append(spread._squash(u))
            log_densities.append(spread._log_density(u))
        log_weights = -jnp.concatenate(log_densities, axis=-1) - jnp.log(3.0 * num_samples)
        return Measure(actions=jnp.concatenate(actions, axis=-2), log_weights=log_weights)

    def _squash(self, u):
        return jnp.where(self.avail, jnp.tanh(u), 0.0)


def _unsquashed(action: chex.Array, margin: float) -> chex.Array:
    return jnp.arctanh(jnp.clip(action, margin - 1.0, 1.0 - margin))


def _at_points(policy: TanhGaussian) -> TanhGaussian:
    """Return the same distributions with an axis for support points."""
    return jax.tree.map(lambda leaf: leaf[..., None, :], policy)


def tanh_gaussian(mean: chex.Array, log_std: chex.Array, avail: chex.Array) -> TanhGaussian:
    """Return a tanh-Gaussian with the mean within +-MAX_MEAN and the log standard deviation within LOG_STD_BOUNDS.

    Args:
        mean: [..., A] mean of the normal variable before tanh.
        log_std: [..., A] its log standard deviation.
        avail: [..., A] bool, the dimensions an agent has.

    Returns:
        The distribution. The bounds are those of OMIGA's code (Wang et al., NeurIPS 2023).
    """
    chex.assert_equal_shape([mean, log_std, avail])
    return TanhGaussian(jnp.clip(mean, -MAX_MEAN, MAX_MEAN), jnp.clip(log_std, *LOG_STD_BOUNDS), avail)


Policy = Categorical | TanhGaussian


def sample_rows(policy: Policy, keys: chex.PRNGKey) -> chex.Array:
    """Draw one action of every agent, each row by its own key [B]: policies [B, N] to [B, N] int32, or [B, N, A]."""
    return jax.vmap(lambda row, key: row.sample(key))(policy, keys)


def support_rows(policy: Policy, keys: chex.PRNGKey, num_samples: int) -> Support:
    """Return the support of policies [B, N], each row by its own key [B]."""
    return jax.vmap(lambda row, key: row.support(key, num_samples))(policy, keys)


def measure_rows(policy: Policy, avail: chex.Array, keys: chex.PRNGKey, num_samples: int, other: Policy) -> Measure:
    """Return a measure over the actions of policies [B, N] and `other` [B, N], each row by its own key [B]."""
    return jax.vmap(lambda row, legal, key, beside: row.measure(legal, key, num_samples, beside))(
        policy, avail, keys, other
    )


def log_integral(values: chex.Array, measure: Measure) -> chex.Array:
    """Return the log of the integral of exp(values): [..., K] values at the measure's points to [...]."""
    chex.assert_equal_shape([values, measure.log_weights])
    return jax.nn.logsumexp(values + measure.log_weights, axis=-1)


def has_choice(avail: chex.Array, discrete: bool) -> chex.Array:
    """Return whether there is something to choose: [..., A] legal actions, or dimensions an agent has, to [...] bool.

    A dead unit has one legal action and so no choice; an agent with a single continuous dimension has a choice.
    """
    return jnp.sum(avail, axis=-1) > (1 if discrete else 0)
