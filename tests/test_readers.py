"""Users' files: one file per kind of fault and format, each read correctly or refused in one plain line."""

import json
import os
import pickle
import sys
import warnings
import zipfile

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from test_formats import CONTINUOUS, DISCRETE, make_episodes, write_cfcql, write_omar, write_omiga

from benchmarks import fuzz, layouts, mutations
from omcda_jax import data
from omcda_jax.config import Repairs
from omcda_jax.data import formats, guess
from omcda_jax.data.__main__ import main
from omcda_jax.data.formats import rows
from omcda_jax.types import ConfigError, DatasetError, EnvSpec


def verify(path, capsys, *flags):
    """The command's status and its lines on stdout and stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = main(["data", "verify", str(path), *flags])
    assert not caught
    out, err = capsys.readouterr()
    assert not fuzz._REPR.search(out + err)
    return status, out, err.strip()


def refused(path, capsys, *flags):
    """The one line that refuses a file."""
    status, _, err = verify(path, capsys, *flags)
    assert status == 78 and err.startswith("error: ") and "\n" not in err
    return err


def written(name, path, change=lambda arrays: None, seed=0):
    """A valid file of a layout, changed; returns its arrays."""
    layout = layouts.LAYOUTS[name]
    arrays = layout.draw(np.random.default_rng(seed))
    change(arrays)
    layout.write(path, arrays)
    return arrays


# ends


def vault_of(path, ended, cut):
    """A vault with these flags [T, N]; rewards count the rows."""
    rows_, agents = np.shape(ended)
    arrays = {
        "observations": np.arange(rows_ * agents * 2, dtype=np.float32).reshape(1, rows_, agents, 2),
        "actions": np.zeros((1, rows_, agents), np.int32),
        "rewards": np.repeat(np.arange(rows_, dtype=np.float32)[None, :, None], agents, axis=2),
        "terminals": np.asarray(ended, bool)[None],
        "truncations": np.asarray(cut, bool)[None],
        "infos.legals": np.ones((1, rows_, agents, 3), bool),
    }
    layouts.write_vault(path, arrays)


def test_agents_that_end_differently_at_one_step_end_the_episode_there(tmp_path, capsys):
    # six episodes of five steps; in the second and the fifth the time limit cuts all agents but one, which terminates
    ended, cut = np.zeros((30, 3), bool), np.zeros((30, 3), bool)
    ended[4::5] = True
    ended[[9, 24], 1:], cut[[9, 24], 1:] = False, True
    vault_of(tmp_path / "vault", ended, cut)
    found = formats.read(tmp_path / "vault")
    np.testing.assert_array_equal(found.episodes.terminated, [True, False, True, True, False, True])
    # the observation after the last step of these two is not stored, so that step only ends them
    np.testing.assert_array_equal(found.episodes.length, [5, 4, 5, 5, 4, 5])
    np.testing.assert_array_equal(found.episodes.reward[:11], [0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 0])
    assert "2 episodes end by the task for some agents, by the time limit for others: they count as cut" in found.notes


def test_only_such_ends_make_cut_episodes_and_a_note(tmp_path, capsys):
    ended, cut = np.zeros((20, 3), bool), np.zeros((20, 3), bool)
    ended[4::5, 0], cut[4::5, 1:] = True, True
    vault_of(tmp_path / "vault", ended, cut)
    status, out, _ = verify(tmp_path / "vault", capsys)
    assert status == 0 and "note: " in out and "4 episodes were cut by the time limit" in out
    episodes = formats.read(tmp_path / "vault").episodes
    assert len(episodes.length) == 4 and not episodes.terminated.any()


@pytest.mark.parametrize("repeated", [True, False], ids=["flag repeated", "flag once"])
def test_agents_that_end_at_different_steps_wait_for_the_last(tmp_path, repeated):
    ended, cut = np.zeros((6, 2), bool), np.zeros((6, 2), bool)
    ended[1 : 5 if repeated else 2, 0], ended[4, 1], ended[5] = True, True, True
    vault_of(tmp_path / "vault", ended, cut)
    found = formats.read(tmp_path / "vault").episodes
    np.testing.assert_array_equal(found.length, [5, 1])
    assert found.terminated.all()


def test_terminal_and_cut_at_once_is_an_end(tmp_path):
    ended = np.ones((1, 2), bool)
    last, terminated, _ = rows.ends(ended, ended)
    assert list(last) == [0] and terminated.all()


def test_sticky_ends_equal_a_loop(random):
    for _ in range(50):
        shape = (random.integers(1, 20), 3)
        ended, cut = (random.random(shape) < 0.15 for _ in range(2))
        closed = random.random(len(ended)) < 0.1
        expected, state = [], [set(), set()]
        for t in range(len(ended)):
            state[0] |= set(np.flatnonzero(ended[t]))
            state[1] |= set(np.flatnonzero(cut[t]))
            if len(state[0] | state[1]) == 3 or closed[t]:
                expected.append((t, len(state[0]) == 3))
                state = [set(), set()]
        last, terminated, _ = rows.ends(ended, cut, closed)
        assert list(zip(last, terminated, strict=True)) == expected


def test_ends_of_each_agent_in_pymarls_layout(tmp_path):
    def change(arrays):
        arrays["terminated"] = np.zeros((2, 6, 3), np.int64)
        arrays["terminated"][0, [1, 3, 2], [0, 1, 2]] = 1  # all are over at step 3
        arrays["terminated"][1, 1, 0] = 1  # the others never are
        arrays["filled"] = np.ones((2, 6, 1), np.int64)
        arrays["filled"][0, 5:] = 0
        for key in ("state", "obs", "actions", "avail_actions", "reward"):
            arrays[key] = arrays[key][:2, :6]

    written("cfcql", tmp_path / "map.h5", change)
    found = formats.read(tmp_path / "map.h5")
    np.testing.assert_array_equal(found.episodes.length, [4, 5])
    np.testing.assert_array_equal(found.episodes.terminated, [True, False])
    assert "1 episodes end for some agents only: they count as cut by the time limit" in found.notes


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda a: a["filled"].__setitem__((1, slice(None)), 1), "fill rows beyond the one after their end"),
        (lambda a: a["terminated"].__setitem__((0, 6), 1), "only in rows that are not filled"),
    ],
)
def test_padding_that_contradicts_the_end_is_told_of(tmp_path, change, note):
    written("cfcql", tmp_path / "map.h5", change, seed=4)
    assert any(note in line for line in formats.read(tmp_path / "map.h5").notes)


def test_a_time_limit_in_a_layout_without_final_observations_takes_the_last_step(tmp_path):
    ended = np.zeros((9, 2), bool)
    ended[[2, 5, 6, 8]] = True  # of 3, 3, 1 and 2 steps
    vault_of(tmp_path / "vault", ended, np.zeros_like(ended))
    contents = formats.read(tmp_path / "vault", repairs=Repairs(time_limit=3))
    found = contents.episodes
    assert any(note.startswith("2 episodes count as cut by time_limit; what followed") for note in contents.notes)
    np.testing.assert_array_equal(found.length, [2, 2, 1, 2])
    np.testing.assert_array_equal(found.terminated, [False, False, True, True])
    np.testing.assert_array_equal(found.reward, [0, 1, 0, 3, 4, 0, 6, 0, 7, 8, 0])
    # the final observation is the one before the dropped step
    assert found.obs[2, 0, 0] == 2 * 2 * 2 and found.obs[5, 0, 0] == 5 * 2 * 2
    with pytest.raises(ConfigError, match="expected at least 3, the longest episode, found 2"):
        formats.read(tmp_path / "vault", repairs=Repairs(time_limit=2))


# rewards


def test_rewards_of_each_agent_in_pymarls_layout_need_a_rule(tmp_path, capsys):
    reward = np.zeros((1, 7, 3))
    reward[0, 0] = [-1.32945, 0.416661, -0.29548]

    def change(arrays):
        for key in arrays:
            arrays[key] = arrays[key][1:2]
        arrays["reward"] = reward

    path = tmp_path / "map.h5"
    written("cfcql", path, change)
    assert "team_reward=mean or team_reward=sum" in refused(path, capsys)
    for rule, expected in (("sum", -1.208), ("mean", -0.403)):
        assert verify(path, capsys, f"--team_reward={rule}")[0] == 0
        first = formats.read(path, repairs=Repairs(team_reward=rule)).episodes.reward[0]
        assert first == pytest.approx(expected, abs=1e-3)


def test_a_number_too_large_for_float32_is_named_with_its_place(tmp_path, capsys):
    def change(arrays):
        arrays["reward"] = arrays["reward"].astype(np.float64)
        arrays["reward"][0, 0] = 1.0e39

    written("cfcql", tmp_path / "map.h5", change)
    err = refused(tmp_path / "map.h5", capsys)
    assert "reward: expected numbers that fit in float32, found 1e+39 in episode 0, step 0, which is too large" in err


def test_a_sum_over_agents_that_float32_cannot_hold_is_refused(tmp_path, capsys):
    def change(arrays):
        arrays["rewards"] = np.full_like(arrays["rewards"], 3e38)
        arrays["rewards"][0, 0, 0] = 0

    written("vault", tmp_path / "vault", change)
    assert "reward, sum over agents" in refused(tmp_path / "vault", capsys, "--team_reward=sum")


# actions


def hot(key):
    def change(arrays):
        for name in [name for name in arrays if name.split("/")[-1] == key]:
            index = arrays[name][..., 0] if arrays[name].shape[-1:] == (1,) else arrays[name]
            arrays[name] = np.eye(layouts.ACTIONS, dtype=np.int64)[index]

    return change


def noisy(key):
    def change(arrays):
        name = next(name for name in arrays if name.split("/")[-1] == key)
        arrays[name] = arrays[name] + 0.25

    return change


DISCRETE_KEYS = {
    "cfcql": "actions",
    "cfcql, parts": "actions",
    "cfcql, .npy": "actions",
    "madiff": "actions",
    "vault": "actions",
    "vault, 3 lanes": "actions",
    "madt": "action",
    "minari": "actions",
}


@pytest.mark.parametrize("name", DISCRETE_KEYS)
def test_one_hot_actions_are_refused_by_shape(tmp_path, capsys, name):
    key = DISCRETE_KEYS[name]
    written(name, tmp_path / "data", hot(key))
    err = refused(tmp_path / "data", capsys)
    assert f"{key}: expected shape" in err and "4): one-hot? store the index" in err and "damaged" not in err


@pytest.mark.parametrize("name", DISCRETE_KEYS)
def test_real_numbers_are_no_indices(tmp_path, capsys, name):
    key = DISCRETE_KEYS[name]
    written(name, tmp_path / "data", noisy(key))
    err = refused(tmp_path / "data", capsys)
    assert f"{key}: expected whole numbers, the indices of actions, found" in err
    assert ".25 in " in err and "agent 0" in err


@pytest.mark.parametrize("name", ["omiga", "d4rl", "omar"])
def test_indices_as_floats_are_not_advised_to_be_scaled(tmp_path, capsys, name):
    def change(arrays):
        for key in arrays:
            if key in ("a", "actions") or key.startswith("acs"):
                arrays[key] = np.resize(np.array([0.0, 1.0, 3.0], np.float32), arrays[key].shape)

    written(name, tmp_path / "data", change)
    err = refused(tmp_path / "data", capsys)
    assert "indices of discrete actions? store them as integers" in err and "action_scale" not in err


@pytest.mark.parametrize("name", ["omiga", "d4rl", "omar"])
def test_one_hot_floats_are_no_continuous_actions(tmp_path, capsys, name):
    def change(arrays):
        for key in arrays:
            if key in ("a", "actions") or key.startswith("acs"):
                arrays[key] = np.eye(2, dtype=np.float32)[np.zeros(arrays[key].shape[:-1], int)]

    written(name, tmp_path / "data", change)
    assert "one-hot?" in refused(tmp_path / "data", capsys)


def test_whole_floats_are_indices_in_a_discrete_layout(tmp_path):
    def change(arrays):
        arrays["actions"] = arrays["actions"].astype(np.float64)

    arrays = written("cfcql", tmp_path / "map.h5", change)
    assert formats.read(tmp_path / "map.h5").episodes.action[0, 0] == arrays["actions"][0, 0, 0, 0]


def test_an_index_does_not_wrap_around(tmp_path, capsys):
    written("cfcql", tmp_path / "map.h5", lambda a: a["actions"].__setitem__((0, 0, 1), 2**32 + 1))
    err = refused(tmp_path / "map.h5", capsys)
    assert "actions: expected 0..3" in err and "found 4.29497e+09 in episode 0, step 0, agent 1" in err


# formats


@pytest.mark.parametrize("name", layouts.LAYOUTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_format_is_read_as_a_plain_second_reading_has_it(tmp_path, name, seed):
    layout = layouts.LAYOUTS[name]
    written(name, tmp_path / "data", seed=seed)
    outcome = fuzz.judge(tmp_path / "data", layout, harmless=True)
    assert outcome.kind == "read", outcome.text
    kind = name.split(",")[0]
    assert formats.sniff(tmp_path / "data") == kind
    assert data.stored_bytes(tmp_path / "data") > 0


def test_parts_are_joined_in_natural_order(tmp_path):
    episodes = make_episodes(DISCRETE)
    for number in (10, 2, 9):
        write_cfcql(
            tmp_path / f"part_{number}.h5",
            episodes._replace(reward=episodes.reward + number * (episodes.reward != 0)),
            6,
        )
    (tmp_path / "README.md").write_text("three parts")
    found = formats.read(tmp_path)
    assert found.notes[0] == "3 files read as one dataset: part_10.h5, part_2.h5, part_9.h5"
    assert found.notes[1].startswith("parts missing: 3, 4, 5, 6, 7, 8")
    np.testing.assert_allclose(found.episodes.reward[[0, 11, 22]], episodes.reward[0] + [2, 9, 10], rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (["run_20240101120000.h5", "run_20240201120000.h5"], 1),  # a range of all between would take the memory
        (["part_0.h5", "part_2.h5"], 2),
    ],
)
def test_only_numbers_near_each_other_have_gaps(tmp_path, names, notes):
    for name in names:
        write_cfcql(tmp_path / name, make_episodes(DISCRETE), 6)
    assert len(formats.read(tmp_path).notes) == notes


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, capsys, monkeypatch):
    write_cfcql(tmp_path / "data.h5", make_episodes(DISCRETE), 6)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "expected permission to read it, found none" in refused(tmp_path / "data.h5", capsys)


def test_parts_whose_numbers_are_equal_have_one_order(tmp_path):
    names = ["part_001.h5", "part_01.h5", "part_1.h5"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(path) for path in guess.parts(tmp_path)] == names


def test_what_is_refused_has_the_episode_and_step_of_its_file(tmp_path, capsys):
    episodes = make_episodes(DISCRETE)
    write_cfcql(tmp_path / "part_1.h5", episodes, 6)
    legal = episodes.avail.copy()
    legal[7, 1] = np.arange(5) != episodes.action[7, 1]  # rows 0-3, 4-5 and 6-10: the second step of the last episode
    write_cfcql(tmp_path / "part_2.h5", episodes._replace(avail=legal), 6)
    found = f"found {episodes.action[7, 1]} of agent 1 in episode 2, step 1 of part_2.h5"
    assert f"action: expected a legal action, {found}" in refused(tmp_path, capsys)


def test_agents_rewards_that_differ_have_the_episode_and_step(tmp_path, capsys):
    def change(arrays):
        arrays["reward"] = np.repeat(arrays["reward"], 3, axis=-1)
        arrays["reward"][1, 0, 2] += 1

    arrays = written("cfcql", tmp_path / "map.h5", change)
    assert arrays["filled"][1, 0, 0] == 1
    assert " in episode 1, step 0; team_reward=mean" in refused(tmp_path / "map.h5", capsys)


def test_a_stray_numbered_file_is_no_agent_of_omar(tmp_path):
    write_omar(tmp_path / "data", make_episodes(CONTINUOUS))
    np.save(tmp_path / "data" / "seed_7.npy", np.zeros(3))
    assert formats.read(tmp_path / "data").spec.num_agents == 2


def test_a_foreign_file_may_have_an_attribute_named_format(tmp_path):
    write_omiga(tmp_path / "data.hdf5", make_episodes(CONTINUOUS))
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        file.attrs["format"] = "d4rl"
    assert formats.sniff(tmp_path / "data.hdf5") == "omiga"


def test_a_vault_says_that_it_cannot_hold_padding_of_actions(tmp_path):
    episodes = make_episodes(CONTINUOUS, terminated=(True, True, True))
    episodes.avail[:, 1, 1] = False
    episodes.action[:, 1, 1] = 0
    lost = formats.write(tmp_path / "vault", "vault", CONTINUOUS, episodes, {})
    assert lost == ("which episodes were won", "which dimensions of the actions are padding")


def test_parts_of_other_sizes_formats_and_own_files_are_refused(tmp_path, capsys):
    write_cfcql(tmp_path / "part_0.h5", make_episodes(DISCRETE), 6)
    write_cfcql(tmp_path / "part_1.h5", make_episodes(EnvSpec(2, 4, 4, 5, True)), 6)
    assert "part_1.h5: obs: expected rows of shape (2, 3) and float32" in refused(tmp_path, capsys)
    write_omiga(tmp_path / "part_1.h5", make_episodes(CONTINUOUS))
    assert "part_1.h5: expected the format cfcql" in refused(tmp_path, capsys)
    data.write(tmp_path / "part_1.h5", DISCRETE, make_episodes(DISCRETE), {})
    assert "found the project's own format; name one: " in refused(tmp_path, capsys)


def test_one_agent_of_d4rl_trains_like_any_team(tmp_path):
    written("d4rl", tmp_path / "hopper.hdf5")
    dataset, metadata = data.load(tmp_path / "hopper.hdf5")
    assert dataset.spec == EnvSpec(1, layouts.OBS, layouts.OBS, 2, False) and metadata["format"] == "d4rl"


def test_d4rl_without_timeouts_says_what_it_cannot_tell(tmp_path):
    def change(arrays):
        del arrays["timeouts"]
        arrays.pop("next_observations", None)

    written("d4rl", tmp_path / "maze.hdf5", change)
    assert "an episode lasts until a terminal row" in formats.read(tmp_path / "maze.hdf5").notes[0]


def test_madiff_without_discounts_says_so_and_refuses_ends_inside(tmp_path, capsys):
    written("madiff", tmp_path / "a", lambda arrays: arrays.pop("discounts"))
    found = formats.read(tmp_path / "a")
    assert "no discounts: every episode counts as ended" in found.notes[0] and found.episodes.terminated.all()
    written("madiff", tmp_path / "b", lambda arrays: arrays["discounts"].__setitem__(0, 0))
    assert "discounts: expected the end of episode 0 on its last row" in refused(tmp_path / "b", capsys)
    written("madiff", tmp_path / "c", lambda arrays: arrays["path_lengths"].__setitem__(0, 99))
    assert "path_lengths: expected" in refused(tmp_path / "c", capsys)


def test_minari_as_its_own_library_writes_it(tmp_path, monkeypatch):
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    buffers = []
    for steps, ended in ((3, True), (4, False)):
        last = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                observations={"goal": rng.normal(size=(steps + 1, 2)), "at": rng.normal(size=(steps + 1, 1))},
                actions=rng.integers(5, 8, steps),
                rewards=rng.normal(size=steps),
                terminations=last & ended,
                truncations=last & (not ended),
            )
        )
    box = lambda size: gymnasium.spaces.Box(-9, 9, (size,), np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "toy/mixed-v0",
            buffers,
            observation_space=gymnasium.spaces.Dict({"goal": box(2), "at": box(1)}),
            action_space=gymnasium.spaces.Discrete(3, start=5),
        )
    found = formats.read(tmp_path / "toy" / "mixed-v0")
    assert found.format == "minari" and found.spec == EnvSpec(1, 3, 3, 3, True)
    np.testing.assert_array_equal(found.episodes.length, [3, 4])
    np.testing.assert_array_equal(found.episodes.terminated, [True, False])
    joined = np.concatenate([buffers[0].observations["at"], buffers[0].observations["goal"]], axis=1)
    np.testing.assert_array_equal(found.episodes.obs[:4, 0], joined.astype(np.float32))
    np.testing.assert_array_equal(found.episodes.action[:3, 0], buffers[0].actions - 5)
    assert formats.read(tmp_path / "toy" / "mixed-v0" / "data").metadata == found.metadata


def test_minari_is_asked_for_where_it_is_missing(tmp_path, capsys, monkeypatch):
    written("minari", tmp_path / "data")
    monkeypatch.setitem(sys.modules, "minari", None)
    assert "pip install 'omcda-jax[minari]'" in refused(tmp_path / "data", capsys)


# words


def folder(**files):
    def make(path):
        path.mkdir()
        for name, content in files.items():
            place = path / name.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    return make


def archive(content):
    def make(path):
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(content, b"x")

    return make


WORDS = {
    "npz": (lambda p: np.savez(p.open("wb"), obs=np.zeros(3), actions=np.zeros(3)), ".npz (actions, obs); unpack it"),
    "zip": (archive("notes.txt"), "a zip archive (notes.txt); unpack it"),
    "damaged zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(50)), "a damaged zip archive"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"obs": 1})), "a pickle, which is a program and is not run"),
    "npy": (lambda p: np.save(p.open("wb"), np.zeros(3)), "a single NumPy array; name the folder that it is in"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08\x00" + bytes(20)), "gzip-compressed data; unpack them"),
    "tar": (lambda p: p.write_bytes(bytes(257) + b"ustar" + bytes(250)), "a tar archive; unpack it"),
    "parquet": (lambda p: p.write_bytes(b"PAR1" + bytes(20)), "a Parquet table"),
    "page": (lambda p: p.write_bytes(b" <html>"), "a web page?"),
    "json": (lambda p: p.write_text('{"a": 1}'), "JSON that begins with '{\"a\": 1}'"),
    "text": (lambda p: p.write_text("obs,action\né"), "text that begins with 'obs,action é'"),
    "bytes": (lambda p: p.write_bytes(bytes(range(200, 256)) * 4), "binary data of no known kind"),
    "orbax": (
        folder(**{"manifest.ocdbt": b"x", "_METADATA": b"{}", "d__1": b"x"}),
        "a checkpoint that orbax wrote, not a dataset",
    ),
    "run": (folder(**{"config.json": b"{}", "metrics.jsonl": b""}), "the directory of a training run, not a dataset"),
    "metadata alone": (folder(**{"metadata.json": b'{"a": 1}'}), "found metadata.json"),
    "tfrecord": (folder(**{"log_0.tfrecord": b"x"}), "TFRecord files, OG-MARL's older format"),
    "npz folder": (folder(**{"0.npz": b"x"}), ".npz archives (0.npz); unpack one"),
    "above": (folder(seed_0__obs_0=b"", **{"seed_0__path_lengths.npy": b""}), "datasets below: seed_0; name one"),
}


@pytest.mark.parametrize("case", WORDS)
def test_what_cannot_be_read_is_called_what_it_most_likely_is(tmp_path, capsys, case):
    make, words = WORDS[case]
    make(tmp_path / "thing")
    err = refused(tmp_path / "thing", capsys)
    assert words in err and "vaults below" not in err


def test_an_orbax_step_is_no_vault(tmp_path, capsys):
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "step", {"a": np.zeros(3)})
    assert "a checkpoint that orbax wrote" in refused(tmp_path / "step", capsys)


def test_a_shape_is_shown_as_a_shape(tmp_path, capsys):
    written("vault", tmp_path / "vault")
    description = tmp_path / "vault" / "metadata.json"
    content = json.loads(description.read_text())
    content["structure_shape"]["observations"] = "(1, 200, 3, 9)"
    description.write_text(json.dumps(content))
    assert "observations: expected shape (1, T, 3, 9), found (1, T, 3, 4)" in refused(tmp_path / "vault", capsys)


@pytest.mark.parametrize("key", ["obs", "state", "avail_actions"])
def test_another_shape_is_no_damage(tmp_path, capsys, key):
    def change(arrays):
        arrays[key] = arrays[key][:, :-1]

    written("cfcql", tmp_path / "map.h5", change)
    err = refused(tmp_path / "map.h5", capsys)
    assert "steps, as obs has, found" in err and "damaged" not in err and "intact" not in err


def test_numbers_that_no_such_file_can_hold_are_not_made_room_for(tmp_path, capsys):
    written("cfcql", tmp_path / "map.h5")
    with h5py.File(tmp_path / "map.h5", "r+") as file:
        del file["reward"]
        file.create_dataset("reward", shape=(2**40,), chunks=(1024,), dtype="f8")
    assert "reward: damaged, 8796093022208 bytes of numbers in a file of" in refused(tmp_path / "map.h5", capsys)


def test_a_pickle_in_the_other_order_of_bytes_is_not_read_as_garbage(tmp_path):
    def change(arrays):
        for key, values in arrays.items():
            arrays[key] = values.astype({"f": ">f8", "i": ">i8"}.get(values.dtype.kind, values.dtype))

    arrays = written("madt", tmp_path / "data", change)
    found = formats.read(tmp_path / "data").episodes
    np.testing.assert_array_equal(found.obs[0], arrays["episode_0/obs"][0].astype(np.float32))


def test_agents_observations_and_those_after_them_have_one_shape(tmp_path, capsys):
    write_omar(tmp_path / "seed_0", make_episodes(CONTINUOUS))
    np.save(tmp_path / "seed_0" / "next_obs_1.npy", np.load(tmp_path / "seed_0" / "next_obs_1.npy")[:, :2])
    assert "next_obs_1.npy: expected shape (8, 3), as obs_1.npy has, found (8, 2)" in refused(
        tmp_path / "seed_0", capsys
    )


# one file per kind of fault and format

FAULTS = [kind for kind in (*mutations.ARRAYS, *mutations.FILES)]


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_is_read_rightly_or_refused_in_every_format(tmp_path, kind):
    judged = 0
    for number, name in enumerate(layouts.LAYOUTS):
        place = tmp_path / str(number)
        place.mkdir()
        try:
            outcome = fuzz.attempt(name, kind, (7, FAULTS.index(kind), number), place)
        except fuzz.UNWRITABLE:
            continue
        judged += 1
        assert outcome.kind in ("read", "refused"), f"{name}: {outcome.text}"
    assert judged > len(layouts.LAYOUTS) / 2


def test_the_second_reading_is_not_the_first(tmp_path):
    """A reader that used another episode's reward would be noticed."""
    written("vault", tmp_path / "vault")
    layout = layouts.LAYOUTS["vault"]
    wrong = layout._replace(read=lambda arrays: layout.read(arrays)[::-1])
    assert fuzz.judge(tmp_path / "vault", layout, harmless=True).kind == "read"
    assert fuzz.judge(tmp_path / "vault", wrong, harmless=True).kind == "wrong"


