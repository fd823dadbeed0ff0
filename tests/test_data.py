import os
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omcda_jax import data
from omcda_jax.config import DataConfig, LearnerConfig
from omcda_jax.data import hdf5
from omcda_jax.data.episodes import Episodes
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

SPEC = EnvSpec(num_agents=2, obs_dim=3, state_dim=2, action_dim=4, discrete=True)
METADATA = {
    "environment": "toy/ring",
    "quality": "medium",
    "max_return": None,
    "seed": 3,
    "temperature": 0.5,
    "won_only": False,
    "weights": {"medium": "abc"},
    "versions": {"jax": "1.2.3"},
}


def make_episodes(lengths=(2, 3), terminated=(True, False), seed=0):
    rng = np.random.default_rng(seed)
    total = sum(lengths) + len(lengths)
    final = np.cumsum(np.array(lengths) + 1) - 1
    avail = rng.random((total, 2, 4)) < 0.5
    action = rng.integers(0, 4, (total, 2)).astype(np.int32)
    np.put_along_axis(avail, action[..., None], True, axis=-1)
    action[final] = 0
    reward = np.arange(1, total + 1, dtype=np.float32)
    reward[final] = 0
    return Episodes(
        obs=rng.normal(size=(total, 2, 3)).astype(np.float32),
        global_state=rng.normal(size=(total, 2)).astype(np.float32),
        avail=avail,
        action=action,
        reward=reward,
        length=np.array(lengths, np.int32),
        terminated=np.array(terminated),
        won=np.array(terminated),
    )


def changed(episodes, key, index, value):
    array = getattr(episodes, key).copy()
    array[index] = value
    return episodes._replace(**{key: array})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.h5"
    data.write(path, SPEC, make_episodes(), METADATA)
    return path


