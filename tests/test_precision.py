"""Everything computes in 32 bits, whether JAX_ENABLE_X64 is set or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stability import missing_metrics
from test_algorithms import CASES, CONFIGS, SPEC, UPDATE, make_batch

import omcda_jax
from omcda_jax import envs
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.checkpoint import Checkpoints, digest
from omcda_jax.evaluate import make_evaluate
from omcda_jax.learner import initial_state

BOTH_KINDS = [*ALGORITHMS, *(f"{name}-continuous" for name in ALGORITHMS)]


def widened(batch):
    """The batch of a user with 64 bits."""
    wide = {np.dtype(np.float32): np.float64, np.dtype(np.int32): np.int64}
    return jax.tree.map(lambda x: jnp.asarray(x, wide.get(x.dtype, x.dtype)), batch)


def learn_and_act(config, spec, batch):
    """Two updates inside a scan, then actions."""
    state = omcda_jax.init(jax.random.key(0), spec, config)
    state, metrics = jax.lax.scan(lambda s, _: omcda_jax.update(s, batch), state, None, length=2)
    return state, metrics, omcda_jax.act(state, batch.obs, batch.avail, jax.random.key(1))


@pytest.mark.parametrize("name", BOTH_KINDS)
def test_every_algorithm_keeps_its_types_in_a_scan(name):
    config, spec = CASES[name]
    batch = make_batch(0, spec=spec)
    expected = jax.eval_shape(lambda b: learn_and_act(config, spec, b), batch)
    assert missing_metrics(expected[1]) == []
    with jax.enable_x64(True):
        batch = widened(batch)
        assert batch.obs.dtype == np.float64
        assert jax.eval_shape(lambda b: learn_and_act(config, spec, b), batch) == expected


def test_the_numbers_are_the_same_too():
    batch, state = make_batch(0), omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"])
    expected = UPDATE(state, batch)
    with jax.enable_x64(True):
        found = UPDATE(omcda_jax.init(jax.random.key(0), SPEC, CONFIGS["bc"]), widened(batch))
    assert digest(found) == digest(expected)


@pytest.mark.parametrize("wide", [True, False])
def test_returns_are_single_whatever_a_simulator_counts_in(wide):
    with jax.enable_x64(wide):
        environment = envs.make("examples.environment_in_jax/9")
        actions = lambda state, obs, avail: jnp.ones(obs.shape[:-1], jnp.int32)
        results = make_evaluate(actions, environment, 3)(None, jax.random.key(0))
    assert results.returns.dtype == jnp.float32


@pytest.mark.parametrize("wide_first", [True, False])
def test_a_checkpoint_made_either_way_restores_either_way(tmp_path, wide_first):
    algorithm = ALGORITHMS["omcda"]

    def fresh():
        return initial_state(algorithm, 3, SPEC, CONFIGS["omcda"], normalised=True)

    with jax.enable_x64(wide_first), Checkpoints(tmp_path) as kept:
        kept.save(fresh(), {})
    with jax.enable_x64(not wide_first), Checkpoints(tmp_path) as kept:
        state, _ = kept.restore(jax.eval_shape(fresh))
        assert digest(state) == digest(fresh())
    assert not [leaf.dtype for leaf in jax.tree.leaves(state) if str(leaf.dtype).endswith("64")]
