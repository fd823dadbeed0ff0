"""Exact statements of the method, on random tables in float64: the local optimum, the total, the envelope."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from benchmarks import exact
from omcda_jax import influence, losses

AGENTS, ACTIONS = 3, 4


@pytest.fixture
def instance(random):
    """One observation of a team with everything random: values, behaviour, convex mixers, levels; v^r = E_pi* q^r."""
    q_return, q_deviation = random.normal(size=(2, AGENTS, ACTIONS))
    avail = np.ones((AGENTS, ACTIONS), bool)
    avail[0, 2] = False
    behaviour = reference.masked_log_probabilities(random.normal(size=(AGENTS, ACTIONS)), avail)
    weights = random.uniform(0.2, 1.5, size=(1, AGENTS))
    mixing = reference.convex_weights(random.normal(size=(1, AGENTS, AGENTS)))
    alpha = np.array([0.5, 2.0, 0.8])
    level = reference.kappa(alpha, mixing)
    scale = weights / alpha
    optimum, v_return, v_deviation = [], [], []
    for j in range(AGENTS):
        # pi* does not depend on v^r (the normalisation absorbs it), so its mean can be taken afterwards.
        exponent = scale[0, j] * q_return[j] + level[0, j] * q_deviation[j]
        pi = reference.masked_log_probabilities(np.where(avail[j], behaviour[j], 0) + exponent, avail[j])
        optimum.append(pi)
        v_return.append(reference.expectation(pi, q_return[j]))
        v_deviation.append(
            reference.normalising_deviation_value(
                q_return[j], v_return[j], q_deviation[j], behaviour[j], scale[0, j], level[0, j]
            )
        )
    return dict(
        q_return=q_return,
        q_deviation=q_deviation,
        behaviour=behaviour,
        weights=weights,
        mixing=mixing,
        alpha=alpha,
        level=level,
        optimum=np.stack(optimum),
        v_return=np.array(v_return),
        v_deviation=np.array(v_deviation),
    )


def exponents(x):
    return reference.exponent(
        (x["q_return"] - x["v_return"][:, None])[None],
        (x["q_deviation"] - x["v_deviation"][:, None])[None],
        x["alpha"],
        x["weights"],
        x["mixing"],
    )[0]


def test_the_deviation_value_normalises_the_local_optimum(instance):
    policy = np.where(np.isfinite(instance["behaviour"]), instance["behaviour"], -np.inf) + exponents(instance)
    np.testing.assert_allclose(np.exp(policy).sum(axis=-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.exp(policy), np.exp(instance["optimum"]), atol=1e-12)


def test_the_deviation_value_is_the_expectation_less_the_divergence_over_kappa(instance):
    divergence = reference.divergence(instance["optimum"], instance["behaviour"])
    expected = reference.expectation(instance["optimum"], instance["q_deviation"]) - divergence / instance["level"][0]
    np.testing.assert_allclose(instance["v_deviation"], expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_total_is_consistent_for_any_positive_levels(instance, seed):
    x = instance
    # Q^{c,i} - KL_i is not V^{c,i} agent by agent: only the alpha-weighted sum is.
    v = (x["mixing"] @ x["v_deviation"])[0]
    q = (x["mixing"] @ reference.expectation(x["optimum"], x["q_deviation"]))[0]
    divergence = reference.divergence(x["optimum"], x["behaviour"])
    np.testing.assert_allclose(x["alpha"] @ v, x["alpha"] @ (q - divergence), atol=1e-12)
    assert np.abs(v - (q - divergence)).max() > 1e-3
    other = np.random.default_rng(seed).uniform(0.1, 3.0, AGENTS)
    assert abs(other @ v - other @ (q - divergence)) > 1e-6


def test_no_product_policy_beats_the_local_optima_together(instance, random):
    x = instance
    joint = list(itertools.product(range(ACTIONS), repeat=AGENTS))

    def objective(policies):
        total = 0.0
        for actions in joint:
            probability = np.prod([policies[i, a] for i, a in enumerate(actions)])
            q_return = np.array([[x["q_return"][i, a] for i, a in enumerate(actions)]])
            q_deviation = np.array([[x["q_deviation"][i, a] for i, a in enumerate(actions)]])
            q = reference.mix_return(q_return, x["weights"], 0.0)[0]
            total += probability * (q + x["alpha"] @ reference.mix_deviation(q_deviation, x["mixing"])[0])
        with np.errstate(divide="ignore"):
            return total - x["alpha"] @ reference.divergence(np.log(policies), x["behaviour"])

    optimum = np.exp(x["optimum"])
    best = objective(optimum)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(10):
            rival = optimum * np.exp(size * random.normal(size=optimum.shape))
            assert objective(rival / rival.sum(axis=-1, keepdims=True)) < best


def test_one_agent_with_identity_mixing_is_plain_soft_value_iteration(random):
    q_return, q_deviation = random.normal(size=(2, ACTIONS))
    behaviour = reference.masked_log_probabilities(random.normal(size=ACTIONS), np.ones(ACTIONS, bool))
    alpha = 0.7
    # For any v^r at all.
    v_deviation = reference.normalising_deviation_value(q_return, 0.3, q_deviation, behaviour, 1 / alpha, 1.0)
    soft = alpha * np.log(np.exp(behaviour) @ np.exp((q_return + alpha * q_deviation) / alpha))
    assert 0.3 + alpha * v_deviation == pytest.approx(soft, abs=1e-12)


def test_coupling_of_the_library_and_its_closed_cases(instance, double):
    x = instance
    ours = losses.conservatism_coupling(jnp.asarray(x["alpha"]), jnp.asarray(x["mixing"]))
    np.testing.assert_allclose(ours, x["level"], rtol=1e-12)
    identity = losses.conservatism_coupling(jnp.asarray(x["alpha"]), jnp.eye(AGENTS)[None])
    np.testing.assert_allclose(identity, 1.0, rtol=1e-12)
    equal = losses.conservatism_coupling(jnp.ones(AGENTS), jnp.asarray(x["mixing"]))
    np.testing.assert_allclose(equal, x["mixing"].sum(axis=1), rtol=1e-12)


def test_the_librarys_normalisation_loss_is_stationary_at_the_normalising_value(instance, double):
    x = instance
    behaviour = np.exp(x["behaviour"])

    def expected_loss(v):
        gap = jnp.asarray(x["q_deviation"]) - v[:, None]
        exponent = jnp.asarray((x["weights"] / x["alpha"])[0])[:, None] * (x["q_return"] - x["v_return"][:, None])
        exponent = exponent + jnp.asarray(x["level"][0])[:, None] * gap
        linear = jnp.broadcast_to((jnp.asarray(x["level"][0]) * v)[:, None], exponent.shape)
        return jnp.sum(behaviour * losses.normalisation_loss(exponent, linear, jnp.asarray(0.4)))

    at_solution = jnp.asarray(x["v_deviation"])
    np.testing.assert_allclose(jax.grad(expected_loss)(at_solution), 0.0, atol=1e-10)
    assert jnp.all(jax.grad(expected_loss)(at_solution - 0.1) < -1e-3)
    assert jnp.all(jax.grad(expected_loss)(at_solution + 0.1) > 1e-3)


def library_influence(ring, policy, values, epsilon=0.0):
    """The library's `influence` of one agent on a batch with every place once."""
    log_ratio = np.log(policy) - np.log(ring.behaviour)
    shape = (exact.NUM_PLACES, 1, 3)
    arrays = [jnp.asarray(a.reshape(shape)) for a in (values, log_ratio, policy)]
    return float(influence(*arrays, jnp.ones(shape[:2], bool), epsilon=epsilon)[0])


