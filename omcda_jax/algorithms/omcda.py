"""OMCDA: decomposed values, influence-driven allocation of one deviation budget, a conservatism level per agent.

Source: Chen, Hua, Sheng, Li, Jin, Wang, "Dynamic Conservative Degree Allocation for Offline Multi-Agent Reinforcement
Learning" (AAMAS 2025) and "Who Matters Matters: Agent-Specific Conservative Offline MARL" (ICLR 2026). The backbone is
that of OMIGA (Wang et al., NeurIPS 2023). The regularised return E sum_t gamma^t (r_t - sum_i alpha_i KL_i) is split:

    Q^r_tot(s,o,a) = sum_i w^r_i(s) q^r_i(o_i,a_i) + beta^r(s)     return only
    Q^{c,i}(s,o,a) = sum_j w^c_ij(s) q^c_j(o_j,a_j)                = -E sum_{t>0} gamma^t KL_i, agent i's deviation
    Q_tot          = Q^r_tot + sum_i alpha_i Q^{c,i}

Choices made here, where the papers are silent: expectation values, the convex deviation mixer, the solved level, the
critic warm-up, and the Fisher form of the influence.
"""

import dataclasses
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import losses, networks
from omcda_jax.allocation import (
    ALLOCATION_RULES,
    INFLUENCE_SCALES,
    allocate,
    conservatism_level,
    conservatism_step,
    influence,
    weight_divergence,
)
from omcda_jax.distributions import Categorical, Support, expectation, has_choice
from omcda_jax.reductions import largest, loss_share, masked_mean, total
from omcda_jax.training import apply_gradients, init_optimiser, polyak, split_config, step_key
from omcda_jax.types import Batch, ConfigError, EnvSpec, Metrics, TrainState

VALUE_TARGETS = ("expectation", "in_sample")


@dataclasses.dataclass(frozen=True)
class OmcdaConfig:
    """Settings of OMCDA. Fields annotated float are numbers a vmapped population may vary; the others are structure.

    Attributes:
        d_tot: nats of deviation per step shared by the team; the paper scans {0.6, 1.8, 3} on SMAC, {0.3, 1.2, 3} on
            MuJoCo.
        d_min: nats every agent keeps. Not 0: an agent without budget sends its level, and through the deviation mixer
            everybody's, to its bound.
        allocation: "softmax" (paper), "projected" (water-filling), "uniform" (ablation w/o-CDA), "random" (ablation
            rd).
        temperature: of the softmax rule.
        step_size: of the projected rule, relative to an even share.
        influence_scale: "relative" to the mean over agents, or "raw", the paper's letter.
        influence_rate: weight of the newest influence in its moving average.
        influence_epsilon: nats^2, see `allocation.influence`.
        value_target: "expectation" (values straight from their definitions, no value networks) or "in_sample" (the
            paper's form: v^r, v^c networks, v^c from the normalisation of pi*).
        conservative_mixing: deviation mixer, see `networks.DeviationMixer`.
        decoupled: False is the ablation w/o-dq: one value holds the reward and the penalty together.
        critic_warmup: updates in which the policy clones the data and the values become the behaviour's; of the
            order of horizon / target_rate, so that credit has travelled an episode before the policy follows it.
        discount: gamma.
        learning_rate: of Adam, all groups.
        target_rate: tau of the Polyak average.
        level_rate: weight of the newest solution in the moving average of log alpha.
        alpha_init: alpha before the first solution, in units of return per nat.
        alpha_min: lower end of the search for alpha.
        alpha_max: upper end of the search for alpha.
        max_weight: cap on the policy weights.
        hidden_sizes: of policies, critics and values.
        mixer_hidden: of the mixers.
        name: key of the algorithm.
    """

    d_tot: float = 0.6
    d_min: float = 0.002
    allocation: str = "softmax"
    temperature: float = 1.0
    step_size: float = 0.005
    influence_scale: str = "relative"
    influence_rate: float = 0.01
    influence_epsilon: float = 1e-3
    value_target: str = "expectation"
    conservative_mixing: str = "convex"
    decoupled: bool = True
    critic_warmup: int = 4_000
    discount: float = 0.99
    learning_rate: float = 5e-4
    target_rate: float = 0.005
    level_rate: float = 0.01
    alpha_init: float = 1.0
    alpha_min: float = 1e-3
    alpha_max: float = 1e3
    max_weight: float = 100.0
    hidden_sizes: tuple[int, ...] = (256, 256)
    mixer_hidden: int = 64
    name: str = "omcda"

    def __post_init__(self):
        choices = {
            "allocation": ALLOCATION_RULES,
            "influence_scale": INFLUENCE_SCALES,
            "value_target": VALUE_TARGETS,
            "conservative_mixing": networks.DEVIATION_MIXINGS,
        }
        for key, allowed in choices.items():
            _require(self, key, getattr(self, key) in allowed, f"one of {', '.join(allowed)}")
        _require(self, "critic_warmup", self.critic_warmup >= 0, "a number of updates >= 0")
        if self.d_tot is None:  # structure only, see training.split_config
            return
        _require(self, "d_tot", 0 < self.d_tot < float("inf"), "a positive number of nats")
        _require(self, "d_min", 0 <= self.d_min <= self.d_tot, f"between 0 and d_tot={self.d_tot} nats")
        _require(self, "discount", 0 <= self.discount <= 1, "between 0 and 1")
        for key in ("temperature", "step_size", "learning_rate", "alpha_init", "alpha_min", "influence_epsilon"):
            _require(self, key, 0 < getattr(self, key) < float("inf"), "a positive number")
        for key in ("target_rate", "level_rate", "influence_rate"):
            _require(self, key, 0 < getattr(self, key) <= 1, "in (0, 1]")
        _require(self, "alpha_max", self.alpha_max > self.alpha_min, f"above alpha_min={self.alpha_min}")
        _require(self, "max_weight", self.max_weight > 1, "above 1")


