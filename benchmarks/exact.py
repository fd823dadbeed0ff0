"""A cooperative problem with a known solution: agents on independent rings, solved by dynamic programming.

**The problem.** N = 4 agents walk on rings of 8 places, each on its own ring. The actions are left, stay and right;
with probability 0.1 one of the three moves is drawn at random instead. Agent i earns `REWARD_SCALES[i]` for every step
that it starts at place 0; the team's reward is the sum. The discount is 0.95, and there is no termination. Agent i
observes its place, one-hot; the state is all places. The behaviour policy b_i is a fixed random table per agent.

**The same with continuous actions.** Action a in [-1, 1] leans: the agent makes two half steps, each to the right with
probability (1 + a)/2 and else to the left. So it goes left, stays or goes right with probability (1 - a)^2/4,
(1 - a^2)/2, (1 + a)^2/4. The behaviour policy is a tanh-Gaussian per place. Actions are cut into `NUM_CELLS` equal
cells, and each cell is one of the A actions below. Nothing else is approximate. The densities vanish at both ends, so
the midpoint rule converges quickly: 50, 100 and 200 cells agree to five digits. Every q is a parabola in a, so the
optimum b exp(q / alpha) is a tanh-Gaussian except for the curvature of tanh: at .3 nats each, the best tanh-Gaussians
are within 0.5 % of its gain.

**Value.** V(pi) = sum_i mean over places of V_i(place), the expected discounted return from a uniform start with
infinite horizon. The data are episodes of `EPISODE_STEPS` steps from the same uniform start, cut by a time limit.

**Weighting of the constraint.** mu_i(place) is the share of agent i's data at that place: the occupancy of b_i over the
first `EPISODE_STEPS` steps. Deviation is a mean over data, so KL_i(pi) = sum_o mu_i(o) KL(pi_i(.|o) || b_i(.|o)).

**Solution at a level.** For a level alpha, soft policy iteration finds the regularised optimum
pi_i = b_i exp((q - v)/alpha), with q, v of the reward minus alpha KL. Two accounts measure what it spends:

    "mean"   KL_i(pi) as above: the definition of the budget;
    "batch"  - log sum_o mu_i(o) exp(-KL(o)): what a learner spends by its own account if it normalises its weights
             over the batch and not per observation. The weights' exponent at the optimum is log(pi_i/b_i) - KL_i(o),
             and its softmax over the data has exactly this divergence. By Jensen this is the smaller of the two, so
             the true KL of such a learner is somewhat above its budget.

**Influence.** m_i is the regression slope of q^r on log(pi_i/b_i) under pi_i, pooled with mu_i. Without a future
(gamma 0), m_i = alpha_i = dV_i/dd_i exactly. With a future, m_i = alpha_i (1 - slope of q^c on log(pi_i/b_i)), because
today's action also changes tomorrow's deviation. alpha_i is exactly the derivative of V_i by the discounted KL along
pi_i's own path.
"""

from typing import NamedTuple

import numpy as np

NUM_PLACES = 8
REWARD_SCALES = (3.0, 1.0, 0.3, 0.1)
SLIP = 0.1
DISCOUNT = 0.95
EPISODE_STEPS = 50
TOTAL_BUDGET = 1.2
NUM_CELLS = 100
BEHAVIOUR_STD = 0.4
BEHAVIOUR_SPREAD = 0.3


class Ring(NamedTuple):
    """One agent's problem.

    Attributes:
        transition: [P, A, P] probability of the next place.
        reward: [P] reward of a step that starts at a place.
        behaviour: [P, A] the behaviour policy.
        start: [P] distribution of the first place.
        gamma: discount per step.
        actions: [A] the middles of the cells that continuous actions are cut into; None for discrete actions.
    """

    transition: np.ndarray
    reward: np.ndarray
    behaviour: np.ndarray
    start: np.ndarray
    gamma: float
    actions: np.ndarray | None = None


