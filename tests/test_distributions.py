"""Tanh-Gaussian policies against closed forms and quadrature; the discrete ones are tested with the algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax import networks
from omcda_jax.distributions import categorical, expectation, has_choice, log_integral, tanh_gaussian
from omcda_jax.types import EnvSpec

pytestmark = pytest.mark.quick


def policy(mean, log_std, avail=None):
    mean, log_std = jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32)
    return tanh_gaussian(mean, log_std, jnp.ones(mean.shape, bool) if avail is None else jnp.asarray(avail))


def test_log_density_closed_forms():
    # -0.5 log(2 pi) at 0; at 0.5: atanh(0.5) = 0.549306, -0.5 (.549306^2 + log(2 pi)) - log(0.75)
    standard = policy(np.zeros((3, 1)), np.zeros((3, 1)))
    found = standard.log_prob(jnp.array([[0.0], [0.5], [-0.5]]))
    np.testing.assert_allclose(found, [-0.918939, -0.782125, -0.782125], atol=1e-5)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.3)])
def test_the_density_integrates_to_one(mean, log_std):
    # substitute a = tanh(u): the integral of pi(tanh u) (1 - tanh(u)^2) over u
    u = np.linspace(-6.5, 6.5, 4001)
    density = np.exp(policy(np.full((4001, 1), mean), np.full((4001, 1), log_std)).log_prob(jnp.tanh(u)[:, None]))
    assert np.trapezoid(density * (1 - np.tanh(u) ** 2), u) == pytest.approx(1.0, abs=2e-4)


def test_divergence_is_that_of_the_normals():
    first, second = policy([[0.3, -0.2]], [[-0.5, 0.1]]), policy([[-0.1, 0.4]], [[0.2, -0.3]])
    expected = 0.0
    for m, s, n, t in ((0.3, -0.5, -0.1, 0.2), (-0.2, 0.1, 0.4, -0.3)):
        expected += t - s + (np.exp(2 * s) + (m - n) ** 2) / (2 * np.exp(2 * t)) - 0.5
    np.testing.assert_allclose(first.kl(second), [expected], rtol=1e-5)
    np.testing.assert_allclose(first.kl(first), [0.0], atol=1e-7)
    # and the mean of the log-ratio over its own samples, although these go through tanh and back
    support = first.support(jax.random.key(0), 200_000)
    ratio = first.support_log_probs(support) - second.support_log_probs(support)
    assert float(expectation(ratio, support)[0]) == pytest.approx(expected, rel=0.02)


def test_edges_and_bounds_stay_finite():
    wild = policy([[50.0], [-50.0], [0.0]], [[9.0], [-9.0], [-9.0]])
    np.testing.assert_array_equal(wild.mean[:, 0], [9.0, -9.0, 0.0])
    np.testing.assert_array_equal(wild.log_std[:, 0], [2.0, -5.0, -5.0])
    for action in (1.0, -1.0, 0.999999999):
        assert np.all(np.isfinite(wild.log_prob(jnp.full((3, 1), action))))
    gradient = jax.grad(lambda m: policy(m, [[-9.0]]).log_prob(jnp.ones((1, 1))).sum())(jnp.zeros((1, 1)))
    assert np.all(np.isfinite(gradient))


def test_padding_counts_nowhere():
    avail = [[True, False]]
    padded, other = policy([[0.3, 5.0]], [[-0.5, 1.0]], avail), policy([[0.1, -2.0]], [[0.2, 0.0]], avail)
    plain, plain_other = policy([[0.3]], [[-0.5]]), policy([[0.1]], [[0.2]])
    np.testing.assert_allclose(padded.kl(other), plain.kl(plain_other), rtol=1e-6)
    np.testing.assert_allclose(padded.log_prob(jnp.array([[0.4, 0.9]])), plain.log_prob(jnp.array([[0.4]])), rtol=1e-6)
    assert padded.mode()[0, 1] == 0 and padded.sample(jax.random.key(0))[0, 1] == 0
    assert np.all(padded.support(jax.random.key(0), 5).actions[..., 1] == 0)


@pytest.mark.parametrize("num_samples", [2, 5, 8])
def test_support_mirrors_its_draws_about_the_mean(num_samples):
    spread = policy(np.full((4, 3, 1), 0.2), np.full((4, 3, 1), -1.0))
    support = spread.support(jax.random.key(1), num_samples)
    assert support.actions.shape == (4, 3, num_samples, 1) and support.probabilities.shape == (4, 3, num_samples)
    noise = np.arctanh(np.asarray(support.actions[..., 0])) - 0.2
    half = -(-num_samples // 2)
    np.testing.assert_allclose(noise[..., half:], -noise[..., : num_samples - half], atol=1e-5)
    assert len(np.unique(noise[..., 0].round(4))) == 12


def test_expectations_over_draws_converge_to_the_integral():
    spread = policy([[0.4]], [[-0.7]])
    support = spread.support(jax.random.key(2), 400_000)
    u = np.linspace(-6, 6, 20001)
    weight = np.exp(-0.5 * ((u - 0.4) / np.exp(-0.7)) ** 2)
    for values in (lambda a: a, lambda a: a**2, lambda a: np.exp(2 * a)):
        exact = np.trapezoid(weight * values(np.tanh(u)), u) / np.trapezoid(weight, u)
        found = expectation(values(support.actions[..., 0]), support)
        assert float(found[0]) == pytest.approx(exact, rel=5e-3)


def test_draws_have_the_width_of_their_policy():
    drawn = policy(np.full((20_000, 1), 0.2), np.full((20_000, 1), -1.0)).sample(jax.random.key(0))
    u = np.arctanh(np.asarray(drawn))
    assert u.mean() == pytest.approx(0.2, abs=0.01) and u.std() == pytest.approx(np.exp(-1), rel=0.02)


def test_an_integral_over_the_dimensions_an_agent_has():
    """For exp(a) over [-1, 1] it is 2 sinh 1, with or without padding; the two policies' samples are independent."""
    avail = jnp.array([[True, False]])
    here, there = policy([[0.4, 3.0]], [[-0.3, 1.0]], avail), policy([[-0.5, 0.0]], [[0.0, 0.0]], avail)
    measure = here.measure(avail, jax.random.key(0), 20_000, there)
    assert np.all(measure.actions[..., 1] == 0)
    np.testing.assert_allclose(log_integral(measure.actions[..., 0], measure), np.log(2 * np.sinh(1)), atol=0.02)
    of_here, of_there = (
        np.arctanh(np.asarray(measure.actions[0, part : part + 20_000, 0])) for part in (20_000, 40_000)
    )
    assert of_here.mean() == pytest.approx(0.4, abs=0.02) and of_there.mean() == pytest.approx(-0.5, abs=0.03)
    assert abs(np.corrcoef(of_here, of_there)[0, 1]) < 0.03


