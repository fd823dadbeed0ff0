"""OMCDA's mathematics again, in plain float64 NumPy, for the tests to compare the library with.

Written from the definitions in the papers ("Dynamic Conservative Degree Allocation for Offline Multi-Agent
Reinforcement Learning", AAMAS 2025; "Who Matters Matters: Agent-Specific Conservative Offline MARL", ICLR 2026; OMIGA,
NeurIPS 2023), not from the library. Loops over rows and agents are deliberate: every function reads like its equation.

Letters: B rows, N agents, A actions. `policy` and `behaviour` are log-probabilities [B, N, A] in which an illegal
action has -inf; `return_values` and `deviation_values` are the local tables q^r_i(o_i, .), q^c_i(o_i, .), [B, N, A].
"""

import numpy as np


def masked_log_probabilities(logits, avail):
    """log softmax over the legal actions only; -inf where illegal. logits, avail: [..., A]."""
    logits = np.where(avail, np.asarray(logits, np.float64), -np.inf)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def expectation(log_probabilities, values):
    """Sum over actions of probability times value; illegal actions do not count. [..., A], [..., A] -> [...]."""
    probabilities = np.exp(log_probabilities)
    return np.where(probabilities > 0, probabilities * np.where(probabilities > 0, values, 0.0), 0.0).sum(axis=-1)


def divergence(policy, behaviour):
    """KL(policy || behaviour) in nats. [..., A], [..., A] -> [...]."""
    legal = np.isfinite(policy)
    log_ratio = np.where(legal, np.where(legal, policy, 0.0) - np.where(legal, behaviour, 0.0), 0.0)
    return expectation(policy, log_ratio)


def informative(avail):
    """Rows in which an agent has a choice: more than one legal action. [B, N, A] -> [B, N]."""
    return np.asarray(avail).sum(axis=-1) > 1


def take(values, action):
    """values[b, i, action[b, i]]. [B, N, A], [B, N] -> [B, N]."""
    return np.take_along_axis(np.asarray(values, np.float64), np.asarray(action)[..., None], axis=-1)[..., 0]


def masked_mean(values, mask):
    """Mean of `values` over the entries where `mask` is true; 0 if there are none."""
    mask = np.asarray(mask, bool)
    return float(values[mask].mean()) if mask.any() else 0.0


def mix_return(local, weights, bias):
    """Q^r_tot = sum_i w^r_i q^r_i + beta^r. local, weights: [B, N]; bias: [B]. -> [B]."""
    return (weights * local).sum(axis=-1) + bias


def mix_deviation(local, weights, bias=0.0):
    """Q^{c,i} = sum_j w^c_ij q^c_j (+ bias of the monotonic form). local: [B, N]; weights: [B, N, N]. -> [B, N]."""
    rows, agents = local.shape
    out = np.zeros((rows, agents))
    for b in range(rows):
        for i in range(agents):
            out[b, i] = sum(weights[b, i, j] * local[b, j] for j in range(agents))
    return out + bias


def convex_weights(logits, diagonal=3.0):
    """Row-stochastic w^c: softmax over j, with a bonus on the diagonal. logits: [B, N, N]."""
    shifted = np.asarray(logits, np.float64) + diagonal * np.eye(logits.shape[-1])
    weights = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def identity_weights(rows, agents):
    """w^c = I for every row. -> [rows, agents, agents]."""
    return np.broadcast_to(np.eye(agents), (rows, agents, agents)).copy()


def monotonic_weights(raw):
    """The literal non-negative form |w|. raw: [B, N, N]."""
    return np.abs(np.asarray(raw, np.float64))


def expected_return_value(return_values, policy, weights, bias):
    """V^r_tot = sum_i w^r_i E_pi q^r_i + beta^r. -> [B]."""
    return mix_return(expectation(policy, return_values), weights, bias)


def expected_deviation_value(deviation_values, policy, behaviour, weights, bias=0.0):
    """V^{c,i} = sum_j w^c_ij E_pi q^c_j - KL_i. -> [B, N]."""
    return mix_deviation(expectation(policy, deviation_values), weights, bias) - divergence(policy, behaviour)


def return_target(reward, discount, gamma, next_value):
    """r + gamma nu V^r_tot(s'). All [B]; gamma a number. -> [B]."""
    return reward + gamma * discount * next_value


def deviation_target(discount, gamma, next_value):
    """gamma nu V^{c,i}(s') for every i; only the return part has the reward. next_value: [B, N]. -> [B, N]."""
    return gamma * discount[:, None] * next_value


