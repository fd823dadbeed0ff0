"""The networks of the common backbone (OMIGA, Wang et al., NeurIPS 2023): plain MLPs and linear mixers."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from omcda_jax import losses
from omcda_jax.distributions import Measure, Policy, Support, categorical, tanh_gaussian
from omcda_jax.types import Batch, EnvSpec

DEVIATION_MIXINGS = ("convex", "identity", "monotonic")


@functools.partial(jax.jit, static_argnums=0)
def initialise(network: nn.Module, key: chex.PRNGKey, *inputs: chex.Array) -> Any:
    """Draw the parameters of a network; weights and biases of a layer are both uniform in +-1/sqrt(fan_in).

    One draw serves the whole network: a draw per array would compile once per shape, which takes seconds in total.

    Args:
        network: a network of dense layers only, each with a kernel and a bias.
        key: typed PRNG key.
        *inputs: arrays of the shapes the network takes.

    Returns:
        What `network.init` would return.
    """
    shapes = jax.eval_shape(network.init, key, *inputs).get("params", {})
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    draws = jnp.split(jax.random.uniform(key, (sum(sizes),), minval=-1.0), list(itertools.accumulate(sizes)))
    leaves = [draw.reshape(leaf.shape) for draw, leaf in zip(draws, jax.tree.leaves(shapes), strict=False)]
    layers = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return {"params": {name: _scale(layer) for name, layer in layers.items()}}


def _scale(layer):
    return jax.tree.map(lambda x: x * layer["kernel"].shape[0] ** -0.5, layer)


def _multiply(x: chex.Array, kernel: chex.Array, *unused: Any, **defaults: Any) -> chex.Array:
    """Multiply [..., I] by [I, O], as `dot_general` of a dense layer.

    The rows become one axis: with two or more, XLA's product for the kernel's gradient is slower on a CPU.
    """
    narrowing = kernel.shape[0] > kernel.shape[1]
    rows = (_narrowing_product if narrowing else jnp.matmul)(x.reshape(-1, x.shape[-1]), kernel)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _narrowing_product(x, kernel):
    """Multiply [R, I] by [I, O] with O below I; on a CPU the gradient takes a form that is quicker there.

    The kernel's gradient is a sum over the first axis of x. XLA's product of that form takes thirty times as long for
    two columns as the usual form with small transposes around it, and less than twice as long for 64. When the kernel
    is square, the transposes cost as much as they save.
    """
    return x @ kernel


def _gradients(operands, cotangent):
    x, kernel = operands
    of_kernel = jax.lax.platform_dependent(x, cotangent, cpu=_sum_by_transposes, default=lambda x, y: x.T @ y)
    return cotangent @ kernel.T, of_kernel


def _sum_by_transposes(x, y):
    apart = jax.lax.optimization_barrier  # or XLA makes the transposes part of the product again
    return apart(apart(y.T) @ x).T


_narrowing_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _gradients)

_Dense = functools.partial(nn.Dense, dot_general=_multiply)


class AgentNetwork(nn.Module):
    """One ReLU MLP shared by all agents, with the agent's one-hot index appended to its input.

    Attributes:
        hidden_sizes: widths of the hidden layers.
        outputs: width of the last layer.
        action_inputs: dimensions of a continuous action in the input; 0 if the input has no action.
        layer_norm: normalise every hidden layer (without gain and offset) before its ReLU.
    """

    hidden_sizes: Sequence[int]
    outputs: int
    action_inputs: int = 0
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x, action=None):
        """Map [..., N, features] and, with action inputs, [..., N, A] (None: zeros) to [..., N, outputs]."""
        if self.action_inputs:
            action = jnp.zeros((*x.shape[:-1], self.action_inputs), x.dtype) if action is None else action
            x = jnp.concatenate([x, action], axis=-1)
        sizes = [*self.hidden_sizes, self.outputs]
        for depth, size in enumerate(sizes):
            x = (_Dense if depth else _IndexedDense)(size, name=f"Dense_{depth}")(x)
            if depth + 1 < len(sizes):
                x = nn.LayerNorm(use_bias=False, use_scale=False)(x) if self.layer_norm else x
                x = nn.relu(x)
        return x


class _IndexedDense(nn.Module):
    """`nn.Dense` of features and one-hot index [..., N, F + N]; the index picks a kernel row without a product."""

    features: int

    @nn.compact
    def __call__(self, x):
        num_agents, inputs = x.shape[-2:]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs + num_agents, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = _multiply(x, kernel[:inputs])
        return y + jnp.broadcast_to(kernel[inputs:] + bias[None], y.shape)


class ReturnMixer(nn.Module):
    """State-dependent weights w^r(s) >= 0 and bias beta^r(s) of the return mixture.

    Attributes:
        num_agents: N.
        hidden: width of the single hidden layer.
    """

    num_agents: int
    hidden: int

    @nn.compact
    def __call__(self, global_state):
        """Map [..., S] to weights [..., N] and bias [...]."""
        x = nn.relu(_Dense(self.hidden)(global_state))
        return jnp.abs(_Dense(self.num_agents)(x)), _Dense(1)(x)[..., 0]


class DeviationMixer(nn.Module):
    """State-dependent weights w^c(s) of the N deviation mixtures, row i for Q^{c,i}.

    `convex` (chosen here): each row is a softmax that favours the diagonal, without a bias, so that Q^c keeps the scale
    of a discounted KL. `identity`: w^c = I. `monotonic`: the paper's literal |w| with a free bias. No reward anchors
    the scale, so it can diverge, and it did in trials of the in-sample form.

    Attributes:
        num_agents: N.
        hidden: width of the single hidden layer.
        kind: one of DEVIATION_MIXINGS.
    """

    num_agents: int
    hidden: int
    kind: str

    @nn.compact
    def __call__(self, global_state):
        """Map [..., S] to weights [..., N, N] and bias [..., N]."""
        n = self.num_agents
        no_bias = jnp.zeros((*global_state.shape[:-1], n), global_state.dtype)
        if self.kind == "identity":
            return jnp.broadcast_to(np.eye(n, dtype=global_state.dtype), (*global_state.shape[:-1], n, n)), no_bias
        x = nn.relu(_Dense(self.hidden)(global_state))
        raw = _Dense(n * n)(x).reshape(*global_state.shape[:-1], n, n)
        if self.kind == "convex":
            lean = jnp.broadcast_to(3.0 * np.eye(n, dtype=raw.dtype), raw.shape)
            return jax.nn.softmax(raw + lean, axis=-1), no_bias
        return jnp.abs(raw), _Dense(n)(x)


def policy_network(spec: EnvSpec, hidden_sizes: Sequence[int]) -> AgentNetwork:
    """Return a policy network: [..., N, O] to logits [..., N, A] or means and log standard deviations [..., N, 2A]."""
    return AgentNetwork(tuple(hidden_sizes), spec.action_dim if spec.discrete else 2 * spec.action_dim)


def critic_network(spec: EnvSpec, hidden_sizes: Sequence[int], layer_norm: bool = False) -> AgentNetwork:
    """Return a network of local action values: [..., N, O] to [..., N, A], or with continuous actions [..., N, 1]."""
    if spec.discrete:
        return AgentNetwork(tuple(hidden_sizes), spec.action_dim, layer_norm=layer_norm)
    return AgentNetwork(tuple(hidden_sizes), 1, action_inputs=spec.action_dim, layer_norm=layer_norm)


def value_network(hidden_sizes: Sequence[int]) -> AgentNetwork:
    """Return a network of local state values: [..., N, O] to [..., N, 1]."""
    return AgentNetwork(tuple(hidden_sizes), 1)


class MixedCritic(NamedTuple):
    """Local action values under a linear mixer; the parameters are {"local", "mixer"}.

    A ReturnMixer gives one value of the team, Q_tot = sum_i w_i(s) q_i(o_i, a_i) + b(s), [...]; a DeviationMixer gives
    N values, [..., N].

    Attributes:
        local: network of the local values, shared by all agents.
        mixer: mixer of the local values.
        members: E, number of local networks under the one mixer, with stacked parameters; None: one, not stacked.
    """

    local: AgentNetwork
    mixer: ReturnMixer | DeviationMixer
    members: int | None = None

    def weights(self, params: Any, global_state: chex.Array) -> chex.Array:
        """Return w(s): [..., S] to [..., N] or [..., N, N]."""
        return self.mixer.apply(params["mixer"], global_state)[0]

    def mix(self, params: Any, global_state: chex.Array, values: chex.Array) -> chex.Array:
        """Mix local values [..., N] at states [..., S]."""
        return losses.mix(values, *self.mixer.apply(params["mixer"], global_state))

    def q_tot(self, params: Any, obs: chex.Array, global_state: chex.Array, action: chex.Array) -> chex.Array:
        """Mix the values of actions [..., N] or [..., N, A]."""
        return self.mix(params, global_state, action_values(self.local, params["local"], obs, action))

    def parts(self, params: Any, batch: Batch, measure: Measure) -> tuple[chex.Array, chex.Array, chex.Array]:
        """Return what a conservative loss compares: the team value of the data's actions and every agent's part in it.

        Args:
            params: parameters of the critic.
            batch: B transitions.
            measure: measure over the actions of [B, N] agents.

        Returns:
            Q_tot [B], w_i q_i at the measure's points [B, N, K], and w_i q_i of the data's actions [B, N].
        """
        weights, bias = self.mixer.apply(params["mixer"], batch.global_state)
        values, chosen = support_and_action_values(self.local, params["local"], batch.obs, measure, batch.action)
        return losses.mix(chosen, weights, bias), weights[..., None] * values, weights * chosen


def mixed_critic(spec: EnvSpec, config: Any) -> MixedCritic:
    """Return the critic of a task from an algorithm's `hidden_sizes`, `mixer_hidden` and `critic_layer_norm`."""
    local = critic_network(spec, config.hidden_sizes, config.critic_layer_norm)
    return MixedCritic(local, ReturnMixer(spec.num_agents, config.mixer_hidden))


