"""OMCDA: decomposed values, influence-driven allocation of one deviation budget, a conservatism level per agent.

Source: Chen, Hua, Sheng, Li, Jin, Wang, "Dynamic Conservative Degree Allocation for Offline Multi-Agent Reinforcement
Learning" (AAMAS 2025) and "Who Matters Matters: Agent-Specific Conservative Offline MARL" (ICLR 2026). The backbone is
that of OMIGA (Wang et al., NeurIPS 2023). The regularised return E sum_t gamma^t (r_t - sum_i alpha_i KL_i) is split:

    Q^r_tot(s,o,a) = sum_i w^r_i(s) q^r_i(o_i,a_i) + beta^r(s)     return only
    Q^{c,i}(s,o,a) = sum_j w^c_ij(s) q^c_j(o_j,a_j)                = -E sum_{t>0} gamma^t KL_i, agent i's deviation
    Q_tot          = Q^r_tot + sum_i alpha_i Q^{c,i}

Choices made here because the papers are silent: expectation values, twin return critics, the convex deviation mixer,
solving for the level, the price of a nat, the critic warm-up, extraction by gradient, the Fisher form of the influence.
"""

from typing import ClassVar, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from omcda_jax import acting, allocation, losses, networks, training
from omcda_jax.allocation import ALLOCATION_RULES, INFLUENCE_SCALES
from omcda_jax.distributions import Policy, Support, expectation, has_choice, moved_expectation, support_rows
from omcda_jax.networks import AgentNetwork, DeviationMixer, MixedCritic
from omcda_jax.reductions import masked_mean, valid_rows
from omcda_jax.training import CriticSettings, static
from omcda_jax.types import Algorithm, Batch, EnvSpec, Losses, Metrics, Params, TrainState

VALUE_TARGETS = ("expectation", "in_sample")
EXTRACTIONS = ("auto", "weighted", "gradient")