# a user's own arrays


@pytest.mark.parametrize("convert", [jnp.asarray, lambda values: values.tolist()], ids=["JAX arrays", "lists"])
def test_lists_and_jax_arrays_make_a_dataset(tmp_path, convert):
    episodes = make_episodes(DISCRETE)
    given = type(episodes)(*map(convert, episodes))
    dataset, expected = data.from_arrays(DISCRETE, given), data.from_arrays(DISCRETE, episodes)
    for key in ("obs", "global_state", "avail", "action", "reward", "discount"):
        np.testing.assert_array_equal(getattr(dataset, key), getattr(expected, key))
    data.write(tmp_path / "mine.h5", DISCRETE, given, {"environment": "toy/ring"})
    np.testing.assert_array_equal(data.read(tmp_path / "mine.h5")[1].obs, episodes.obs)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("obs", [[1.0], [2.0, 3.0]], "obs: expected numbers in rows of one shape"),
        ("length", [3.5, 1, 4], "length: expected numbers that fit in int32, found 3.5 at 0"),
        ("reward", [1e39] + [0.0] * 10, "reward: expected numbers that fit in float32, found 1e\\+39 at 0"),
        ("won", ["yes", "no", "no"], "won: expected bool"),
        ("length", 12, "length: expected an array with rows, found 12"),
        ("length", np.array(12), "length: expected an array with rows, found array\\(12\\)"),
    ],
)
def test_lists_that_no_array_can_hold_are_named(key, value, message):
    with pytest.raises(DatasetError, match=message):
        data.from_arrays(DISCRETE, make_episodes(DISCRETE)._replace(**{key: value}))


