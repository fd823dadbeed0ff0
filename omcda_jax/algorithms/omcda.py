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
import functools
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
from omcda_jax.distributions import Policy, Support, expectation, has_choice, support_rows
from omcda_jax.reductions import largest, loss_share, masked_mean, total
from omcda_jax.training import apply_gradients, check_numbers, new_state, require, row_keys, track
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
        policy_average_rate: weight of the newest policy in the moving average that acts; 1 acts with the newest.
        level_rate: weight of the newest solution in the moving average of log alpha.
        alpha_init: alpha before the first solution, in units of return per nat.
        alpha_min: lower end of the search for alpha.
        alpha_max: upper end of the search for alpha.
        max_weight: cap on the policy weights.
        num_samples: K, actions drawn from every agent's policy for the expectations under it, where actions are
            continuous.
        hidden_sizes: of policies, critics and values.
        mixer_hidden: of the mixers.
        critic_layer_norm: normalise the critics' hidden layers. It keeps them from extrapolating in rare states, whose
            advantages would otherwise take up the budget; off in the matched backbone.
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
    policy_average_rate: float = 1.0
    level_rate: float = 0.01
    alpha_init: float = 1.0
    alpha_min: float = 1e-3
    alpha_max: float = 1e3
    max_weight: float = 100.0
    num_samples: int = 4
    hidden_sizes: tuple[int, ...] = (256, 256)
    mixer_hidden: int = 64
    critic_layer_norm: bool = False
    name: str = "omcda"

    def __post_init__(self):
        choices = {
            "allocation": ALLOCATION_RULES,
            "influence_scale": INFLUENCE_SCALES,
            "value_target": VALUE_TARGETS,
            "conservative_mixing": networks.DEVIATION_MIXINGS,
        }
        for key, allowed in choices.items():
            require(self, key, getattr(self, key) in allowed, f"one of {', '.join(allowed)}")
        require(self, "critic_warmup", self.critic_warmup >= 0, "a number of updates >= 0")
        require(self, "num_samples", self.num_samples >= 2, "at least 2")
        if self.d_tot is None:  # structure only, see training.split_config
            return
        require(self, "d_tot", 0 < self.d_tot < float("inf"), "a positive number of nats")
        require(self, "d_min", 0 <= self.d_min <= self.d_tot, f"between 0 and d_tot={self.d_tot} nats")
        check_numbers(
            self,
            positive=("temperature", "step_size", "alpha_init", "alpha_min", "influence_epsilon"),
            rates=("level_rate", "influence_rate"),
        )
        require(self, "alpha_max", self.alpha_max > self.alpha_min, f"above alpha_min={self.alpha_min}")
        require(self, "max_weight", self.max_weight > 1, "above 1")


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
        critic=networks.critic_network(spec, config.hidden_sizes, config.critic_layer_norm),
        value=networks.value_network(config.hidden_sizes),
        return_mixer=networks.ReturnMixer(spec.num_agents, config.mixer_hidden),
        deviation_mixer=networks.DeviationMixer(spec.num_agents, config.mixer_hidden, config.conservative_mixing),
    )


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmcdaConfig) -> TrainState:
    """Fresh networks, uniform budgets (a random point of the simplex for the random rule), alpha_init everywhere.

    The policy starts as the behaviour's twin and stays it until the critic warm-up is over: no deviation but what the
    weights ask for.

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
    nets = _networks(spec, config)
    obs, state = jnp.zeros((1, spec.num_agents, spec.obs_dim)), jnp.zeros((1, spec.state_dim))
    keys = iter(jax.random.split(key, 9))
    clone = networks.initialise(nets.policy, next(keys), obs)
    params = {
        "behaviour": clone,
        "policy": jax.tree.map(jnp.array, clone),
        "return": {
            "critic": networks.initialise(nets.critic, next(keys), obs),
            "mixer": networks.initialise(nets.return_mixer, next(keys), state),
        },
    }
    if config.decoupled:
        params["deviation"] = {
            "critic": networks.initialise(nets.critic, next(keys), obs),
            "mixer": networks.initialise(nets.deviation_mixer, next(keys), state),
        }
    if config.value_target == "in_sample":
        parts = ["return", "deviation"] if config.decoupled else ["return"]
        params["value"] = {part: networks.initialise(nets.value, next(keys), obs) for part in parts}
    share = jnp.full((spec.num_agents,), 1 / spec.num_agents, jnp.float32)
    if config.allocation == "random":
        share = jax.random.dirichlet(next(keys), jnp.ones((spec.num_agents,)))
    extra = AllocationState(
        log_alpha=jnp.full_like(share, jnp.log(config.alpha_init)),
        budget=config.d_min + (config.d_tot - spec.num_agents * config.d_min) * share,
        influence=jnp.zeros_like(share),
    )
    return new_state(key, spec, config, params, targets=sorted(params.keys() - {"behaviour"}), extra=extra)


class _Policies(NamedTuple):
    policy: Policy
    behaviour: Policy
    support: Support  # of an expectation under the policy


def _policies(nets, params, obs, avail, keys, num_samples) -> _Policies:
    policy = networks.action_distribution(nets.policy, params["policy"], obs, avail)
    behaviour = networks.action_distribution(nets.policy, params["behaviour"], obs, avail)
    support = support_rows(policy, keys, num_samples)
    return _Policies(policy, behaviour, support)


class _Values(NamedTuple):
    """Local values of one part (return or deviation) at the batch's states."""

    support: chex.Array  # [B, N, K] q at the policy's support
    action: chex.Array  # [B, N] q of the data's actions
    state: chex.Array  # [B, N] v: E_pi q, or the value network's in the in-sample form