def test_draws_from_a_policy_of_the_next_state_cover_an_agent_that_ends_there():
    here = policy([[0.4, 0.1]], [[-0.3, 0.0]], jnp.array([[True, True]]))
    there = policy([[-0.5, 0.2]], [[0.0, 0.0]], jnp.array([[False, False]]))
    measure = here.measure(here.avail, jax.random.key(0), 20_000, there)
    # the integral of exp(a_0 + a_1) over the square
    log_value = log_integral(measure.actions.sum(axis=-1), measure)
    np.testing.assert_allclose(log_value, 2 * np.log(2 * np.sinh(1)), atol=0.02)


def test_an_action_that_is_never_taken_counts_nothing_whatever_its_value():
    legal = jnp.array([True, True, False])
    mean = lambda logits, values: expectation(values, categorical(logits, legal).support())
    logits = jnp.log(jnp.array([1.0, 3.0, 9.0]))
    np.testing.assert_allclose(mean(logits, jnp.array([4.0, 8.0, jnp.inf])), 7.0, rtol=1e-6)
    of_logits, of_values = jax.grad(mean, argnums=(0, 1))(logits, jnp.array([4.0, 8.0, 1e6]))
    np.testing.assert_allclose(of_logits, [-0.75, 0.75, 0.0], rtol=1e-5)
    np.testing.assert_allclose(of_values, [0.25, 0.75, 0.0], rtol=1e-6)


def test_who_has_a_choice():
    avail = jnp.array([[True, False], [True, True], [False, False]])
    np.testing.assert_array_equal(has_choice(avail, discrete=True), [False, True, False])
    np.testing.assert_array_equal(has_choice(avail, discrete=False), [True, True, False])


def test_continuous_critics_value_each_action_on_its_own():
    spec = EnvSpec(num_agents=3, obs_dim=4, state_dim=5, action_dim=2, discrete=False)
    critic = networks.critic_network(spec, (8, 8))
    random = np.random.default_rng(0)
    obs = random.normal(size=(6, 3, 4)).astype(np.float32)
    action = random.uniform(-1, 1, (6, 3, 2)).astype(np.float32)
    params = networks.initialise(critic, jax.random.key(0), obs)
    support = policy(np.zeros((6, 3, 2)), np.zeros((6, 3, 2))).support(jax.random.key(1), 5)
    at_support, at_action = networks.support_and_action_values(critic, params, obs, support, action)
    assert at_support.shape == (6, 3, 5)
    np.testing.assert_allclose(at_action, networks.action_values(critic, params, obs, action), atol=1e-6)
    for k in range(5):
        one = networks.action_values(critic, params, obs, support.actions[..., k, :])
        np.testing.assert_allclose(at_support[..., k], one, atol=1e-6)
    np.testing.assert_allclose(at_support, networks.support_values(critic, params, obs, support), atol=1e-6)


@pytest.mark.quick
def test_relative_log_probability_is_zero_at_the_mode_and_nowhere_above(random):
    logits = random.normal(size=(5, 4)).astype(np.float32)
    avail = np.ones((5, 4), bool)
    avail[:, 0] = False
    policy = categorical(logits, avail)
    action = np.array([1, 2, 3, 1, 2])
    assert (policy.relative_log_prob(action) <= 0.0).all()
    expected = logits[np.arange(5), action] - logits[:, 1:].max(axis=1)
    np.testing.assert_allclose(policy.relative_log_prob(action), expected, atol=1e-6)
    np.testing.assert_array_equal(policy.relative_log_prob(policy.mode()), 0.0)

    mean, log_std = (random.uniform(-1, 1, size=(5, 3)).astype(np.float32) for _ in range(2))
    normal = tanh_gaussian(mean, log_std, np.broadcast_to(np.arange(3) < 2, (5, 3)))
    u = random.uniform(-2, 2, size=(5, 3))
    found = normal.relative_log_prob(np.tanh(u).astype(np.float32))
    distance = (u - np.asarray(normal.mean)) / np.exp(np.asarray(normal.log_std))
    assert (found <= 0.0).all()
    np.testing.assert_allclose(found, -0.5 * np.square(distance[:, :2]).mean(axis=1), rtol=1e-3)
    np.testing.assert_allclose(normal.relative_log_prob(normal.mode()), 0.0, atol=1e-3)
    near_bound = tanh_gaussian(np.full((1, 1), 3.0), np.full((1, 1), -1.0), np.ones((1, 1), bool))
    assert near_bound.relative_log_prob(np.ones((1, 1))) == 0.0, "tanh(3) = .995 is not told from 1"