def test_bookkeeping_of_two_episodes():
    dataset = data.from_arrays(SPEC, make_episodes(), reward_scale=10.0)
    # rows 0-1 and 3-5 are steps, rows 2 and 6 are final; only the first episode ended by itself, with row 1
    np.testing.assert_array_equal(dataset.rows, [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(dataset.first, [True, False, False, True, False, False, False])
    np.testing.assert_array_equal(dataset.discount, [1, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(dataset.reward, [10, 20, 0, 40, 50, 60, 0])
    assert dataset.rows.dtype == jnp.int32 and dataset.action.dtype == jnp.int32


def test_returns_to_go_are_sums_to_the_end_and_unknown_near_a_time_limit():
    dataset = data.returns_to_go(data.from_arrays(SPEC, make_episodes()), [0.5, 0.1, 1.0])
    unknown = np.nan
    # the second episode, rewards 4, 5, 6, is cut by the time limit: 0.1^3 and 0.1^2 are within 5 %, 0.1 and 0.5^3 not
    expected = [
        [1 + 0.5 * 2, 2, 0, unknown, unknown, unknown, 0],
        [1 + 0.1 * 2, 2, 0, 4 + 0.5 + 0.06, 5 + 0.6, unknown, 0],
        [1 + 2, 2, 0, unknown, unknown, unknown, 0],
    ]
    np.testing.assert_allclose(dataset.return_to_go.T, expected, rtol=1e-6)
    for gamma, column in ((0.5, 0), (0.1, 1), (1.0, 2), (None, 0)):
        batch = data.gather(dataset, dataset.rows, gamma)
        np.testing.assert_array_equal(batch.return_to_go, dataset.return_to_go[dataset.rows, column])
    assert np.isnan(data.gather(dataset, dataset.rows, 0.9).return_to_go).all(), "they are of other factors"
    assert data.gather(data.from_arrays(SPEC, make_episodes()), dataset.rows).return_to_go is None
    assert data.max_return_to_go(dataset, 1.0) == 3, "of the episode that was not cut"
    assert data.max_return_to_go(dataset, 0.1) == pytest.approx(5.6)


def test_trials_of_several_discount_factors_draw_their_own_returns():
    dataset = data.returns_to_go(data.from_arrays(SPEC, make_episodes()), [0.1, 0.9])
    draw = lambda gamma: data.sample(dataset, jax.random.key(0), 16, gamma=gamma).return_to_go
    found = jax.vmap(draw)(jnp.float32([0.9, 0.1]))
    np.testing.assert_array_equal(found[0], draw(0.9))
    np.testing.assert_array_equal(found[1], draw(0.1))
    assert not np.array_equal(found[0], found[1], equal_nan=True)


def test_arrays_in_memory_stay_the_caller_s():
    episodes = make_episodes()
    mine = data.dataset.aligned(episodes.obs.shape, np.float32)
    mine[:] = episodes.obs
    dataset = data.from_arrays(SPEC, episodes._replace(obs=mine))
    mine[:] = 0
    np.testing.assert_array_equal(dataset.obs, episodes.obs)


def test_gather_reads_each_row_and_its_successor():
    episodes = make_episodes()
    batch = data.gather(data.from_arrays(SPEC, episodes), jnp.array([1, 5, 3]))
    for b, row in enumerate([1, 5, 3]):
        for key in ("obs", "global_state", "avail", "action"):
            np.testing.assert_array_equal(getattr(batch, key)[b], getattr(episodes, key)[row])
            np.testing.assert_array_equal(getattr(batch, f"next_{key}")[b], getattr(episodes, key)[row + 1])
    np.testing.assert_array_equal(batch.reward, [2, 6, 4])
    np.testing.assert_array_equal(batch.discount, [0, 1, 1])
    np.testing.assert_array_equal(batch.first, [False, False, True])
    assert not batch.next_action[:2].any()


def test_sampling_is_uniform_over_the_rows_with_a_successor():
    lengths = (3, 1, 4, 2)
    dataset = data.from_arrays(SPEC, make_episodes(lengths, (True,) * 4))
    # each reward is its row number plus one, so a batch tells which rows were drawn
    batch = jax.jit(data.sample, static_argnums=2)(dataset, jax.random.key(0), 20_000)
    drawn, counts = np.unique(np.asarray(batch.reward).astype(int) - 1, return_counts=True)
    np.testing.assert_array_equal(drawn, dataset.rows)
    # 2000 expected of each, standard deviation 42
    assert abs(counts - 2000).max() < 5 * 42


def test_sampling_vmaps_and_depends_on_the_key_only():
    dataset = data.from_arrays(SPEC, make_episodes((50,), (True,)))
    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.vmap(lambda key: data.sample(dataset, key, 8))(keys)
    for k in range(3):
        alone = data.sample(dataset, keys[k], 8)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf, k=k: leaf[k], many), alone)
    assert not np.array_equal(many.reward[0], many.reward[1])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shards_give_every_batch_row_its_own_stretch_whoever_holds_it(processes):
    whole = data.from_arrays(SPEC, make_episodes((2, 3, 1, 4), (True, False, True, False)))
    rows = np.array_split(np.asarray(whole.rows), [2, 5, 7])  # 10 transitions in quarters, rounded down
    parts = [data.shard(whole, 4, process, processes) for process in range(processes)]
    drawn = [[], [], [], []]
    for step in range(60):
        key = jax.random.fold_in(jax.random.key(1), step)
        found = [data.sample(part, key, 8, process, processes) for process, part in enumerate(parts)]
        batch = jax.tree.map(lambda *values: np.concatenate(values), *found)
        for quarter in range(4):
            drawn[quarter].extend(batch.obs[2 * quarter : 2 * quarter + 2])
        expected = data.sample(data.shard(whole, 4, 0, 1), key, 8)
        for leaf, other in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(leaf, other)
    for quarter, own in enumerate(rows):
        seen = {value.tobytes() for value in drawn[quarter]}
        assert seen == {np.asarray(whole.obs[row]).tobytes() for row in own}


def test_shards_hold_their_share_only_and_read_across_their_edges_rightly():
    whole = data.from_arrays(SPEC, make_episodes((50,) * 4, (True,) * 4))
    for process in range(4):
        part = data.shard(whole, 4, process, 4)
        assert part.obs.shape[0] <= 53
        own = np.asarray(whole.rows)[50 * process : 50 * process + 50]
        for leaf, other in zip(
            jax.tree.leaves(data.gather(part, part.rows)), jax.tree.leaves(data.gather(whole, own)), strict=True
        ):
            np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize(
    ("shards", "processes", "message"),
    [(3, 2, "a multiple of the 2 processes, found 3"), (6, 1, "at most 5, the number of transitions, found 6")],
)
def test_shards_that_do_not_fit_are_refused(shards, processes, message):
    with pytest.raises(ConfigError, match=f"data.shards: expected {message}"):
        data.shard(data.from_arrays(SPEC, make_episodes()), shards, 0, processes)


def test_one_step_episode():
    dataset = data.from_arrays(SPEC, make_episodes((1,), (True,)))
    np.testing.assert_array_equal(dataset.rows, [0])
    assert data.sample(dataset, jax.random.key(0), 4).discount.sum() == 0


def test_max_return_to_go_stops_at_episode_ends():
    dataset = data.from_arrays(SPEC, make_episodes(terminated=(True, True)), reward_scale=2.0)
    # rewards 1 2 | 4 5 6, doubled: the best row is the fourth, 8 + 10 + 12 or 8 + 5 + 3 at discount 1/2
    assert data.max_return_to_go(dataset, 1.0) == 30
    assert data.max_return_to_go(dataset, 0.5) == 16
    worse = data.from_arrays(SPEC, make_episodes(), reward_scale=-1.0)
    # the least bad is row 0 at discount 0
    assert data.max_return_to_go(worse, 0.0) == -1
    cut = data.from_arrays(SPEC, make_episodes(terminated=(False, False)))
    assert jnp.isnan(data.max_return_to_go(cut, 0.9))
    # nine good episodes are cut, and a bad one is not: its return bounds nothing
    ended = [*[False] * 9, True]
    mostly_cut = data.from_arrays(SPEC, make_episodes(lengths=(*[20] * 9, 2), terminated=ended))
    assert jnp.isnan(data.max_return_to_go(mostly_cut, 0.99))


@pytest.mark.parametrize("scale", [0.0, float("inf")])
def test_a_scale_that_leaves_no_reward_is_refused(scale):
    with pytest.raises(ConfigError, match=f"reward_scale: expected a finite number other than 0, found {scale}"):
        data.from_arrays(SPEC, make_episodes(), reward_scale=scale)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e39, "a finite number other than 0, found 1e\\+39"),
        (1e-60, "a finite number other than 0, found 1e-60"),
        (10.0, "one that leaves rewards finite, found 10.0"),
    ],
)
def test_a_scale_is_judged_as_the_rewards_are_kept(scale, message):
    episodes = make_episodes()
    episodes.reward[0] = 1e38
    with pytest.raises(ConfigError, match=f"reward_scale: expected {message}"):
        data.from_arrays(SPEC, episodes, reward_scale=scale)