class _Estimates(NamedTuple):
    """What the losses need of the current and target networks; constants of the step."""

    return_target: chex.Array  # [B]
    deviation_target: chex.Array  # [B, N]
    return_values: _Values
    deviation_values: _Values
    return_weights: chex.Array  # [B, N] target w^r
    coupling: chex.Array  # [B, N] kappa

    @property
    def return_advantage(self):
        return self.return_weights * (self.return_values.action - self.return_values.state)

    @property
    def deviation_advantage(self):
        return self.coupling * (self.deviation_values.action - self.deviation_values.state)


def _values_now(state, nets, part, batch, support) -> _Values:
    """Target critics; in the in-sample form they are judged against the newest value networks, as OMIGA does."""
    params = state.target_params[part]["critic"]
    q, q_action = networks.support_and_action_values(nets.critic, params, batch.obs, support, batch.action)
    if state.config.value_target == "in_sample":
        return _Values(q, q_action, nets.value.apply(state.params["value"][part], batch.obs)[..., 0])
    return _Values(q, q_action, expectation(q, support))


def _value_next(state, nets, part, batch, support):
    """[B, N] target v at the next state."""
    if state.config.value_target == "in_sample":
        return nets.value.apply(state.target_params["value"][part], batch.next_obs)[..., 0]
    params = state.target_params[part]["critic"]
    return expectation(networks.support_values(nets.critic, params, batch.next_obs, support), support)