def return_critic_loss(q_total, target):
    """Mean squared error over the batch. [B], [B]."""
    return float(np.mean((q_total - target) ** 2))


def deviation_critic_loss(q_deviation, target):
    """Squared error: mean over the batch, sum over agents. [B, N], [B, N]."""
    return float(np.sum(np.mean((q_deviation - target) ** 2, axis=0)))


def kappa(alpha, weights):
    """kappa_j = sum_i alpha_i w^c_ij / alpha_j. alpha: [N]; weights: [B, N, N]. -> [B, N]."""
    rows, agents = weights.shape[:2]
    out = np.zeros((rows, agents))
    for b in range(rows):
        for j in range(agents):
            out[b, j] = sum(alpha[i] * weights[b, i, j] for i in range(agents)) / alpha[j]
    return out


def exponent(return_gap, deviation_gap, alpha, weights_return, weights_deviation):
    """z_j = (w^r_j / alpha_j)(q^r_j - v^r_j) + kappa_j (q^c_j - v^c_j). Gaps [B, N, ...] share the leading axes."""
    scale = weights_return / alpha
    level = kappa(alpha, weights_deviation)
    extra = (1,) * (np.ndim(return_gap) - 2)
    return scale.reshape(scale.shape + extra) * return_gap + level.reshape(level.shape + extra) * deviation_gap


def normalising_deviation_value(return_values, return_value, deviation_values, behaviour, scale, level):
    """v^c_j = (1/kappa_j) log E_b exp( scale (q^r_j - v^r_j) + kappa_j q^c_j ), one agent at one observation.

    return_values, deviation_values, behaviour: [A]; return_value, scale = w^r_j / alpha_j, level = kappa_j: numbers.
    """
    legal = np.isfinite(behaviour)
    terms = behaviour[legal] + scale * (return_values[legal] - return_value) + level * deviation_values[legal]
    top = terms.max()
    return (top + np.log(np.exp(terms - top).sum())) / level


def normalisation_loss(exponents, deviation_value_term, mask, clip=10.0):
    """In-sample loss for v^c, zero-gradient where E_b exp z = 1.

    mean of exp(z - M) + exp(-M) kappa v^c with M = max(max z, -1) and z clipped. `exponents` z: [B, N], already with
    v^c in it; `deviation_value_term` kappa_i v^c_i: [B, N]; mask: [B, N].
    """
    clipped = np.clip(exponents, -clip, clip)
    mask = np.asarray(mask, bool)
    top = max(clipped[mask].max(), -1.0) if mask.any() else -1.0
    return masked_mean(np.exp(clipped - top) + np.exp(-top) * deviation_value_term, mask)


def weighted_regression_loss(weights, value, target, mask):
    """In-sample loss for v^r: mean of omega (v^r_i - q^r_i(a_i))^2. All [B, N]."""
    return masked_mean(weights * (value - target) ** 2, mask)


def return_advantage(return_values, policy, action, weights):
    """A^r_i = w^r_i ( q^r_i(o_i, a_i) - E_pi q^r_i ). -> [B, N]."""
    return weights * (take(return_values, action) - expectation(policy, return_values))


def deviation_advantage(deviation_values, policy, action, level):
    """A^c_i = kappa_i ( q^c_i(o_i, a_i) - E_pi q^c_i ). level: [B, N]. -> [B, N]."""
    return level * (take(deviation_values, action) - expectation(policy, deviation_values))


def density_ratio(scores, mask):
    """omega: softmax of the valid rows' scores times their number, so its mean is one; 0 elsewhere. [B], [B] -> [B]."""
    mask = np.asarray(mask, bool)
    out = np.zeros(scores.shape)
    if mask.any():
        raw = np.exp(scores[mask] - scores[mask].max())
        out[mask] = raw / raw.mean()
    return out


def weight_divergence(weights, mask):
    """mean(omega log omega) over the valid rows, 0 log 0 = 0. [B], [B] -> number."""
    mask = np.asarray(mask, bool)
    valid = weights[mask]
    return (
        float(np.where(valid > 0, valid * np.log(np.where(valid > 0, valid, 1.0)), 0.0).mean()) if mask.any() else 0.0
    )


