"""The exact problem checks itself; OMCDA, which knows only the data, comes close to the exact answers."""

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
def leaning():
    return exact.leaning_rings()


@pytest.fixture(params=probe.PROBLEMS)
def either(request, problem):
    """Both problems, one after the other; the continuous one is cut coarsely."""
    return {"discrete": problem, "continuous": exact.leaning_rings(cells=40)}[request.param]


@pytest.fixture(scope="module")
def rollouts(problem):
    return probe.rollouts(problem)


# The exact answers


def test_policy_evaluation_agrees_with_iterating_the_bellman_equation(either, random):
    ring = either[1]
    policy = random.dirichlet(np.ones(ring.behaviour.shape[1]), size=exact.NUM_PLACES)
    value = np.zeros(exact.NUM_PLACES)
    for _ in range(800):
        value = ring.reward + ring.gamma * np.einsum("pa,paq,q->p", policy, ring.transition, value)
    np.testing.assert_allclose(exact.evaluate(ring, policy), value, rtol=1e-12)


def test_the_regularised_optimum_agrees_with_soft_value_iteration(either):
    ring, alpha = either[0], 1.5
    value = np.zeros(exact.NUM_PLACES)
    for _ in range(800):
        q = ring.reward[:, None] + ring.gamma * ring.transition @ value
        value = alpha * np.log((ring.behaviour * np.exp(q / alpha)).sum(axis=-1))
    policy = ring.behaviour * np.exp((q - value[:, None]) / alpha)
    np.testing.assert_allclose(exact.solve(ring, alpha).policy[0], policy, atol=1e-10)


def test_a_vanishing_level_gives_the_unconstrained_optimum_and_a_huge_one_the_behaviour(problem):
    ring = problem[2]
    value = np.zeros(exact.NUM_PLACES)
    for _ in range(800):
        value = (ring.reward[:, None] + ring.gamma * ring.transition @ value).max(axis=-1)
    found = exact.solve(ring, [1e-4, 1e7])
    assert found.value[0] == pytest.approx(ring.start @ value, rel=1e-4)
    assert found.value[1] == pytest.approx(exact.true_value(ring, ring.behaviour), rel=1e-5)


def test_splits_spend_the_total_and_rank_as_they_must(either):
    for account in ("mean", "batch"):
        table = exact.frontier(either, account)
        even = exact.at_budget(table, np.full(4, 0.3))
        level, slopes, best = exact.water_filling(table), exact.equal_influence(table), exact.best_split(table)
        for split in (even, level, slopes, best):
            assert split.budget.sum() == pytest.approx(exact.TOTAL_BUDGET, abs=1e-3)
        np.testing.assert_allclose(slopes.influence, slopes.influence[0], rtol=1e-3)
        assert exact.behaviour_value(either) < even.value.sum() < level.value.sum() < best.value.sum()
        assert even.value.sum() < slopes.value.sum() < best.value.sum()


def test_weights_normalised_over_the_data_have_the_divergence_of_the_batch_account(either):
    ring = either[0]
    found, occupancy = exact.solve(ring, 2.0), exact.data_occupancy(ring)
    joint = occupancy[:, None] * ring.behaviour
    exponent = np.log(found.policy[0] / ring.behaviour) - found.divergence[0][:, None]
    ratio = np.exp(exponent) / (joint * np.exp(exponent)).sum()
    divergence = (joint * ratio * np.log(ratio)).sum()
    assert exact.spent(found, occupancy, "batch")[0] == pytest.approx(divergence, rel=1e-10)
    assert divergence < exact.spent(found, occupancy, "mean")[0]