def _estimate(state: TrainState, batch: Batch, now: _Policies, then: _Policies) -> _Estimates:
    """Targets and values from the parameters before the step and the policies at the two states.

        V^r_tot(s') = sum_i w^r_i E_pi q^r_i + beta^r       V^{c,i}(s') = sum_j w^c_ij E_pi q^c_j - KL_i

    with target networks and the current policy; in the in-sample form v^r and v^c, whose normalisation already holds
    the KL, take the place of the expectations.
    """
    nets, discount, target = _networks(state.spec, state.config), state.hyper["discount"], state.target_params
    in_sample = state.config.value_target == "in_sample"
    alpha = jnp.exp(state.extra.log_alpha)
    divergence = 0.0 if in_sample else then.policy.kl(then.behaviour)

    mixture = nets.return_mixer.apply(target["return"]["mixer"], batch.next_global_state)
    next_return = losses.mix(_value_next(state, nets, "return", batch, then.support), *mixture)
    return_weights, _ = nets.return_mixer.apply(target["return"]["mixer"], batch.global_state)
    return_values = _values_now(state, nets, "return", batch, now.support)
    if state.config.decoupled:
        mixture = nets.deviation_mixer.apply(target["deviation"]["mixer"], batch.next_global_state)
        next_deviation = losses.mix(_value_next(state, nets, "deviation", batch, then.support), *mixture) - divergence
        deviation_weights, _ = nets.deviation_mixer.apply(target["deviation"]["mixer"], batch.global_state)
        deviation_values = _values_now(state, nets, "deviation", batch, now.support)
    else:
        next_return = next_return - jnp.sum(alpha * divergence, axis=-1)
        next_deviation = jnp.zeros_like(return_weights)
        deviation_weights = jnp.zeros((*return_weights.shape, state.spec.num_agents))
        deviation_values = jax.tree.map(jnp.zeros_like, return_values)
    continues = jnp.broadcast_to(batch.discount[:, None], next_deviation.shape)
    return _Estimates(
        return_target=losses.bellman_target(batch.reward, batch.discount, discount, next_return),
        deviation_target=losses.bellman_target(jnp.zeros_like(continues), continues, discount, next_deviation),
        return_values=return_values,
        deviation_values=deviation_values,
        return_weights=return_weights,
        coupling=losses.conservatism_coupling(alpha, deviation_weights),
    )


def behaviour_loss(behaviour: Policy, action: chex.Array) -> chex.Array:
    """Maximum likelihood of the behaviour policy, -log b_i(a_i|o_i): [B, N]."""
    return -behaviour.log_prob(action)


def policy_loss(policy: Policy, action: chex.Array, weights: chex.Array) -> chex.Array:
    """Weighted maximum likelihood, -omega_i log pi_i(a_i|o_i), weights [B, N] stopped: [B, N]."""
    return -jax.lax.stop_gradient(weights) * policy.log_prob(action)


def return_loss(state: TrainState, params, batch: Batch, target: chex.Array) -> tuple[chex.Array, chex.Array]:
    """(Q^r_tot - target)^2 and Q^r_tot itself, both [B]; target [B] is stopped."""
    nets = _networks(state.spec, state.config)
    q = networks.action_values(nets.critic, params["return"]["critic"], batch.obs, batch.action)
    q_tot = losses.mix(q, *nets.return_mixer.apply(params["return"]["mixer"], batch.global_state))
    return jnp.square(q_tot - jax.lax.stop_gradient(target)), q_tot


def deviation_loss(state: TrainState, params, batch: Batch, target: chex.Array) -> tuple[chex.Array, chex.Array]:
    """(Q^{c,i} - target_i)^2 and Q^{c,i} itself, both [B, N]; target [B, N] is stopped."""
    nets = _networks(state.spec, state.config)
    q = networks.action_values(nets.critic, params["deviation"]["critic"], batch.obs, batch.action)
    q_mixed = losses.mix(q, *nets.deviation_mixer.apply(params["deviation"]["mixer"], batch.global_state))
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
        exponent, linear, regression = slope * (estimates.return_values.action - v), slope * v, 0.0
    else:
        vc = nets.value.apply(params["value"]["deviation"], batch.obs)[..., 0]
        exponent = slope * (estimates.return_values.action - jax.lax.stop_gradient(v))
        exponent = exponent + estimates.coupling * (estimates.deviation_values.action - vc)
        linear = estimates.coupling * vc
        regression = jax.lax.stop_gradient(weights) * jnp.square(v - estimates.return_values.action)
    clipped = jnp.clip(exponent, -losses.MAX_EXPONENT, losses.MAX_EXPONENT)
    highest = largest(jnp.max(jnp.where(mask, jax.lax.stop_gradient(clipped), -1.0), initial=-1.0), axis_name)
    return losses.normalisation_loss(exponent, linear, highest) + regression


class _Step(NamedTuple):
    """What one pass over the batch leaves for the allocation, beside the losses."""

    metrics: Metrics  # this device's shares
    now: _Policies
    estimates: _Estimates
    solution: chex.Array  # [N] log alpha that meets the budget on this batch
    weights: chex.Array  # [B, N] omega


