"""BCQ-MA: Q-learning over the actions that a model of the behaviour finds likely.

Sources: Fujimoto, Meger, Precup, "Off-Policy Deep Reinforcement Learning without Exploration" (ICML 2019), and for
discrete actions Fujimoto et al., "Benchmarking Batch Deep Reinforcement Learning Algorithms" (2019), per agent under
the linear mixer.

    discrete     allowed_i = { a legal: G_i(a) / max G_i >= threshold }, G the behaviour's head
                 a'_i = argmax of the online q_i over allowed_i at s'
                 y = r + gamma nu [ sum_i w_i q_i(a'_i) + b ], targets barred;   acting: the same argmax
    continuous   actions a of a conditional VAE, moved by xi = clip(a + reach tanh(net(o,a)), +-1)
                 q~ = share min(q^1, q^2) + (1 - share) max(q^1, q^2),           the best of K per agent at s'
                 y = r + gamma nu [ sum_i w_i max_k q~_i^k + b ],                L_q summed over both critics
                 L_xi = -mean q^1_i(o_i, xi);   acting: the best of acting_samples by q^1

The VAE's loss is the mean squared error (a - a^)^2 of its reconstruction plus half the mean KL divergence of its latent
from N(0, 1). The published multi-agent code feeds latent and agent index to the decoder in a different order for
generation than for training; here both use one function.
"""

import functools
from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, losses, networks, training
from omcda_jax.distributions import Support, greedy
from omcda_jax.training import static
from omcda_jax.types import Actor, Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState

LOG_STD_BOUNDS = (-4.0, 15.0)
LATENT_LIMIT = 0.5


@flax.struct.dataclass(kw_only=True)
class BcqConfig:
    """Settings of BCQ-MA.

    Attributes:
        threshold: least probability of an allowed action, relative to that of the likeliest action (discrete).
        logit_penalty: weight of the mean squared logit of the behaviour's head (discrete).
        num_samples: K, actions generated per agent for the target (continuous).
        acting_samples: actions generated per agent when acting (continuous).
        reach: largest perturbation of a generated action (continuous).
        share: weight of the smaller critic in the target (continuous).
        vae_hidden: widths of the hidden layers of encoder and decoder (continuous).
        gamma: discount factor per step.
        learning_rate: step size of Adam.
        target_rate: weight of the newest networks in the target networks, which are moving averages.
        hidden_sizes: widths of the hidden layers of critics, head and perturbation.
        mixer_hidden: width of the mixers' layers.
        critic_layer_norm: normalise the hidden layers of the action-value networks.
        priming: number of first updates in which the critic learns returns-to-go, see `training.CriticSettings`.
    """

    name: ClassVar[str] = "bcq"

    threshold: float = 0.3
    logit_penalty: float = 0.01
    num_samples: int = static(10)
    acting_samples: int = static(100)
    reach: float = 0.05
    share: float = 0.75
    vae_hidden: tuple[int, ...] = static((64, 64))
    gamma: float = 0.99
    learning_rate: float = 5e-4
    target_rate: float = 0.005
    hidden_sizes: tuple[int, ...] = static((256, 256))
    mixer_hidden: int = static(64)
    critic_layer_norm: bool = static(False)
    priming: int = static(0)

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        counts = ["num_samples", "acting_samples"]
        shares, nonnegative = ["threshold", "share"], ["logit_penalty"]
        training.check_numbers(self, positive=["reach"], nonnegative=nonnegative, shares=shares, counts=counts)


class _Networks(NamedTuple):
    critic: networks.MixedCritic
    head: networks.AgentNetwork  # discrete: logits of the behaviour
    encoder: networks.AgentNetwork
    decoder: networks.AgentNetwork
    perturbation: networks.AgentNetwork


def _networks(spec: EnvSpec, config: BcqConfig) -> _Networks:
    latent, hidden = 2 * spec.action_dim, tuple(config.hidden_sizes)
    return _Networks(
        critic=networks.mixed_critic(spec, config)._replace(members=None if spec.discrete else 2),
        head=networks.AgentNetwork(hidden, spec.action_dim),
        encoder=networks.AgentNetwork(tuple(config.vae_hidden), 2 * latent, action_inputs=spec.action_dim),
        decoder=networks.AgentNetwork(tuple(config.vae_hidden), spec.action_dim, action_inputs=latent),
        perturbation=networks.AgentNetwork(hidden, spec.action_dim, action_inputs=spec.action_dim),
    )


def init(key: chex.PRNGKey, spec: EnvSpec, config: BcqConfig) -> TrainState:
    """Initialise networks for the task's sizes: one critic and a head, or two critics, a VAE and a perturbation."""
    nets = _networks(spec, config)
    if spec.discrete:
        params = networks.init_params(key, spec, critic=nets.critic, head=nets.head)
        return training.new_state(key, spec, config, params, targets=["critic"])
    params_key, vae_key = jax.random.split(key)
    params = networks.init_params(params_key, spec, critic=nets.critic, perturbation=nets.perturbation)
    params["vae"] = networks.init_params(vae_key, spec, encoder=nets.encoder, decoder=nets.decoder)
    return training.new_state(key, spec, config, params, targets=["critic", "perturbation"])