def _require(config, key, condition, expected):
    if not condition:
        raise ConfigError(f"{config.name}: {key}: expected {expected}, found {getattr(config, key)!r}")


@flax.struct.dataclass
class AllocationState:
    """OMCDA's own state, all [N].

    Attributes:
        log_alpha: moving average of the solved levels.
        budget: d_i, nats; on the simplex.
        influence: moving average of m_i; 0 until the critic warm-up is over.
    """

    log_alpha: chex.Array
    budget: chex.Array
    influence: chex.Array


class _Networks(NamedTuple):
    policy: networks.AgentNetwork
    critic: networks.AgentNetwork
    value: networks.AgentNetwork
    return_mixer: networks.ReturnMixer
    deviation_mixer: networks.DeviationMixer


def _networks(spec: EnvSpec, config: OmcdaConfig) -> _Networks:
    return _Networks(
        policy=networks.policy_network(spec, config.hidden_sizes),
        critic=networks.critic_network(spec, config.hidden_sizes),
        value=networks.value_network(config.hidden_sizes),
        return_mixer=networks.ReturnMixer(spec.num_agents, config.mixer_hidden),
        deviation_mixer=networks.DeviationMixer(spec.num_agents, config.mixer_hidden, config.conservative_mixing),
    )


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmcdaConfig) -> TrainState:
    """Fresh networks, uniform budgets (a random point of the simplex for the random rule), alpha_init everywhere.

    Args:
        key: typed PRNG key; also the run's key for the updates.
        spec: the task's sizes.
        config: settings.

    Returns:
        The state before the first update.

    Raises:
        ConfigError: the agents' minimum budgets exceed d_tot.
    """
    if config.d_tot < spec.num_agents * config.d_min:
        raise ConfigError(
            f"{config.name}: d_tot: expected at least num_agents * d_min = {spec.num_agents} * {config.d_min:g} = "
            f"{spec.num_agents * config.d_min:g} nats, found {config.d_tot:g}"
        )
    structure, hyper = split_config(config)
    nets = _networks(spec, config)
    obs, state = jnp.zeros((1, spec.num_agents, spec.obs_dim)), jnp.zeros((1, spec.state_dim))
    keys = iter(jax.random.split(key, 9))
    params = {
        "behaviour": nets.policy.init(next(keys), obs),
        "policy": nets.policy.init(next(keys), obs),
        "return": {"critic": nets.critic.init(next(keys), obs), "mixer": nets.return_mixer.init(next(keys), state)},
    }
    if config.decoupled:
        params["deviation"] = {
            "critic": nets.critic.init(next(keys), obs),
            "mixer": nets.deviation_mixer.init(next(keys), state),
        }
    if config.value_target == "in_sample":
        parts = ["return", "deviation"] if config.decoupled else ["return"]
        params["value"] = {part: nets.value.init(next(keys), obs) for part in parts}
    target_params = {group: params[group] for group in ("return", "deviation", "value") if group in params}
    share = jnp.full((spec.num_agents,), 1 / spec.num_agents)
    if config.allocation == "random":
        share = jax.random.dirichlet(next(keys), jnp.ones((spec.num_agents,)))
    return TrainState(
        params=params,
        target_params=jax.tree.map(jnp.array, target_params),
        opt_state=init_optimiser(params),
        extra=AllocationState(
            log_alpha=jnp.full((spec.num_agents,), jnp.log(hyper["alpha_init"])),
            budget=hyper["d_min"] + (hyper["d_tot"] - spec.num_agents * hyper["d_min"]) * share,
            influence=jnp.zeros((spec.num_agents,)),
        ),
        hyper=hyper,
        step=jnp.zeros((), jnp.int32),
        key=key,
        spec=spec,
        config=structure,
    )