@flax.struct.dataclass(kw_only=True)
class OmcdaConfig(CriticSettings):
    """Settings of OMCDA.

    Attributes:
        d_tot: nats of deviation per step for the whole team; the papers scan .6, 1.8, 3 on SMAC, .3, 1.2, 3 on MuJoCo.
        d_min: nats that every agent keeps. It should not be 0: an agent without a budget drives its level to its
            bound, and through the deviation mixer every other level too.
        allocation: "softmax" (paper), "projected" (water-filling), "uniform" (ablation w/o-CDA), "random" (ablation
            rd), "fixed" (by `shares`).
        shares: each agent's share of d_tot - N d_min under the rule "fixed"; the shares sum to 1.
        temperature: temperature of the softmax rule.
        step_size: step size of the projected rule, relative to an even share.
        influence_scale: "relative" (divided by the mean |m| over agents) or "raw" (the paper's literal form).
        influence_rate: weight of the newest influence in its moving average.
        influence_epsilon: variance (nats^2) below which the influence fades to 0.
        value_target: "expectation" (values straight from their definitions, no value networks) or "in_sample" (the
            paper's form: value networks v^r and v^c, where v^c comes from the normalisation of pi*).
        conservative_mixing: deviation mixer, see `networks.DeviationMixer`.
        decoupled: False is the ablation w/o-dq: one value contains both the reward and the penalty.
        critics: number of return critics, each with its own mixer. The targets take the smallest team value; the
            first critic guides the policy (after TD3, Fujimoto et al. 2018).
        extraction: how the policy follows the values. "weighted": cloning weighted by omega (paper). "gradient":
            descent on KL(pi || pi*) (Park et al. 2024, "Is Value Learning Really the Main Bottleneck in Offline RL?").
            "auto": weighted where actions are discrete, gradient where they are continuous.
        critic_warmup: updates in which the policy clones the data and the values become the behaviour's. Credit needs
            about horizon / target_rate of them to travel an episode; with `priming`, a few thousand are enough.
        level_rate: weight of the newest solution in the moving average of log alpha.
        level_step: largest change of log alpha per update, where extraction is by gradient.
        price: least return that a nat of deviation must earn: alpha goes no lower, so the budget is a cap. The unit is
            the behaviour's mean |V^r_tot| during the warm-up.
        alpha_init: alpha before the first solution, in units of return per nat.
        alpha_min: lower end of the search for alpha.
        alpha_max: upper end of the search for alpha.
        max_weight: cap on the policy weights.
        num_samples: K, the number of draws from each agent's policy for an expectation over continuous actions.
        critic_layer_norm: keeps critics from extrapolating in rare states; off in the common backbone.
    """

    name: ClassVar[str] = "omcda"

    d_tot: float = 0.6
    d_min: float = 0.002
    allocation: str = static("softmax", ALLOCATION_RULES)
    shares: tuple[float, ...] = ()
    temperature: float = 1.0
    step_size: float = 0.005
    influence_scale: str = static("relative", INFLUENCE_SCALES)
    influence_rate: float = 0.01
    influence_epsilon: float = 1e-3
    value_target: str = static("expectation", VALUE_TARGETS)
    conservative_mixing: str = static("convex", networks.DEVIATION_MIXINGS)
    decoupled: bool = static(True)
    critics: int = static(2)
    extraction: str = static("auto", EXTRACTIONS)
    critic_warmup: int = static(4_000, warmup=True)
    level_rate: float = 0.01
    level_step: float = 0.002
    price: float = 0.0
    alpha_init: float = 1.0
    alpha_min: float = 1e-3
    alpha_max: float = 1e3
    max_weight: float = 100.0
    num_samples: int = static(4)

    def validate(self) -> None:
        """Raise ConfigError for the first setting out of its range."""
        training.check_choices(self)
        fits = lambda rule: len(self.shares) == 0 or rule == "fixed"
        training.require(self, "allocation", fits, "fixed where shares are given")
        training.require(self, "shares", allocation.are_shares, "numbers >= 0 whose sum is 1")
        training.require(self, "critic_warmup", lambda x: x >= 0, "a number of updates >= 0")
        measures = "0 with critic_warmup=0, because its unit is measured in the warm-up"
        training.require(self, "price", lambda x: (self.critic_warmup > 0) | (x == 0), measures)
        training.require(self, "num_samples", lambda x: x >= 2, "at least 2")
        training.require(self, "d_tot", lambda x: (x > 0) & (x < float("inf")), "a positive number of nats")
        training.require(self, "d_min", lambda d: (d >= 0) & (d <= self.d_tot), f"between 0 and d_tot={self.d_tot}")
        training.check_numbers(
            self,
            positive=("temperature", "step_size", "alpha_init", "alpha_min", "influence_epsilon", "level_step"),
            nonnegative=["price"],
            rates=("level_rate", "influence_rate"),
            counts=["critics"],
        )
        finite = f"a number above alpha_min={self.alpha_min}"
        training.require(self, "alpha_max", lambda x: (x > self.alpha_min) & (x < float("inf")), finite)
        training.require(self, "max_weight", lambda x: x > 1, "above 1")


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
    """Initialise the networks and the budgets for the task's sizes; the policy starts as a copy of the behaviour.

    Raises:
        ConfigError: N d_min exceeds d_tot, or the number of shares is not the number of agents.
    """
    enough = f"at least num_agents * d_min = {spec.num_agents} * {config.d_min}"
    training.require(config, "d_tot", lambda d: d >= spec.num_agents * config.d_min, enough)
    nets = _networks(spec, config)
    parts = {"behaviour": nets.policy} | ({"deviation": nets.deviations} if config.decoupled else {})
    params_key, value_key, share_key, return_key = jax.random.split(key, 4)
    params = networks.init_params(params_key, spec, **parts)
    one = lambda key: networks.init_params(key, spec, critic=nets.returns)["critic"]
    params["return"] = jax.vmap(one)(jax.random.split(return_key, config.critics))
    params["policy"] = jax.tree.map(jnp.array, params["behaviour"])
    if config.value_target == "in_sample":
        names = ["deviation", "return"] if config.decoupled else ["return"]
        params["value"] = networks.init_params(value_key, spec, **dict.fromkeys(names, nets.value))
    extra = allocation.first_state(config, share_key, spec.num_agents)
    return training.new_state(key, spec, config, params, targets=sorted(params.keys() - {"behaviour"}), extra=extra)