def _objective(params, state: TrainState, batch: Batch, axis_name: str | None) -> tuple[chex.Array, _Step]:
    """Sum of all losses; each sees only its own group of `params`, everything else in it is a constant."""
    config, hyper = state.config, state.hyper
    nets = _networks(state.spec, config)
    keys, next_keys = row_keys(state, batch, 2, axis_name)
    mask = has_choice(batch.avail, state.spec.discrete)
    rows = jnp.ones_like(batch.reward, bool)
    average = functools.partial(loss_share, axis_name=axis_name)

    now = _policies(nets, params, batch.obs, batch.avail, keys, config.num_samples)
    then = _policies(nets, state.params, batch.next_obs, batch.next_avail, next_keys, config.num_samples)
    estimates = jax.lax.stop_gradient(_estimate(state, batch, jax.lax.stop_gradient(now), then))
    solution, weights = conservatism_level(
        estimates.return_advantage,
        estimates.deviation_advantage,
        state.extra.budget,
        mask,
        log_alpha_bounds=(jnp.log(hyper["alpha_min"]), jnp.log(hyper["alpha_max"])),
        max_weight=hyper["max_weight"],
        axis_name=axis_name,
    )
    weights = jnp.where(state.step >= config.critic_warmup, weights, mask.astype(weights.dtype))

    squared_return, q_return = return_loss(state, params, batch, estimates.return_target)
    losses_by_name = {
        "critic/td_return": average(squared_return, rows),
        "behaviour/loss": average(behaviour_loss(now.behaviour, batch.action), mask),
        "policy/loss": average(policy_loss(now.policy, batch.action, weights), mask),
    }
    values = {"critic/q_return": average(q_return, rows)}
    if config.decoupled:
        squared_deviation, q_deviation = deviation_loss(state, params, batch, estimates.deviation_target)
        losses_by_name["critic/td_deviation"] = average(jnp.sum(squared_deviation, axis=-1), rows)
        values["critic/q_deviation"] = jax.vmap(average, (1, None))(q_deviation, rows)
    if config.value_target == "in_sample":
        # a forced action's value is its q: rows without a choice count too, for V_tot sums over every agent
        everyone = jnp.ones_like(mask)
        density = jnp.where(mask, weights, 1.0)
        value = in_sample_loss(state, params, batch, estimates, density, everyone, axis_name)
        losses_by_name["value/loss"] = average(value, everyone)
    return sum(losses_by_name.values()), _Step(losses_by_name | values, now, estimates, solution, weights)


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
    mask = has_choice(batch.avail, state.spec.discrete)
    gradients, step = jax.grad(_objective, has_aux=True)(state.params, state, batch, axis_name)
    gradients, metrics = total((gradients, step.metrics), axis_name)
    params, opt_state = apply_gradients(state.params, gradients, state.opt_state, hyper["learning_rate"])

    now, returns = step.now, step.estimates.return_values
    measured = influence(
        step.estimates.return_weights[..., None] * returns.support,
        now.policy.support_log_probs(now.support) - now.behaviour.support_log_probs(now.support),
        now.support.probabilities,
        mask,
        epsilon=hyper["influence_epsilon"],
        axis_name=axis_name,
    )
    warm = state.step >= config.critic_warmup
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
    log_alpha = conservatism_step(extra.log_alpha, step.solution, hyper["level_rate"])
    metrics |= {
        "policy/divergence": masked_mean(now.policy.kl(now.behaviour), mask, axis_name),
        "allocation/budget": extra.budget,
        "allocation/alpha": jnp.exp(log_alpha),
        "allocation/influence": smoothed,
        "allocation/weight_divergence": weight_divergence(step.weights, mask, axis_name),
    }
    return state.replace(
        params=params,
        target_params=track(state, params),
        opt_state=opt_state,
        extra=AllocationState(log_alpha=log_alpha, budget=budget, influence=smoothed),
        step=state.step + 1,
    ), metrics


act = networks.act_by_policy
