"""Discrete and continuous actions agree: on the same problem both kinds give the same levels and influences.

The problem is a bandit whose discrete actions are cells of the continuous one. Agent i earns s_i (u - u^2 / 2) with
u = arctanh(a), and the behaviour is a tanh-Gaussian, so that the regularised optimum is a tanh-Gaussian too and every
answer is closed: tilting N(mean, var) by (s/alpha)(u - u^2 / 2) gives precision 1/var + s/alpha and mean
(mean/var + s/alpha) over it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omcda_jax
from omcda_jax.allocation import conservatism_level, influence
from omcda_jax.distributions import Categorical, expectation, tanh_gaussian

CELLS = (np.arange(81) + 0.5) / 81 * 2 - 1
SCALES = np.array([2.0, 0.5])
BUDGET = 0.3  # nats per agent
MEAN, STD = np.array([-0.2, 0.1]), np.array([0.4, 0.5])
AGENTS, ROWS = 2, 128


def earned(actions):
    """[..., N] actions to [..., N] each agent's part of the reward."""
    u = np.arctanh(actions)
    return SCALES * (u - u**2 / 2)


def tilted(alpha):
    """Mean and standard deviation, before tanh, of the regularised optimum at levels [N]."""
    precision = 1 / STD**2 + SCALES / alpha
    return (MEAN / STD**2 + SCALES / alpha) / precision, precision**-0.5


def levels():
    """[N] levels at which the optimum spends BUDGET, by bisection of the closed divergence."""
    low, high = np.full(AGENTS, 1e-3), np.full(AGENTS, 1e3)
    for _ in range(100):
        alpha = np.sqrt(low * high)
        mean, std = tilted(alpha)
        spent = np.log(STD / std) + (std**2 + (mean - MEAN) ** 2) / (2 * STD**2) - 0.5
        low, high = np.where(spent > BUDGET, alpha, low), np.where(spent > BUDGET, high, alpha)
    return alpha


def gaussians(mean, std):
    """Distributions of N agents from [..., N] moments before tanh."""
    mean, log_std = jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(std, jnp.float32))
    return tanh_gaussian(mean[..., None], log_std[..., None], jnp.ones((*mean.shape, 1), bool))


def in_cells(policy):
    """The same policies over the cells."""
    cells = jnp.broadcast_to(jnp.asarray(CELLS, jnp.float32)[:, None], (len(CELLS), 1))
    at_cells = jax.vmap(lambda a: policy.log_prob(jnp.broadcast_to(a, policy.mean.shape)), out_axes=-1)(cells)
    return Categorical(jax.nn.log_softmax(at_cells))


# As functions, on policies that have little to do with the optimum


@pytest.fixture
def policies(random):
    """[ROWS, N] policies and behaviours of different means and widths."""
    moments = [(0.2 * random.normal(size=(ROWS, AGENTS)), random.uniform(0.3, 0.4, (ROWS, AGENTS))) for _ in range(2)]
    return [gaussians(*m) for m in moments]


@pytest.fixture
def values(random):
    """A value of each agent's action, different in every row: [..., ROWS, N] to the same shape."""
    level, slope, curve, shift = random.normal(size=(4, ROWS, AGENTS)).astype(np.float32)
    return lambda a: level + slope * a + curve * jnp.sin(2 * a + shift)


def cell_values(values):
    return jnp.stack([values(jnp.full((ROWS, AGENTS), cell, jnp.float32)) for cell in CELLS], axis=-1)


def sampled(values, policy, key, count):
    support = policy.support(key, count)
    points = jnp.moveaxis(support.actions[..., 0], -1, 0)
    return support, jnp.moveaxis(values(points), 0, -1)


def test_cells_hold_what_the_densities_do(policies):
    policy, behaviour = policies
    np.testing.assert_allclose(in_cells(policy).kl(in_cells(behaviour)), policy.kl(behaviour), rtol=1e-3, atol=1e-4)


def test_influence_over_samples_agrees_with_the_sum_over_cells(policies, values):
    policy, behaviour = policies
    mask = jnp.ones((ROWS, AGENTS), bool)
    table, other = in_cells(policy), in_cells(behaviour)
    exact = influence(
        cell_values(values), table.log_probs - other.log_probs, table.support().probabilities, mask, epsilon=0.0
    )

    def estimate(key):
        support, f = sampled(values, policy, key, 512)
        ratio = policy.support_log_probs(support) - behaviour.support_log_probs(support)
        return influence(f, ratio, support.probabilities, mask, epsilon=0.0)

    estimates = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 32)))
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    assert (error < 0.02 * np.abs(exact)).all()
    assert (np.abs(estimates.mean(axis=0) - exact) < 4 * error + 2e-3 * np.abs(exact)).all()