class Values(NamedTuple):
    """Local values of one part (return or deviation) at the states the policy learns from."""

    support: chex.Array  # [M, N, K] q at the support of the policy
    slope: chex.Array  # [M, N, K, A] dq/da there if extraction is by gradient and actions are continuous, else []
    action: chex.Array  # [M, N] q of the data's actions, or of draws from the policy instead
    state: chex.Array  # [M, N] v: E_pi q, or in the in-sample form the value network's output


class Estimates(NamedTuple):
    """What an update computes before its step; all losses take it as constant. The policy learns from M of B rows."""

    keys: chex.PRNGKey  # [M] keys of the draws from `policy`
    policy: Policy  # [M, N] policies at the batch's observations
    behaviour: Policy  # [M, N] clones of the data
    support: Support  # support of expectations under `policy`
    mask: chex.Array  # [M, N] where an agent has a choice
    returns: Values  # local values of the return part, from the first target critic
    deviations: Values  # local values of the deviation part; zeros if values are not decoupled
    return_weights: chex.Array  # [M, N] w^r of the same critic
    return_value: chex.Array  # [M] V^r_tot of the same critic
    coupling: chex.Array  # [M, N] kappa
    return_target: chex.Array  # [B] target of Q^r_tot
    deviation_target: chex.Array  # [B, N] targets of Q^{c,i}
    return_advantage: chex.Array  # [M, N] A^r_i = w^r_i (q^r_i - v^r_i)
    deviation_advantage: chex.Array  # [M, N] A^c_i = kappa_i (q^c_i - v^c_i), nats
    largest_exponent: chex.Array  # [] it scales the loss of the in-sample form
    weights: chex.Array | None = None  # [M, N] omega_i, from `levels`


def by_gradient(state: TrainState) -> bool:
    """Return whether the policy follows the values by gradient, not by weights."""
    return state.config.extraction == "gradient" or (state.config.extraction == "auto" and not state.spec.discrete)


def learned_from(state: TrainState, rows: chex.ArrayTree) -> chex.ArrayTree:
    """Return the rows that the policy learns from: every second one where gradients of the critics are needed.

    They are the most expensive part of an update; TD3's policy (Fujimoto et al. 2018) steps every second time for the
    same reason. Discrete actions keep all rows: one pass gives all values. The in-sample form needs all for its values.
    """
    every = state.spec.discrete or not by_gradient(state) or state.config.value_target == "in_sample"
    return rows if every else jax.tree.map(lambda x: x[::2], rows)


def _local_values(state: TrainState, part: str, params: Params, batch: Batch, support: Support) -> Values:
    """Return the values of one target critic; in the in-sample form, v is the newest value network's, as in OMIGA.

    By gradient (but not in-sample), draws from the policy replace continuous actions of the data. Only the warm-up's
    levels use them, where the policy is the behaviour. Draws mirror each other, so the even part of q is missed.
    """
    nets, in_sample = _networks(state.spec, state.config), state.config.value_target == "in_sample"
    judge, slope = nets.returns.local, jnp.zeros(())
    if state.spec.discrete or not by_gradient(state):
        inputs = (batch.obs, support, batch.action)
        q, q_action = networks.support_and_action_values(judge, params["local"], *inputs)
    else:
        q, slope = networks.support_values_and_slopes(judge, params["local"], batch.obs, support)
        q_action = networks.action_values(judge, params["local"], batch.obs, batch.action) if in_sample else q[..., 0]
    v = nets.value.apply(state.params["value"][part], batch.obs)[..., 0] if in_sample else expectation(q, support)
    return Values(q, slope, q_action, v)


def _mixed_next_value(
    state: TrainState, part: str, critic: MixedCritic, params: Params, batch: Batch, support: Support
) -> chex.Array:
    """Mix a target critic's values at the next state: [B] for the return part, [B, N] for the deviation part."""
    if state.config.value_target == "in_sample":
        network = _networks(state.spec, state.config).value
        local = network.apply(state.target_params["value"][part], batch.next_obs)[..., 0]
    else:
        local = expectation(networks.support_values(critic.local, params["local"], batch.next_obs, support), support)
    return critic.mix(params, batch.next_global_state, local)


