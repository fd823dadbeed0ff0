"""Training on four devices, simulated in a process of its own: the same numbers as on one."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_algorithms as algorithms
import test_learner as toy

import omcda_jax
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import LearnerConfig
from omcda_jax.learner import Layout, initial_state, make_train_step, train
from omcda_jax.types import BatchError, ConfigError

CONFIG = LearnerConfig(
    updates=20, batch_size=16, updates_per_call=5, log_every=5, checkpoint_every=10, evaluate_every=10
)


def close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)


def rows(dataset, key, batch_size, part, parts, gamma):
    index = jax.random.randint(key, (batch_size,), 0, dataset.reward.shape[0])
    index = jax.lax.dynamic_slice_in_dim(index, part * (batch_size // parts), batch_size // parts)
    return jax.tree.map(lambda x: x[index], dataset)


def learn(layout):
    """OMCDA with continuous actions, with samples that depend on the rows: the last state and every call's metrics."""
    algorithm, settings, spec = ALGORITHMS["omcda"], algorithms.CONFIGS["omcda"], algorithms.CONTINUOUS
    step = make_train_step(algorithm, rows, CONFIG.batch_size, CONFIG.updates_per_call, layout)
    state = initial_state(algorithm, 0, spec, settings)
    dataset = layout.place_dataset(jax.tree.map(jnp.asarray, algorithms.make_batch(1, 200, spec)))
    calls = [
        (last, report.metrics) for _, last, report in train(step, layout.place(state), dataset, CONFIG, layout=layout)
    ]
    return layout.collect(calls[-1][0]), [metrics for _, metrics in calls]


def one_trial(devices, directory):
    one, metrics_of_one = learn(Layout(devices[:1]))
    four, metrics_of_four = learn(Layout(devices))
    for a, b in zip(metrics_of_one, metrics_of_four, strict=True):
        close(a, b, 2e-4)
    close(one.params, four.params, 2e-4)
    assert four.step.shape == ()


def population(devices, directory):
    layout = Layout(devices, population=True)
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    step = make_train_step(toy.ALGORITHM, toy.sample, 4, 5, layout)
    state = layout.place(stack([toy.fresh(seed) for seed in range(8)]))
    done = toy.trained(step, state, layout.place_dataset(toy.DATASET), layout=layout)
    single = make_train_step(toy.ALGORITHM, toy.sample, 4, 5)
    for seed in (0, 5):
        alone = toy.trained(single, toy.fresh(seed))
        close(toy.leaves(jax.tree.map(lambda x, seed=seed: x[seed], done)), toy.leaves(alone), 1e-4)


def bad_update(devices, directory):
    four = Layout(devices)
    broken = toy.bad_at([3])

    def on_one_device(state, batch, *, axis_name=None):
        """Only the third device's rows are bad."""
        bad = (jax.lax.axis_index(axis_name) == 2) & (state.step == 3)
        mean = jax.lax.pmean(jnp.where(bad, jnp.nan, batch.mean()), axis_name)
        return state.replace(params=state.params + mean, step=state.step + 1), {"mean": mean}

    step = make_train_step(broken._replace(update=on_one_device), toy.sample, 16, 5, four)
    state, report = step(four.place(toy.fresh()), four.place_dataset(toy.DATASET))
    assert np.asarray(report.skipped).tolist() == [[False, False, False, True, False]] * 4
    assert np.isfinite(np.asarray(state.params)).all()
    np.testing.assert_array_equal(*np.asarray(state.params)[:2])


def resume(devices, directory):
    four = Layout(devices)
    step, dataset = make_train_step(toy.ALGORITHM, toy.sample, 4, 5, four), four.place_dataset(toy.DATASET)
    learn_toy = lambda state, **options: toy.trained(step, four.place(state), dataset, layout=four, **options)
    whole = learn_toy(toy.fresh())
    with Checkpoints(directory) as kept:
        learn_toy(toy.fresh(), stop_at=25, save=lambda state: kept.save(state, {}))
    with Checkpoints(directory) as kept:
        state, _ = kept.restore(jax.eval_shape(toy.fresh))
    assert int(state.step) == 25
    alone = make_train_step(toy.ALGORITHM, toy.sample, 4, 5)
    close(toy.leaves(toy.trained(alone, jax.tree.map(jnp.copy, state))), toy.leaves(whole), 1e-4)
    for x, y in zip(toy.leaves(whole), toy.leaves(learn_toy(state)), strict=True):
        np.testing.assert_array_equal(x, y)


def refusals(devices, directory):
    four = Layout(devices)
    for act, words in [
        (
            lambda: make_train_step(toy.ALGORITHM, toy.sample, 6, 5, four),
            "batch_size: expected a multiple of the 4",
        ),
        (
            lambda: Layout(devices, population=True).place(jax.tree.map(lambda x: jnp.stack([x] * 3), toy.fresh())),
            "trials: expected a multiple of the 4 devices, found 3",
        ),
    ]:
        try:
            act()
        except ConfigError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def shard_map(devices, directory):
    """Equal if JAX leaves the sums over devices to the update, refused if it would take them twice."""
    config, parts, whole = algorithms.CONFIGS["bc"], jax.sharding.PartitionSpec("shard"), jax.sharding.PartitionSpec()
    state, batch = omcda_jax.init(jax.random.key(0), algorithms.SPEC, config), algorithms.make_batch(0)
    mesh = jax.sharding.Mesh(np.array(devices), ("shard",))

    def shared(check_vma):
        update = lambda state, batch: omcda_jax.update(state, batch, axis_name="shard")
        specs = dict(in_specs=(whole, parts), out_specs=(whole, whole))
        return jax.jit(jax.shard_map(update, mesh=mesh, check_vma=check_vma, **specs))(state, batch)

    (one, metrics_of_one), (four, metrics_of_four) = jax.jit(omcda_jax.update)(state, batch), shared(False)
    close(one.params, four.params)
    close(metrics_of_one, metrics_of_four)
    try:
        shared(True)
    except BatchError as error:
        assert "expected jax.shard_map(..., check_vma=False)" in str(error), error
    else:
        raise AssertionError("gradients that count twice")


CHECKS = {check.__name__: check for check in (one_trial, population, bad_update, resume, refusals, shard_map)}


@pytest.mark.parametrize("check", CHECKS)
def test_on_four_devices(check, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    root = Path(__file__).parents[1]
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests"))),
    }
    command = [sys.executable, __file__, check, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    _, name, folder = sys.argv
    assert jax.device_count() == 4
    CHECKS[name](tuple(jax.devices()), folder)