def test_half_precision_of_jax_becomes_single(tmp_path):
    episodes = make_episodes(DISCRETE)
    half = jnp.asarray(episodes.obs, jnp.bfloat16)
    dataset = data.from_arrays(DISCRETE, episodes._replace(obs=half))
    np.testing.assert_array_equal(dataset.obs, np.asarray(half, np.float32))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"d": "a\0b"}, "d: expected text or a number, found 'a"),
        ({"d": "\udc80"}, "d: expected text or a number, found "),
        ({"s": 2**70}, "s: expected text or a number, found 11805"),
        ({1: 2}, "expected a name that is text without empty parts around dots, found 1"),
        ({"": 2}, "expected a name that is text without empty parts around dots, found ''"),
        ({"a": {2: 3}}, "expected a name that is text without empty parts around dots, found 2"),
        ({"a": 1, "a.b": 2}, "a: expected a value or values below it, found both"),
        ({"a": 1, "b": {"c": 2}, "a.d": 2}, "a: expected a value or values below it, found both"),
        ({"a": {"b": 1}, "a.b": 2}, "a.b: expected one value, found two"),
        ({"a.": 1}, "expected a name that is text without empty parts around dots, found 'a.'"),
        ({"x.y": {"z": 1}}, "x.y: expected no dot in the name of a mapping"),
        ({"x" * 70_000: 1}, "expected a name that is text without empty parts around dots, found 'xxx"),
    ],
)
def test_metadata_that_could_not_be_read_back_are_refused(tmp_path, metadata, message):
    with pytest.raises(DatasetError, match=f"metadata: {message}"):
        data.write(tmp_path / "mine.h5", DISCRETE, make_episodes(DISCRETE), metadata)
    assert not list(tmp_path.iterdir())