def test_statistics_by_hand():
    # returns 3 and 15: mean 9, squared deviations 36 + 36 over 1
    assert data.statistics(make_episodes()) == {
        "episodes": 2,
        "transitions": 5,
        "return_mean": 9.0,
        "return_sd": 72**0.5,
        "return_min": 3.0,
        "return_max": 15.0,
        "win_rate": 0.5,
        "terminated_rate": 0.5,
        "length_mean": 2.5,
        "length_min": 2,
        "length_max": 3,
    }


def test_a_normaliser_brings_features_to_unit_scale_and_drops_constant_ones():
    episodes = make_episodes(lengths=(40, 30), terminated=(False, True))
    obs = 3.0 * episodes.obs + np.array([5.0, 0.0, -2.0], np.float32)
    obs[:, 1, 2] = 7.0
    obs[40], obs[71] = 1e6, -1e6  # final rows are not sampled and must not count
    dataset = data.from_arrays(SPEC, episodes._replace(obs=obs))
    scale = data.normaliser(dataset)
    batch = data.gather(dataset, dataset.rows)
    scaled = np.asarray((batch.obs - scale.obs_shift) * scale.obs_factor)
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-5)
    expected = np.ones((2, 3))
    expected[1, 2] = 0.0
    np.testing.assert_allclose(scaled.std(axis=0), expected, atol=1e-5)
    state = np.asarray((batch.global_state - scale.global_state_shift) * scale.global_state_factor)
    np.testing.assert_allclose((state.mean(axis=0), state.std(axis=0)), ([0, 0], [1, 1]), atol=1e-5)


def test_continuous_actions():
    spec = EnvSpec(num_agents=2, obs_dim=3, state_dim=2, action_dim=4, discrete=False)
    episodes = make_episodes()
    action = np.linspace(-1, 1, 7 * 2 * 4, dtype=np.float32).reshape(7, 2, 4)
    action[[2, 6]] = 0
    episodes = episodes._replace(action=action, avail=np.ones((7, 2, 4), bool))
    assert data.from_arrays(spec, episodes).action.shape == (7, 2, 4)
    with pytest.raises(DatasetError, match=r"action: expected -1..1, found .*row 3"):
        data.from_arrays(spec, changed(episodes, "action", (3, 0, 0), 1.5))