class _Estimates(NamedTuple):
    """What the losses need of the current and target networks; constants of the step."""

    return_target: chex.Array  # [B]
    deviation_target: chex.Array  # [B, N], 0 when not decoupled
    return_advantage: chex.Array  # [B, N] A^r
    deviation_advantage: chex.Array  # [B, N] A^c
    coupling: chex.Array  # [B, N] kappa
    return_action_value: chex.Array  # [B, N] target q^r of the data's actions
    deviation_action_value: chex.Array  # [B, N] target q^c of the data's actions
    return_weights: chex.Array  # [B, N] target w^r
    return_parts: chex.Array  # [B, N, K] w^r q^r at the policy's support
    log_ratio: chex.Array  # [B, N, K] log pi - log b at the policy's support
    policy_divergence: chex.Array  # [B, N] KL(pi || b)
    support: Support  # of pi at the batch's states


class _Policies(NamedTuple):
    policy: Categorical
    behaviour: Categorical
    support: Support


def _policies(nets, params, obs, avail, key) -> _Policies:
    policy = networks.action_distribution(nets.policy, params["policy"], obs, avail)
    behaviour = networks.action_distribution(nets.policy, params["behaviour"], obs, avail)
    return _Policies(policy, behaviour, policy.support(key))


def _state_value(nets, params, part, obs, support):
    """[B, N] local values v of one part: E_pi q, or the value network's in the in-sample form."""
    if "value" in params:
        return nets.value.apply(params["value"][part], obs)[..., 0]
    return expectation(networks.support_values(nets.critic, params[part]["critic"], obs, support), support)