def test_metadata_at_their_limits_are_read_back(tmp_path):
    metadata = {"low": -(2**63), "high": 2**64 - 1, "text": "ä" * 80, "group": {"x.y": 1.5, "z": ""}}
    data.write(tmp_path / "mine.h5", DISCRETE, make_episodes(DISCRETE), metadata)
    assert data.read(tmp_path / "mine.h5")[2].items() >= metadata.items()


@pytest.mark.parametrize("metadata", [{"versions": "1.0", "weights": "abc"}, {"weights": {"a": 3}, "repairs": "none"}])
def test_a_card_of_metadata_in_a_form_of_ones_own(tmp_path, capsys, metadata):
    data.write(tmp_path / "mine.h5", DISCRETE, make_episodes(DISCRETE), metadata)
    assert main(["data", "card", str(tmp_path / "mine.h5")]) == 0
    assert "repaired" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [[1, 2], h5py.Empty("f"), b"\xff", 1j], ids=["array", "empty", "bytes", "complex"])
def test_an_attribute_that_is_neither_text_nor_number_is_named(tmp_path, capsys, value):
    data.write(tmp_path / "mine.h5", DISCRETE, make_episodes(DISCRETE), {})
    with h5py.File(tmp_path / "mine.h5", "a") as file:
        file.attrs["extra"] = value
    assert "mine.h5: extra: expected text or a number, found " in refused(tmp_path / "mine.h5", capsys)


def test_numpy_and_jax_numbers_in_the_metadata(tmp_path):
    metadata = {"temperature": np.float32(0.5), "seed": np.int64(3), "kept": np.bool_(True), "gain": jnp.float32(2.0)}
    episodes = make_episodes(DISCRETE)
    data.write(tmp_path / "mine.h5", DISCRETE, episodes, {**metadata, "weights": {"a": np.str_("b")}})
    found = data.read(tmp_path / "mine.h5")[2]
    assert (found["temperature"], found["seed"], found["kept"], found["gain"]) == (0.5, 3, True, 2.0)
    assert found["weights"] == {"a": "b"}
    formats.write(tmp_path / "vault", "vault", DISCRETE, episodes, metadata)
    assert json.loads((tmp_path / "vault" / "metadata.json").read_text())["temperature"] == 0.5
    with pytest.raises(DatasetError, match="metadata: table: expected text or a number, found ndarray of shape"):
        data.write(tmp_path / "other.h5", DISCRETE, episodes, {"table": np.zeros(3)})
    assert not (tmp_path / "other.h5").exists()
