"""The exact problem checks itself, and OMCDA, knowing only its data, comes close to its exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omcda_jax
from benchmarks import exact, probe
from omcda_jax.data import dataset as data

UPDATES, BATCH_SIZE, HIDDEN = 4000, 256, (32,)


@pytest.fixture(scope="module")
def problem():
    return exact.rings()


@pytest.fixture(scope="module")
def rollouts(problem):
    return probe.rollouts(problem)


# The exact answers


def test_policy_evaluation_agrees_with_iterating_the_bellman_equation(problem, random):
    ring = problem[1]
    policy = random.dirichlet(np.ones(3), size=exact.NUM_PLACES)
    value = np.zeros(exact.NUM_PLACES)
    for _ in range(800):
        value = ring.reward + ring.discount * np.einsum("pa,paq,q->p", policy, ring.transition, value)
    np.testing.assert_allclose(exact.evaluate(ring, policy), value, rtol=1e-12)


def test_the_regularised_optimum_agrees_with_soft_value_iteration(problem):
    ring, alpha = problem[0], 1.5
    value = np.zeros(exact.NUM_PLACES)
    for _ in range(800):
        q = ring.reward[:, None] + ring.discount * ring.transition @ value
        value = alpha * np.log((ring.behaviour * np.exp(q / alpha)).sum(axis=-1))
    policy = ring.behaviour * np.exp((q - value[:, None]) / alpha)
    np.testing.assert_allclose(exact.solve(ring, alpha).policy[0], policy, atol=1e-10)


def test_a_vanishing_level_gives_the_unconstrained_optimum_and_a_huge_one_the_behaviour(problem):
    ring = problem[2]
    value = np.zeros(exact.NUM_PLACES)
    for _ in range(800):
        value = (ring.reward[:, None] + ring.discount * ring.transition @ value).max(axis=-1)
    found = exact.solve(ring, [1e-4, 1e7])
    assert found.value[0] == pytest.approx(ring.start @ value, rel=1e-4)
    assert found.value[1] == pytest.approx(exact.true_value(ring, ring.behaviour), rel=1e-5)


def test_splits_spend_the_total_and_rank_as_they_must(problem):
    for account in ("mean", "batch"):
        table = exact.frontier(problem, account)
        even = exact.at_budget(table, np.full(4, 0.3))
        level, slopes, best = exact.water_filling(table), exact.equal_influence(table), exact.best_split(table)
        for split in (even, level, slopes, best):
            assert split.budget.sum() == pytest.approx(exact.TOTAL_BUDGET, abs=1e-3)
        np.testing.assert_allclose(slopes.influence, slopes.influence[0], rtol=1e-3)
        assert exact.behaviour_value(problem) < even.value.sum() < level.value.sum() < best.value.sum()
        assert even.value.sum() < slopes.value.sum() < best.value.sum()


def test_weights_normalised_over_the_data_have_the_divergence_of_the_batch_account(problem):
    ring = problem[0]
    found, occupancy = exact.solve(ring, 2.0), exact.data_occupancy(ring)
    joint = occupancy[:, None] * ring.behaviour
    exponent = np.log(found.policy[0] / ring.behaviour) - found.divergence[0][:, None]
    ratio = np.exp(exponent) / (joint * np.exp(exponent)).sum()
    divergence = (joint * ratio * np.log(ratio)).sum()
    assert exact.spent(found, occupancy, "batch")[0] == pytest.approx(divergence, rel=1e-10)
    assert divergence < exact.spent(found, occupancy, "mean")[0]


# The data


def test_the_data_follow_the_problem(problem, rollouts):
    batch = data.gather(rollouts, rollouts.rows)
    assert len(batch.reward) == probe.NUM_EPISODES * exact.EPISODE_STEPS
    assert (np.asarray(batch.discount) == 1).all()
    place, after = (np.asarray(x).argmax(axis=-1) for x in (batch.obs, batch.next_obs))
    action = np.asarray(batch.action)
    expected = sum(ring.reward[place[:, i]] for i, ring in enumerate(problem))
    np.testing.assert_allclose(batch.reward, expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(batch.state).reshape(batch.obs.shape), batch.obs)
    for i, ring in enumerate(problem):
        np.testing.assert_allclose(np.bincount(place[:, i]) / len(place), exact.data_occupancy(ring), atol=0.015)
        counts = np.zeros((exact.NUM_PLACES, 3, exact.NUM_PLACES))
        np.add.at(counts, (place[:, i], action[:, i], after[:, i]), 1)
        np.testing.assert_allclose(counts.sum(axis=2) / counts.sum(axis=(1, 2))[:, None], ring.behaviour, atol=0.04)
        frequent = counts.sum(axis=2) > 1000
        frequency = counts[frequent] / counts[frequent].sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(frequency, ring.transition[frequent], atol=0.04)


# The learner


@pytest.fixture(scope="module")
def runs(problem, rollouts):
    """Rule to (learned, exact split of the same rule)."""
    table = exact.frontier(problem, "batch", 1e-3)
    out = {}
    for rule in probe.RULES:
        config = probe.settings(rule, UPDATES, hidden_sizes=HIDDEN)
        learned = probe.train(problem, rollouts, config, updates=UPDATES, batch_size=BATCH_SIZE)
        out[rule] = learned, probe.exact_split(table, config)
    return out


@pytest.mark.parametrize("rule", probe.RULES)
def test_learned_values_come_within_a_twentieth_of_the_exact_gain(problem, runs, rule):
    learned, solution = runs[rule]
    behaviour = exact.behaviour_value(problem)
    gain = (learned.value.sum() - behaviour) / (solution.value.sum() - behaviour)
    assert 0.95 < gain < 1.03


def test_better_rules_reach_more_and_none_beats_the_best_split(problem, runs):
    uniform, softmax, projected = (runs[rule][0].value.sum() for rule in probe.RULES)
    assert uniform + 4 < softmax
    assert softmax + 1.5 < projected
    best = exact.best_split(exact.frontier(problem, "batch"))
    assert projected < best.value.sum() + 0.5


@pytest.mark.parametrize("rule", probe.RULES)
def test_learned_levels_and_influences_of_the_agents_that_matter_are_near_the_exact_ones(runs, rule):
    # Agents 0 and 1 earn 3 and 1; the values of the others are smaller than the noise these two leave in the reward.
    learned, solution = runs[rule]
    np.testing.assert_allclose(learned.alpha[:2], solution.alpha[:2], rtol=0.15)
    np.testing.assert_allclose(learned.influence[:2], solution.influence[:2], rtol=0.2)


@pytest.mark.parametrize("rule", probe.RULES)
def test_learned_budgets_are_near_the_rules_fixed_point_and_are_spent(runs, rule):
    learned, solution = runs[rule]
    assert learned.budget.sum() == pytest.approx(exact.TOTAL_BUDGET, rel=1e-4)
    np.testing.assert_allclose(learned.budget, solution.budget, atol=0.05)
    np.testing.assert_allclose(learned.divergence, solution.divergence, rtol=0.15, atol=0.05)


def test_levels_order_the_agents_by_what_they_earn(runs):
    assert (np.diff(runs["uniform"][0].alpha) < 0).all()
    assert (np.diff(runs["uniform"][0].influence) < 0).all()
    assert (np.diff(runs["softmax"][0].budget) < 0).all()


def test_the_policy_table_is_what_the_agents_play(rollouts):
    state = omcda_jax.init(jax.random.key(0), rollouts.spec, probe.settings("uniform", 8, hidden_sizes=(8,)))
    table = probe.policy_table(state)
    np.testing.assert_allclose(table.sum(axis=-1), 1.0, atol=1e-6)
    place = jnp.array([3, 0, 5, 7])
    greedy = omcda_jax.act(state, jnp.eye(exact.NUM_PLACES)[place])
    np.testing.assert_array_equal(greedy, table[jnp.arange(4), place].argmax(axis=-1))
