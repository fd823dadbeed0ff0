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

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, losses, networks, training
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
from omcda_jax.networks import AgentNetwork, DeviationMixer, MixedCritic
from omcda_jax.reductions import masked_mean
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState

VALUE_TARGETS = ("expectation", "in_sample")


@flax.struct.dataclass(kw_only=True)
class OmcdaConfig(CriticSettings):
    """Settings of OMCDA.

    Attributes:
        d_tot: nats of deviation per step shared by the team; the paper scans {0.6, 1.8, 3} on SMAC, {0.3, 1.2, 3} on
            MuJoCo.
        d_min: nats every agent keeps. Not 0: an agent without budget sends its level, and through the deviation mixer
            everybody's, to its bound.
        allocation: "softmax" (paper), "projected" (water-filling), "uniform" (ablation w/o-CDA), "random" (ablation
            rd).
        temperature: temperature of the softmax rule.
        step_size: step size of the projected rule, relative to an even share.
        influence_scale: "relative" to the mean over agents, or "raw", the paper's literal form.
        influence_rate: weight of the newest influence in its moving average.
        influence_epsilon: variance (nats^2) below which influence fades to 0.
        value_target: "expectation" (values straight from their definitions, no value networks) or "in_sample" (the
            paper's form: v^r, v^c networks, v^c from the normalisation of pi*).
        conservative_mixing: deviation mixer, see `networks.DeviationMixer`.
        decoupled: False is the ablation w/o-dq: one value holds the reward and the penalty together.
        critic_warmup: updates in which the policy clones the data and the values become the behaviour's; of the
            order of horizon / target_rate, so that credit has travelled an episode before the policy follows it.
        level_rate: weight of the newest solution in the moving average of log alpha.
        alpha_init: alpha before the first solution, in units of return per nat.
        alpha_min: lower end of the search for alpha.
        alpha_max: upper end of the search for alpha.
        max_weight: cap on the policy weights.
        num_samples: K, actions drawn from every agent's policy for the expectations under it, where actions are
            continuous.
        critic_layer_norm: normalise the critics' hidden layers. It keeps them from extrapolating in rare states, whose
            advantages would otherwise take up the budget; off in the matched backbone.
    """

    name: ClassVar[str] = "omcda"

    d_tot: float = 0.6
    d_min: float = 0.002
    allocation: str = static("softmax")
    temperature: float = 1.0
    step_size: float = 0.005
    influence_scale: str = static("relative")
    influence_rate: float = 0.01
    influence_epsilon: float = 1e-3
    value_target: str = static("expectation")
    conservative_mixing: str = static("convex")
    decoupled: bool = static(True)
    critic_warmup: int = static(4_000)
    level_rate: float = 0.01
    alpha_init: float = 1.0
    alpha_min: float = 1e-3
    alpha_max: float = 1e3
    max_weight: float = 100.0
    num_samples: int = static(4)

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.require_choice(self, "allocation", ALLOCATION_RULES)
        training.require_choice(self, "influence_scale", INFLUENCE_SCALES)
        training.require_choice(self, "value_target", VALUE_TARGETS)
        training.require_choice(self, "conservative_mixing", networks.DEVIATION_MIXINGS)
        training.require(self, "critic_warmup", lambda x: x >= 0, "a number of updates >= 0")
        training.require(self, "num_samples", lambda x: x >= 2, "at least 2")
        training.require(self, "d_tot", lambda x: (x > 0) & (x < float("inf")), "a positive number of nats")
        training.require(
            self, "d_min", lambda x: (x >= 0) & (x <= self.d_tot), f"between 0 and d_tot={self.d_tot} nats"
        )
        training.check_numbers(
            self,
            positive=("temperature", "step_size", "alpha_init", "alpha_min", "influence_epsilon"),
            rates=("level_rate", "influence_rate"),
        )
        training.require(self, "alpha_max", lambda x: x > self.alpha_min, f"above alpha_min={self.alpha_min}")
        training.require(self, "max_weight", lambda x: x > 1, "above 1")


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
    policy: AgentNetwork
    returns: MixedCritic
    deviations: MixedCritic
    value: AgentNetwork


def _networks(spec: EnvSpec, config: OmcdaConfig) -> _Networks:
    policy, critic, value = networks.backbone(spec, config)
    mixer = DeviationMixer(spec.num_agents, config.mixer_hidden, config.conservative_mixing)
    return _Networks(policy, critic, critic._replace(mixer=mixer), value)


