import dataclasses
import io
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax import ALGORITHMS, learner, metrics
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import LearnerConfig
from omcda_jax.learner import (
    Guard,
    Layout,
    NonFiniteMetrics,
    anywhere,
    broadcast,
    initial_state,
    make_debug_step,
    make_train_step,
    train,
)
from omcda_jax.metrics import MetricsFile, Progress, duration, read
from omcda_jax.types import Algorithm, EnvSpec, TrainState, updates_done

SPEC = EnvSpec(num_agents=1, obs_dim=1, state_dim=1, action_dim=2, discrete=True)
CONFIG = LearnerConfig(
    updates=60, batch_size=4, updates_per_call=5, log_every=10, checkpoint_every=20, evaluate_every=30
)


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str = "mean"


def init(key, spec, config):
    weight = jnp.zeros(3)
    return TrainState(
        params=weight,
        target_params=weight,  # the same buffer twice, which donation refuses unless it is copied
        opt_state=(),
        extra=0.0 * weight,
        step=jnp.zeros((), jnp.int32),
        key=key,
        spec=spec,
        config={"rate": jnp.float32(0.1)},
    )


def update(state, batch, *, axis_name=None):
    """Move the mean towards the batch's, with noise from its own key, and record the first rows drawn."""
    if axis_name is not None:
        batch = jax.lax.all_gather(batch, axis_name, tiled=True)
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (3,))
    params = state.params + state.config["rate"] * (batch[:3] + noise - state.params)
    new = state.replace(params=params, extra=batch[:3], step=state.step + 1)
    return new, {"mean": params.mean(), "step": state.step.astype(jnp.float32), "vector": params}


def sample(dataset, key, batch_size, part, parts, gamma):
    index = jax.random.randint(key, (batch_size,), 0, dataset.shape[0])
    return dataset[jax.lax.dynamic_slice_in_dim(index, part * (batch_size // parts), batch_size // parts)]


ALGORITHM = Algorithm(Settings, init, update, policy=None, act=None)
DATASET = jnp.arange(1000.0)


def fresh(seed=0):
    return initial_state(ALGORITHM, seed, SPEC, Settings())


@pytest.fixture(scope="module")
def train_step():
    return make_train_step(ALGORITHM, sample, CONFIG.batch_size, CONFIG.updates_per_call)


def trained(train_step, state, dataset=DATASET, config=CONFIG, stop_at=None, save=None, **options):
    """Train to the end or for a number of updates; return the state, and save it as often as the config says."""
    layout, calls = options.get("layout"), train(train_step, state, dataset, config, **options)
    for step, state, _ in calls:
        if save and (step % config.checkpoint_every == 0 or step == stop_at):
            save(layout.collect(state) if layout else state)
        if step == stop_at:
            break
    return layout.collect(state) if layout else state


def reports(*arguments, **options):
    """Return every call's number of updates and metrics."""
    return [(step, report.metrics) for step, _, report in train(*arguments, **options)]


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))]


def assert_same(state, other):
    for leaf, expected in zip(leaves(state), leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_one_call_does_k_updates_and_averages_their_metrics(train_step):
    state, report = train_step(fresh(), DATASET)
    assert int(state.step) == 5
    assert report.metrics["step"] == np.mean([0, 1, 2, 3, 4])
    assert report.metrics["vector"].shape == (3,)
    assert not report.skipped.any() and not any(report.suspects.values())


def test_calls_of_one_update_equal_one_call_of_five(train_step):
    single = make_train_step(ALGORITHM, sample, CONFIG.batch_size, 1)
    state = fresh()
    for _ in range(5):
        state, _ = single(state, DATASET)
    assert_same(state, train_step(fresh(), DATASET)[0])


def test_batches_differ_by_step_and_by_seed_only(train_step):
    drawn = []
    for seed in (0, 0, 1):
        state, _ = train_step(fresh(seed), DATASET)
        first = np.asarray(state.extra)
        state, _ = train_step(state, DATASET)
        drawn.append((first, np.asarray(state.extra)))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0][0] != drawn[0][1]).any()
    assert (drawn[0][0] != drawn[2][0]).any()


