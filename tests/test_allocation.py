"""Properties of the core of the paper: influence, the budget simplex, the solved level."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from omcda_jax import OmcdaConfig, allocate, influence
from omcda_jax.allocation import (
    ALLOCATION_RULES,
    beyond_price,
    conservatism_level,
    conservatism_step,
    first_budgets,
    first_state,
    weight_divergence,
)

pytestmark = pytest.mark.quick

TOTAL, FLOOR, AGENTS = 1.2, 0.006, 4
EVEN = np.full(AGENTS, TOTAL / AGENTS, np.float32)
LEARNED_RULES = ("softmax", "projected")

moderate = arrays.arrays(
    np.float32, AGENTS, elements=st.floats(-8, 8, width=32, allow_subnormal=False).map(lambda x: round(x, 3))
)


jitted = jax.jit(allocate, static_argnames=("rule", "influence_scale"))


def _budget(m, rule, previous=EVEN, scale="relative", total=TOTAL, floor=FLOOR, **options):
    return np.asarray(
        jitted(
            np.asarray(m, np.float32),
            np.asarray(previous, np.float32),
            rule=rule,
            influence_scale=scale,
            total_budget=total,
            min_budget=floor,
            **options,
        )
    )


def _assert_on_simplex(budget, total=TOTAL, floor=FLOOR):
    assert np.isfinite(budget).all()
    assert budget.sum() == pytest.approx(total, rel=1e-5)
    assert (budget >= floor - 1e-6 * total).all()


# Influence


def _influence_case(random, rows=7):
    avail = random.random((rows, AGENTS, 5)) < 0.7
    avail[..., 0] = True
    avail[0, 1, 1:] = False
    policy = reference.masked_log_probabilities(random.normal(size=avail.shape), avail)
    behaviour = reference.masked_log_probabilities(random.normal(size=avail.shape), avail)
    values = random.normal(size=avail.shape)
    weights = random.uniform(0.2, 2, size=avail.shape[:2])
    return avail, policy, behaviour, values, weights


def _library_arguments(policy, behaviour, values, weights):
    log_ratio = np.where(np.isfinite(policy), np.nan_to_num(policy) - np.nan_to_num(behaviour), 0.0)
    return [jnp.asarray(a, jnp.float32) for a in (weights[..., None] * values, log_ratio, np.exp(policy))]


@pytest.mark.usefixtures("strict_ranks")
def test_influence_agrees_with_the_reference(random):
    avail, policy, behaviour, values, weights = _influence_case(random)
    mask = reference.informative(avail)
    assert not mask.all()
    ours = influence(*_library_arguments(policy, behaviour, values, weights), jnp.asarray(mask), epsilon=1e-3)
    expected = reference.influence(values, weights, policy, behaviour, mask, epsilon=1e-3)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_influence_of_one_state_by_hand():
    # pi = (1/2, 1/2), b = (3/4, 1/4): l = (log 2/3, log 2), centred -+ log(3)/2. f = (0, 4), centred -+ 2.
    # Covariance 2 * log(3)/2 = log 3, variance (log(3)/2)^2, slope 4 / log 3.
    arguments = [[[[0.0, 4.0]]], [[[np.log(2 / 3), np.log(2.0)]]], [[[0.5, 0.5]]]]
    m = influence(*map(jnp.asarray, arguments), jnp.ones((1, 1), bool), epsilon=0.0)
    assert float(m[0]) == pytest.approx(4 / np.log(3), rel=1e-6)


def test_influence_is_zero_while_the_policy_is_the_behaviour(random):
    _, policy, _, values, weights = _influence_case(random)
    m = influence(*_library_arguments(policy, policy, values, weights), jnp.ones((7, AGENTS), bool))
    np.testing.assert_array_equal(m, np.zeros(AGENTS))


def test_influence_ignores_shifts_of_values_and_scales_with_them(random):
    avail, policy, behaviour, values, weights = _influence_case(random)
    mask = jnp.asarray(reference.informative(avail))
    f, ratio, p = _library_arguments(policy, behaviour, values, weights)
    m = influence(f, ratio, p, mask)
    shift = jnp.asarray(random.normal(size=(7, AGENTS, 1)), jnp.float32)
    np.testing.assert_allclose(influence(f + shift, ratio, p, mask), m, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(influence(10 * f, ratio, p, mask), 10 * m, rtol=1e-5)


def test_influence_of_one_agent_ignores_the_others_and_masked_rows(random):
    avail, policy, behaviour, values, weights = _influence_case(random)
    mask = np.ones((7, AGENTS), bool)
    mask[3:, 2] = False
    arguments = _library_arguments(policy, behaviour, values, weights)
    m = influence(*arguments, jnp.asarray(mask))
    f, ratio, p = (np.array(a) for a in arguments)
    f[3:, 2], f[:, 0] = 1e6, -3.0 * f[:, 0]
    changed = influence(jnp.asarray(f), jnp.asarray(ratio), jnp.asarray(p), jnp.asarray(mask))
    np.testing.assert_array_equal(changed[1:], m[1:])
    assert float(changed[0]) == pytest.approx(-3 * float(m[0]), rel=1e-5)
    assert not np.allclose(m, influence(*arguments, jnp.ones((7, AGENTS), bool)))


# Allocation


@given(moderate, st.sampled_from(ALLOCATION_RULES), st.sampled_from(["relative", "raw"]))
def test_budgets_stay_on_the_simplex(m, rule, scale):
    _assert_on_simplex(_budget(m, rule, scale=scale))


@st.composite
def any_influences(draw):
    """For any number of agents, each from zero over denormal numbers to the largest floats and beyond."""
    exponent = st.integers(-149, 127).map(lambda power: float(np.ldexp(1.0, power)))
    number = st.tuples(st.sampled_from([1.0, -1.0, 1.9, -1.9]), exponent).map(np.prod)
    return draw(st.lists(st.one_of(number, st.sampled_from([0.0, np.nan, np.inf, -np.inf])), min_size=1, max_size=5))


@settings(max_examples=300)
@given(
    any_influences(),
    st.sampled_from(LEARNED_RULES),
    st.sampled_from(["relative", "raw"]),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([1e-9, 0.005, 1e4]),
)
def test_compiled_budgets_of_any_influences_are_finite_and_on_the_simplex(m, rule, scale, temperature, step_size):
    even = np.full(len(m), TOTAL / len(m))
    budget = _budget(m, rule, even, scale=scale, temperature=temperature, step_size=step_size)
    _assert_on_simplex(budget)
    if len(m) == 1:
        assert budget[0] == pytest.approx(TOTAL)


@pytest.mark.parametrize("rule", LEARNED_RULES)
@pytest.mark.parametrize("m", [0.0, 1e-45, 1e-38, 1e-30, -2.0, 3e38])
def test_one_agent_has_the_whole_budget_compiled_or_not(m, rule):
    assert _budget([m], rule, [TOTAL])[0] == pytest.approx(TOTAL)
    options = dict(rule=rule, total_budget=TOTAL, min_budget=FLOOR)
    assert float(allocate(jnp.float32([m]), jnp.float32([TOTAL]), **options)[0]) == pytest.approx(TOTAL)


EXTREMES = {
    "zero": [0, 0, 0, 0],
    "equal": [2.5, 2.5, 2.5, 2.5],
    "huge": [1e30, -1e30, 3e29, 0],
    "near the largest float": [3e38, 3e38, -3e38, 3e38],
    "tiny": [1e-30, 2e-30, 0, -1e-30],
    "subnormal": [1e-40, 2e-40, 0, 0],
    "one not a number": [np.nan, 1, 2, 3],
    "one infinite": [np.inf, 1, 2, 3],
    "nothing finite": [np.nan, np.inf, -np.inf, np.nan],
    "all negative": [-1, -2, -3, -4],
}


@pytest.mark.parametrize("scale", ["relative", "raw"])
@pytest.mark.parametrize("rule", LEARNED_RULES)
@pytest.mark.parametrize("m", EXTREMES.values(), ids=EXTREMES.keys())
def test_extreme_influences_leave_finite_budgets_on_the_simplex(m, rule, scale):
    _assert_on_simplex(_budget(m, rule, scale=scale))
    uneven = np.array([0.9, 0.2, 0.094, 0.006], np.float32)
    _assert_on_simplex(_budget(m, rule, previous=uneven, scale=scale, step_size=0.5))


@pytest.mark.parametrize("rule", LEARNED_RULES)
def test_not_a_number_counts_as_zero(rule):
    np.testing.assert_array_equal(_budget([np.nan, 1, 2, 3], rule), _budget([0, 1, 2, 3], rule))


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_an_infinite_influence_counts_as_zero(infinite):
    np.testing.assert_array_equal(_budget([infinite, 1, 2, 3], "softmax"), _budget([0, 1, 2, 3], "softmax"))


@pytest.mark.parametrize("rule", ALLOCATION_RULES)
def test_floors_that_take_everything_leave_the_floors(rule):
    previous = np.full(AGENTS, 0.25, np.float32)
    np.testing.assert_allclose(_budget([3, 1, 0, -1], rule, previous, total=1.0, floor=0.25), 0.25, rtol=1e-5)


@pytest.mark.parametrize("rule", LEARNED_RULES)
def test_no_influence_leaves_even_shares(rule):
    np.testing.assert_allclose(_budget(np.zeros(AGENTS), rule), EVEN, rtol=1e-6)


@given(moderate, st.permutations(range(AGENTS)), st.sampled_from(LEARNED_RULES))
def test_permuting_the_agents_permutes_the_budgets(m, order, rule):
    order = np.array(order)
    previous = np.array([0.5, 0.4, 0.2, 0.1], np.float32)
    permuted = _budget(m[order], rule, previous[order], step_size=0.2)
    np.testing.assert_allclose(permuted, _budget(m, rule, previous, step_size=0.2)[order], atol=1e-6)


@given(moderate, st.sampled_from(LEARNED_RULES), st.sampled_from(["relative", "raw"]))
def test_more_influence_never_gets_less_from_an_even_start(m, rule, scale):
    budget = _budget(m, rule, scale=scale, step_size=0.3)
    for i in range(AGENTS):
        for j in range(AGENTS):
            if m[i] >= m[j]:
                assert budget[i] >= budget[j] - 1e-6


@given(moderate, st.integers(0, AGENTS - 1), st.floats(0.01, 5), st.sampled_from(LEARNED_RULES))
def test_raising_one_influence_never_lowers_its_budget(m, agent, rise, rule):
    more = m.copy()
    more[agent] += np.float32(rise)
    before = _budget(m, rule, scale="raw", step_size=0.3)[agent]
    assert _budget(more, rule, scale="raw", step_size=0.3)[agent] >= before - 1e-6


@given(moderate.filter(lambda m: np.abs(m).max() > 0.1), st.floats(1e-3, 1e3), st.sampled_from(LEARNED_RULES))
def test_relative_scale_is_free_of_the_rewards_units(m, factor, rule):
    ours = _budget(m * np.float32(factor), rule, step_size=0.3)
    np.testing.assert_allclose(ours, _budget(m, rule, step_size=0.3), atol=1e-5)


@given(moderate, st.floats(0.1, 3.0))
def test_softmax_agrees_with_the_reference(m, temperature):
    expected = reference.allocate_softmax(reference.relative(m.astype(np.float64)), TOTAL, FLOOR, temperature)
    np.testing.assert_allclose(_budget(m, "softmax", temperature=temperature), expected, atol=1e-5)
    raw = reference.allocate_softmax(m, TOTAL, FLOOR, temperature)
    np.testing.assert_allclose(_budget(m, "softmax", scale="raw", temperature=temperature), raw, atol=1e-5)


@given(moderate, moderate, st.floats(0.001, 2.0))
def test_projection_agrees_with_the_reference(m, start, step):
    previous = reference.project_simplex(start, TOTAL, FLOOR)
    step_in_nats = step * TOTAL / AGENTS
    expected = reference.allocate_projected(
        reference.relative(m.astype(np.float64)), previous, TOTAL, FLOOR, step_in_nats
    )
    np.testing.assert_allclose(_budget(m, "projected", previous, step_size=step), expected, atol=1e-5)


@given(moderate)
def test_the_references_projection_is_the_nearest_point(point):
    nearest = reference.project_simplex(point, TOTAL, FLOOR)
    _assert_on_simplex(nearest)
    # Optimality: no vertex of the simplex lies on the point's side of the tangent plane.
    for vertex in FLOOR + (TOTAL - AGENTS * FLOOR) * np.eye(AGENTS):
        assert (point - nearest) @ (vertex - nearest) <= 1e-5


def test_random_and_fixed_keep_their_point_and_uniform_forgets():
    previous = np.array([0.5, 0.4, 0.2, 0.1], np.float32)
    for rule in ("random", "fixed"):
        np.testing.assert_array_equal(_budget([1, 2, 3, 4], rule, previous), previous)
    np.testing.assert_allclose(_budget([1, 2, 3, 4], "uniform", previous), EVEN, rtol=1e-6)


def test_only_what_exceeds_the_price_moves_projected_budgets():
    previous = np.array([0.2, 0.4, 0.5, 0.1])
    move = lambda m, price: _budget(m, "projected", previous, step_size=0.1 * beyond_price(np.float32(m), price))
    np.testing.assert_allclose(move([0.9, -0.5, 0.3, 1.0], 1.0), previous, rtol=1e-6)
    m = np.array([3.0, 1.0, 0.5, -1.5])
    step = 0.1 * TOTAL / AGENTS * reference.relative(m) * [2 / 3, 0, 0, 1 / 3]
    np.testing.assert_allclose(
        move(m, 1.0),
        reference.project_simplex(previous + step, TOTAL, FLOOR),
        rtol=1e-5,
        err_msg="the unit is mean |m|",
    )


@pytest.mark.parametrize("rule", ["random", "fixed"])
def test_shares_outlive_a_change_of_the_total(rule):
    shared = lambda previous, total: allocate(np.zeros(3), previous, rule=rule, total_budget=total, min_budget=0.1)
    np.testing.assert_allclose(shared(np.array([0.4, 0.2, 0.1]), 1.5), [0.1 + 0.9, 0.1 + 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(shared(np.full(3, 0.1), 1.5), 0.5, rtol=1e-6, err_msg="nobody had more than the least")


@pytest.mark.parametrize("rule", ["random", "fixed"])
def test_shares_outlive_a_change_of_the_floor(rule):
    shared = allocate(np.zeros(2), np.array([0.5, 0.1]), rule=rule, total_budget=0.6, min_budget=0.2)
    np.testing.assert_allclose(shared, [0.4, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"total_budget": -0.6}, "total_budget: expected above 0, found -0.6"),
        ({"min_budget": 0.5}, "min_budget: expected from 0 to total_budget / 2, found 0.5"),
        ({"min_budget": -0.1}, "min_budget: expected from 0 to total_budget / 2, found -0.1"),
        ({"temperature": 0.0}, "temperature: expected above 0, found 0.0"),
    ],
)
def test_numbers_that_no_budgets_can_meet_are_refused(numbers, words):
    usual = {"rule": "softmax", "total_budget": 0.6, "min_budget": 0.01, "temperature": 1.0}
    with pytest.raises(ValueError, match=re.escape(words)):
        allocate(np.zeros(2), np.array([0.5, 0.1]), **(usual | numbers))


def test_shares_written_with_few_digits_still_spend_the_whole_budget():
    config = OmcdaConfig(allocation="fixed", shares=(0.333, 0.333, 0.333), d_tot=0.9, d_min=0.1)
    config.validate()
    np.testing.assert_allclose(first_budgets(config, None, 3), 0.3, rtol=1e-6)


def test_a_population_may_differ_in_its_shares():
    shares = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], np.float32)
    total = np.array([0.6, 1.2], np.float32)

    def budgets(shares, total):
        config = OmcdaConfig(allocation="fixed", shares=tuple(shares), d_tot=total, d_min=0.01)
        config.validate()
        return first_budgets(config, None, 3)

    found = jax.vmap(budgets)(shares, total)
    np.testing.assert_allclose(found, 0.01 + (total[:, None] - 0.03) * shares, rtol=1e-6)


@pytest.mark.parametrize("rule", LEARNED_RULES)
def test_jacobian_agrees_with_finite_differences(rule, double):
    m, previous = jnp.array([1.0, 0.4, -0.3, 0.2]), jnp.array([0.5, 0.4, 0.2, 0.1])

    @jax.jit
    def budget(m, previous):
        options = dict(total_budget=TOTAL, min_budget=FLOOR, step_size=0.2)
        return allocate(m, previous, rule=rule, **options)

    ours = np.concatenate(jax.jacobian(budget, argnums=(0, 1))(m, previous), axis=1)
    columns, h = [], 1e-6
    for step in np.eye(2 * AGENTS) * h:
        up = budget(m + step[:AGENTS], previous + step[AGENTS:])
        columns.append((up - budget(m - step[:AGENTS], previous - step[AGENTS:])) / (2 * h))
    np.testing.assert_allclose(ours, np.stack(columns, axis=1), atol=1e-7)
    np.testing.assert_allclose(ours.sum(axis=0), 0.0, atol=1e-12)  # the sum of budgets never moves
    assert np.abs(ours[:, :AGENTS]).max() > 1e-2


@pytest.mark.parametrize("rule", LEARNED_RULES)
def test_numbers_of_the_rules_can_be_vmapped(rule):
    m, previous = jnp.array([1.0, 0.4, -0.3, 0.2]), jnp.asarray(EVEN)
    population = dict(
        total_budget=jnp.array([0.6, 1.8, 3.0]),
        min_budget=jnp.array([0.0, 0.01, 0.1]),
        temperature=jnp.array([0.3, 1.0, 3.0]),
        step_size=jnp.array([0.01, 0.1, 1.0]),
    )
    together = jax.jit(jax.vmap(lambda o: allocate(m, previous, rule=rule, **o)))(population)
    for k in range(3):
        alone = allocate(m, previous, rule=rule, **jax.tree.map(lambda x, k=k: x[k], population))
        np.testing.assert_allclose(together[k], alone, atol=1e-6)
        total, floor = (float(population[name][k]) for name in ("total_budget", "min_budget"))
        _assert_on_simplex(np.asarray(together[k]), total, floor)


def test_repeated_projection_equalises_the_influences():
    # m_i(d_i) = scale_i / (1 + 10 d_i): water-filling puts all at one price p with sum (scale_i/p - 1)/10 = total.
    scale = jnp.array([4.0, 3.0, 2.0, 1.5])
    price = float(scale.sum() / (AGENTS + 10 * TOTAL))

    def step(_, budget):
        m = scale / (1 + 10 * budget)
        return allocate(m, budget, rule="projected", total_budget=TOTAL, min_budget=FLOOR, step_size=0.01)

    budget = jax.lax.fori_loop(0, 3000, step, jnp.asarray(EVEN))
    np.testing.assert_allclose(budget, (scale / price - 1) / 10, atol=1e-4)


@pytest.mark.parametrize("options", [dict(rule="sofmax"), dict(influence_scale="absolute")])
def test_unknown_structure_is_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        allocate(jnp.ones(3), jnp.ones(3), total_budget=3.0, min_budget=0.0, **options)


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        allocate(jnp.ones(3), jnp.ones(4), total_budget=3.0, min_budget=0.0)


@pytest.mark.parametrize("rule", LEARNED_RULES)
@pytest.mark.parametrize("plain", [np.float64, np.int32, list], ids=["float64", "integers", "lists"])
def test_plain_arrays_and_lists_are_taken(plain, rule):
    values, previous = [4, 1, 1], [2, 2, 2]
    given = [list(x) if plain is list else np.array(x, plain) for x in (values, previous)]
    options = dict(rule=rule, total_budget=6.0, min_budget=2.0)
    expected = allocate(jnp.array(values, jnp.float32), jnp.array(previous, jnp.float32), **options)
    np.testing.assert_allclose(allocate(*given, **options), expected, rtol=1e-6)


# Level

BOUNDS = (-5.0, 5.0)
ROWS = 64


def _level_case(random, rows=ROWS):
    advantage = random.normal(size=(rows, 3)) * np.array([2.0, 0.5, 0.1])
    deviation = 0.05 * random.normal(size=(rows, 3))
    mask = random.random((rows, 3)) < 0.8
    return advantage.astype(np.float32), deviation.astype(np.float32), mask


@functools.partial(jax.jit, static_argnames="cap")
def _level(advantage, deviation, budget, mask, cap=1e6):
    return conservatism_level(advantage, deviation, budget, mask, log_alpha_bounds=BOUNDS, max_weight=cap)


def test_level_spends_exactly_the_budget_with_weights_of_mean_one(random):
    advantage, deviation, mask = _level_case(random)
    budget = np.array([0.4, 0.2, 0.05], np.float32)
    log_alpha, weights = _level(advantage, deviation, budget, mask)
    assert ((log_alpha > BOUNDS[0] + 0.1) & (log_alpha < BOUNDS[1] - 0.1)).all()
    for i in range(3):
        valid = np.asarray(weights, np.float64)[mask[:, i], i]
        assert valid.mean() == pytest.approx(1.0, abs=1e-5)
        assert (valid * np.log(valid)).mean() == pytest.approx(budget[i], rel=1e-3)
        assert (np.asarray(weights)[~mask[:, i], i] == 0).all()
    np.testing.assert_allclose(weight_divergence(weights, jnp.asarray(mask)), budget, rtol=1e-3)


def test_level_agrees_with_the_reference(random):
    advantage, deviation, mask = _level_case(random)
    budget = np.array([0.4, 0.2, 0.05], np.float32)
    log_alpha, weights = _level(advantage, deviation, budget, mask)
    for i in range(3):
        expected = reference.solve_level(advantage[:, i], deviation[:, i], budget[i], mask[:, i], BOUNDS)
        assert float(log_alpha[i]) == pytest.approx(expected, abs=5e-5)
        ratio = reference.density_ratio(advantage[:, i] * np.exp(-expected) + deviation[:, i], mask[:, i])
        np.testing.assert_allclose(weights[:, i], ratio, rtol=1e-3)


def test_lists_are_taken():
    advantage, mask, budget = [[1.0, 2.0], [3.0, 1.0], [0.0, 0.5]], [[True, True]] * 3, [0.1, 0.2]
    arrays = [jnp.array(x) for x in (advantage, mask, budget)]
    chex.assert_trees_all_equal(
        conservatism_level(advantage, advantage, budget, mask),
        conservatism_level(arrays[0], arrays[0], arrays[2], arrays[1]),
    )
    f, p, rows = [[[1.0, 3.0]]], [[[0.5, 0.5]]], [[True]]
    np.testing.assert_allclose(influence(f, f, p, rows, epsilon=0.0), [1.0])


def test_the_level_of_plain_arrays_that_spend_nothing_is_the_lowest():
    nothing = np.zeros((ROWS, 3))
    log_alpha, _ = conservatism_level(nothing, nothing, np.zeros(3), np.ones((ROWS, 3), bool), log_alpha_bounds=BOUNDS)
    np.testing.assert_allclose(log_alpha, BOUNDS[0])


def test_derivatives_of_the_level_are_those_of_differences(random):
    """By the advantages, some of which have no weight at low levels, and by a bound that is reached."""
    advantage, deviation, mask = _level_case(random)
    budget = np.array([0.4, 0.2, 0.05], np.float32)
    scaled = jax.jit(lambda scale: _level(scale * advantage, deviation, budget, mask)[0])
    numeric = (scaled(1.05) - scaled(0.95)) / 0.1
    np.testing.assert_allclose(jax.jacrev(scaled)(1.0), numeric, rtol=2e-2)
    lowest = jax.jit(
        lambda low: conservatism_level(advantage, deviation, np.full(3, 9.0), mask, log_alpha_bounds=(low, 5.0))[0]
    )
    np.testing.assert_allclose(jax.jacrev(lowest)(-5.0), np.ones(3), rtol=1e-5)


def test_what_exceeds_a_price_has_a_derivative_where_nothing_is_earned():
    gradient = jax.grad(lambda earned: beyond_price(earned, 0.5).sum())(jnp.array([0.0, 1.0, -2.0]))
    np.testing.assert_allclose(gradient, [0.0, 0.5, -0.125])


def test_level_by_hand():
    # Half the rows have advantage 1, half -1: omega = (1 +- tanh(1/alpha)); divergence at alpha = 1/atanh(1/2) is
    # (3/4) log(3/2) + (1/4) log(1/2).
    advantage = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    budget = jnp.array([0.75 * np.log(1.5) + 0.25 * np.log(0.5)], jnp.float32)
    log_alpha, weights = _level(advantage, jnp.zeros((4, 1)), budget, jnp.ones((4, 1), bool))
    assert float(log_alpha[0]) == pytest.approx(-np.log(np.arctanh(0.5)), abs=1e-4)
    np.testing.assert_allclose(weights[:, 0], [1.5, 0.5, 1.5, 0.5], rtol=1e-3)


def test_a_larger_budget_means_a_smaller_level(random):
    advantage, _, mask = _level_case(random)
    levels = [
        np.asarray(_level(advantage, jnp.zeros((ROWS, 3)), jnp.full(3, budget), mask)[0])
        for budget in (0.01, 0.1, 0.4, 0.9)
    ]
    assert (np.diff(levels, axis=0) < -0.1).all()


def test_scaling_the_advantage_scales_the_level_alone(random):
    advantage, deviation, mask = _level_case(random)
    budget = jnp.array([0.4, 0.2, 0.05])
    log_alpha, weights = _level(advantage, deviation, budget, mask)
    scaled, same = _level(10 * advantage, deviation, budget, mask)
    np.testing.assert_allclose(scaled, log_alpha + np.log(10.0), atol=5e-5)
    np.testing.assert_allclose(same, weights, rtol=1e-3, atol=1e-6)


def test_masked_rows_and_other_agents_weigh_nothing_on_the_level(random):
    advantage, deviation, mask = _level_case(random)
    budget = jnp.array([0.4, 0.2, 0.05])
    log_alpha, weights = _level(advantage, deviation, budget, mask)
    poisoned = np.where(mask, advantage, 1e4).astype(np.float32)
    poisoned[:, 2] = 0.3
    again, weights_again = _level(poisoned, deviation, budget, mask)
    np.testing.assert_array_equal(again[:2], log_alpha[:2])
    np.testing.assert_array_equal(weights_again[:, :2], weights[:, :2])


def test_level_stops_at_its_bounds_and_stays_finite():
    ones = jnp.ones((4, 3), bool)
    # Agent 0 could never spend its budget (log 4 at most), agent 1 always spends more, agent 2 has nothing to gain.
    advantage = jnp.array([[1.0, 1e4, 0.0]] + [[0.0, 0.0, 0.0]] * 3)
    log_alpha, weights = _level(advantage, jnp.zeros((4, 3)), jnp.array([5.0, 0.1, 0.1]), ones)
    np.testing.assert_allclose(log_alpha, [BOUNDS[0], BOUNDS[1], BOUNDS[0]], atol=1e-3)
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[:, 2], 1.0, rtol=1e-6)
    none = _level(advantage, jnp.zeros((4, 3)), jnp.full(3, 0.1), ~ones)
    chex.assert_tree_all_finite(none)
    np.testing.assert_array_equal(none[1], np.zeros((4, 3)))


def test_where_the_divergence_rises_again_the_lowest_level_within_the_budget_is_found(random):
    x, y = random.normal(size=(2, 256, 1)).astype(np.float32)
    deviation = 0.6 * (-0.9 * x + 0.436 * y)
    mask, budget = np.ones_like(x, bool), jnp.array([0.12])
    log_alpha, weights = _level(x, deviation, budget, mask)
    assert weight_divergence(weights, mask)[0] == pytest.approx(0.12, rel=1e-3)
    alone = _level(0 * x, deviation, budget, mask)[1]
    assert weight_divergence(alone, mask)[0] > 0.15  # no level within, from some level on
    expected = reference.solve_level(x[:, 0], deviation[:, 0], 0.12, mask[:, 0], BOUNDS)
    assert float(log_alpha[0]) == pytest.approx(expected, abs=5e-4)


def test_where_no_level_is_within_the_budget_the_one_that_spends_least_is_taken(random):
    x = random.normal(size=(256, 1)).astype(np.float32)
    mask, budget = np.ones_like(x, bool), jnp.array([0.01])
    deviation = -0.6 * x + 0.4 * random.normal(size=(256, 1)).astype(np.float32)
    log_alpha, weights = _level(x, deviation, budget, mask)
    spent = weight_divergence(weights, mask)[0]
    tried = np.exp(np.linspace(*BOUNDS, 16))
    ratios = [reference.density_ratio(x[:, 0] / alpha + deviation[:, 0], mask[:, 0]) for alpha in tried]
    divergences = [reference.weight_divergence(ratio, mask[:, 0]) for ratio in ratios]
    assert min(divergences) > 0.01
    assert spent == pytest.approx(min(divergences), rel=1e-4)
    assert float(log_alpha[0]) == pytest.approx(np.log(tried[int(np.argmin(divergences))]), abs=1e-5)


def test_weights_are_capped(random):
    advantage, deviation, mask = _level_case(random)
    capped = _level(advantage, deviation, jnp.full(3, 1.0), mask, cap=2.0)[1]
    free = _level(advantage, deviation, jnp.full(3, 1.0), mask)[1]
    assert free.max() > 4
    np.testing.assert_allclose(capped, np.minimum(free, 2.0), rtol=1e-6)


def test_the_moving_average_of_the_level():
    stepped = conservatism_step(jnp.array([0.0, 1.0]), jnp.array([1.0, -1.0]), 0.25)
    np.testing.assert_allclose(stepped, [0.25, 0.5], rtol=1e-6)


def test_levels_start_where_the_settings_say():
    state = first_state(OmcdaConfig(alpha_init=0.25, d_tot=0.6, d_min=0.1), jax.random.key(0), 3)
    np.testing.assert_allclose(state.log_alpha, np.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(state.budget, 0.2, rtol=1e-6)
    assert np.all(state.influence == 0) and state.value_size == 0


def test_random_budgets_are_uniform_on_the_simplex():
    """A share is then Beta(1, N - 1): mean 1/3, variance 1/18 for three agents."""
    config = OmcdaConfig(allocation="random", d_tot=1.3, d_min=0.1)
    budgets = jax.vmap(lambda key: first_budgets(config, key, 3))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(budgets.sum(axis=1), 1.3, rtol=1e-5)
    np.testing.assert_allclose(budgets.mean(axis=0), 0.1 + 1 / 3, atol=0.02)
    np.testing.assert_allclose(budgets.var(axis=0), 1 / 18, rtol=0.1)