def init(key: chex.PRNGKey, spec: EnvSpec, config: OmcdaConfig) -> TrainState:
    """Initialise networks for the task's sizes and an even allocation; the policy starts as the behaviour's twin.

    Args:
        key: typed PRNG key; also the run's key for the updates.
        spec: the task's sizes.
        config: settings.

    Returns:
        The state before the first update.

    Raises:
        ConfigError: the agents' minimum budgets exceed d_tot.
    """
    least = spec.num_agents * config.d_min
    training.require(
        config, "d_tot", lambda d: d >= least, f"at least num_agents * d_min = {spec.num_agents} * {config.d_min}"
    )
    nets = _networks(spec, config)
    parts = {"behaviour": nets.policy, "return": nets.returns}
    if config.decoupled:
        parts["deviation"] = nets.deviations
    params_key, value_key, share_key = jax.random.split(key, 3)
    params = networks.init_params(params_key, spec, **parts)
    params["policy"] = jax.tree.map(jnp.array, params["behaviour"])
    if config.value_target == "in_sample":
        names = parts.keys() - {"behaviour"}
        params["value"] = networks.init_params(value_key, spec, **dict.fromkeys(sorted(names), nets.value))
    share = jnp.full((spec.num_agents,), 1 / spec.num_agents, jnp.float32)
    if config.allocation == "random":
        share = jax.random.dirichlet(share_key, jnp.ones((spec.num_agents,)))
    extra = AllocationState(
        log_alpha=jnp.full_like(share, jnp.log(config.alpha_init)),
        budget=config.d_min + (config.d_tot - least) * share,
        influence=jnp.zeros_like(share),
    )
    return training.new_state(key, spec, config, params, targets=sorted(params.keys() - {"behaviour"}), extra=extra)


class Values(NamedTuple):
    """Local values of one part (return or deviation) at the batch's states.

    Attributes:
        support: [B, N, K] q at the support of the policy.
        action: [B, N] q of the data's actions.
        state: [B, N] v: E_pi q, or the value network's in the in-sample form.
    """

    support: chex.Array
    action: chex.Array
    state: chex.Array


class Estimates(NamedTuple):
    """What an update knows before its step: policies, local values and targets; constants of all losses."""

    policy: Policy  # [B, N] policies at the batch's observations
    behaviour: Policy  # [B, N] clones of the data
    support: Support  # of expectations under `policy`
    returns: Values  # local values of the return part, target networks
    deviations: Values  # of the deviation part; zeros where values are not decoupled
    return_weights: chex.Array  # [B, N] w^r, target networks
    coupling: chex.Array  # [B, N] kappa
    return_target: chex.Array  # [B] target of Q^r_tot
    deviation_target: chex.Array  # [B, N] targets of Q^{c,i}
    return_advantage: chex.Array  # [B, N] A^r_i = w^r_i (q^r_i - v^r_i)
    deviation_advantage: chex.Array  # [B, N] A^c_i = kappa_i (q^c_i - v^c_i), nats
    largest_exponent: chex.Array | None = None  # [] M of the in-sample form's loss
    weights: chex.Array | None = None  # [B, N] omega_i, from `levels`


def _policies(state: TrainState, obs, avail, keys) -> tuple[Policy, Policy, Support]:
    """Return the policy, the behaviour, and the support of expectations under the policy."""
    network = _networks(state.spec, state.config).policy
    policy, behaviour = (
        networks.action_distribution(network, state.params[group], obs, avail) for group in ("policy", "behaviour")
    )
    return policy, behaviour, support_rows(policy, keys, state.config.num_samples)


def _values_now(state: TrainState, part: str, batch: Batch, support: Support) -> Values:
    """Judge the target critics, in the in-sample form against the newest value networks, as OMIGA does."""
    nets, params = _networks(state.spec, state.config), state.target_params[part]["local"]
    q, q_action = networks.support_and_action_values(nets.returns.local, params, batch.obs, support, batch.action)
    if state.config.value_target == "in_sample":
        return Values(q, q_action, nets.value.apply(state.params["value"][part], batch.obs)[..., 0])
    return Values(q, q_action, expectation(q, support))