def test_levels_over_samples_agree_with_those_over_cells(policies, values, random):
    policy, behaviour = policies
    mask, budget = jnp.ones((ROWS, AGENTS), bool), jnp.full((AGENTS,), 0.1)
    f = values(jnp.tanh(behaviour.mean + jnp.exp(behaviour.log_std) * random.normal(size=(ROWS, AGENTS, 1)))[..., 0])
    nothing = jnp.zeros_like(f)
    exact, weights = conservatism_level(
        f - expectation(cell_values(values), in_cells(policy).support()), nothing, budget, mask
    )
    support, at_support = sampled(values, policy, jax.random.key(1), 512)
    found, sampled_weights = conservatism_level(f - expectation(at_support, support), nothing, budget, mask)
    np.testing.assert_allclose(found, exact, atol=0.02)
    np.testing.assert_allclose(sampled_weights, weights, atol=0.05 * float(weights.max()))
    wrong, _ = conservatism_level(f, nothing, budget, mask)
    assert (jnp.abs(wrong - exact) > 0.1).all()


# As learners


def dataset(random, size=20_000):
    """Cells drawn from the behaviour and what they earn: [T, N], [T]."""
    probability = np.exp(np.asarray(in_cells(gaussians(MEAN, STD)).log_probs, np.float64))
    drawn = [random.choice(len(CELLS), size=size, p=p / p.sum()) for p in probability]
    index = np.stack(drawn, axis=1)
    return jnp.asarray(index, jnp.int32), jnp.asarray(earned(CELLS[index]).sum(axis=1), jnp.float32)


def train(index, reward, discrete, updates=1500, batch_size=256):
    """Levels, influences and divergences, averaged over the last third of the updates."""
    actions = len(CELLS) if discrete else 1
    spec = omcda_jax.EnvSpec(AGENTS, 1, 1, actions, discrete)
    config = omcda_jax.OmcdaConfig(
        d_tot=AGENTS * BUDGET,
        allocation="uniform",
        conservative_mixing="identity",
        critic_warmup=updates // 5,
        gamma=0.0,
        learning_rate=2e-3,
        target_rate=0.05,
        num_samples=16,
        hidden_sizes=(32,),
        mixer_hidden=8,
    )
    taken = index if discrete else jnp.asarray(CELLS, jnp.float32)[index][..., None]
    obs, state = jnp.ones((batch_size, AGENTS, 1)), jnp.ones((batch_size, 1))
    avail = jnp.ones((batch_size, AGENTS, actions), bool)

    @functools.partial(jax.jit, static_argnums=1, compiler_options={"xla_backend_optimization_level": 2})
    def run(state_of_learner, count):
        def step(learner, _):
            rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), learner.step), (batch_size,), 0, len(index))
            batch = omcda_jax.Batch(
                obs=obs,
                global_state=state,
                avail=avail,
                action=taken[rows],
                reward=reward[rows],
                discount=jnp.zeros(batch_size),
                next_obs=obs,
                next_global_state=state,
                next_avail=avail,
                next_action=taken[rows],
                first=jnp.ones(batch_size, bool),
                last=jnp.ones(batch_size, bool),
            )
            return omcda_jax.update(learner, batch)

        return jax.lax.scan(step, state_of_learner, length=count)

    _, metrics = run(omcda_jax.init(jax.random.key(0), spec, config), updates)
    names = {"alpha": "allocation/alpha", "influence": "allocation/influence", "divergence": "policy/divergence"}
    return {name: np.asarray(metrics[key][-updates // 3 :]).mean(axis=0) for name, key in names.items()}


@pytest.fixture(scope="module")
def learned():
    index, reward = dataset(np.random.default_rng(3))
    return {kind: train(index, reward, kind == "discrete") for kind in ("discrete", "continuous")}


def test_the_closed_levels_spend_the_budget_in_cells():
    alpha = levels()
    optimum, behaviour = in_cells(gaussians(*tilted(alpha))), in_cells(gaussians(MEAN, STD))
    np.testing.assert_allclose(optimum.kl(behaviour), BUDGET, rtol=2e-3)
    tilt = behaviour.log_probs + earned(np.repeat(CELLS[:, None], AGENTS, axis=1)).T / alpha[:, None]
    np.testing.assert_allclose(optimum.log_probs, jax.nn.log_softmax(tilt), atol=1e-2)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_learners_of_both_kinds_come_to_the_closed_answer(learned, kind):
    found, alpha = learned[kind], levels()
    np.testing.assert_allclose(found["alpha"], alpha, rtol=0.05)
    np.testing.assert_allclose(found["influence"], alpha, rtol=0.06)
    np.testing.assert_allclose(found["divergence"], BUDGET, rtol=0.06)


def test_learners_of_both_kinds_agree(learned):
    for name in ("alpha", "influence"):
        np.testing.assert_allclose(learned["continuous"][name], learned["discrete"][name], rtol=0.05)