class Solution(NamedTuple):
    """The regularised optimum of one ring at each of G levels, float64.

    Attributes:
        alpha: [G] levels, reward per nat.
        policy: [G, P, A].
        divergence: [G, P] KL divergence from the behaviour policy at every place, nats.
        value: [G] V_i of the policy, from the reward alone.
        return_values: [G, P, A] q^r of the policy.
        deviation_values: [G, P, A] q^c of the policy: minus the discounted KL from the next step on.
        influence: [G] m_i, without the epsilon of the estimator.
    """

    alpha: np.ndarray
    policy: np.ndarray
    divergence: np.ndarray
    value: np.ndarray
    return_values: np.ndarray
    deviation_values: np.ndarray
    influence: np.ndarray


class Allocation(NamedTuple):
    """A split of the budget and its consequences, [N] each.

    Attributes:
        budget: spent budgets, nats.
        alpha: levels.
        divergence: mean KL over the data, nats.
        influence: m_i.
        value: V_i.
    """

    budget: np.ndarray
    alpha: np.ndarray
    divergence: np.ndarray
    influence: np.ndarray
    value: np.ndarray


def rings(seed: int = 0, gamma: float = DISCOUNT, scales=REWARD_SCALES) -> list[Ring]:
    """The N rings with discrete actions; `seed` draws the behaviour policies."""
    random = np.random.default_rng(seed)
    moves = _moves()
    transition = (1 - SLIP) * moves + SLIP * moves.mean(axis=1, keepdims=True)
    preferences = [np.exp(random.normal(size=(NUM_PLACES, 3))) for _ in scales]
    behaviours = [preference / preference.sum(axis=1, keepdims=True) for preference in preferences]
    return [_ring(transition, scale, b, gamma) for scale, b in zip(scales, behaviours, strict=True)]


def leaning_rings(seed: int = 0, gamma: float = DISCOUNT, scales=REWARD_SCALES, cells: int = NUM_CELLS) -> list[Ring]:
    """The N rings with continuous actions, cut into `cells`; `seed` draws the means of the behaviour policies."""
    random = np.random.default_rng(seed)
    actions = (np.arange(cells) + 0.5) / cells * 2 - 1
    steps = np.stack([(1 - actions) ** 2 / 4, (1 - actions**2) / 2, (1 + actions) ** 2 / 4], axis=1)
    transition = np.einsum("as,psq->paq", steps, _moves())
    behaviours = [
        tanh_gaussian(actions, BEHAVIOUR_SPREAD * random.normal(size=NUM_PLACES), np.full(NUM_PLACES, BEHAVIOUR_STD))
        for _ in scales
    ]
    return [_ring(transition, scale, b, gamma, actions) for scale, b in zip(scales, behaviours, strict=True)]


def _moves():
    """[P, 3, P] left, stay, right."""
    places = np.arange(NUM_PLACES)
    return np.stack([np.eye(NUM_PLACES)[(places + shift) % NUM_PLACES] for shift in (-1, 0, 1)], axis=1)


def _ring(transition, scale, behaviour, gamma, actions=None):
    start = np.full(NUM_PLACES, 1 / NUM_PLACES)
    return Ring(transition, scale * np.eye(NUM_PLACES)[0], behaviour, start, gamma, actions)


