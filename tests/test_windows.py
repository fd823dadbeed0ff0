"""Windows of data on the host: their contents, their order, and resuming learning from them."""

import jax
import numpy as np
import pytest

import omcda_jax
from benchmarks import toy
from benchmarks.faults import Run
from omcda_jax import data
from omcda_jax.config import DataConfig, ExperimentConfig, LearnerConfig
from omcda_jax.data import formats
from omcda_jax.data.dataset import arrange
from omcda_jax.runner import datasets
from omcda_jax.runner.jobs import Job
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=2, action_dim=4, discrete=True)
ROW = 2 * 3 * 4 + 2 * 4 + 2 * 4 + 2 * 4 + 4 + 4 + 1  # bytes


def make_episodes(count=40, seed=0):
    """Episodes of 1 to 9 steps with the row numbers as rewards."""
    random = np.random.default_rng(seed)
    length = random.integers(1, 10, count).astype(np.int32)
    total = int(length.sum()) + count
    final = np.cumsum(length + 1) - 1
    reward = np.arange(total, dtype=np.float32)
    reward[final] = 0
    return data.Episodes(
        obs=random.normal(size=(total, 2, 3)).astype(np.float32),
        global_state=random.normal(size=(total, 2)).astype(np.float32),
        avail=np.ones((total, 2, 4), bool),
        action=np.zeros((total, 2), np.int32),
        reward=reward,
        length=length,
        terminated=random.random(count) < 0.5,
        won=np.zeros(count, bool),
    )


@pytest.fixture(scope="module")
def whole():
    return arrange(SPEC, make_episodes())


def windows(dataset, share=4, updates=1000, per_call=1, batch_size=8, shards=1, **more):
    """About `share` windows per epoch."""
    config = DataConfig("toy/ring", window=len(dataset.reward) * ROW / share / 1e6, shards=shards)
    every = {"log_every": per_call, "checkpoint_every": per_call, "evaluate_every": per_call}
    learner = LearnerConfig(updates=updates, updates_per_call=per_call, batch_size=batch_size, **every)
    return data.Windows(dataset, config, learner, **more)


def test_windows_carry_the_returns_of_the_whole(whole):
    whole = data.returns_to_go(whole, [0.9, 0.5])
    assert isinstance(whole.return_to_go, np.ndarray), "data on the host stay there"
    everything = data.gather(whole, whole.rows, 0.5)
    known = dict(zip(np.asarray(everything.reward).tolist(), np.asarray(everything.return_to_go).tolist(), strict=True))
    with windows(whole) as dealt:
        for number in range(dealt.count):
            window = dealt(number * dealt.updates)
            batch = data.gather(window, window.rows[: window.starts[-1]], 0.5)
            expected = [known[reward] for reward in np.asarray(batch.reward).tolist()]
            np.testing.assert_array_equal(batch.return_to_go, expected)


def test_an_epoch_deals_out_every_transition_once_and_unchanged(whole):
    with windows(whole) as dealt:
        assert dealt.count > 2
        seen = []
        for number in range(2 * dealt.count):
            window = dealt(number * dealt.updates)
            batch = data.gather(window, window.rows[: window.starts[-1]])
            expected = data.gather(data.dataset.put(whole), np.asarray(batch.reward).astype(int))
            jax.tree.map(np.testing.assert_array_equal, batch, expected)
            seen.append(np.asarray(batch.reward).astype(int))
    epochs = seen[: dealt.count], seen[dealt.count :]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), whole.rows)
    assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))
    # pieces from all over the data, not one contiguous range
    assert np.ptp(seen[0]) > len(whole.rows) / 2


def test_windows_share_one_shape_and_follow_from_the_step_alone(whole):
    with windows(whole) as one, windows(whole) as other:
        first = one(0)
        shapes = [jax.tree.map(np.shape, one(number * one.updates)) for number in range(9)]
        assert shapes == [jax.tree.map(np.shape, first)] * 9
        jax.tree.map(np.testing.assert_array_equal, one(5 * one.updates), other(6 * one.updates - 1))
        jax.tree.map(np.testing.assert_array_equal, one(0), first)
        assert one(one.updates - 1) is one(0)


def test_an_epoch_takes_about_one_draw_per_transition(whole):
    with windows(whole, per_call=2, batch_size=4) as dealt:
        assert dealt.updates % 2 == 0
        draws = dealt.updates * dealt.count * 4
    assert abs(draws / len(whole.rows) - 1) < 0.25


