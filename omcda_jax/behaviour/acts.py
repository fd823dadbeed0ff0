"""The policies that collect a dataset in a simulator: behaviour policies, random play, and functions of the user."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax.behaviour.policies import Quality, sample

CHANCE = "actions drawn at random from the legal ones"

# act(params, obs [N, O], avail [N, A], key) -> action [N] or [N, A]
Act = Callable[[Any, chex.Array, chex.Array, chex.PRNGKey], chex.Array]


class InPython(NamedTuple):
    """A policy that is a Python function, which JAX cannot trace.

    Attributes:
        function: `function(obs [N, O], avail [N, A], seed [2] uint32) -> action [N] or [N, A]`, all NumPy arrays.
        discrete: whether actions are indices.
    """

    function: Callable
    discrete: bool

    def __call__(self, params: Any, obs: np.ndarray, avail: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Return the function's action."""
        del params
        return np.asarray(self.function(obs, avail, key)).astype(np.int32 if self.discrete else np.float32)

    def mixed(self, share: float) -> "InPython":
        """Return this policy mixed with random actions, see `mixed`."""

        def act_or_not(obs, avail, key):
            random = np.random.default_rng([1, *map(int, key)])
            if self.discrete:
                drawn = np.where(avail, random.random(avail.shape), -1.0).argmax(axis=-1)
            else:
                drawn = np.where(avail, random.uniform(-1.0, 1.0, avail.shape), 0.0)
            coin = random.random(len(avail)) < share
            return np.where(coin if self.discrete else coin[:, None], drawn, self.function(obs, avail, key))

        return self._replace(function=act_or_not)


class Behaviour(NamedTuple):
    """What a dataset is collected with, if not with the policies that come with the package.

    Attributes:
        recipe: the stages, and how they are rolled out.
        params: for each stage's policy, the first argument of `act`.
        act: `act(params, obs [N, O], avail [N, A], key) -> action [N] or [N, A]`; None: `sample` at the recipe's
            temperature.
        facts: facts stored with the dataset: `description` and `weights`, the SHA-256 by stage.
        flags: flags of `collect` that ask for it.
    """

    recipe: Quality
    params: tuple[Any, ...]
    act: Act | None
    facts: Mapping[str, Any]
    flags: tuple[str, ...]


@functools.cache
def sampler(temperature: float) -> Act:
    """Return `sample` at a temperature; the same temperature always returns the same function.

    Args:
        temperature: as in `sample`.
    """
    return lambda params, obs, avail, key: sample(params, obs, avail, key, temperature)


def uniform(discrete: bool) -> Act:
    """Return the uniformly random policy, over legal actions or over [-1, 1].

    Args:
        discrete: whether actions are indices.
    """

    def act(params, obs, avail, key):
        del params, obs
        if discrete:
            return jax.random.categorical(key, jnp.where(avail, 0.0, -1e9)).astype(jnp.int32)
        return jnp.where(avail, jax.random.uniform(key, avail.shape, minval=-1.0, maxval=1.0), 0.0)

    return act


def mixed(act: Act, share: float, discrete: bool) -> Act:
    """Return a policy that sometimes acts at random: each agent at each step with the same probability.

    Args:
        act: the policy that acts otherwise.
        share: the probability, from 0 to 1.
        discrete: whether actions are indices.
    """
    if isinstance(act, InPython):
        return act.mixed(share)

    def act_or_not(params, obs, avail, key):
        coin_key, random_key, own_key = jax.random.split(key, 3)
        coin = jax.random.bernoulli(coin_key, share, avail.shape[:-1])
        random = uniform(discrete)(None, obs, avail, random_key)
        return jnp.where(coin if discrete else coin[..., None], random, act(params, obs, avail, own_key))

    return act_or_not