def _mixed_next_value(state: TrainState, part: str, critic: MixedCritic, batch: Batch, support: Support) -> chex.Array:
    """Mix the target networks' values at the next state: [B] of the return part, [B, N] of the deviation part."""
    params = state.target_params[part]
    if state.config.value_target == "in_sample":
        network = _networks(state.spec, state.config).value
        local = network.apply(state.target_params["value"][part], batch.next_obs)[..., 0]
    else:
        local = expectation(networks.support_values(critic.local, params["local"], batch.next_obs, support), support)
    return critic.mix(params, batch.next_global_state, local)


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute values, targets and advantages from the parameters before the step and the policies at the two states.

        V^r_tot(s') = sum_i w^r_i E_pi q^r_i + beta^r       V^{c,i}(s') = sum_j w^c_ij E_pi q^c_j - KL_i

    with target networks and the current policy; in the in-sample form v^r and v^c, whose normalisation already holds
    the KL, take the place of the expectations. When not decoupled, V^r_tot holds the penalty sum_i alpha_i KL_i.
    """
    config, nets, barred = state.config, _networks(state.spec, state.config), state.target_params
    keys, next_keys = training.row_keys(state, batch, 2, axis_name)
    policy, behaviour, support = _policies(state, batch.obs, batch.avail, keys)
    next_policy, next_behaviour, next_support = _policies(state, batch.next_obs, batch.next_avail, next_keys)
    divergence = 0.0 if config.value_target == "in_sample" else next_policy.kl(next_behaviour)
    alpha = jnp.exp(state.extra.log_alpha)

    returns = _values_now(state, "return", batch, support)
    return_weights = nets.returns.weights(barred["return"], batch.global_state)
    next_return = _mixed_next_value(state, "return", nets.returns, batch, next_support)
    if config.decoupled:
        deviations = _values_now(state, "deviation", batch, support)
        deviation_weights = nets.deviations.weights(barred["deviation"], batch.global_state)
        next_deviation = _mixed_next_value(state, "deviation", nets.deviations, batch, next_support) - divergence
    else:
        deviations = jax.tree.map(jnp.zeros_like, returns)
        deviation_weights = jnp.zeros((*return_weights.shape, state.spec.num_agents))
        next_deviation = jnp.zeros_like(return_weights)
        next_return = next_return - jnp.sum(alpha * divergence, axis=-1)
    coupling = losses.conservatism_coupling(alpha, deviation_weights)
    return_advantage = return_weights * (returns.action - returns.state)
    deviation_advantage = coupling * (deviations.action - deviations.state)
    highest = None
    if config.value_target == "in_sample":
        highest = losses.largest_exponent(return_advantage / alpha + deviation_advantage, axis_name)
    estimates = Estimates(
        policy=policy,
        behaviour=behaviour,
        support=support,
        returns=returns,
        deviations=deviations,
        return_weights=return_weights,
        coupling=coupling,
        return_target=training.bootstrap(state, batch, next_return),
        deviation_target=config.gamma * batch.discount[:, None] * next_deviation,
        return_advantage=return_advantage,
        deviation_advantage=deviation_advantage,
        largest_exponent=highest,
    )
    return jax.lax.stop_gradient(estimates)


def levels(
    state: TrainState, estimates: Estimates, mask: chex.Array, axis_name: str | None = None
) -> tuple[chex.Array, chex.Array]:
    """Find conservatism levels that spend the budgets on this batch, and the policy weights at them.

    During the critic warm-up every weight is 1: the policy clones the data.

    Args:
        state: before the step.
        estimates: from `estimate`.
        mask: [B, N] rows in which the agent has a choice.
        axis_name: mapped device axis.

    Returns:
        The moving average of log alpha [N], and the weights omega [B, N].
    """
    config = state.config
    solution, weights = conservatism_level(
        estimates.return_advantage,
        estimates.deviation_advantage,
        state.extra.budget,
        mask,
        log_alpha_bounds=(jnp.log(config.alpha_min), jnp.log(config.alpha_max)),
        max_weight=config.max_weight,
        axis_name=axis_name,
    )
    weights = jnp.where(state.step >= config.critic_warmup, weights, mask.astype(weights.dtype))
    return conservatism_step(state.extra.log_alpha, solution, config.level_rate), weights


def behaviour_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -log b_i(a_i|o_i), maximum likelihood of the behaviour policy: [B, N]."""
    network = _networks(state.spec, state.config).policy
    behaviour = networks.action_distribution(network, params["behaviour"], batch.obs, batch.avail)
    return {"behaviour/loss": -behaviour.log_prob(batch.action)}, {}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -omega_i log pi_i(a_i|o_i), weighted maximum likelihood: [B, N]."""
    network = _networks(state.spec, state.config).policy
    policy = networks.action_distribution(network, params["policy"], batch.obs, batch.avail)
    return {"policy/loss": -estimates.weights * policy.log_prob(batch.action)}, {}


def return_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q^r_tot - target)^2: [B]."""
    critic = _networks(state.spec, state.config).returns
    q_tot = critic.q_tot(params["return"], batch.obs, batch.global_state, batch.action)
    return {"critic/td_return": jnp.square(q_tot - estimates.return_target)}, {"critic/q_return": q_tot}