def tanh_gaussian(actions: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Probabilities of the cells around `actions` [A] under tanh of a normal of `mean` and `std` [...]: [..., A]."""
    log_density = -0.5 * ((np.arctanh(actions) - mean[..., None]) / std[..., None]) ** 2 - np.log1p(-(actions**2))
    density = np.exp(log_density - log_density.max(axis=-1, keepdims=True))
    return density / density.sum(axis=-1, keepdims=True)


def nearest_tanh_gaussian(ring: Ring, policy: np.ndarray) -> np.ndarray:
    """The maximum-likelihood tanh-Gaussian for actions of `policy` [..., P, A]: equal moments before the tanh."""
    u = np.arctanh(ring.actions)
    mean = policy @ u
    return tanh_gaussian(ring.actions, mean, np.sqrt(policy @ u**2 - mean**2))


def evaluate(ring: Ring, policy: np.ndarray, reward: np.ndarray | None = None) -> np.ndarray:
    """State values of policies [..., P, A] for `reward` [..., P], the ring's own by default: [..., P]."""
    reward = ring.reward if reward is None else reward
    step = np.einsum("...pa,paq->...pq", policy, ring.transition)
    system = np.eye(NUM_PLACES) - ring.gamma * step
    return np.linalg.solve(system, np.broadcast_to(reward, system.shape[:-1])[..., None])[..., 0]


def true_value(ring: Ring, policy: np.ndarray) -> float:
    """V_i of one policy [P, A] from the uniform start."""
    return float(ring.start @ evaluate(ring, policy))


def divergence(ring: Ring, policy: np.ndarray) -> np.ndarray:
    """KL(policy || behaviour) at every place: [..., P, A] to [..., P], nats."""
    ratio = np.log(np.maximum(policy, 1e-300)) - np.log(ring.behaviour)
    return (policy * ratio).sum(axis=-1)


def data_occupancy(ring: Ring, steps: int = EPISODE_STEPS) -> np.ndarray:
    """mu_i: [P] share of the data's rows at each place."""
    step = np.einsum("pa,paq->pq", ring.behaviour, ring.transition)
    place, counts = ring.start, np.zeros(NUM_PLACES)
    for _ in range(steps):
        counts = counts + place
        place = place @ step
    return counts / steps


def action_values(ring: Ring, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q^r and q^c of policies [..., P, A], each [..., P, A]."""
    next_return = evaluate(ring, policy)
    next_deviation = evaluate(ring, policy, -divergence(ring, policy))
    q_return = ring.reward[:, None] + ring.gamma * np.einsum("paq,...q->...pa", ring.transition, next_return)
    return q_return, ring.gamma * np.einsum("paq,...q->...pa", ring.transition, next_deviation)


def influence(ring: Ring, policy: np.ndarray, values: np.ndarray, occupancy: np.ndarray, epsilon=0.0) -> np.ndarray:
    """Slope of `values` on log(policy / behaviour) under the policy, pooled over places: [..., P, A] twice to [...]."""
    ratio = np.log(np.maximum(policy, 1e-300)) - np.log(ring.behaviour)
    ratio = ratio - (policy * ratio).sum(axis=-1, keepdims=True)
    values = values - (policy * values).sum(axis=-1, keepdims=True)
    covariance = (policy * values * ratio).sum(axis=-1) @ occupancy
    return covariance / ((policy * ratio**2).sum(axis=-1) @ occupancy + epsilon)


def solve(ring: Ring, alpha, occupancy: np.ndarray | None = None, epsilon: float = 0.0) -> Solution:
    """Regularised optimum at every level of `alpha` [G], by soft policy iteration, which converges quadratically."""
    alpha = np.atleast_1d(np.asarray(alpha, np.float64))
    occupancy = data_occupancy(ring) if occupancy is None else occupancy
    policy = np.broadcast_to(ring.behaviour, (len(alpha), *ring.behaviour.shape))
    for _ in range(100):
        penalised = ring.reward - alpha[:, None] * divergence(ring, policy)
        value = evaluate(ring, policy, penalised)
        q = ring.reward[:, None] + ring.gamma * np.einsum("paq,gq->gpa", ring.transition, value)
        exponent = q / alpha[:, None, None]
        improved = ring.behaviour * np.exp(exponent - exponent.max(axis=-1, keepdims=True))
        improved = improved / improved.sum(axis=-1, keepdims=True)
        change, policy = np.abs(improved - policy).max(), improved
        if change < 1e-11:
            break
    q_return, q_deviation = action_values(ring, policy)
    slope = influence(ring, policy, q_return, occupancy, epsilon)
    value = evaluate(ring, policy) @ ring.start
    return Solution(alpha, policy, divergence(ring, policy), value, q_return, q_deviation, slope)


def spent(solution: Solution, occupancy: np.ndarray, account: str) -> np.ndarray:
    """Budget spent at each level, [G] nats, by the "mean" or the "batch" account of the module's docstring."""
    if account == "mean":
        return solution.divergence @ occupancy
    return -np.log(np.exp(-solution.divergence) @ occupancy)


class Frontier(NamedTuple):
    """What every agent gets for every budget, tabulated over G falling levels and interpolated between them.

    Attributes:
        log_alpha: [G] falling.
        spent: [N, G] budget spent, nats, rising.
        divergence: [N, G] mean KL over the data, nats.
        influence: [N, G].
        value: [N, G].
    """

    log_alpha: np.ndarray
    spent: np.ndarray
    divergence: np.ndarray
    influence: np.ndarray
    value: np.ndarray


def frontier(problem: list[Ring], account: str = "mean", epsilon: float = 0.0, points: int = 500) -> Frontier:
    """Tabulate `problem`; `account` as in `spent`, and `epsilon` (nats^2) as in the influence estimator."""
    log_alpha = np.linspace(np.log(1e3), np.log(1e-2), points)
    rows = []
    for ring in problem:
        occupancy = data_occupancy(ring)
        found = solve(ring, np.exp(log_alpha), occupancy, epsilon)
        rows.append((spent(found, occupancy, account), found.divergence @ occupancy, found.influence, found.value))
    return Frontier(log_alpha, *(np.stack(column) for column in zip(*rows, strict=True)))


def at_level(table: Frontier, log_alpha) -> Allocation:
    """The split in which agent i plays its optimum at log_alpha[i]; a single number is a common level."""
    log_alpha = np.broadcast_to(log_alpha, len(table.spent))

    def look_up(columns):
        return np.array([np.interp(-x, -table.log_alpha, c) for x, c in zip(log_alpha, columns, strict=True)])

    spent_, divergence_, influence_, value = map(look_up, table[1:])
    return Allocation(spent_, np.exp(log_alpha), divergence_, influence_, value)


def at_budget(table: Frontier, budget) -> Allocation:
    """The split in which agent i spends budget[i] nats."""
    return at_level(table, [np.interp(d, s, table.log_alpha) for d, s in zip(budget, table.spent, strict=True)])


def water_filling(table: Frontier, total: float = TOTAL_BUDGET) -> Allocation:
    """One common level for all agents, at which they spend `total` nats together."""
    return at_level(table, np.interp(total, table.spent.sum(axis=0), table.log_alpha))


def best_split(table: Frontier, total: float = TOTAL_BUDGET) -> Allocation:
    """The split of `total` nats with the largest sum of values: equal marginal values dV_i/dd_i.

    It is close to `water_filling` but not the same: a level prices the KL along the policy's own path, while the budget
    counts it over the data.
    """
    rise = np.diff(table.spent)
    marginal = np.divide(np.diff(table.value), rise, out=np.zeros_like(rise), where=rise > 1e-9)
    return _equalise((table.spent[:, 1:] + table.spent[:, :-1]) / 2, marginal, table, total, 0.0)


def equal_influence(table: Frontier, total: float = TOTAL_BUDGET, floor: float = 0.0) -> Allocation:
    """The split of `total` nats that makes every m_i equal; an agent at the floor may have less influence."""
    return _equalise(table.spent, table.influence, table, total, floor)


def _equalise(spent_, slope, table, total, floor):
    """Budgets at which every agent's slope [N, G] falls to a common price, which is chosen to spend `total`."""
    low, high = 1e-6, 1e4
    for _ in range(100):
        price = np.sqrt(low * high)
        budget = np.maximum([_last_crossing(s, m, price) for s, m in zip(spent_, slope, strict=True)], floor)
        low, high = (price, high) if budget.sum() > total else (low, price)
    return at_budget(table, budget)


def _last_crossing(spent_, slope, price):
    above = np.flatnonzero(slope > price)
    if not above.size:
        return 0.0
    k = above[-1]
    return spent_[k] if k + 1 == len(slope) else np.interp(-price, -slope[k : k + 2], spent_[k : k + 2])


def fixed_point(table: Frontier, share, total: float = TOTAL_BUDGET, rounds: int = 1000) -> Allocation:
    """The split that `share(influence [N]) -> budget [N]` leaves unchanged, by damped iteration from even shares."""
    budget = np.full(len(table.spent), total / len(table.spent))
    for _ in range(rounds):
        budget = 0.9 * budget + 0.1 * share(at_budget(table, budget).influence)
    return at_budget(table, budget)


def behaviour_value(problem: list[Ring]) -> float:
    """V of the behaviour policies."""
    return sum(true_value(ring, ring.behaviour) for ring in problem)