BAD = {
    "nan": ("obs", (4, 1, 2), np.nan, r"obs: expected finite numbers, found nan or inf in row 4"),
    "inf": ("reward", 3, -np.inf, r"reward: expected finite numbers, found nan or inf in row 3"),
    "action too large": ("action", (3, 1), 4, r"action: expected 0\.\.3, found 0\.\.4 \(row 3\)"),
    "action negative": ("action", (5, 0), -1, r"action: expected 0\.\.3, found -1\.\.\d \(row 5\)"),
    "nothing legal": ("avail", (1, 0), False, r"avail: expected a legal action, found none for agent 0 in row 1"),
    "final reward": ("reward", 2, 1.0, r"reward: expected zeros on each episode's final row"),
    "final action": ("action", (6, 0), 1, r"action: expected zeros on each episode's final row"),
    "episode without steps": ("length", 1, 0, r"length: expected at least 1 step, found 0 in episode 1"),
    "lengths do not add up": ("length", 0, 3, r"obs: expected 8 rows \(length \+ 1 per episode\), found 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_named(case):
    key, index, value, message = BAD[case]
    with pytest.raises(DatasetError, match=f"^here: {message}"):
        data.from_arrays(SPEC, changed(make_episodes(), key, index, value), source="here")


def test_illegal_action_is_named():
    episodes = make_episodes()
    action = int(episodes.action[4, 1])
    avail = episodes.avail.copy()
    avail[4, 1] = True
    avail[4, 1, action] = False
    with pytest.raises(DatasetError, match=f"expected a legal action, found {action} of agent 1 in row 4"):
        data.from_arrays(SPEC, episodes._replace(avail=avail))


@pytest.mark.parametrize("key", Episodes._fields)
def test_wrong_types_are_named(key):
    episodes = make_episodes()
    wrong = episodes._replace(**{key: getattr(episodes, key).astype(np.float64)})
    with pytest.raises(DatasetError, match=f"{key}: expected .*, found float64"):
        data.from_arrays(SPEC, wrong)


def test_wrong_shape_is_named():
    episodes = make_episodes()
    with pytest.raises(DatasetError, match=r"obs: expected shape \(7, 2, 3\), found \(7, 2, 2\)"):
        data.from_arrays(SPEC, episodes._replace(obs=episodes.obs[..., :2]))


def test_empty_is_refused():
    none = Episodes(*(field[:0] for field in make_episodes()))
    with pytest.raises(DatasetError, match="length: expected at least one episode, found none"):
        data.from_arrays(SPEC, none)


def test_round_trip_is_exact(file):
    spec, episodes, metadata = data.read(file, spec=SPEC, environment="toy/ring")
    assert spec == SPEC
    for key, value in make_episodes()._asdict().items():
        found = getattr(episodes, key)
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
    assert metadata["statistics"] == data.statistics(make_episodes())
    for key in ("environment", "quality", "seed", "temperature", "won_only", "weights", "versions"):
        assert metadata[key] == METADATA[key]
    assert "max_return" not in metadata
    assert data.read_metadata(file) == metadata


def test_load_scales_rewards_and_nothing_else(file):
    dataset, metadata = data.load(file, reward_scale=10.0)
    np.testing.assert_array_equal(dataset.reward, 10 * make_episodes().reward)
    np.testing.assert_array_equal(dataset.obs, make_episodes().obs)
    assert metadata["statistics"]["return_mean"] == 9.0
    assert data.memory_bytes(dataset) == sum(leaf.nbytes for leaf in jax.tree.leaves(dataset)) > 0


def test_files_are_compressed_and_checksummed(file):
    with h5py.File(file) as opened:
        for key in hdf5.KEYS:
            assert opened[key].fletcher32 and opened[key].compression == "gzip" and opened[key].shuffle


def test_invalid_episodes_are_not_written(tmp_path):
    path = tmp_path / "new.h5"
    with pytest.raises(DatasetError, match=r"new\.h5: obs: expected finite"):
        data.write(path, SPEC, changed(make_episodes(), "obs", 0, np.nan), METADATA)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_what_was_there(file, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DatasetError, match=r"data\.h5: could not write \d+ bytes: .*No space left"):
        data.write(file, SPEC, make_episodes(seed=1), METADATA)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def one_line(error, path):
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 400
    return text


def test_missing_file_and_folder(tmp_path):
    path = tmp_path / "none.h5"
    with pytest.raises(DatasetError) as error:
        data.read(path)
    assert "expected a dataset file, found nothing there" in one_line(error, path)
    with pytest.raises(DatasetError) as error:
        data.read(tmp_path)
    assert "found a folder" in one_line(error, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>404</title>", "a web page?"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; fetch"),
        (b"", "an empty file"),
        (b"\x89HDF\r\n\x1a\n", "expected an intact HDF5 file"),
    ],
)
def test_not_hdf5(tmp_path, content, message):
    path = tmp_path / "page.h5"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as error:
        data.read(path)
    assert message in one_line(error, path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DatasetError) as error:
        data.read(file)
    one_line(error, file)