def test_a_population_learns_as_each_of_its_seeds_alone(train_step):
    layout = Layout((jax.devices()[0],), population=True)
    together = make_train_step(ALGORITHM, sample, CONFIG.batch_size, CONFIG.updates_per_call, layout)
    start = jax.tree.map(lambda *x: jnp.stack(x), *(fresh(seed) for seed in (3, 8)))
    yielded = []
    for step, stacked, report in train(together, start, DATASET, CONFIG, layout=layout):
        yielded.append((step, updates_done(stacked), report.metrics["vector"].shape))
    assert yielded == [(step, step, (2, 3)) for step in range(5, 65, 5)]
    for place, seed in enumerate((3, 8)):
        alone = trained(train_step, fresh(seed))
        one = jax.tree.map(lambda x, place=place: x[place], stacked)
        for leaf, expected in zip(leaves(one), leaves(alone), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_one_compilation_serves_every_call_and_another_dataset(train_step):
    state, _ = train_step(fresh(), DATASET)
    before = train_step._cache_size()
    state, _ = train_step(state, DATASET)
    train_step(state, DATASET + 1)
    assert train_step._cache_size() == before


def test_every_call_is_yielded_and_nothing_is_done_ahead_of_its_reader(train_step):
    done = []

    def counted(state, dataset):
        done.append(updates_done(state))
        return train_step(state, dataset)

    calls = train(counted, fresh(), DATASET, CONFIG)
    assert done == []
    for step, state, report in calls:
        assert done[-1] == step - 5 and int(state.step) == step and report.seconds > 0
        if step == 25:
            break
    assert done == [0, 5, 10, 15, 20]
    assert [step for step, *_ in train(train_step, state, DATASET, CONFIG)] == list(range(30, 65, 5))


def test_the_data_may_change_from_call_to_call(train_step):
    asked = []

    def dataset_at(step):
        asked.append(step)
        return DATASET

    state = trained(train_step, fresh(), dataset_at)
    assert asked == list(range(0, 60, 5))
    assert_same(state, trained(train_step, fresh()))


def test_a_state_may_start_with_a_normaliser_that_changes_nothing():
    spec = dataclasses.replace(SPEC, num_agents=3, obs_dim=4, state_dim=2)
    scale = initial_state(ALGORITHM, 0, spec, Settings(), normalised=True).normaliser
    assert scale.obs_shift.shape == scale.obs_factor.shape == (3, 4)
    assert scale.global_state_shift.shape == scale.global_state_factor.shape == (2,)
    np.testing.assert_array_equal((2.0 - scale.obs_shift) * scale.obs_factor, 2.0)
    assert fresh().normaliser is None


def test_a_finished_state_is_left_alone(train_step):
    done = fresh().replace(step=jnp.int32(60))
    assert list(train(train_step, done, DATASET, CONFIG)) == []


@pytest.mark.parametrize("stop_at", [20, 25])
def test_going_on_from_a_checkpoint_is_bit_exact(tmp_path, train_step, stop_at):
    whole = trained(train_step, fresh(3))
    with Checkpoints(tmp_path) as checkpoints:
        trained(train_step, fresh(3), stop_at=stop_at, save=lambda state: checkpoints.save(state, {}))
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(jax.eval_shape(lambda: fresh(3)))
    assert int(state.step) == stop_at
    assert_same(trained(train_step, state), whole)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_but_bad_updates_ends_the_run_before_anything_is_kept(train_step, value):
    kept = []
    with pytest.raises(NonFiniteMetrics, match=r"^mean was not finite in 10 updates in a row, up to update 10$"):
        for step, *_ in train(train_step, fresh(), jnp.full(1000, value), CONFIG):
            kept.append(step)
    assert kept == [5]


def bad_at(steps):
    """The algorithm, with an update that is not finite at some steps."""

    def broken(state, batch, *, axis_name=None):
        bad = jnp.isin(state.step, jnp.array(steps))
        return update(state, jnp.where(bad, jnp.nan, batch), axis_name=axis_name)

    return ALGORITHM._replace(update=broken)


def test_a_bad_update_is_skipped_and_counted_and_the_next_batch_goes_on():
    step = make_train_step(bad_at([3]), sample, CONFIG.batch_size, 1)
    state, expected = fresh(), fresh()
    for at in range(5):
        before = leaves(jax.tree.map(jnp.copy, state))
        state, report = step(state, DATASET)
        assert report.skipped.tolist() == [at == 3] and report.suspects["mean"] == (at == 3)
        assert np.isfinite(report.metrics["mean"]) == (at != 3)
        if at == 3:
            for now, then in zip(leaves(state.replace(step=state.step - 1)), before, strict=True):
                np.testing.assert_array_equal(now, then)
    assert int(state.step) == 5
    whole = make_train_step(bad_at([3, 31]), sample, CONFIG.batch_size, CONFIG.updates_per_call)
    logged = reports(whole, expected, DATASET, CONFIG)[1::2]
    assert [(at, int(metrics["guard/skipped"])) for at, metrics in logged] == [
        (10, 1), (20, 1), (30, 1), (40, 2), (50, 2), (60, 2)
    ]  # fmt: skip
    assert all(np.isfinite(metrics["mean"]) for _, metrics in logged)


@pytest.mark.parametrize("first", [0, 3, 7])
def test_ten_bad_updates_in_a_row_end_a_run_wherever_calls_begin(first):
    def run_with(count):
        step = make_train_step(bad_at(range(first, first + count)), sample, CONFIG.batch_size, 5)
        return trained(step, fresh())

    assert int(run_with(9).step) == 60
    with pytest.raises(NonFiniteMetrics, match="10 updates in a row"):
        run_with(10)


def test_a_trial_that_diverges_does_not_hurt_its_neighbours(train_step):
    def broken(state, batch, *, axis_name=None):
        bad = jax.random.key_data(state.key)[-1] == 8
        return update(state, jnp.where(bad, jnp.nan, batch), axis_name=axis_name)

    layout = Layout((jax.devices()[0],), population=True)
    step = make_train_step(ALGORITHM._replace(update=broken), sample, CONFIG.batch_size, 5, layout)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), fresh(3), fresh(8))
    *_, (_, done, report) = train(step, stacked, DATASET, CONFIG, layout=layout)
    assert report.metrics["guard/skipped"].tolist() == [0, 60]
    neighbour = trained(train_step, fresh(3))
    for leaf, expected in zip(leaves(jax.tree.map(lambda x: x[0], done)), leaves(neighbour), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_the_guard_goes_on_counting_after_a_restart():
    step = make_train_step(bad_at(range(6, 18)), sample, CONFIG.batch_size, 5)
    guard = Guard()
    state, report = step(fresh(), DATASET)
    for at in (5, 10):
        guard.look(at, jax.device_get(report))
        state, report = step(state, DATASET)
    assert (guard.counts["skipped"], guard.counts["in_a_row"]) == ([4], [4])
    again = Guard(saved=json.loads(json.dumps(guard.counts)))
    again.look(15, jax.device_get(report))
    assert again.skipped.tolist() == [9]
    _, report = step(state, DATASET)
    with pytest.raises(NonFiniteMetrics, match="mean was not finite in 10 updates in a row, up to update 20"):
        again.look(20, jax.device_get(report))


def test_a_debug_step_does_the_same_updates_and_stops_at_the_first_without_a_number(train_step):
    debug = make_debug_step(ALGORITHM, sample, CONFIG.batch_size, CONFIG.updates_per_call)
    (state, report), (expected, other) = debug(fresh(), DATASET), train_step(fresh(), DATASET)
    for leaf, wanted in zip(leaves(state), leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6)
    np.testing.assert_allclose(report.metrics["vector"], other.metrics["vector"], rtol=1e-6)

    def broken(state, batch, *, axis_name=None):
        return update(state, jnp.where(state.step == 3, jnp.log(batch - 2000.0), batch), axis_name=axis_name)

    debug = make_debug_step(ALGORITHM._replace(update=broken), sample, CONFIG.batch_size, CONFIG.updates_per_call)
    with pytest.raises(FloatingPointError, match="log"):
        debug(fresh(), DATASET)


def test_one_process_broadcasts_and_agrees_with_itself():
    state = fresh()
    assert broadcast(state) is state
    assert [anywhere(condition) for condition in (False, True)] == [False, True]


def test_metrics_file_drops_rows_past_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for step in (10, 20, 30):
            file.write(step, {"loss": jnp.float32(step / 4), "budget": jnp.array([0.25, 0.5]), "host": 1.5})
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    with MetricsFile(path, resumed_step=20) as file:
        file.write(25, {"loss": np.int32(3)})
    expected = [{"step": step, "loss": step / 4, "budget": [0.25, 0.5], "host": 1.5} for step in (10, 20)]
    assert read(path) == [*expected, {"step": 25, "loss": 3}]
    with MetricsFile(path):
        pass
    assert read(path) == []
    assert read(tmp_path / "none") == []


def test_progress_prints_plain_lines_first_and_last():
    stream = io.StringIO()
    progress = Progress(total=400, start=100, shown=("loss", "absent"), stream=stream, interval=3600.0)
    for step in (200, 300, 400):
        progress.update(step, {"loss": np.array([1.0, 2.0])})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["200/400 (50%)", "400/400 (100%)"]
    assert lines[0].endswith("left  loss 1.5")


def test_progress_rewrites_one_line_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(total=2, stream=stream)
    progress.update(1, {})
    progress.update(2, {})
    progress.close()
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().count("\n") == 1


def test_a_rewritten_line_is_no_wider_than_its_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    stream.isatty = lambda: True
    Progress(total=2, shown=("critic/q_return",), stream=stream).update(1, {"critic/q_return": 1.0})
    assert len(stream.getvalue()) == len("\r\x1b[K") + 29


def test_the_time_left_is_by_the_updates_of_the_last_minutes(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    stream = io.StringIO()
    monkeypatch.setattr(metrics, "WINDOW", 60.0)
    progress = Progress(total=10_000, start=1000, stream=stream, interval=0.0)
    step = 1000
    for seconds, updates in [(20, 20)] * 30 + [(20, 200)] * 3 + [(3600, 10), (20, 100)]:
        clock, step = clock + seconds, step + updates
        progress.update(step, {})
    lines = [line.split("  ")[1:] for line in stream.getvalue().splitlines()]
    assert lines[0] == ["1.0 updates/s", "2h29m left"]
    assert lines[29] == ["1.0 updates/s", "2h20m left"]
    assert lines[30] == ["4.0 updates/s", "34m10s left"]
    assert lines[32] == ["10.0 updates/s", "13m00s left"]
    # a long evaluation does not affect the rate
    assert lines[33] == ["10.0 updates/s", "12m59s left"]
    assert lines[34] == ["5.0 updates/s", "25m38s left"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12s"), (200, "3m20s"), (3725, "1h02m"), (float("inf"), "?"), (0, "0s")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_state_may_be_begun_within_another_program():
    bc = ALGORITHMS["bc"]
    rate_of = lambda rate: initial_state(bc, 0, SPEC, bc.config(learning_rate=rate)).config.learning_rate
    rates = jnp.array([0.1, 0.2])
    np.testing.assert_array_equal(jax.vmap(rate_of)(rates), rates)
    np.testing.assert_array_equal(jax.jit(jax.vmap(rate_of))(rates), rates)
    assert jax.eval_shape(lambda: rate_of(0.1)).shape == ()


def test_a_state_is_begun_with_the_options_of_its_device(monkeypatch):
    asked = []
    monkeypatch.setattr(learner, "compiler_options", lambda platform, **how: asked.append((platform, how)) or {})
    initial_state(ALGORITHM, 0, SPEC, Settings())
    assert asked == [(jax.devices()[0].platform, {"once": True})]