def _estimate(state: TrainState, batch: Batch, key: chex.PRNGKey) -> _Estimates:
    """Targets, advantages and the policy's deviation, from the parameters before the step.

        V^r_tot(s') = sum_i w^r_i E_pi q^r_i + beta^r       V^{c,i}(s') = sum_j w^c_ij E_pi q^c_j - KL_i

    with target networks and the current policy; in the in-sample form v^r and v^c, whose normalisation already holds
    the KL, take the place of the expectations.
    """
    nets, hyper, decoupled = _networks(state.spec, state.config), state.hyper, state.config.decoupled
    in_sample = state.config.value_target == "in_sample"
    target = state.target_params
    alpha = jnp.exp(state.extra.log_alpha)
    key, next_key = jax.random.split(key)
    now = _policies(nets, state.params, batch.obs, batch.avail, key)
    then = _policies(nets, state.params, batch.next_obs, batch.next_avail, next_key)

    next_weights, next_bias = nets.return_mixer.apply(target["return"]["mixer"], batch.next_state)
    next_value = losses.mix(_state_value(nets, target, "return", batch.next_obs, then.support), next_weights, next_bias)
    next_divergence = jnp.zeros_like(batch.action, jnp.float32) if in_sample else then.policy.kl(then.behaviour)
    if not decoupled:
        next_value = next_value - jnp.sum(alpha * next_divergence, axis=-1)

    # The in-sample form judges the data's actions against its newest value networks, as OMIGA does.
    judge = {**target, **({"value": state.params["value"]} if in_sample else {})}
    weights, _ = nets.return_mixer.apply(target["return"]["mixer"], batch.state)
    q_support = networks.support_values(nets.critic, target["return"]["critic"], batch.obs, now.support)
    q_data = networks.action_values(nets.critic, target["return"]["critic"], batch.obs, batch.action)
    zeros = jnp.zeros_like(q_data)
    deviation_target, deviation_advantage, coupling, qc_data = zeros, zeros, jnp.ones_like(q_data), zeros
    if decoupled:
        next_mixture = nets.deviation_mixer.apply(target["deviation"]["mixer"], batch.next_state)
        next_deviation = _state_value(nets, target, "deviation", batch.next_obs, then.support)
        next_deviation = losses.mix(next_deviation, *next_mixture) - next_divergence
        continues = jnp.broadcast_to(batch.discount[:, None], next_deviation.shape)
        deviation_target = losses.bellman_target(zeros, continues, hyper["discount"], next_deviation)
        deviation_weights, _ = nets.deviation_mixer.apply(target["deviation"]["mixer"], batch.state)
        coupling = losses.conservatism_coupling(alpha, deviation_weights)
        qc_data = networks.action_values(nets.critic, target["deviation"]["critic"], batch.obs, batch.action)
        vc = _state_value(nets, judge, "deviation", batch.obs, now.support)
        deviation_advantage = coupling * (qc_data - vc)

    estimates = _Estimates(
        return_target=losses.bellman_target(batch.reward, batch.discount, hyper["discount"], next_value),
        deviation_target=deviation_target,
        return_advantage=weights * (q_data - _state_value(nets, judge, "return", batch.obs, now.support)),
        deviation_advantage=deviation_advantage,
        coupling=coupling,
        return_action_value=q_data,
        deviation_action_value=qc_data,
        return_weights=weights,
        return_parts=weights[..., None] * q_support,
        log_ratio=now.policy.support_log_probs(now.support) - now.behaviour.support_log_probs(now.support),
        policy_divergence=now.policy.kl(now.behaviour),
        support=now.support,
    )
    return jax.lax.stop_gradient(estimates)


def behaviour_loss(state: TrainState, params, batch: Batch) -> chex.Array:
    """Maximum likelihood of the behaviour policy, -log b_i(a_i|o_i): [B, N]."""
    nets = _networks(state.spec, state.config)
    return -networks.action_distribution(nets.policy, params["behaviour"], batch.obs, batch.avail).log_prob(
        batch.action
    )


def policy_loss(state: TrainState, params, batch: Batch, weights: chex.Array) -> chex.Array:
    """Weighted maximum likelihood, -omega_i log pi_i(a_i|o_i), weights [B, N] stopped: [B, N]."""
    nets = _networks(state.spec, state.config)
    policy = networks.action_distribution(nets.policy, params["policy"], batch.obs, batch.avail)
    return -jax.lax.stop_gradient(weights) * policy.log_prob(batch.action)