def estimate(state: TrainState, batch: Batch, axis_name: str | None = None) -> Estimates:
    """Compute values, targets and advantages from the parameters before the step and the policies at both states.

        V^r_tot(s') = sum_i w^r_i E_pi q^r_i + beta^r       V^{c,i}(s') = sum_j w^c_ij E_pi q^c_j - KL_i

    with target networks and the current policy. In the in-sample form, v^r and v^c replace the expectations; their
    normalisation already contains the KL. When not decoupled, V^r_tot contains the penalty sum_i alpha_i KL_i.
    """
    config, nets, barred = state.config, _networks(state.spec, state.config), state.target_params
    keys, next_keys = training.row_keys(state, batch, 2, axis_name)
    group = lambda name, *at: networks.action_distribution(nets.policy, state.params[name], *at)
    learned, keys, behaviour = learned_from(state, (batch, keys, group("behaviour", batch.obs, batch.avail)))
    policy = group("policy", learned.obs, learned.avail)
    support = support_rows(policy, keys, config.num_samples)
    next_policy, next_behaviour = (group(name, batch.next_obs, batch.next_avail) for name in ("policy", "behaviour"))
    next_support = support_rows(next_policy, next_keys, config.num_samples)
    divergence = 0.0 if config.value_target == "in_sample" else next_policy.kl(next_behaviour)
    alpha = jnp.exp(state.extra.log_alpha)
    guide = jax.tree.map(lambda member: member[0], barred["return"])
    return_weights, bias = nets.returns.mixer.apply(guide["mixer"], learned.global_state)
    returns = _local_values(state, "return", guide, learned, support)
    next_value = lambda part: lambda critic, params: _mixed_next_value(state, part, critic, params, batch, next_support)
    next_return = networks.of_ensemble(next_value("return"), nets.returns, barred["return"]).min(axis=0)
    if config.decoupled:
        deviations = _local_values(state, "deviation", barred["deviation"], learned, support)
        deviation_weights = nets.deviations.weights(barred["deviation"], learned.global_state)
        next_deviation = next_value("deviation")(nets.deviations, barred["deviation"]) - divergence
    else:
        deviations = jax.tree.map(jnp.zeros_like, returns)
        deviation_weights = jnp.zeros((*return_weights.shape, state.spec.num_agents))
        next_deviation = jnp.zeros((*batch.reward.shape, state.spec.num_agents))
        next_return = next_return - jnp.sum(alpha * divergence, axis=-1)
    coupling = losses.conservatism_coupling(alpha, deviation_weights)
    return_advantage = return_weights * (returns.action - returns.state)
    deviation_advantage = coupling * (deviations.action - deviations.state)
    estimates = Estimates(
        keys=keys,
        policy=policy,
        behaviour=behaviour,
        support=support,
        mask=has_choice(learned.avail, state.spec.discrete),
        returns=returns,
        deviations=deviations,
        return_weights=return_weights,
        return_value=losses.mix(returns.state, return_weights, bias),
        coupling=coupling,
        return_target=training.bootstrap(state, batch, next_return),
        deviation_target=config.gamma * batch.discount[:, None] * next_deviation,
        return_advantage=return_advantage,
        deviation_advantage=deviation_advantage,
        largest_exponent=losses.largest_exponent(return_advantage / alpha + deviation_advantage, axis_name),
    )
    return jax.lax.stop_gradient(estimates)


