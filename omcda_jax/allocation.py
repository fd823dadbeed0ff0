"""The heart of OMCDA: each agent's influence on the team's return, its deviation budget and its conservatism level.

Source: Chen, Hua, Sheng, Li, Jin, Wang, "Dynamic Conservative Degree Allocation for Offline Multi-Agent Reinforcement
Learning" (AAMAS 2025) and its full version "Who Matters Matters: Agent-Specific Conservative Offline MARL" (ICLR
2026). Where the papers leave a choice open, the docstring says what was chosen here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from omcda_jax.reductions import batch_log_weights, masked_mean
from omcda_jax.types import ConfigError

ALLOCATION_RULES = ("softmax", "projected", "uniform", "random", "fixed")
INFLUENCE_SCALES = ("relative", "raw")


@flax.struct.dataclass
class AllocationState:
    """What OMCDA carries from update to update, apart from its networks.

    Attributes:
        log_alpha: [N] moving average of the solved levels; by gradient, `dual_step` moves it after the warm-up.
        budget: [N] d_i, nats; on the simplex.
        influence: [N] moving average of m_i; 0 until the critic warm-up is over.
        value_size: [] moving average of |V^r_tot| in the critic warm-up only, so the size of the behaviour's value.
    """

    log_alpha: chex.Array
    budget: chex.Array
    influence: chex.Array
    value_size: chex.Array


LARGEST_INFLUENCE = 1e30  # a larger influence counts as this one
LEVELS_TRIED = 16  # before the bisection


def _floating(*arrays: Any) -> tuple[jax.Array, ...]:
    """Return arrays, lists and numbers as JAX arrays of floats."""
    arrays = tuple(map(jnp.asarray, arrays))
    return tuple(array.astype(jnp.result_type(array, float)) for array in arrays)


def influence(
    return_values: chex.Array,
    log_ratio: chex.Array,
    probabilities: chex.Array,
    mask: chex.Array,
    *,
    epsilon: chex.Numeric = 1e-3,
    axis_name: str | None = None,
) -> chex.Array:
    """Compute the influence m_i = dV^r_tot/dKL_i of every agent's deviation on the team's return.

    The paper writes m_i = (dV^r_tot/dpi_i)(dKL_i/dpi_i)^-1 with two gradients over actions. Read as least squares in
    the Fisher metric of pi_i (a choice made here), it is a regression slope. No parameterisation of pi_i changes it:

        m_i = E_o[Cov_{a~pi_i}(f_i, l_i)] / (E_o[Var_{a~pi_i}(l_i)] + epsilon)

    with f_i = w^r_i q^r_i and l_i = log pi_i - log b_i. In a one-step problem, at the optimum under the budgets,
    m_i = alpha_i = dV^r_tot/dd_i.

    Args:
        return_values: [B, N, K] f_i, each agent's part of the team's return, at the support points.
        log_ratio: [B, N, K] l_i in nats, finite everywhere.
        probabilities: [B, N, K] weights of the support points under pi_i, summing to one over K; 0 if illegal.
        mask: [B, N] rows in which the agent has a choice.
        epsilon: variance (nats^2) below which the slope fades to 0, as it does while pi_i = b_i.
        axis_name: mapped device axis the batch is spread over.

    Returns:
        [N] influence, in units of return per nat.
    """
    return_values, log_ratio, probabilities = _floating(return_values, log_ratio, probabilities)
    mask = jnp.asarray(mask)
    chex.assert_equal_shape([return_values, log_ratio, probabilities])
    chex.assert_equal_shape_prefix([return_values, mask], 2)

    def of_agent(f, ratio, p, valid):
        f_centred = f - jnp.sum(p * f, axis=-1, keepdims=True)
        ratio_centred = ratio - jnp.sum(p * ratio, axis=-1, keepdims=True)
        covariance = masked_mean(jnp.sum(p * f_centred * ratio_centred, axis=-1), valid, axis_name)
        variance = masked_mean(jnp.sum(p * jnp.square(ratio_centred), axis=-1), valid, axis_name)
        return covariance / (variance + epsilon)

    return jax.vmap(of_agent, in_axes=1)(return_values, log_ratio, probabilities, mask)


def allocate(
    influence: chex.Array,
    previous: chex.Array,
    *,
    rule: str = "softmax",
    total_budget: chex.Numeric,
    min_budget: chex.Numeric,
    temperature: chex.Numeric = 1.0,
    step_size: chex.Numeric = 0.005,
    influence_scale: str = "relative",
) -> chex.Array:
    """Share one budget of deviation among the agents: d_i >= min_budget, sum_i d_i = total_budget.

    Rules:
        softmax: d = d_min + (d_tot - N d_min) softmax(m / temperature), the paper's rule.
        projected: d <- projection of d + step_size (d_tot / N) m onto the budget simplex (chosen here). Its fixed
            point makes all m_i equal: water-filling, almost the best split of one KL budget.
        uniform: d_tot / N each (the paper's ablation without allocation).
        random, fixed: each agent keeps its share of d_tot - N d_min from `previous`, see `first_budgets`.

    Args:
        influence: [N] m_i; entries that are not finite count as 0, and sizes beyond 1e30 as 1e30.
        previous: [N] the current budgets, nats; on the simplex.
        rule: one of ALLOCATION_RULES (static).
        total_budget: d_tot > 0, nats over all agents.
        min_budget: d_min >= 0, nats; N d_min <= d_tot.
        temperature: temperature of the softmax rule, in the units of the scaled influence.
        step_size: step size of the projected rule, relative to an even share; or [N], one for each agent.
        influence_scale: "relative" divides m by the mean |m| over agents, so that the reward's units do not matter;
            "raw" is the paper's literal form (static).

    Returns:
        [N] budgets d, nats.

    Raises:
        ValueError: unknown rule or influence_scale, or a number out of its range (unless it is traced).
    """
    influence, previous = _floating(influence, previous)
    chex.assert_rank([influence, previous], 1)
    chex.assert_equal_shape([influence, previous])
    if rule not in ALLOCATION_RULES:
        raise ValueError(f"allocation rule: expected one of {', '.join(ALLOCATION_RULES)}, found {rule!r}")
    if influence_scale not in INFLUENCE_SCALES:
        raise ValueError(f"influence_scale: expected one of {', '.join(INFLUENCE_SCALES)}, found {influence_scale!r}")
    num_agents = influence.shape[0]
    _require_numbers(num_agents, total_budget, min_budget, temperature if rule == "softmax" else 1.0)
    if rule == "uniform":
        return jnp.broadcast_to(jnp.asarray(total_budget, previous.dtype) / num_agents, previous.shape)
    spread = jnp.maximum(total_budget - num_agents * min_budget, jnp.finfo(previous.dtype).tiny)
    if rule in ("random", "fixed"):
        stays = jnp.isclose(jnp.sum(previous), total_budget) & (jnp.min(previous) >= min_budget * (1 - 1e-6))
        return jnp.where(stays, previous, min_budget + spread * _shares(previous - min_budget))
    scaled = jnp.clip(jnp.where(jnp.isfinite(influence), influence, 0.0), -LARGEST_INFLUENCE, LARGEST_INFLUENCE)
    if influence_scale == "relative":
        scaled = _relative(scaled)
    if rule == "softmax":
        # the largest is shifted to 0 first, so that the division can overflow for the others only
        return min_budget + spread * jax.nn.softmax((scaled - jnp.max(scaled)) / temperature)
    return min_budget + _projected(previous - min_budget + step_size * (total_budget / num_agents) * scaled, spread)


def _require_numbers(num_agents, total_budget, min_budget, temperature):
    fits = (min_budget >= 0) & (num_agents * min_budget <= total_budget * (1 + 1e-6))
    for name, value, holds, expected in (
        ("total_budget", total_budget, total_budget > 0, "above 0"),
        ("min_budget", min_budget, fits, f"from 0 to total_budget / {num_agents}"),
        ("temperature", temperature, temperature > 0, "above 0"),
    ):
        if not isinstance(holds, jax.core.Tracer) and not np.all(holds):
            raise ValueError(f"{name}: expected {expected}, found {value}")


def _shares(beyond):
    """Return each agent's share of what [N] exceeds 0; even shares if nothing does."""
    beyond = jnp.maximum(beyond, 0.0)
    whole = jnp.sum(beyond)
    return jnp.where(whole > 0, beyond / jnp.where(whole > 0, whole, 1.0), 1 / beyond.shape[0])


def _projected(target, total):
    """Project [N] onto the simplex whose entries sum to `total`.

    The projection ignores shifts, and an entry more than `total` below the largest always becomes 0. So shifting and
    clipping change nothing, but keep huge influences from costing the sum its precision.
    """
    return optax.projections.projection_simplex(jnp.clip(target - jnp.max(target), -total, 0.0), total)


def beyond_price(influence: chex.Array, price: chex.Numeric) -> chex.Array:
    """Return the fraction [N] of each influence that exceeds the price of a nat, from 0 to 1.

    The projected rule moves budgets by this fraction only: where a nat earns no more than its price, the budget is a
    cap that the agent does not need.
    """
    size = jnp.abs(influence)
    exceeds = size > price
    return jnp.where(exceeds, 1.0 - price / jnp.where(exceeds, size, 1.0), 0.0)


def allocate_by(config: Any, influence: chex.Array, previous: chex.Array, price: chex.Numeric) -> chex.Array:
    """Return `allocate` by an algorithm's settings: `allocation` names the rule, `d_tot` and `d_min` the budgets."""
    return allocate(
        influence,
        previous,
        rule=config.allocation,
        total_budget=config.d_tot,
        min_budget=config.d_min,
        temperature=config.temperature,
        step_size=config.step_size * beyond_price(influence, price),
        influence_scale=config.influence_scale,
    )


def first_budgets(config: Any, key: chex.PRNGKey, num_agents: int) -> chex.Array:
    """Share d_tot before any influence is measured: evenly, except under two rules that never change their budgets.

    Args:
        config: an algorithm's settings, as `allocate_by` reads them. With `allocation="fixed"` its `shares` [N] divide
            what exceeds the minimum budgets; with "random" (the paper's ablation) a random point of the simplex does.
        key: key of the draw.
        num_agents: N.

    Returns:
        [N] budgets d, nats.

    Raises:
        ConfigError: the rule is "fixed" and the number of shares is not the number of agents.
    """
    share = jnp.full((num_agents,), 1 / num_agents, jnp.float32)
    if config.allocation == "random":
        share = jax.random.dirichlet(key, jnp.ones((num_agents,)))
    elif config.allocation == "fixed":
        if len(config.shares) != num_agents:
            expected = f"{num_agents} numbers, one for each agent"
            raise ConfigError(f"{config.name}: shares: expected {expected}, found {len(config.shares)}")
        share = jnp.asarray(config.shares, jnp.float32)
        share = share / jnp.sum(share)
    return config.d_min + (config.d_tot - num_agents * config.d_min) * share


def first_state(config: Any, key: chex.PRNGKey, num_agents: int) -> AllocationState:
    """Return the state before the first update: `first_budgets`, which may raise, and levels of `alpha_init`."""
    budget = first_budgets(config, key, num_agents)
    log_alpha = jnp.full_like(budget, jnp.log(config.alpha_init))
    return AllocationState(log_alpha, budget, jnp.zeros_like(budget), jnp.zeros((), jnp.float32))


def price_of_a_nat(config: Any, state: AllocationState, warms: chex.Array) -> chex.Array:
    """Return the price [] in return per nat: `price` times the behaviour's value, 0 during the critic warm-up."""
    return jnp.where(warms, 0.0, config.price * state.value_size)


def are_shares(shares: Sequence[chex.Numeric]) -> chex.Numeric:
    """Return whether no number is negative and the sum is 1 within 0.002; True also for an empty sequence."""
    holds = len(shares) == 0 or abs(sum(shares) - 1) < 2e-3
    for share in shares:
        holds = holds & (share >= 0)
    return holds


def _relative(influence):
    """Divide influence by its mean absolute value; dividing by the largest first keeps the mean from overflowing.

    If the largest is below 1 / LARGEST_INFLUENCE, all count as 0: XLA turns divisions into products with reciprocals
    and merges the two of them, and the merged divisor would be 0.
    """
    largest = jnp.max(jnp.abs(influence))
    counts = largest > 1 / LARGEST_INFLUENCE
    largest_first = jnp.where(counts, influence / jnp.where(counts, largest, 1.0), 0.0)
    return largest_first / jnp.where(counts, jnp.mean(jnp.abs(largest_first)), 1.0)


def conservatism_level(
    return_advantage: chex.Array,
    deviation_advantage: chex.Array,
    budget: chex.Array,
    mask: chex.Array,
    *,
    log_alpha_bounds: tuple[chex.Numeric, chex.Numeric] = (-7.0, 7.0),
    max_weight: chex.Numeric = 100.0,
    num_halvings: int = 8,
    axis_name: str | None = None,
) -> tuple[chex.Array, chex.Array]:
    """Find the lowest level alpha_i at which the policy weights spend no more than the budget, and those weights.

    omega_i is the softmax of A^r_i / alpha_i + A^c_i over the valid rows, times their number. It is the density ratio
    pi*_i / b_i up to a factor per observation, normalised over the rows in which the agent has a choice. The cap
    `max_weight` is applied last. The divergence mean(omega_i log omega_i) falls as alpha_i grows, but may rise again
    towards that of A^c_i alone. So the search takes the lowest level within the budget among LEVELS_TRIED, evenly
    spread in log alpha_i, then goes down towards the next of them by bisection and a straight line. The paper steps
    alpha to where KL_i = d_i; solving for it is a choice made here (the per-agent form of REPS, Peters et al. 2010).

    Args:
        return_advantage: [B, N] A^r_i = w^r_i (q^r_i - E_pi q^r_i).
        deviation_advantage: [B, N] A^c_i = kappa_i (q^c_i - E_pi q^c_i), in nats.
        budget: [N] d_i, nats.
        mask: [B, N] rows in which the agent has a choice.
        log_alpha_bounds: interval searched. If even the lower bound spends less than the budget, it is returned. If no
            level tried is within the budget, the one that spends least is returned.
        max_weight: cap on omega_i.
        num_halvings: number of halvings in the bisection.
        axis_name: mapped device axis the batch is spread over.

    Returns:
        log_alpha [N] and weights [B, N] (0 on invalid rows).
    """
    return_advantage, deviation_advantage, budget = _floating(return_advantage, deviation_advantage, budget)
    mask = jnp.asarray(mask)
    chex.assert_equal_shape([return_advantage, deviation_advantage, mask])
    chex.assert_equal_shape_suffix([return_advantage, budget], 1)

    def log_weights(log_alpha):
        return batch_log_weights(return_advantage * jnp.exp(-log_alpha) + deviation_advantage, mask, axis_name)

    def spent_at(log_alpha):
        return weight_divergence(jnp.exp(log_weights(log_alpha)), mask, axis_name)

    def halve(_, ends):
        level = (ends[0][0] + ends[1][0]) / 2
        middle = level, spent_at(level)
        choose = lambda above, within: jnp.where(middle[1] > budget, above, within)
        return jax.tree.map(choose, (middle, ends[1]), (ends[0], middle))

    ends = _bracket(spent_at, budget, log_alpha_bounds)
    (low, spent_low), (high, spent_high) = jax.lax.fori_loop(0, num_halvings, halve, ends)
    share = (spent_low - budget) / jnp.where(spent_low > spent_high, spent_low - spent_high, 1.0)
    log_alpha = low + jnp.clip(share, 0.0, 1.0) * (high - low)
    weights = jnp.minimum(jnp.exp(log_weights(log_alpha)), max_weight)
    return log_alpha, jnp.where(mask, weights, 0.0)


def _bracket(
    spent_at: Callable[[chex.Array], chex.Array], budget: chex.Array, bounds: Sequence[chex.Numeric]
) -> tuple[tuple[chex.Array, chex.Array], ...]:
    """Return two levels tried, each with what it spends [N]: the lowest within the budget, preceded by the next lower.

    If none of LEVELS_TRIED is within the budget, both are the one that spends least.
    """
    low, high = (jnp.broadcast_to(jnp.asarray(bound, budget.dtype), budget.shape) for bound in bounds)
    levels = jnp.linspace(low, high, LEVELS_TRIED)
    spent = jax.vmap(spent_at)(levels)
    within = spent <= budget
    least = LEVELS_TRIED - 1 - spent[::-1].argmin(axis=0)  # the highest among equals
    found, below = within.argmax(axis=0), jnp.maximum(within.argmax(axis=0) - 1, 0)
    found, below = (jnp.where(within.any(axis=0), index, least) for index in (found, below))
    at = lambda index: tuple(jnp.take_along_axis(x, index[None], axis=0)[0] for x in (levels, spent))
    return at(below), at(found)


def weight_divergence(weights: chex.Array, mask: chex.Array, axis_name: str | None = None) -> chex.Array:
    """Compute the KL of the weighted data from the data, mean(omega log omega) over valid rows.

    Args:
        weights: [B, N] density ratios with mean one over valid rows.
        mask: [B, N] valid rows.
        axis_name: mapped device axis the batch is spread over.

    Returns:
        [N] nats.
    """
    positive = weights > 0  # a weight may underflow to 0, where the logarithm has no derivative
    return masked_mean(jnp.where(positive, weights * jnp.log(jnp.where(positive, weights, 1.0)), 0.0), mask, axis_name)


def conservatism_step(log_alpha: chex.Array, solution: chex.Array, rate: chex.Numeric) -> chex.Array:
    """Return the moving average log alpha <- (1 - rate) log alpha + rate solution; both [N].

    The average, not the solution of one batch, couples the agents through kappa. Reports show the average too.
    """
    chex.assert_equal_shape([log_alpha, solution])
    return log_alpha + rate * (solution - log_alpha)


def dual_step(log_alpha: chex.Array, divergence: chex.Array, budget: chex.Array, step_size: chex.Numeric) -> chex.Array:
    """Return log alpha + step_size clip((KL - d) / d, -1, 1): a level rises while its agent spends too much; all [N].

    This is gradient descent on the paper's dual alpha (d - KL), in log alpha, relative to the budget and clipped.

    Args:
        log_alpha: [N].
        divergence: [N] KL_i of the policy, nats.
        budget: [N] d_i, nats.
        step_size: largest change.
    """
    chex.assert_equal_shape([log_alpha, divergence, budget])
    excess = (divergence - budget) / jnp.maximum(budget, jnp.finfo(budget.dtype).tiny)
    return log_alpha + step_size * jnp.clip(excess, -1.0, 1.0)