def return_loss(state: TrainState, params, batch: Batch, target: chex.Array) -> tuple[chex.Array, chex.Array]:
    """(Q^r_tot - target)^2 and Q^r_tot itself, both [B]; target [B] is stopped."""
    nets = _networks(state.spec, state.config)
    q = networks.action_values(nets.critic, params["return"]["critic"], batch.obs, batch.action)
    q_tot = losses.mix(q, *nets.return_mixer.apply(params["return"]["mixer"], batch.state))
    return jnp.square(q_tot - jax.lax.stop_gradient(target)), q_tot


def deviation_loss(state: TrainState, params, batch: Batch, target: chex.Array) -> tuple[chex.Array, chex.Array]:
    """(Q^{c,i} - target_i)^2 and Q^{c,i} itself, both [B, N]; target [B, N] is stopped."""
    nets = _networks(state.spec, state.config)
    q = networks.action_values(nets.critic, params["deviation"]["critic"], batch.obs, batch.action)
    q_mixed = losses.mix(q, *nets.deviation_mixer.apply(params["deviation"]["mixer"], batch.state))
    return jnp.square(q_mixed - jax.lax.stop_gradient(target)), q_mixed


def in_sample_loss(
    state: TrainState,
    params,
    batch: Batch,
    estimates: _Estimates,
    weights: chex.Array,
    mask: chex.Array,
    axis_name: str | None = None,
) -> chex.Array:
    """Losses of the value networks of the in-sample form: [B, N].

    The value that carries the KL (v^c; v^r when not decoupled) comes from the normalisation of pi*_i = b_i exp z_i,
    z_i = (w^r_i/alpha_i)(q^r_i - v^r_i) + kappa_i (q^c_i - v^c_i), v^r stopped (paper Proposition 3.4 and Eq. 25).
    v^r is the regression on q^r under the weights omega [B, N].
    """
    nets = _networks(state.spec, state.config)
    alpha = jnp.exp(state.extra.log_alpha)
    v = nets.value.apply(params["value"]["return"], batch.obs)[..., 0]
    slope = estimates.return_weights / alpha
    if not state.config.decoupled:
        exponent, linear, regression = slope * (estimates.return_action_value - v), slope * v, 0.0
    else:
        vc = nets.value.apply(params["value"]["deviation"], batch.obs)[..., 0]
        exponent = slope * (estimates.return_action_value - jax.lax.stop_gradient(v))
        exponent = exponent + estimates.coupling * (estimates.deviation_action_value - vc)
        linear = estimates.coupling * vc
        regression = jax.lax.stop_gradient(weights) * jnp.square(v - estimates.return_action_value)
    clipped = jnp.clip(exponent, -losses.MAX_EXPONENT, losses.MAX_EXPONENT)
    highest = largest(jnp.max(jnp.where(mask, jax.lax.stop_gradient(clipped), -1.0), initial=-1.0), axis_name)
    return losses.normalisation_loss(exponent, linear, highest) + regression


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """One update of everything, every loss taken at the parameters before the step.

    Args:
        state: from `init` or an earlier update.
        batch: B transitions; this device's part of them when `axis_name` is given.
        axis_name: mapped device axis to reduce over.

    Returns:
        The next state, and metrics: [] or per agent [N].
    """
    config, hyper, extra = state.config, state.hyper, state.extra
    mask = has_choice(batch.avail)
    everything = jnp.ones_like(mask)
    estimates = _estimate(state, batch, step_key(state.key, state.step, axis_name))

    solution, weights = conservatism_level(
        estimates.return_advantage,
        estimates.deviation_advantage,
        extra.budget,
        mask,
        log_alpha_bounds=(jnp.log(hyper["alpha_min"]), jnp.log(hyper["alpha_max"])),
        max_weight=hyper["max_weight"],
        axis_name=axis_name,
    )
    warm = state.step >= config.critic_warmup
    weights = jnp.where(warm, weights, mask.astype(weights.dtype))

    def objective(params):
        squared_return, q_return = return_loss(state, params, batch, estimates.return_target)
        behaviour = behaviour_loss(state, params, batch)
        policy = policy_loss(state, params, batch, weights)
        metrics = {
            "critic/q_return": loss_share(q_return, everything[:, 0], axis_name),
            "critic/td_return": loss_share(squared_return, everything[:, 0], axis_name),
            "behaviour/loss": loss_share(behaviour, mask, axis_name),
            "policy/loss": loss_share(policy, mask, axis_name),
        }
        loss = metrics["critic/td_return"] + metrics["behaviour/loss"] + metrics["policy/loss"]
        if config.decoupled:
            squared_deviation, q_deviation = deviation_loss(state, params, batch, estimates.deviation_target)
            metrics["critic/td_deviation"] = loss_share(squared_deviation, everything, axis_name) * mask.shape[1]
            metrics["critic/q_deviation"] = jax.vmap(loss_share, (1, 1, None))(q_deviation, everything, axis_name)
            loss = loss + metrics["critic/td_deviation"]
        if config.value_target == "in_sample":
            value = in_sample_loss(state, params, batch, estimates, weights, mask, axis_name)
            metrics["value/loss"] = loss_share(value, mask, axis_name)
            loss = loss + metrics["value/loss"]
        return loss, metrics

    gradients, metrics = jax.grad(objective, has_aux=True)(state.params)
    gradients, metrics = total((gradients, metrics), axis_name)
    params, opt_state = apply_gradients(state.params, gradients, state.opt_state, hyper["learning_rate"])

    measured = influence(
        estimates.return_parts,
        estimates.log_ratio,
        estimates.support.probabilities,
        mask,
        epsilon=hyper["influence_epsilon"],
        axis_name=axis_name,
    )
    smoothed = extra.influence + hyper["influence_rate"] * jnp.where(warm, measured - extra.influence, 0.0)
    budget = allocate(
        smoothed,
        extra.budget,
        rule=config.allocation,
        total_budget=hyper["d_tot"],
        min_budget=hyper["d_min"],
        temperature=hyper["temperature"],
        step_size=hyper["step_size"],
        influence_scale=config.influence_scale,
    )
    log_alpha = conservatism_step(extra.log_alpha, solution, hyper["level_rate"])
    metrics |= {
        "policy/divergence": masked_mean(estimates.policy_divergence, mask, axis_name),
        "allocation/budget": extra.budget,
        "allocation/alpha": jnp.exp(log_alpha),
        "allocation/influence": smoothed,
        "allocation/weight_divergence": weight_divergence(weights, mask, axis_name),
    }
    return state.replace(
        params=params,
        target_params=polyak(state.target_params, params, hyper["target_rate"]),
        opt_state=opt_state,
        extra=AllocationState(log_alpha=log_alpha, budget=budget, influence=smoothed),
        step=state.step + 1,
    ), metrics


def act(
    state: TrainState, obs: chex.Array, avail: chex.Array | None = None, key: chex.PRNGKey | None = None
) -> chex.Array:
    """Decentralised actions: agent i's depends on o_i alone.

    Args:
        state: trained state.
        obs: [..., N, O].
        avail: [..., N, A] bool, or None for all legal.
        key: samples with it; None acts greedily.

    Returns:
        [..., N] int32.
    """
    if avail is None:
        avail = jnp.ones((*obs.shape[:-1], state.spec.action_dim), bool)
    nets = _networks(state.spec, state.config)
    policy = networks.action_distribution(nets.policy, state.params["policy"], obs, avail)
    return policy.mode() if key is None else policy.sample(key)