def levels(state: TrainState, estimates: Estimates, axis_name: str | None = None) -> tuple[chex.Array, chex.Array]:
    """Return log alpha [N], where alpha spends the budgets but is at least the price of a nat, and weights [M, N].

    In the critic warm-up every weight is 1. After it, by gradient, the levels follow what the policy itself spends.
    """
    config, extra, mask, warms = state.config, state.extra, estimates.mask, warms_up(state)
    lowest = jnp.log(jnp.maximum(config.alpha_min, allocation.price_of_a_nat(config, extra, warms)))
    highest = jnp.maximum(jnp.log(config.alpha_max), lowest)
    solution, weights = allocation.conservatism_level(
        estimates.return_advantage,
        estimates.deviation_advantage,
        extra.budget,
        mask,
        log_alpha_bounds=(lowest, highest),
        max_weight=config.max_weight,
        axis_name=axis_name,
    )
    rows = valid_rows(mask, axis_name)
    # weights over m rows spend at most log m nats
    solution = jnp.where(jnp.log(jnp.maximum(rows, 1)) > extra.budget, solution, extra.log_alpha)
    log_alpha = allocation.conservatism_step(extra.log_alpha, solution, config.level_rate)
    if by_gradient(state):
        spent = masked_mean(estimates.policy.kl(estimates.behaviour), mask, axis_name)
        spent = jnp.where(rows > 0, spent, extra.budget)
        stepped = allocation.dual_step(extra.log_alpha, spent, extra.budget, config.level_step)
        log_alpha = jnp.where(warms, log_alpha, stepped)
    log_alpha = jnp.where(warms, log_alpha, jnp.clip(log_alpha, lowest, highest))
    return log_alpha, jnp.where(warms, mask.astype(weights.dtype), weights)


def warms_up(state: TrainState) -> chex.Array:
    """Return whether the critic warm-up goes on, in which the policy is the behaviour: []."""
    return state.step < state.config.critic_warmup


def behaviour_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return -log b_i(a_i|o_i), maximum likelihood of the behaviour policy: [B, N]."""
    network = _networks(state.spec, state.config).policy
    behaviour = networks.action_distribution(network, params["behaviour"], batch.obs, batch.avail)
    return {"behaviour/loss": -behaviour.log_prob(batch.action)}, {}


def policy_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the loss that moves the policy towards pi*_i = b_i exp z_i: [B, N].

    Weighted: -omega_i log pi_i(a_i|o_i). By gradient: KL_i - E_pi z_i, which is KL(pi_i || pi*_i) up to a constant.
    E_pi z_i is taken to first order around the policy in `estimates`. B are the rows that the policy learns from.
    """
    network, learned = _networks(state.spec, state.config).policy, learned_from(state, batch)
    policy = networks.action_distribution(network, params["policy"], learned.obs, learned.avail)
    if not by_gradient(state):
        return {"policy/loss": -estimates.weights * policy.log_prob(learned.action)}, {}
    support = support_rows(policy, estimates.keys, state.config.num_samples)
    gain = lambda part: moved_expectation(part.support, part.slope, estimates.support, support) - part.state
    exponent = estimates.return_weights * jnp.exp(-state.extra.log_alpha) * gain(estimates.returns)
    exponent = exponent + estimates.coupling * gain(estimates.deviations)
    return {"policy/loss": policy.kl(estimates.behaviour) - exponent}, {}


def return_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q^r_tot - target)^2, summed over critics: [B]."""
    critic = _networks(state.spec, state.config).returns
    inputs = batch.obs, batch.global_state, batch.action
    q_tot = networks.of_ensemble(MixedCritic.q_tot, critic, params["return"], *inputs)
    error = jnp.sum(jnp.square(q_tot - estimates.return_target), axis=0)
    return {"critic/td_return": error}, {"critic/q_return": jnp.mean(q_tot, axis=0)}


def deviation_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return (Q^{c,i} - target_i)^2, summed over agents: [B]."""
    error = _q_deviation(params, state, batch) - estimates.deviation_target
    return {"critic/td_deviation": jnp.sum(jnp.square(error), axis=-1)}, {}


def _q_deviation(params: Params, state: TrainState, batch: Batch) -> chex.Array:
    """Return Q^{c,i} of the data's actions: [B, N]."""
    critic = _networks(state.spec, state.config).deviations
    return critic.q_tot(params["deviation"], batch.obs, batch.global_state, batch.action)