def edit(path, change):
    with h5py.File(path, "r+") as opened:
        change(opened)


def replaced(opened, key, value):
    del opened[key]
    opened[key] = value


def shrink_agents(opened):
    opened.attrs["spec.num_agents"] = 3


EDITS = {
    "missing key": (lambda f: f.pop("avail"), "avail: missing; expected obs, state, avail"),
    "other layout": (lambda f: f.attrs.pop("format"), "format: expected 'omcda-jax-dataset', found None (keys: action"),
    "other version": (lambda f: f.attrs.update(format_version=2), "format_version: expected 1, found 2"),
    "wrong type": (
        lambda f: replaced(f, "obs", f["obs"][()].astype(np.float64)),
        "obs: expected float32, found float64",
    ),
    "group": (lambda f: (f.pop("obs"), f.create_group("obs")), "obs: expected an array with rows, found a group"),
    "scalar": (lambda f: replaced(f, "won", True), "won: expected an array with rows"),
    "spec missing": (lambda f: f.attrs.pop("spec.obs_dim"), "spec.obs_dim: expected int, found None"),
    "wrong agents": (shrink_agents, "obs: expected shape (7, 3, 3), found (7, 2, 3)"),
    "nan": (lambda f: f["obs"].write_direct(np.full((7, 2, 3), np.nan, np.float32)), "obs: expected finite numbers"),
    "changed value": (lambda f: f["state"].__setitem__((3, 1), 0.5), "digest: damaged or edited"),
    "no digest": (lambda f: f.attrs.pop("digest"), "digest: damaged or edited"),
    "changed attribute": (lambda f: f.attrs.update(seed=4), "digest: damaged or edited"),
    "empty": (lambda f: [replaced(f, key, f[key][:0]) for key in hdf5.KEYS], "expected at least one episode"),
}


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("case", EDITS)
def test_edited_files_are_refused(file, case, placement):
    change, message = EDITS[case]
    edit(file, change)
    with pytest.raises(DatasetError) as error:
        data.load(file, placement=placement)
    assert message in one_line(error, file)
    assert os.listdir(file.parent) == [file.name]


def test_mapped_arrays_are_the_file_s(file):
    assert data.stored_bytes(file) == sum(value.nbytes for value in make_episodes())
    spec, episodes, metadata = data.read(file)
    for _ in range(2):
        found = hdf5.mapped(file)
        assert (found[0], found[2]) == (spec, metadata)
        for key, value in found[1]._asdict().items():
            assert isinstance(value, np.memmap) and not value.flags.writeable
            np.testing.assert_array_equal(value, getattr(episodes, key))
    assert sorted(os.listdir(file.parent)) == [file.name, f"{file.name}.rows"]


def test_rows_of_another_file_or_cut_short_are_unpacked_again(file):
    hdf5.mapped(file)
    rows = Path(f"{file}.rows")
    (rows / "obs.npy").write_bytes((rows / "obs.npy").read_bytes()[:-8])
    np.testing.assert_array_equal(hdf5.mapped(file)[1].obs, make_episodes().obs)
    (rows / "state.npy").write_bytes(b"")
    np.testing.assert_array_equal(hdf5.mapped(file)[1].global_state, make_episodes().global_state)
    assert rows.stat().st_mode & 0o777 == 0o777 & ~_umask()
    data.write(file, SPEC, make_episodes(seed=1), METADATA)
    np.testing.assert_array_equal(hdf5.mapped(file)[1].obs, make_episodes(seed=1).obs)


@pytest.mark.parametrize("name", ["notes.txt", ".git"])
def test_a_folder_of_the_user_s_under_the_name_of_the_rows_is_left_alone(file, name):
    rows = Path(f"{file}.rows")
    rows.mkdir()
    (rows / name).write_text("mine")
    with pytest.raises(DatasetError, match=r"\.rows: could not write the unpacked rows: Directory not empty"):
        hdf5.mapped(file)
    assert (rows / name).read_text() == "mine"
    assert sorted(os.listdir(file.parent)) == [file.name, rows.name]