def allowed_actions(logits: chex.Array, avail: chex.Array, threshold: chex.Numeric) -> chex.Array:
    """Allow legal actions with G(a) >= threshold max G, G the masked softmax of the logits: [..., A] each, bool.

    The likeliest legal action is always allowed.
    """
    relative = logits - jnp.max(jnp.where(avail, logits, -jnp.inf), axis=-1, keepdims=True)
    return avail & (jnp.exp(relative) >= threshold)


def head_loss(logits: chex.Array, avail: chex.Array, action: chex.Array, penalty: chex.Numeric) -> chex.Array:
    """Return -log G(a) over legal actions, plus `penalty` times the mean squared legal logit: [B, N]."""
    log_probs = jax.nn.log_softmax(jnp.where(avail, logits, -1e9))
    likelihood = jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]
    squares = jnp.sum(jnp.where(avail, jnp.square(logits), 0.0), axis=-1) / jnp.maximum(jnp.sum(avail, axis=-1), 1)
    return penalty * squares - likelihood


def decode(nets: _Networks, params, obs: chex.Array, latent: chex.Array) -> chex.Array:
    """Decode latents [..., N, L] to actions in (-1, 1): [..., N, A]."""
    return jnp.tanh(nets.decoder.apply(params["vae"]["decoder"], obs, latent))


def prior(key: chex.PRNGKey, *shape: int) -> chex.Array:
    """Draw latents to generate from: standard normal, clipped to +-LATENT_LIMIT."""
    return jnp.clip(jax.random.normal(key, shape), -LATENT_LIMIT, LATENT_LIMIT)


def _prior_by_row(nets: _Networks, keys: chex.PRNGKey, count: int, num_agents: int) -> chex.Array:
    """Draw latents [count, B, N, L] by keys [B]."""
    return jax.vmap(lambda key: prior(key, count, num_agents, nets.decoder.action_inputs), out_axes=1)(keys)


def generate(nets: _Networks, params, obs: chex.Array, avail: chex.Array, latent: chex.Array) -> chex.Array:
    """Generate actions [K, ..., N, A] from latents [K, ..., N, L], which broadcast to the axes of obs [..., N, O]."""
    shape = (latent.shape[0], *obs.shape[:-1])
    many, latent = (jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in (obs, latent))
    return jnp.where(avail, decode(nets, params, many, latent), 0.0)


def perturb(
    nets: _Networks, params, obs: chex.Array, avail: chex.Array, action: chex.Array, reach: chex.Numeric
) -> chex.Array:
    """Return xi = clip(a + reach tanh(net(o, a)), +-1), params of the perturbation: shaped as `action` [..., N, A]."""
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    moved = jnp.clip(action + reach * jnp.tanh(nets.perturbation.apply(params, obs, action)), -1.0, 1.0)
    return jnp.where(avail, moved, 0.0)


def latent_divergence(mean: chex.Array, log_std: chex.Array) -> chex.Array:
    """Return the KL of N(mean, exp(log_std)^2) from N(0, 1), each dimension: the shape of `mean`."""
    return -0.5 * (1.0 + 2.0 * log_std - jnp.square(mean) - jnp.exp(2.0 * log_std))


def reconstruction_loss(nets: _Networks, params: Params, batch: Batch, keys: chex.PRNGKey) -> chex.Array:
    """Return the mean squared reconstruction error over an agent's dimensions, plus half the mean latent KL: [B, N]."""
    encoded = nets.encoder.apply(params["vae"]["encoder"], batch.obs, batch.action)
    mean, log_std = jnp.split(encoded, 2, axis=-1)
    log_std = jnp.clip(log_std, *LOG_STD_BOUNDS)
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    latent = mean + jnp.exp(log_std) * noise
    error = jnp.square(decode(nets, params, batch.obs, latent) - batch.action)
    dimensions = jnp.maximum(jnp.sum(batch.avail, axis=-1), 1)
    reconstruction = jnp.sum(jnp.where(batch.avail, error, 0.0), axis=-1) / dimensions
    return reconstruction + 0.5 * jnp.mean(latent_divergence(mean, log_std), axis=-1)


def _restricted_policy(params: Params, spec: EnvSpec, config: BcqConfig, obs: chex.Array, avail: chex.Array):
    """Return the policy greedy in the online q over allowed actions."""
    nets = _networks(spec, config)
    logits = nets.head.apply(params["head"], obs)
    q = nets.critic.local.apply(params["critic"]["local"], obs)
    return greedy(q, allowed_actions(logits, avail, config.threshold))


def _best_of(state: TrainState, batch: Batch, keys: chex.PRNGKey) -> chex.Array:
    """Return max_k q~ at s' over generated and perturbed actions, target networks: [B, N]."""
    config, nets, barred = state.config, _networks(state.spec, state.config), state.target_params
    obs, avail = batch.next_obs, batch.next_avail
    latent = _prior_by_row(nets, keys, config.num_samples, state.spec.num_agents)
    generated = generate(nets, state.params, obs, avail, latent)
    moved = perturb(nets, barred["perturbation"], obs, avail, generated, config.reach)
    points = Support(jnp.moveaxis(moved, 0, -2), None)
    values = networks.of_ensemble(networks.support_values, nets.critic.local, barred["critic"]["local"], obs, points)
    return jnp.max(losses.best_and_worst(values, config.share), axis=-1)