def deviation_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q^{c,i} - target_i)^2, summed over agents: [B]."""
    error = _deviation_values(params, state, batch) - estimates.deviation_target
    return {"critic/td_deviation": jnp.sum(jnp.square(error), axis=-1)}, {}


def _deviation_values(params: Params, state: TrainState, batch: Batch) -> chex.Array:
    """Return Q^{c,i} of the data's actions: [B, N]."""
    critic = _networks(state.spec, state.config).deviations
    return critic.q_tot(params["deviation"], batch.obs, batch.global_state, batch.action)


def value_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the losses of the value networks of the in-sample form, averaged over agents: [B].

    The value that carries the KL (v^c; v^r when not decoupled) comes from the normalisation of pi*_i = b_i exp z_i,
    z_i = (w^r_i/alpha_i)(q^r_i - v^r_i) + kappa_i (q^c_i - v^c_i), v^r stopped (paper Proposition 3.4 and Eq. 25).
    v^r is the regression on q^r under the weights omega.
    """
    network = _networks(state.spec, state.config).value
    v = network.apply(params["value"]["return"], batch.obs)[..., 0]
    slope = estimates.return_weights * jnp.exp(-state.extra.log_alpha)
    if not state.config.decoupled:
        exponent, linear, regression = slope * (estimates.returns.action - v), slope * v, 0.0
    else:
        vc = network.apply(params["value"]["deviation"], batch.obs)[..., 0]
        exponent = slope * (estimates.returns.action - estimates.returns.state)
        exponent = exponent + estimates.coupling * (estimates.deviations.action - vc)
        linear = estimates.coupling * vc
        density = jnp.where(has_choice(batch.avail, state.spec.discrete), estimates.weights, 1.0)
        regression = density * jnp.square(v - estimates.returns.action)
    each = losses.normalisation_loss(exponent, linear, estimates.largest_exponent) + regression
    # a forced action's value is its q: rows without a choice count too, for V_tot sums over every agent
    return {"value/loss": jnp.mean(each, axis=-1)}, {}


def losses_of(config: OmcdaConfig) -> list:
    """Return the losses of one form of the algorithm."""
    chosen = [return_loss, behaviour_loss, policy_loss]
    chosen += [deviation_loss] if config.decoupled else []
    return chosen + ([value_loss] if config.value_target == "in_sample" else [])


def budgets(
    state: TrainState, estimates: Estimates, mask: chex.Array, axis_name: str | None = None
) -> tuple[chex.Array, chex.Array]:
    """Return influence's moving average [N] and the budgets it gives, [N] nats; both rest during the critic warm-up."""
    config, extra, policy, support = state.config, state.extra, estimates.policy, estimates.support
    measured = influence(
        estimates.return_weights[..., None] * estimates.returns.support,
        policy.support_log_probs(support) - estimates.behaviour.support_log_probs(support),
        support.probabilities,
        mask,
        epsilon=config.influence_epsilon,
        axis_name=axis_name,
    )
    warm = state.step >= config.critic_warmup
    smoothed = extra.influence + config.influence_rate * jnp.where(warm, measured - extra.influence, 0.0)
    budget = allocate(
        smoothed,
        extra.budget,
        rule=config.allocation,
        total_budget=config.d_tot,
        min_budget=config.d_min,
        temperature=config.temperature,
        step_size=config.step_size,
        influence_scale=config.influence_scale,
    )
    return smoothed, budget


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Do one update in the paper's four steps: estimate, levels, descend, allocate.

    Every loss is taken at the parameters before the step. Arguments and results are those of `omcda_jax.update`.
    """
    mask = has_choice(batch.avail, state.spec.discrete)

    estimates = estimate(state, batch, axis_name)
    log_alpha, weights = levels(state, estimates, mask, axis_name)
    estimates = estimates._replace(weights=jax.lax.stop_gradient(weights))
    after, metrics = training.descend(state, batch, losses_of(state.config), estimates, axis_name)
    smoothed, budget = budgets(state, estimates, mask, axis_name)

    extra = AllocationState(log_alpha=log_alpha, budget=budget, influence=smoothed)
    if state.config.decoupled:
        metrics["critic/q_deviation"] = masked_mean(
            _deviation_values(state.params, state, batch), jnp.ones_like(mask), axis_name
        )
    metrics |= {
        "policy/divergence": masked_mean(estimates.policy.kl(estimates.behaviour), mask, axis_name),
        "allocation/weight_divergence": weight_divergence(estimates.weights, mask, axis_name),
        "allocation/alpha": jnp.exp(log_alpha),
        "allocation/budget": budget,
        "allocation/influence": smoothed,
    }
    return after.replace(extra=extra), metrics


ALGORITHM = Algorithm(OmcdaConfig, init, update, acting.policy_of, acting.act_by_policy)