UNIFORM = np.full(exact.NUM_PLACES, 1 / exact.NUM_PLACES)


def test_without_a_future_influence_level_and_marginal_value_are_one_number(double):
    for ring, alpha in zip(exact.rings(seed=3, gamma=0.0), (0.9, 0.5, 0.2, 0.05), strict=True):
        # Actions must have an immediate effect: the reward of this bandit depends on the reached place.
        reached = ring.transition @ ring.reward
        h = 1e-5
        divergence, value, policy = [], [], None
        for level in (alpha * np.exp(-h), alpha, alpha * np.exp(h)):
            policy_ = ring.behaviour * np.exp(reached / level)
            policy_ = policy_ / policy_.sum(axis=-1, keepdims=True)
            divergence.append(exact.divergence(ring, policy_) @ UNIFORM)
            value.append((policy_ * reached).sum(axis=-1) @ UNIFORM)
            policy = policy_ if level == alpha else policy
        assert library_influence(ring, policy, reached) == pytest.approx(alpha, rel=1e-8)
        marginal = (value[2] - value[0]) / (divergence[2] - divergence[0])
        assert marginal == pytest.approx(alpha, rel=1e-6)


def test_with_a_future_the_level_prices_the_discounted_divergence_along_the_policys_path():
    for ring, alpha in zip(exact.rings(seed=1), (1.3, 0.6, 0.2, 0.04), strict=True):
        around = exact.solve(ring, alpha * np.exp([-1e-5, 1e-5]))
        path = [
            ring.start @ exact.evaluate(ring, policy, divergence)
            for policy, divergence in zip(around.policy, around.divergence, strict=True)
        ]
        assert (around.value[1] - around.value[0]) / (path[1] - path[0]) == pytest.approx(alpha, rel=1e-6)


def test_with_a_future_influence_is_the_level_less_what_tomorrows_deviation_explains(double):
    for ring, alpha in zip(exact.rings(seed=1), (1.3, 0.6, 0.2, 0.04), strict=True):
        found = exact.solve(ring, alpha, UNIFORM)
        policy, q_return, q_deviation = found.policy[0], found.return_values[0], found.deviation_values[0]
        total = library_influence(ring, policy, q_return + alpha * q_deviation)
        assert total == pytest.approx(alpha, rel=1e-8)
        m = library_influence(ring, policy, q_return)
        assert m == pytest.approx(alpha * (1 - library_influence(ring, policy, q_deviation)), rel=1e-8)
        assert m == pytest.approx(found.influence[0], rel=1e-8)
        assert m == pytest.approx(alpha, rel=0.5)