def value_loss(params: Params, state: TrainState, batch: Batch, estimates: Estimates) -> Losses:
    """Return the losses of the value networks of the in-sample form, averaged over agents: [B].

    The value that carries the KL (v^c; v^r when not decoupled) comes from the normalisation of pi*_i = b_i exp z_i with
    z_i = (w^r_i/alpha_i)(q^r_i - v^r_i) + kappa_i (q^c_i - v^c_i) (paper Proposition 3.4 and Eq. 25). When decoupled,
    v^r is constant in z_i and learns by regression on q^r under the weights omega.
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
        density = jnp.where(estimates.mask, estimates.weights, 1.0)
        regression = density * jnp.square(v - estimates.returns.action)
    each = losses.normalisation_loss(exponent, linear, estimates.largest_exponent) + regression
    # rows without a choice count too, because V_tot sums over every agent; the value of a forced action is its q
    return {"value/loss": jnp.mean(each, axis=-1)}, {}


def measure(state: TrainState, estimates: Estimates, axis_name: str | None = None) -> chex.Array:
    """Return the influence m_i [N] in this batch, from the return part's values at the support of the policy.

    An agent that has no choice anywhere in the batch keeps its average.
    """
    policy, behaviour, support = estimates.policy, estimates.behaviour, estimates.support
    influence = allocation.influence(
        estimates.return_weights[..., None] * estimates.returns.support,
        policy.support_log_probs(support) - behaviour.support_log_probs(support),
        support.probabilities,
        estimates.mask,
        epsilon=state.config.influence_epsilon,
        axis_name=axis_name,
    )
    return jnp.where(valid_rows(estimates.mask, axis_name) > 0, influence, state.extra.influence)


def update(state: TrainState, batch: Batch, *, axis_name: str | None = None) -> tuple[TrainState, Metrics]:
    """Do one update in the paper's four steps: estimate, levels, descend, allocate.

    Every loss is taken at the parameters before the step. In the critic warm-up, influence and budgets do not change.
    Arguments and results are those of `omcda_jax.update`.
    """
    config, extra, warms = state.config, state.extra, warms_up(state)
    estimates = estimate(state, batch, axis_name)
    log_alpha, weights = levels(state, estimates, axis_name)
    estimates = estimates._replace(weights=jax.lax.stop_gradient(weights))
    chosen = [return_loss, behaviour_loss, policy_loss]
    chosen += [deviation_loss] if config.decoupled else []
    chosen += [value_loss] if config.value_target == "in_sample" else []
    after, metrics = training.gradient_step(state, batch, chosen, estimates, axis_name)
    policy = jax.tree.map(lambda b, p: jnp.where(warms, b, p), after.params["behaviour"], after.params["policy"])
    after = training.advance(after.replace(params=after.params | {"policy": policy}))
    measured = measure(state, estimates, axis_name)
    influence = extra.influence + config.influence_rate * jnp.where(warms, 0.0, measured - extra.influence)
    price = allocation.price_of_a_nat(config, extra, warms)
    budget = allocation.allocate_by(config, influence, extra.budget, price)

    size = masked_mean(jnp.abs(estimates.return_value), jnp.ones_like(estimates.return_value, bool), axis_name)
    rate = jnp.maximum(config.level_rate, 1.0 / (state.step + 1))  # at first the plain mean of all updates
    size = extra.value_size + rate * jnp.where(warms, size - extra.value_size, 0.0)
    if config.decoupled:
        q_deviation = _q_deviation(state.params, state, batch)
        metrics["critic/q_deviation"] = masked_mean(q_deviation, jnp.ones_like(q_deviation, bool), axis_name)
    metrics |= {
        "policy/divergence": masked_mean(estimates.policy.kl(estimates.behaviour), estimates.mask, axis_name),
        "allocation/weight_divergence": allocation.weight_divergence(estimates.weights, estimates.mask, axis_name),
        "allocation/alpha": jnp.exp(log_alpha),
        "allocation/budget": budget,
        "allocation/influence": influence,
        "allocation/price": jnp.maximum(config.alpha_min, price),
    }
    return after.replace(extra=allocation.AllocationState(log_alpha, budget, influence, size)), metrics


ALGORITHM = Algorithm(OmcdaConfig, init, update, acting.policy_of, acting.act_by_policy)