def test_an_action_is_the_mean_of_the_step_it_leads_to(leaning):
    after = leaning[0].transition[3]
    actions, shift = leaning[0].actions, np.arange(exact.NUM_PLACES) - 3
    np.testing.assert_allclose(after.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(after @ shift, actions, atol=1e-12)
    np.testing.assert_allclose(after @ shift**2 - actions**2, (1 - actions**2) / 2, atol=1e-12)


def test_the_answers_do_not_depend_on_how_finely_the_actions_are_cut(leaning):
    def answers(problem):
        split = exact.at_budget(exact.frontier(problem, points=100), np.full(4, 0.3))
        return np.array([split.alpha, split.influence, split.value])

    np.testing.assert_allclose(answers(leaning), answers(exact.leaning_rings(cells=200)), rtol=1e-5)


def test_the_best_tanh_gaussians_reach_almost_the_optimum(leaning):
    frontier = exact.frontier(leaning, points=200)
    split = exact.at_budget(frontier, np.full(4, 0.3))
    for i, ring in enumerate(leaning):
        optimum = exact.solve(ring, split.alpha[i]).policy[0]
        nearest = exact.nearest_tanh_gaussian(ring, optimum)
        spent = exact.divergence(ring, nearest) @ exact.data_occupancy(ring)
        attainable = exact.at_budget(frontier, np.full(4, spent)).value[i]
        floor = exact.true_value(ring, ring.behaviour)
        assert 0.995 < (exact.true_value(ring, nearest) - floor) / (attainable - floor) < 1.0
        np.testing.assert_allclose(exact.nearest_tanh_gaussian(ring, ring.behaviour), ring.behaviour, atol=1e-6)


# The data


def test_the_data_follow_the_problem(problem, rollouts):
    batch = data.gather(rollouts, rollouts.rows)
    assert len(batch.reward) == probe.NUM_EPISODES * exact.EPISODE_STEPS
    assert (np.asarray(batch.discount) == 1).all()
    place, after = (np.asarray(x).argmax(axis=-1) for x in (batch.obs, batch.next_obs))
    action = np.asarray(batch.action)
    expected = sum(ring.reward[place[:, i]] for i, ring in enumerate(problem))
    np.testing.assert_allclose(batch.reward, expected, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(batch.global_state).reshape(batch.obs.shape), batch.obs)
    for i, ring in enumerate(problem):
        np.testing.assert_allclose(np.bincount(place[:, i]) / len(place), exact.data_occupancy(ring), atol=0.015)
        counts = np.zeros((exact.NUM_PLACES, 3, exact.NUM_PLACES))
        np.add.at(counts, (place[:, i], action[:, i], after[:, i]), 1)
        np.testing.assert_allclose(counts.sum(axis=2) / counts.sum(axis=(1, 2))[:, None], ring.behaviour, atol=0.04)
        frequent = counts.sum(axis=2) > 1000
        frequency = counts[frequent] / counts[frequent].sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(frequency, ring.transition[frequent], atol=0.04)


def test_continuous_data_follow_the_problem(leaning):
    dataset = probe.rollouts(leaning, episodes=400)
    batch = data.gather(dataset, dataset.rows)
    place, after = (np.asarray(x).argmax(axis=-1) for x in (batch.obs, batch.next_obs))
    action = np.asarray(batch.action)[..., 0]
    shift = (after - place + 1) % exact.NUM_PLACES - 1
    for i, ring in enumerate(leaning):
        np.testing.assert_allclose(np.unique(np.abs(action[:, i, None] - ring.actions).min(axis=1)), 0.0, atol=1e-6)
        slope, offset = np.polyfit(action[:, i], shift[:, i], 1)
        assert slope == pytest.approx(1.0, abs=0.05)
        assert offset == pytest.approx(0.0, abs=0.02)
        for x in range(exact.NUM_PLACES):
            u = np.arctanh(action[place[:, i] == x, i])
            assert u.mean() == pytest.approx(ring.behaviour[x] @ np.arctanh(ring.actions), abs=0.04)
            assert u.std() == pytest.approx(exact.BEHAVIOUR_STD, rel=0.06)


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
    # Agents 0 and 1 earn 3 and 1; the values of the others are smaller than the noise of these two in the reward.
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


# The learner with continuous actions


def test_the_policy_table_of_continuous_actions_is_what_the_agents_play(leaning):
    spec = omcda_jax.EnvSpec(4, exact.NUM_PLACES, 4 * exact.NUM_PLACES, 1, discrete=False)
    state = omcda_jax.init(jax.random.key(0), spec, probe.settings("uniform", 8, hidden_sizes=(8,)))
    cells = exact.leaning_rings(cells=2000, scales=(1.0,))[0].actions
    table = probe.policy_table(state, cells)
    np.testing.assert_allclose(table.sum(axis=-1), 1.0, atol=1e-6)
    place = jnp.array([3, 0, 5, 7])
    obs = jnp.broadcast_to(jnp.eye(exact.NUM_PLACES)[place], (5000, 4, exact.NUM_PLACES))
    play = jax.jit(lambda state, obs, key: omcda_jax.act(state, obs, key=key))
    samples = np.asarray(play(state, obs, jax.random.key(1)))[..., 0]
    means = table[np.arange(4), place] @ cells
    np.testing.assert_allclose(samples.mean(axis=0), means, atol=4 * samples.std() / np.sqrt(len(samples)))
    squares = table[np.arange(4), place] @ cells**2
    np.testing.assert_allclose((samples**2).mean(axis=0), squares, atol=0.02)


def check_continuous(leaning, config, updates, batch_size, budget_error):
    """Train, compare with the exact answers of the rule, and return the learned value."""
    learned = probe.train(leaning, probe.rollouts(leaning), config, updates=updates, batch_size=batch_size, seed=1)
    account = probe.account(config, discrete=False)
    solution = probe.exact_split(exact.frontier(leaning, account, config.influence_epsilon), config)
    behaviour = exact.behaviour_value(leaning)
    gain = (learned.value.sum() - behaviour) / (solution.value.sum() - behaviour)
    assert 0.93 < gain < 1.03
    np.testing.assert_allclose(learned.alpha[:2], solution.alpha[:2], rtol=0.12)
    np.testing.assert_allclose(learned.influence[:2], solution.influence[:2], rtol=0.15)
    np.testing.assert_allclose(learned.budget, solution.budget, atol=budget_error)
    return learned.value.sum()


def test_continuous_actions_come_near_the_exact_answers(leaning):
    config = probe.settings("softmax", 3000, hidden_sizes=(32, 32))
    value = check_continuous(leaning, config, 3000, 128, budget_error=0.05)
    frontier = exact.frontier(leaning, "mean")
    assert exact.at_budget(frontier, np.full(4, 0.3)).value.sum() + 1 < value < exact.best_split(frontier).value.sum()


@pytest.mark.slow
@pytest.mark.parametrize("extraction", ["weighted", "gradient"])
def test_continuous_actions_under_every_rule(leaning, extraction):
    configs = [probe.settings(rule, 8000, extraction=extraction) for rule in probe.RULES]
    uniform, softmax, projected = (check_continuous(leaning, config, 8000, 256, budget_error=0.1) for config in configs)
    account = probe.account(configs[0], discrete=False)
    assert uniform + 1 < softmax
    assert softmax + 0.5 < projected < exact.best_split(exact.frontier(leaning, account)).value.sum()