def of_ensemble(function: Callable[..., Any], network: nn.Module, params: Any, *inputs: Any) -> Any:
    """Call `function(network, params, *inputs)` for every member of stacked parameters; results gain an axis [E]."""
    return jax.vmap(lambda member: function(network, member, *inputs))(params)


def action_distribution(network: AgentNetwork, params: Any, obs: chex.Array, avail: chex.Array) -> Policy:
    """Return every agent's policy.

    Args:
        network: from `policy_network`.
        params: its parameters.
        obs: [..., N, O].
        avail: [..., N, A] bool, legal actions or the dimensions an agent has.

    Returns:
        [..., N] distributions.
    """
    outputs = network.apply(params, obs)
    if network.outputs == avail.shape[-1]:
        return categorical(outputs, avail)
    return tanh_gaussian(*jnp.split(outputs, 2, axis=-1), avail)


class Backbone(NamedTuple):
    """Networks of the common backbone; an algorithm initialises those that it trains."""

    policy: AgentNetwork
    critic: MixedCritic
    value: AgentNetwork


def backbone(spec: EnvSpec, config: Any) -> Backbone:
    """Return the networks of a task from an algorithm's `hidden_sizes`, `mixer_hidden` and `critic_layer_norm`."""
    return Backbone(
        policy=policy_network(spec, config.hidden_sizes),
        critic=mixed_critic(spec, config),
        value=value_network(config.hidden_sizes),
    )