def solve_level(advantage_return, advantage_deviation, budget, mask, bounds, halvings=100):
    """Lowest log alpha of one agent at which the weights' divergence is within the budget, by scan and bisection.

    advantage_return, advantage_deviation, mask: [B]; budget in nats; bounds (low, high) of log alpha. If there is no
    such level, the level of the scan that spends least is returned.
    """

    def spent(level):
        return weight_divergence(density_ratio(advantage_return * np.exp(-level) + advantage_deviation, mask), mask)

    levels = np.linspace(*map(float, bounds), 400)
    divergences = [spent(level) for level in levels]
    keeps = np.flatnonzero(np.array(divergences) <= budget)
    if not len(keeps):
        return levels[np.argmin(divergences)]
    low, high = levels[max(keeps[0] - 1, 0)], levels[keeps[0]]
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        if spent(middle) > budget:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def policy_loss(weights, policy, action, mask):
    """- mean over all valid entries (row and agent) of omega_i log pi_i(a_i | o_i). weights, mask: [B, N]."""
    return -masked_mean(weights * take(policy, action), mask)


def behaviour_loss(behaviour, action, mask):
    """Negative log-likelihood of the data: mean over all valid entries. mask: [B, N]."""
    return -masked_mean(take(behaviour, action), mask)


def influence(return_values, weights, policy, behaviour, mask, epsilon=1e-3):
    """m_i: slope of f = w^r_i q^r_i on l = log pi - log b, both centred under pi_i, pooled over observations. -> [N].

    return_values, policy, behaviour: [B, N, A]; weights, mask: [B, N].
    """
    rows, agents, _ = return_values.shape
    out = np.zeros(agents)
    for i in range(agents):
        covariance, variance, count = 0.0, 0.0, 0
        for b in range(rows):
            if not mask[b, i]:
                continue
            legal = np.exp(policy[b, i]) > 0
            probability = np.exp(policy[b, i][legal])
            f = weights[b, i] * return_values[b, i][legal]
            log_ratio = policy[b, i][legal] - behaviour[b, i][legal]
            f_centred = f - probability @ f
            ratio_centred = log_ratio - probability @ log_ratio
            covariance += probability @ (f_centred * ratio_centred)
            variance += probability @ (ratio_centred**2)
            count += 1
        if count:
            out[i] = (covariance / count) / (variance / count + epsilon)
    return out


def relative(influences):
    """Divide by the mean magnitude over agents, which removes the reward's units. All zeros stay zero."""
    size = np.abs(influences).mean()
    return influences / size if size > 0 else np.zeros_like(influences)


def project_simplex(point, total, floor):
    """The nearest point with sum `total` and every entry at least `floor`, by sorting (Euclidean projection)."""
    room = total - len(point) * floor
    shifted = np.asarray(point, np.float64) - floor
    descending = np.sort(shifted)[::-1]
    threshold = 0.0
    for count in range(1, len(point) + 1):
        candidate = (descending[:count].sum() - room) / count
        if descending[count - 1] > candidate:
            threshold = candidate
    return floor + np.maximum(shifted - threshold, 0.0)


def allocate_softmax(influences, total, floor, temperature):
    """d = d_min + (d_tot - N d_min) softmax(m / temperature)."""
    scores = np.asarray(influences, np.float64) / temperature
    raw = np.exp(scores - scores.max())
    return floor + (total - len(scores) * floor) * raw / raw.sum()


def share_beyond(values, threshold):
    """The part of each value that exceeds a threshold in magnitude, as a share of it."""
    return np.array([(abs(value) - threshold) / abs(value) if abs(value) > threshold else 0.0 for value in values])


def allocate_projected(influences, previous, total, floor, step):
    """d <- projection of d + step m on the budget simplex."""
    return project_simplex(previous + step * influences, total, floor)


def clip_by_global_norm(gradients, limit):
    """Scale a list of arrays down to a joint Euclidean norm of at most `limit`."""
    norm = np.sqrt(sum(float((g**2).sum()) for g in gradients))
    return [g * min(1.0, limit / norm) if norm > 0 else g for g in gradients]


def adam_step(parameters, gradients, first, second, count, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """One Adam step on lists of arrays; `count` is the number of this step, from 1. -> (parameters, first, second)."""
    first = [beta1 * m + (1 - beta1) * g for m, g in zip(first, gradients, strict=True)]
    second = [beta2 * v + (1 - beta2) * g**2 for v, g in zip(second, gradients, strict=True)]
    stepped = []
    for parameter, m, v in zip(parameters, first, second, strict=True):
        mean, square = m / (1 - beta1**count), v / (1 - beta2**count)
        stepped.append(parameter - rate * mean / (np.sqrt(square) + epsilon))
    return stepped, first, second


def polyak(target, online, rate):
    """(1 - rate) target + rate online, array by array."""
    return [(1 - rate) * t + rate * o for t, o in zip(target, online, strict=True)]