class Estimates(NamedTuple):
    """Constants of the losses, from the parameters before the step."""

    target: chex.Array  # [B] y
    vae_keys: chex.PRNGKey | None = None  # [B] keys of the reconstruction's draws; only for continuous actions
    generated: chex.Array | None = None  # [B, N, A] actions to perturb; only for continuous actions


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute the target, by the best of the likely actions, and the actions to perturb."""
    spec, nets, barred = state.spec, _networks(state.spec, state.config), state.target_params["critic"]
    if spec.discrete:
        next_action = _restricted_policy(state.params, spec, state.config, batch.next_obs, batch.next_avail).mode()
        next_value = nets.critic.q_tot(barred, batch.next_obs, batch.next_global_state, next_action)
        return Estimates(training.bootstrap(state, batch, next_value))
    next_keys, vae_keys, prior_keys = training.row_keys(state, batch, 3, axis_name)
    next_value = nets.critic.mix(barred, batch.next_global_state, _best_of(state, batch, next_keys))
    latent = _prior_by_row(nets, prior_keys, 1, spec.num_agents)
    generated = generate(nets, state.params, batch.obs, batch.avail, latent)[0]
    return Estimates(training.bootstrap(state, batch, next_value), vae_keys, generated)


def critic_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q_tot - y)^2, with two critics their sum: [B]."""
    critic = _networks(state.spec, state.config).critic
    if state.spec.discrete:
        q_tot = critic.q_tot(params["critic"], batch.obs, batch.global_state, batch.action)
        return {"critic/td": jnp.square(q_tot - estimates.target)}, {"critic/q": q_tot}
    q = networks.of_ensemble(networks.action_values, critic.local, params["critic"]["local"], batch.obs, batch.action)
    q_tot = jax.vmap(functools.partial(critic.mix, params["critic"], batch.global_state))(q)
    return {"critic/td": jnp.sum(jnp.square(q_tot - estimates.target), axis=0)}, {"critic/q": q_tot[0]}


def behaviour_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the loss of the behaviour's model, which is a head or a VAE: [B, N]."""
    nets = _networks(state.spec, state.config)
    if state.spec.discrete:
        logits = nets.head.apply(params["head"], batch.obs)
        loss = head_loss(logits, batch.avail, batch.action, state.config.logit_penalty)
    else:
        loss = reconstruction_loss(nets, params, batch, estimates.vae_keys)
    return {"behaviour/loss": loss}, {}


def perturbation_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -q^1_i(o_i, xi), values frozen: [B, N]."""
    nets = _networks(state.spec, state.config)
    moved = perturb(nets, params["perturbation"], batch.obs, batch.avail, estimates.generated, state.config.reach)
    first = _first(state.params["critic"]["local"])
    return {"policy/loss": -networks.action_values(nets.critic.local, first, batch.obs, moved)}, {}


def _first(stacked: Params) -> Params:
    """Return the parameters of the first critic."""
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Take one step of all networks, each loss at the parameters before the step.

    Arguments and results are those of `omcda_jax.update`.
    """
    chosen = [critic_loss, behaviour_loss] + ([] if state.spec.discrete else [perturbation_loss])
    return training.descend(state, batch, chosen, estimate(state, batch, axis_name), axis_name)


def policy(state: TrainState) -> Actor:
    """Return the part that acts: critics and the behaviour's model, and with continuous actions the perturbation."""
    names = ("critic", "head") if state.spec.discrete else ("critic", "vae", "perturbation")
    return acting.cut(state, **{name: state.params[name] for name in names})


def act(actor: Actor, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None) -> chex.Array:
    """Choose decentralised actions [..., N] or [..., N, A] for obs [..., N, O].

    A continuous action is the best of several generated ones. Without a key the latents are always the same.
    """
    spec, config, params = actor.spec, actor.config, actor.params
    nets, avail = _networks(spec, config), acting.all_if_none(spec, obs, avail)
    if spec.discrete:
        return _restricted_policy(params, spec, config, obs, avail).mode()
    # without a key every observation gets the same latents, so an action does not depend on who else is acting
    lead, latent_key = (obs.shape[:-2], key) if key is not None else ([1] * (obs.ndim - 2), jax.random.key(0))
    count, latents = config.acting_samples, nets.decoder.action_inputs
    generated = generate(nets, params, obs, avail, prior(latent_key, count, *lead, spec.num_agents, latents))
    moved = perturb(nets, params["perturbation"], obs, avail, generated, config.reach)
    many = jnp.broadcast_to(obs, (count, *obs.shape))
    values = networks.action_values(nets.critic.local, _first(params["critic"]["local"]), many, moved)
    return jnp.take_along_axis(moved, jnp.argmax(values, axis=0)[None, ..., None], axis=0)[0]


ALGORITHM = Algorithm(BcqConfig, init, update, policy, act)
