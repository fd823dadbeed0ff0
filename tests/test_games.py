"""Small games with a known best answer: every method beats cloning, and only plain ones are misled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omcda_jax

SHARED = {"hidden_sizes": (32, 32), "mixer_hidden": 16, "learning_rate": 3e-3, "target_rate": 0.05, "gamma": 0.9}
# rewards are of order 1 to 10: levels and temperatures of that order
METHODS = {
    "omcda": omcda_jax.OmcdaConfig(d_tot=2.0, critic_warmup=100, level_rate=0.1, influence_rate=0.1, **SHARED),
    "bcq": omcda_jax.BcqConfig(threshold=0.2, **SHARED),
    "cql": omcda_jax.CqlConfig(penalty=0.3, **SHARED),
    "icq": omcda_jax.IcqConfig(policy_temperature=0.3, **SHARED),
    "omar": omcda_jax.OmarConfig(penalty=0.3, **SHARED),
    "omiga": omcda_jax.OmigaConfig(alpha=0.3, **SHARED),
    "cfcql": omcda_jax.CfcqlConfig(penalty=0.6, behaviour_updates=100, **SHARED),
    "comadice": omcda_jax.ComadiceConfig(alpha=0.1, max_weight=100.0, **SHARED),
}
CLONE = omcda_jax.BcConfig(hidden_sizes=(32, 32), learning_rate=3e-3)


def make_batch(spec, obs, action, reward, terminal, next_obs):
    """Rows of a game in which both agents see the state [B, S]."""
    rows = len(reward)
    both = lambda x: np.repeat(np.asarray(x, np.float32)[:, None], spec.num_agents, axis=1)
    return omcda_jax.Batch(
        obs=both(obs),
        global_state=np.asarray(obs, np.float32),
        avail=np.ones((rows, spec.num_agents, spec.action_dim), bool),
        action=np.asarray(action, np.int32 if spec.discrete else np.float32),
        reward=np.asarray(reward, np.float32),
        discount=1 - np.asarray(terminal, np.float32),
        next_obs=both(next_obs),
        next_global_state=np.asarray(next_obs, np.float32),
        next_avail=np.ones((rows, spec.num_agents, spec.action_dim), bool),
        next_action=np.zeros_like(np.asarray(action, np.int32 if spec.discrete else np.float32)),
        first=np.ones(rows, bool),
        last=np.asarray(terminal, bool),
    )


# hundreds of updates: compiling with optimisation costs less than running unoptimised code
@functools.partial(jax.jit, static_argnames="updates", compiler_options={"xla_backend_optimization_level": 2})
def trained(state, batch, updates):
    return jax.lax.scan(lambda s, _: (omcda_jax.update(s, batch)[0], None), state, length=updates)[0]


def greedy(config, batch, spec, updates=700, seed=0):
    """The function from a state [S] to the greedy joint action learnt from the batch."""
    state = trained(omcda_jax.init(jax.random.key(seed), spec, config), batch, updates)
    act = jax.jit(omcda_jax.act)
    return lambda s: np.asarray(act(state, jnp.repeat(jnp.asarray(s, jnp.float32)[None], spec.num_agents, axis=0)))


BANDIT = omcda_jax.EnvSpec(num_agents=2, obs_dim=1, state_dim=1, action_dim=3, discrete=True)
UTILITY = np.array([[0.0, 1.0, 0.4], [0.0, 0.4, 1.0]])  # of each agent's actions


def bandit():
    """The most common action of both agents, 0, earns nothing."""
    rng = np.random.default_rng(0)
    action = rng.choice(3, p=[0.5, 0.25, 0.25], size=(256, 2))
    one = np.ones((256, 1))
    return make_batch(BANDIT, one, action, UTILITY[[0, 1], action].sum(axis=-1), np.ones(256), one)


def earned(joint):
    return UTILITY[[0, 1], joint].sum()


@pytest.mark.parametrize("name", METHODS)
def test_bandit(name):
    assert earned(greedy(CLONE, bandit(), BANDIT)([1.0])) == 0.0
    assert earned(greedy(METHODS[name], bandit(), BANDIT)([1.0])) == 2.0


MATRIX = omcda_jax.EnvSpec(num_agents=2, obs_dim=3, state_dim=3, action_dim=2, discrete=True)
PAYOFF = np.array([[0.0, 1.0], [1.0, 8.0]])
START, SAFE, RISKY = np.eye(3)


def matrix_game():
    """Agent 0 chooses a branch: one pays 1 whatever follows, the other PAYOFF. The data favour the first.

    Dynamic programming: the second branch is worth max PAYOFF = 8, so the optimum is 8, against 1.
    """
    rng = np.random.default_rng(1)
    first = np.stack([rng.random(256) < 0.35, rng.random(256) < 0.5], axis=-1).astype(int)
    second = (rng.random((256, 2)) < 0.4).astype(int)
    branch = first[:, 0]
    middle = np.where(branch[:, None] == 1, RISKY, SAFE)
    pay = np.where(branch == 1, PAYOFF[second[:, 0], second[:, 1]], 1.0)
    halves = [
        make_batch(MATRIX, np.repeat(START[None], 256, 0), first, np.zeros(256), np.zeros(256), middle).replace(
            next_action=second.astype(np.int32)
        ),
        make_batch(MATRIX, middle, second, pay, np.ones(256), middle).replace(first=np.zeros(256, bool)),
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *halves)


def played(act):
    if act(START)[0] == 0:
        return 1.0
    return PAYOFF[tuple(act(RISKY))]


@pytest.mark.parametrize("name", METHODS)
def test_two_step_matrix_game(name):
    assert played(greedy(CLONE, matrix_game(), MATRIX)) == 1.0
    assert played(greedy(METHODS[name], matrix_game(), MATRIX)) == PAYOFF.max()


def misleading():
    """Action 2 is legal but never in the data; all rewards are so low that an untrained value looks better."""
    rng = np.random.default_rng(2)
    action = rng.choice(2, size=(256, 2))
    one = np.ones((256, 1))
    reward = -10.0 + action.sum(axis=-1)
    return make_batch(BANDIT, one, action, reward, np.ones(256), one)


def test_a_plain_value_method_is_misled():
    plain = omcda_jax.CqlConfig(**{**SHARED, "penalty": 0.0})
    assert 2 in greedy(plain, misleading(), BANDIT)([1.0])


@pytest.mark.parametrize("name", METHODS)
def test_a_conservative_method_is_not(name):
    assert 2 not in greedy(METHODS[name], misleading(), BANDIT)([1.0])


LINE = omcda_jax.EnvSpec(num_agents=2, obs_dim=1, state_dim=1, action_dim=1, discrete=False)
BEST = np.array([0.4, -0.5])


def line():
    """Two agents on [-1, 1]; the data lie around -.3 and .2, the best actions at .4 and -.5."""
    rng = np.random.default_rng(3)
    action = np.tanh(np.arctanh([-0.3, 0.2]) + 0.5 * rng.normal(size=(256, 2)))
    one = np.ones((256, 1))
    return make_batch(LINE, one, action[..., None], -np.square(action - BEST).sum(axis=-1), np.ones(256), one)


@pytest.mark.parametrize("name", METHODS)
def test_continuous_bandit(name):
    regret = lambda config: np.square(greedy(config, line(), LINE)([1.0])[:, 0] - BEST).sum()
    assert regret(METHODS[name]) < 0.75 * regret(CLONE)