@pytest.mark.parametrize("shards", [1, 4])
def test_one_window_gives_the_batches_of_the_device(whole, shards):
    on_device = data.from_arrays(SPEC, make_episodes())
    on_device = data.shard(on_device, shards, 0, 1) if shards > 1 else on_device
    with windows(whole, share=0.5, shards=shards) as dealt:
        assert dealt.count == 1
        for step in (0, 1, 77):
            key = jax.random.key(step)
            batches = [data.sample(dataset, key, 8) for dataset in (dealt(step), on_device)]
            jax.tree.map(np.testing.assert_array_equal, *batches)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_that_share_the_shards_draw_what_one_draws(whole, processes):
    with windows(whole, share=3, shards=4) as alone:
        parts = [
            windows(whole, share=3, shards=4, process=process, processes=processes) for process in range(processes)
        ]
        for step in (0, alone.updates, 4 * alone.updates):
            shares = [part(step) for part in parts]
            assert len({str(jax.tree.map(np.shape, share)) for share in shares}) == 1
            key = jax.random.key(step)
            found = [data.sample(share, key, 8, process, processes) for process, share in enumerate(shares)]
            joined = jax.tree.map(lambda *values: np.concatenate(values), *found)
            jax.tree.map(np.testing.assert_array_equal, joined, data.sample(alone(step), key, 8))
        for part in parts:
            part.__exit__()


def test_a_window_is_read_ahead_and_none_after_the_last(whole):
    placed = []
    with windows(whole, updates=1, place=lambda window: placed.append(window) or window) as dealt:
        dealt(0)
    assert len(placed) == 1
    with windows(whole, place=lambda window: placed.append(window) or window) as dealt:
        dealt(0)
        dealt._reader.submit(lambda: None).result()
        assert len(placed) == 3
        dealt(dealt.updates)
        dealt._reader.submit(lambda: None).result()
        assert len(placed) == 4


def test_what_goes_wrong_in_reading_is_raised(whole):
    def broken(window):
        raise OSError("the disk is gone")

    with windows(whole, place=broken) as dealt, pytest.raises(OSError, match="the disk is gone"):
        dealt(0)


def test_settings_that_cannot_be(whole):
    with pytest.raises(ConfigError, match=r"data.window: expected a positive number, found 0.0"):
        DataConfig("toy/ring", window=0.0)
    with pytest.raises(ConfigError, match=r"data.shards: expected a multiple of the 2 processes, found 3"):
        windows(whole, shards=3, processes=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("placement")
    toy.write(directory / "data.h5")
    return directory


def test_where_data_lie_changes_no_bit(place):
    runs = [
        Run(place / placement, f"--config.data.placement={placement}", updates=100).go()
        for placement in ("device", "host")
    ]
    assert [run.codes for run in runs] == [[0], [0]], runs[1].err
    assert runs[0].same_end_as(runs[1])
    assert "windows of the data: 1 per epoch" in runs[1].out[0]


def test_learning_from_windows_is_resumed_to_the_bit(place):
    more = ["--config.data.placement=host", "--config.data.window=.0006"]
    whole = Run(place / "whole", *more, updates=100).go()
    assert whole.codes == [0], whole.err
    assert "windows of the data: 3 per epoch, each for 10 updates" in whole.out[0]
    parts = Run(place / "parts", *more, updates=100)
    parts.go("signal=train:0")
    assert parts.codes == [75], parts.err
    parts.go()
    assert parts.resumed_at > 0 and parts.same_end_as(whole)


def test_a_process_that_does_not_see_what_another_collected_says_so(monkeypatch):
    config = ExperimentConfig("toy", omcda_jax.BcConfig(), DataConfig("smax/toy"), LearnerConfig(updates=100))
    monkeypatch.setattr(data, "ensure", lambda *arguments, **options: "elsewhere.h5")
    with pytest.raises(DatasetError, match=r"elsewhere.h5: expected the dataset that the first process collected"):
        datasets.ready(Job([config], "run"), toy.environment(), None, begins=True)


def test_data_larger_than_the_device_are_refused_before_they_are_read(place, monkeypatch):
    monkeypatch.setattr(datasets, "free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"data.placement: .*found 0.0 MB.* --config.data.placement=host keeps them"):
        datasets.require_room(str(place / "data.h5"), "device")
    datasets.require_room(str(place / "data.h5"), "host")


@pytest.mark.parametrize("placement", ["device", "host"])
def test_foreign_data_larger_than_the_memory_are_refused_wherever_they_are_placed(tmp_path, monkeypatch, placement):
    formats.write(tmp_path / "vault", "vault", toy.SPEC, toy.episodes(), {})
    monkeypatch.setattr(datasets, "free_bytes", lambda device: 1000)
    words = rf"data.placement: expected data that the {placement} has room for, .* omcda-jax data convert, on a larger"
    with pytest.raises(ConfigError, match=words):
        datasets.require_room(str(tmp_path / "vault"), placement)