def init_params(key: chex.PRNGKey, spec: EnvSpec, **parts: AgentNetwork | MixedCritic) -> dict[str, Any]:
    """Draw new parameters of networks and critics, by the names of the arguments.

    Args:
        key: typed PRNG key.
        spec: the task's sizes.
        **parts: networks and critics by optimiser group.
    """
    obs, global_state = jnp.zeros((1, spec.num_agents, spec.obs_dim)), jnp.zeros((1, spec.state_dim))

    def fresh(part, key):
        if not isinstance(part, MixedCritic):
            return initialise(part, key, obs)
        local_key, mixer_key = jax.random.split(key)
        local = lambda k: initialise(part.local, k, obs)
        if part.members is None:
            params = local(local_key)
        else:
            params = jax.vmap(local)(jax.random.split(local_key, part.members))
        return {"local": params, "mixer": initialise(part.mixer, mixer_key, global_state)}

    keys = jax.random.split(key, len(parts))
    return {name: fresh(part, k) for (name, part), k in zip(parts.items(), keys, strict=True)}


def support_values(network: AgentNetwork, params: Any, obs: chex.Array, support: Support | Measure) -> chex.Array:
    """Compute local action values at the points of an expectation or an integral.

    Args:
        network: from `critic_network`.
        params: its parameters.
        obs: [..., N, O].
        support: support of distributions [..., N], or a measure over their actions.

    Returns:
        [..., N, K].
    """
    if not network.action_inputs:
        return network.apply(params, obs)
    return _values_at(network, params, obs, support.actions)


def support_values_and_slopes(
    network: AgentNetwork, params: Any, obs: chex.Array, support: Support
) -> tuple[chex.Array, chex.Array]:
    """Compute `support_values` [..., N, K] and their gradients in continuous actions [..., N, K, A]."""
    values, pull = jax.vjp(
        lambda actions: support_values(network, params, obs, support.replace(actions=actions)), support.actions
    )
    return values, pull(jnp.ones_like(values))[0]


def support_and_action_values(
    network: AgentNetwork, params: Any, obs: chex.Array, support: Support, action: chex.Array
) -> tuple[chex.Array, chex.Array]:
    """Compute `support_values` [..., N, K] and `action_values` [..., N] by one pass of the network."""
    if not network.action_inputs:
        values = network.apply(params, obs)
        return values, _pick(values, action)
    values = _values_at(network, params, obs, jnp.concatenate([support.actions, action[..., None, :]], axis=-2))
    return values[..., :-1], values[..., -1]


def action_values(network: AgentNetwork, params: Any, obs: chex.Array, action: chex.Array) -> chex.Array:
    """Compute the local values of the actions taken.

    Args:
        network: from `critic_network`.
        params: its parameters.
        obs: [..., N, O].
        action: [..., N] int32, or [..., N, A].

    Returns:
        [..., N].
    """
    if not network.action_inputs:
        return _pick(network.apply(params, obs), action)
    return network.apply(params, obs, action)[..., 0]


def _pick(values, action):
    return jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]


def _values_at(network, params, obs, actions):
    """Compute [..., N, K] values of K continuous actions [..., N, K, A]."""
    actions = jnp.moveaxis(actions, -2, 0)
    values = network.apply(params, jnp.broadcast_to(obs, (*actions.shape[:-1], obs.shape[-1])), actions)
    return jnp.moveaxis(values[..., 0], 0, -1)