def _umask():
    found = os.umask(0)
    os.umask(found)
    return found


def test_a_full_disk_leaves_no_half_unpacked_rows(file, monkeypatch):
    def full(*unused):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(DatasetError, match=r"data.h5.rows: could not write the unpacked rows: No space left on device"):
        hdf5.mapped(file)
    assert os.listdir(file.parent) == [file.name]


def test_mismatch_with_what_is_expected(file):
    with pytest.raises(DatasetError) as error:
        data.read(file, environment="toy/line")
    assert "environment: expected 'toy/line', found 'toy/ring'" in one_line(error, file)
    with pytest.raises(DatasetError) as error:
        data.read(file, spec=EnvSpec(2, 3, 2, 5, True))
    assert "state features, 5 discrete actions, found 2 agents, 3 observation" in one_line(error, file)


def test_flipped_bits_never_pass_for_the_original(file):
    content = file.read_bytes()
    _, good, metadata = data.read(file)
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, 8 * len(content), 200):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        try:
            _, episodes, found = data.read(file)
        except DatasetError:
            refused += 1
            continue
        # what is accepted must be bytes that mean nothing
        assert found == metadata
        for key, value in good._asdict().items():
            np.testing.assert_array_equal(getattr(episodes, key), value)
    assert refused > 20


def test_missing_h5py_names_the_install_line(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"pip install 'omcda-jax\[data\]'"):
        hdf5.read(file)


def test_importing_the_package_leaves_optional_packages_out():
    code = "import sys, omcda_jax.data; sys.exit(str({'h5py', 'jaxmarl', 'matplotlib'} & set(sys.modules)))"
    root = Path(__file__).parent.parent
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert found.stderr.strip() == "set()"


@pytest.mark.quick
@pytest.mark.parametrize("place", [lambda dataset: dataset, jax.device_put], ids=["host", "device"])
def test_a_cut_by_episodes_leaves_every_row_in_one_part(place):
    whole = place(data.from_arrays(SPEC, make_episodes(lengths=(2, 3, 1, 4, 2), terminated=(True,) * 5)))
    starts = np.array([0, 3, 7, 9, 14])
    first, second = data.split(whole, 0.4, seed=1)
    parts = [np.asarray(part.rows) for part in (first, second)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), whole.rows)
    episodes = [set(np.searchsorted(starts, rows, side="right") - 1) for rows in parts]
    assert [len(found) for found in episodes] == [3, 2] and not episodes[0] & episodes[1]
    np.testing.assert_array_equal(data.split(whole, 0.4, seed=1)[1].rows, parts[1])
    assert any(list(data.split(whole, 0.4, seed=seed)[1].rows) != list(parts[1]) for seed in range(2, 9))
    drawn = data.sample(jax.device_put(second), jax.random.key(0), 64)
    allowed = np.asarray(whole.reward)[parts[1]]
    assert set(np.asarray(drawn.reward)) == set(allowed)


@pytest.mark.quick
def test_both_parts_of_a_cut_hold_an_episode_and_one_episode_cannot_be_cut():
    two = data.from_arrays(SPEC, make_episodes())
    for share in (0.01, 0.99):
        assert all(len(part.rows) for part in data.split(two, share))
    one = data.from_arrays(SPEC, make_episodes(lengths=(3,), terminated=(True,)))
    with pytest.raises(ConfigError, match="^data: expected at least 2 episodes to split in two, found 1$"):
        data.split(one, 0.5)


def test_windows_of_a_part_hold_nothing_of_the_other():
    whole = data.from_arrays(SPEC, make_episodes(lengths=(2,) * 40, terminated=(True,) * 40))
    part, _ = data.split(whole, 0.3)
    settings = DataConfig("toy/ring", placement="host", window=data.memory_bytes(whole) / 4e6)
    learner = LearnerConfig(60, batch_size=4, updates_per_call=2, log_every=2, checkpoint_every=2, evaluate_every=0)
    allowed, seen = set(np.asarray(whole.reward)[part.rows]), set()
    with data.Windows(part, settings, learner) as windows:
        assert windows.count > 2
        for step in range(0, 60, 2):
            seen |= set(np.asarray(data.sample(windows(step), jax.random.key(step), 4).reward))
    assert seen <= allowed and len(seen) > len(allowed) / 2
