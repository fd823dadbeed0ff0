import json
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from omcda_jax import data
from omcda_jax.config import Repairs
from omcda_jax.data import formats
from omcda_jax.data.episodes import Episodes, final_rows
from omcda_jax.data.formats import madt
from omcda_jax.types import ConfigError, DatasetError, EnvSpec

FIXTURES = Path(__file__).parent / "fixtures"
DISCRETE = EnvSpec(num_agents=2, obs_dim=3, state_dim=4, action_dim=5, discrete=True)
CONTINUOUS = EnvSpec(num_agents=2, obs_dim=3, state_dim=4, action_dim=2, discrete=False)


def make_episodes(spec, lengths=(3, 1, 4), terminated=(True, True, False), seed=0):
    rng = np.random.default_rng(seed)
    total, final = sum(lengths) + len(lengths), np.cumsum(np.array(lengths) + 1) - 1
    agents = (total, spec.num_agents)
    avail = np.ones((*agents, spec.action_dim), bool)
    if spec.discrete:
        action = rng.integers(0, spec.action_dim, agents).astype(np.int32)
        avail = rng.random(avail.shape) < 0.5
        np.put_along_axis(avail, action[..., None], True, axis=-1)
    else:
        action = rng.uniform(-1, 1, (*agents, spec.action_dim)).astype(np.float32)
    reward = rng.normal(size=total).astype(np.float32)
    action[final], reward[final] = 0, 0
    return Episodes(
        obs=rng.normal(size=(*agents, spec.obs_dim)).astype(np.float32),
        global_state=rng.normal(size=(total, spec.state_dim)).astype(np.float32),
        avail=avail,
        action=action,
        reward=reward,
        length=np.array(lengths, np.int32),
        terminated=np.array(terminated),
        won=np.zeros(len(lengths), bool),
    )


def assert_equal(found, expected, **changed):
    for key, value in expected._replace(**changed)._asdict().items():
        assert getattr(found, key).dtype == value.dtype, key
        np.testing.assert_array_equal(getattr(found, key), value, err_msg=key)


def steps_of(episodes):
    return np.delete(np.arange(len(episodes.reward)), final_rows(episodes.length))


def one_line(call, path):
    with pytest.raises(DatasetError) as error:
        call()
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600
    return text


def write_omiga(path, episodes):
    agents = episodes.obs.shape[1]
    done = np.zeros((len(episodes.reward), agents))
    done[final_rows(episodes.length)] = 1
    with h5py.File(path, "w") as file:
        file["s"] = np.stack([episodes.global_state] * agents, axis=1).astype(np.float64)
        file["o"] = episodes.obs.astype(np.float64)
        file["a"] = episodes.action
        file["r"] = episodes.reward[:, None]
        file["d"] = done


def write_cfcql(path, episodes, slots):
    count, (agents, actions) = len(episodes.length), episodes.avail.shape[1:]
    ends = final_rows(episodes.length)
    padded = {
        key: np.zeros((count, slots, *value.shape[1:]), value.dtype)
        for key, value in episodes._asdict().items()
        if key in ("obs", "global_state", "avail", "action", "reward")
    }
    terminated, filled = (np.zeros((count, slots, 1), np.int64) for _ in range(2))
    for e, (end, length) in enumerate(zip(ends, episodes.length, strict=True)):
        for key, values in padded.items():
            values[e, : length + 1] = getattr(episodes, key)[end - length : end + 1]
        filled[e, : length + 1] = 1
        terminated[e, length - 1] = episodes.terminated[e]
    with h5py.File(path, "w") as file:
        file["obs"], file["state"] = padded["obs"], padded["global_state"]
        file["avail_actions"] = padded["avail"].astype(np.int32)
        file["actions"] = padded["action"].reshape(count, slots, agents, 1).astype(np.int64)
        file["actions_onehot"] = np.eye(actions, dtype=np.float32)[padded["action"]]
        file["reward"], file["terminated"], file["filled"] = padded["reward"][..., None], terminated, filled


def write_omar(path, episodes, states=True):
    path.mkdir()
    steps = steps_of(episodes)
    done = np.zeros(len(steps))
    done[np.cumsum(episodes.length) - 1] = episodes.terminated
    for agent in range(episodes.obs.shape[1]):
        save = lambda name, values, agent=agent: np.save(path / f"{name}_{agent}.npy", values)
        save("obs", episodes.obs[steps, agent])
        save("next_obs", episodes.obs[steps + 1, agent])
        save("acs", episodes.action[steps, agent])
        save("rews", episodes.reward[steps].astype(np.float64))
        save("dones", done)
        if states:
            save("states", episodes.global_state[steps])
            save("next_states", episodes.global_state[steps + 1])


def write_flashbax(path, episodes, spec):
    """As OG-MARL records data: a buffer of one row of time, written by flashbax itself."""
    import jax
    import jax.numpy as jnp
    from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
    from flashbax.vault import Vault

    steps = steps_of(episodes)
    ends = np.cumsum(episodes.length) - 1
    ended, cut = (np.zeros((len(steps), spec.num_agents), bool) for _ in range(2))
    ended[ends], cut[ends] = episodes.terminated[:, None], ~episodes.terminated[:, None]
    experience = {
        "observations": episodes.obs[steps],
        "actions": episodes.action[steps],
        "rewards": np.stack([episodes.reward[steps]] * spec.num_agents, axis=1),
        "terminals": ended,
        "truncations": cut,
        "infos": {"state": episodes.global_state[steps]} | ({"legals": episodes.avail[steps]} if spec.discrete else {}),
    }
    experience = jax.tree.map(lambda values: jnp.asarray(values)[None], experience)
    vault = Vault(
        vault_name=path.parent.name,
        experience_structure=experience,
        rel_dir=str(path.parent.parent),
        vault_uid=path.name,
    )
    vault.write(
        TrajectoryBufferState(experience=experience, current_index=jnp.array(len(steps)), is_full=jnp.array(False))
    )


def as_vaults_keep(episodes):
    """What a vault can store: final observations repeat the last one, and an episode cut short loses its last step."""
    parts = []
    for e, end in enumerate(final_rows(episodes.length)):
        start = end - episodes.length[e]
        length = episodes.length[e] - (not episodes.terminated[e])
        rows = np.append(np.arange(start, start + length), end - 1)
        part = {
            key: getattr(episodes, key)[rows].copy() for key in ("obs", "global_state", "avail", "action", "reward")
        }
        part["action"][-1], part["reward"][-1] = 0, 0
        parts.append(part | {"length": np.array([length], np.int32)})
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Episodes(**joined, terminated=episodes.terminated, won=episodes.won)


def test_omiga(tmp_path):
    episodes = make_episodes(CONTINUOUS)
    write_omiga(tmp_path / "hopper.hdf5", episodes)
    found = formats.read(tmp_path / "hopper.hdf5", spec=CONTINUOUS)
    assert found.format == "omiga" and found.spec == CONTINUOUS and found.notes == ()
    assert_equal(found.episodes, episodes, terminated=np.array([True, True, True]))
    assert found.metadata["statistics"] == data.statistics(found.episodes) | {"win_rate": None}


def test_omiga_agents_with_states_of_their_own_make_one_together(tmp_path):
    episodes, path = make_episodes(CONTINUOUS), tmp_path / "hopper.hdf5"
    write_omiga(path, episodes)
    with h5py.File(path, "r+") as file:
        file["s"][0, 1] += 1
        own = file["s"][()]
    found = formats.read(path)
    assert found.spec.state_dim == 8
    np.testing.assert_array_equal(found.episodes.global_state, own.reshape(len(own), 8).astype(np.float32))


def test_omiga_rows_that_make_no_episode_are_left_out_and_told_of(tmp_path):
    episodes, path = make_episodes(CONTINUOUS, (2, 3), (True, True)), tmp_path / "hopper.hdf5"
    write_omiga(path, episodes)
    with h5py.File(path, "r+") as file:
        done = file["d"][()]
        done[-1] = 0
        done[3] = 1  # closes an episode right after another
        file["d"][...] = done
    found = formats.read(path)
    assert found.notes == (
        "the last 3 rows belong to an episode that is not closed: left out",
        "1 closing rows have no step before them: left out",
    )
    assert_equal(
        found.episodes, Episodes(*(field[:3] for field in episodes[:5]), *(field[:1] for field in episodes[5:]))
    )


@pytest.mark.parametrize("slots", [5, 9])
def test_cfcql(tmp_path, slots):
    episodes = make_episodes(DISCRETE)
    write_cfcql(tmp_path / "map.h5", episodes, slots)
    found = formats.read(tmp_path / "map.h5", spec=DISCRETE)
    assert found.format == "cfcql" and found.notes == ()
    assert_equal(found.episodes, episodes)


def test_omar(tmp_path):
    episodes = make_episodes(CONTINUOUS)
    write_omar(tmp_path / "seed_0", episodes)
    found = formats.read(tmp_path / "seed_0", spec=CONTINUOUS)
    assert found.format == "omar" and found.notes == ()
    assert_equal(found.episodes, episodes)


def test_omar_without_states_and_with_agents_of_different_sizes(tmp_path):
    episodes, path = make_episodes(CONTINUOUS), tmp_path / "seed_0"
    write_omar(path, episodes, states=False)
    for name in ("obs_1", "next_obs_1", "acs_1"):
        np.save(path / f"{name}.npy", np.load(path / f"{name}.npy")[:, :1])
    found = formats.read(path)
    assert found.notes == ("no states: the observations of all agents form the state",)
    obs = episodes.obs * np.array([[1, 1, 1], [1, 0, 0]], np.float32)
    np.testing.assert_array_equal(found.episodes.obs, obs)
    np.testing.assert_array_equal(found.episodes.global_state, obs.reshape(-1, 6)[:, :4])
    np.testing.assert_array_equal(found.episodes.avail, np.broadcast_to([[1, 1], [1, 0]], (11, 2, 2)))


def test_omar_shuffled_transitions_are_told_of(tmp_path):
    episodes, path = make_episodes(CONTINUOUS, (4, 4), (False, False)), tmp_path / "seed_0"
    write_omar(path, episodes)
    order = np.array([3, 0, 6, 2, 5, 1, 7, 4])
    for name in path.iterdir():
        np.save(name, np.load(name)[order])
    found = formats.read(path)
    assert found.notes == ("no row follows the one before it: every transition is an episode of its own",)
    np.testing.assert_array_equal(found.episodes.obs[::2], episodes.obs[steps_of(episodes)][order])
    np.testing.assert_array_equal(found.episodes.obs[1::2], episodes.obs[steps_of(episodes) + 1][order])


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_vault_written_by_flashbax(tmp_path, spec):
    episodes, path = make_episodes(spec), tmp_path / "map.vlt" / "Good"
    write_flashbax(path, episodes, spec)
    found = formats.read(path, spec=spec)
    assert found.format == "vault"
    assert found.notes == (
        "1 episodes were cut by the time limit; what followed their last step is not stored: that step is left out",
    )
    assert_equal(found.episodes, as_vaults_keep(episodes))
    with pytest.raises(DatasetError, match="vaults below: Good; name one"):
        formats.read(path.parent)


def test_vault_for_flashbax(tmp_path, capsys):
    from flashbax.vault import Vault

    episodes, path = make_episodes(DISCRETE), tmp_path / "map.vlt" / "Good"
    lost = formats.write(path, "vault", DISCRETE, episodes, {"environment": "toy/ring", "weights": {"a": "b"}})
    assert lost == ("which episodes were won", "the last observation of 1 episodes cut by the time limit")
    read = Vault("map.vlt", rel_dir=str(tmp_path), vault_uid="Good").read().experience
    steps = steps_of(episodes)
    np.testing.assert_array_equal(read["observations"][0], episodes.obs[steps])
    np.testing.assert_array_equal(read["actions"][0], episodes.action[steps])
    np.testing.assert_array_equal(read["infos"]["legals"][0], episodes.avail[steps])
    np.testing.assert_array_equal(read["terminals"][0, :, 1], [0, 0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(read["truncations"][0, :, 0], [0, 0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(read["rewards"][0], np.stack([episodes.reward[steps]] * 2, axis=1))
    assert json.loads((path / "metadata.json").read_text())["environment"] == "toy/ring"
    assert_equal(formats.read(path).episodes, as_vaults_keep(episodes))


def test_madt_written_by_torch():
    found = formats.read(FIXTURES / "madt")
    assert found.format == "madt" and found.spec == DISCRETE
    assert found.notes == (
        "1 episodes were cut by the time limit; what followed their last step is not stored: that step is left out",
    )
    episodes = found.episodes
    # in the natural order of the names: 2, 10, 11; rewards count the steps
    np.testing.assert_array_equal(episodes.length, [3, 4, 2])
    np.testing.assert_array_equal(episodes.terminated, [True, True, False])
    np.testing.assert_array_equal(episodes.reward, [1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 0])
    # drawn as the files were
    first = 0
    for seed, stored in enumerate((3, 4, 3)):
        rng = np.random.default_rng(seed)
        for t in range(stored):
            state = rng.normal(size=4).astype(np.float32)
            drawn = [(int(rng.integers(1, 5)), rng.normal(size=3).astype(np.float32)) for _ in range(2)]
            np.testing.assert_array_equal(episodes.global_state[first + t], state)
            for agent, (action, obs) in enumerate(drawn):
                np.testing.assert_array_equal(episodes.obs[first + t, agent], obs)
                if t < episodes.length[seed]:
                    assert episodes.action[first + t, agent] == action
                    assert not episodes.avail[first + t, agent, (action + 1) % 5]
        first += episodes.length[seed] + 1


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_tensors_of_both_torch_layouts(layout):
    found = madt.load(str(FIXTURES / f"tensors_{layout}.pth"))
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {"a": matrix, "t": matrix.T, "row": matrix[1], "i": np.array([1, 2]), "b": np.array([True, False])}
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == value.dtype


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "malicious",
    [Call(os.system, "touch PWNED"), Call(eval, "1"), Call(getattr, {}, "pop"), Call(np.load, "x", "r", True)],
    ids=["system", "eval", "getattr", "numpy.load"],
)
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_pickled_code_is_not_run(tmp_path, monkeypatch, malicious, layout):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "episode_0.pth"
    content = pickle.dumps([malicious], protocol=2)
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path.write_bytes(b"".join([*head, content, pickle.dumps([], protocol=2)]))
    assert "which is not run" in one_line(lambda: formats.read(path), path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_damaged_torch_files_end_in_one_line(tmp_path, layout):
    content = (FIXTURES / "madt" / f"episode_{dict(zip=10, legacy=2)[layout]}.pth").read_bytes()
    path = tmp_path / "episode_0.pth"
    good = None
    rng = np.random.default_rng(0)
    for k in range(150):
        damaged = bytearray(content)
        if k < 30:
            damaged = damaged[: 40 + k * (len(content) - 40) // 30]
        else:
            damaged[rng.integers(40, len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            good = formats.read(path)
        except DatasetError as error:
            assert "\n" not in str(error)
    assert good is None or good.format == "madt"


def test_round_trips(tmp_path):
    episodes = make_episodes(CONTINUOUS, terminated=(True, True, True))
    assert formats.write(tmp_path / "own.h5", "omcda", CONTINUOUS, episodes, {"environment": "toy/ring"}) == ()
    lost = formats.write(tmp_path / "omiga.h5", "omiga", CONTINUOUS, episodes, {})
    assert "which episodes were won" in lost
    for name, kind in (("own.h5", "omcda"), ("omiga.h5", "omiga")):
        found = formats.read(tmp_path / name)
        assert found.format == kind
        assert_equal(found.episodes, episodes)
    assert formats.read(tmp_path / "own.h5").metadata["environment"] == "toy/ring"


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [("cfcql", DISCRETE, "expected one of omcda, omiga, vault"), ("omiga", DISCRETE, "expected continuous actions")],
)
def test_what_cannot_be_written_is_refused(tmp_path, kind, spec, message):
    with pytest.raises(ConfigError, match=message):
        formats.write(tmp_path / "new", kind, spec, make_episodes(spec), {})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "old").write_text("precious")
    with pytest.raises(ConfigError, match="expected nothing there, found a file"):
        formats.write(tmp_path / "old", "omcda", DISCRETE, make_episodes(DISCRETE), {})


def test_actions_beyond_one_are_refused_with_both_ways_out(tmp_path):
    episodes, path = make_episodes(CONTINUOUS), tmp_path / "hopper.hdf5"
    write_omiga(path, episodes._replace(action=4 * episodes.action))
    largest = float(4 * np.abs(episodes.action).max())
    scale = np.ceil(1000 * largest) / 1000
    text = one_line(lambda: formats.read(path), path)
    assert "action: expected -1..1" in text
    assert f"actions reach ±{largest:.9g}, beyond ±1: action_scale={scale:.9g} or clip_actions=True" in text
    assert np.abs(formats.read(path, repairs=Repairs(action_scale=scale)).episodes.action).max() > 0.999
    scaled = formats.read(path, repairs=Repairs(action_scale=4.0))
    np.testing.assert_array_equal(scaled.episodes.action, episodes.action)
    clipped = formats.read(path, repairs=Repairs(clip_actions=True))
    np.testing.assert_array_equal(clipped.episodes.action, np.clip(4 * episodes.action, -1, 1))


def test_returns_to_go_are_told_of_and_undone(tmp_path):
    episodes, path = make_episodes(DISCRETE, (6, 5, 7), (True, False, True)), tmp_path / "map.h5"
    episodes = episodes._replace(reward=np.abs(episodes.reward))
    togo = episodes.reward.copy()
    for end in final_rows(episodes.length):
        for row in range(end - 1, -1, -1):
            if row in final_rows(episodes.length):
                break
            togo[row] += togo[row + 1]
    write_cfcql(path, episodes._replace(reward=togo), 9)
    found = formats.read(path)
    assert any("rewards=return_to_go" in note for note in found.notes)
    np.testing.assert_array_equal(found.episodes.reward, togo)
    undone = formats.read(path, repairs=Repairs(rewards="return_to_go"))
    assert undone.notes == ()
    np.testing.assert_allclose(undone.episodes.reward, episodes.reward, atol=1e-5)


def test_returns_to_go_of_an_episode_whose_last_step_is_left_out(tmp_path):
    paid = np.array([1, 2, 3, 4, 5, 6], np.float32)
    togo = np.array([6, 5, 3, 15, 11, 6], np.float32)
    ends = {"timeouts": np.arange(6) == 2, "terminals": np.arange(6) == 5}
    seen = {"observations": np.random.default_rng(0).random((6, 2)), "actions": np.zeros((6, 1))}
    for name, rewards in (("paid", paid), ("togo", togo)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.update({key: np.float32(values) for key, values in seen.items()} | ends | {"rewards": rewards})
    plain = formats.read(tmp_path / "paid.h5").episodes
    undone = formats.read(tmp_path / "togo.h5", repairs=Repairs(rewards="return_to_go")).episodes
    np.testing.assert_array_equal(plain.reward, [1, 2, 0, 4, 5, 6, 0])
    np.testing.assert_array_equal(undone.reward, plain.reward)


def test_time_limits_are_told_of_and_set_right(tmp_path):
    episodes, path = make_episodes(CONTINUOUS, (60, 20, 60, 60), (True,) * 4), tmp_path / "hopper.hdf5"
    write_omiga(path, episodes)
    found = formats.read(path)
    assert found.notes == (
        "3 of 4 episodes last 60 steps, the longest, and count as ended by the task: time_limit=60 counts them as cut"
        " by the time limit",
    )
    assert found.episodes.terminated.all()
    mended = formats.read(path, repairs=Repairs(time_limit=60))
    assert mended.notes == ()
    np.testing.assert_array_equal(mended.episodes.terminated, [False, True, False, False])
    with pytest.raises(ConfigError, match="time_limit: expected at least 60, the longest episode, found 50"):
        formats.read(path, repairs=Repairs(time_limit=50))


def test_rewards_that_differ_between_agents_need_a_rule(tmp_path):
    episodes, path = make_episodes(CONTINUOUS), tmp_path / "seed_0"
    write_omar(path, episodes)
    np.save(path / "rews_1.npy", 3 * np.load(path / "rews_1.npy"))
    assert "team_reward=mean or team_reward=sum" in one_line(lambda: formats.read(path), path)
    for rule, factor in (("mean", 2), ("sum", 4)):
        found = formats.read(path, repairs=Repairs(team_reward=rule))
        np.testing.assert_allclose(found.episodes.reward, factor * episodes.reward, rtol=1e-6)


def test_repairs_of_the_own_format_and_of_discrete_actions_are_refused(tmp_path):
    episodes = make_episodes(DISCRETE)
    data.write(tmp_path / "own.h5", DISCRETE, episodes, {"environment": "toy/ring"})
    with pytest.raises(ConfigError, match="expected no repairs of the project's own format, found time_limit=9$"):
        formats.read(tmp_path / "own.h5", repairs=Repairs(time_limit=9))
    write_cfcql(tmp_path / "map.h5", episodes, 6)
    with pytest.raises(ConfigError, match="expected continuous actions, found discrete ones"):
        formats.read(tmp_path / "map.h5", repairs=Repairs(clip_actions=True))


def broken_h5(change, write=write_omiga, spec=CONTINUOUS):
    def make(tmp_path):
        path = tmp_path / "broken.h5"
        write(path, make_episodes(spec), *((6,) if write is write_cfcql else ()))
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def replaced(file, key, change):
    values = change(file[key][()])
    del file[key]
    file[key] = values


def written(content):
    def make(tmp_path):
        path = tmp_path / "broken.h5"
        path.write_bytes(content)
        return path

    return make


def folder(change, states=True):
    def make(tmp_path):
        path = tmp_path / "seed_0"
        write_omar(path, make_episodes(CONTINUOUS), states)
        change(path)
        return path

    return make


def vaulted(change):
    def make(tmp_path):
        path = tmp_path / "vault"
        formats.write(path, "vault", DISCRETE, make_episodes(DISCRETE), {})
        change(path)
        return path

    return make


def edit_structure(path, change):
    file = path / "metadata.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def truncate_stores(path):
    for file in (path / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BROKEN = {
    "web page": (written(b"<!DOCTYPE html><title>404</title>"), "expected an HDF5 file, found", "a web page?"),
    "empty": (written(b""), "an empty file"),
    "unknown keys": (broken_h5(lambda f: [f.move(k, f"x_{k}") for k in list(f)]), "expected the keys of one of omcda"),
    "omiga key": (broken_h5(lambda f: f.pop("r")), "r: missing; expected s, o, a, r, d, found a, d, o, s"),
    "omiga rows": (broken_h5(lambda f: replaced(f, "o", lambda v: v[:-1])), "o: expected 11 rows, as s has, found 10"),
    "omiga text": (broken_h5(lambda f: replaced(f, "r", lambda v: b"none")), "r: expected numbers, found text"),
    "omiga axes": (broken_h5(lambda f: replaced(f, "a", lambda v: v[:, 0])), "a: expected 3 axes, found shape (11, 2)"),
    "omiga agents": (
        broken_h5(lambda f: replaced(f, "a", lambda v: v[:, :1])),
        "a: expected 2 agents, as o has, found 1",
    ),
    "omiga nan": (
        broken_h5(lambda f: f["o"].__setitem__((4, 1, 1), np.nan)),
        "o: expected finite numbers, found nan in row 4",
    ),
    "omiga open": (
        broken_h5(lambda f: f["d"].__setitem__(slice(None), 0)),
        "d: expected a 1 on each episode's closing",
    ),
    "omiga integers": (broken_h5(lambda f: replaced(f, "a", lambda v: v.astype(int))), "a: expected floating-point"),
    "omiga empty": (
        broken_h5(lambda f: [replaced(f, k, lambda v: v[:0]) for k in list(f)]),
        "s: expected at least one row, found none",
    ),
    "cfcql key": (broken_h5(lambda f: f.pop("filled"), write_cfcql, DISCRETE), "filled: missing; expected state"),
    "cfcql gap": (
        broken_h5(lambda f: f["filled"].__setitem__((2, 1), 0), write_cfcql, DISCRETE),
        "filled: expected rows without gaps, found one in episode 2",
    ),
    "cfcql illegal": (
        broken_h5(lambda f: f["avail_actions"].__setitem__((0, 0, 1), [0, 0, 0, 0, 0]), write_cfcql, DISCRETE),
        "avail: expected a legal action, found none for agent 1 in episode 0, step 0",
    ),
    "omar file": (folder(lambda p: (p / "acs_1.npy").unlink()), "acs_1.npy: missing; expected obs_0.npy"),
    "omar cut": (
        folder(lambda p: (p / "obs_1.npy").write_bytes((p / "obs_1.npy").read_bytes()[:-9])),
        "obs_1.npy: expected 96 bytes of numbers of shape (8, 3), found 87",
    ),
    "omar objects": (
        folder(lambda p: np.save(p / "acs_0.npy", np.array([[{}]] * 8), allow_pickle=True)),
        "acs_0.npy: expected a NumPy file of numbers, found Python objects",
    ),
    "omar rows": (
        folder(lambda p: np.save(p / "rews_0.npy", np.zeros(7))),
        "rews_0.npy: expected 8 rows, as obs_0.npy has, found 7",
    ),
    "vault description": (vaulted(lambda p: (p / "metadata.json").unlink()), "metadata.json: expected a vault's"),
    "vault key": (
        vaulted(lambda p: edit_structure(p, lambda m: m["structure_shape"].pop("actions"))),
        "actions: missing; expected observations, actions",
    ),
    "vault shape": (
        vaulted(lambda p: edit_structure(p, lambda m: m["structure_shape"].update(observations="(1, 9, 3, 3)"))),
        "observations: expected shape (1, T, 3, 3), found (1, T, 2, 3)",
    ),
    "vault cut": (vaulted(truncate_stores), "expected a zarr array, found: "),
    "folder": (lambda tmp_path: tmp_path, "or a folder of HDF5 files, found nothing"),
    "nothing": (lambda tmp_path: tmp_path / "none.h5", "expected a dataset file, found nothing there"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_end_in_one_line(tmp_path, case):
    make, *messages = BROKEN[case]
    path = make(tmp_path)
    text = one_line(lambda: formats.read(path), path)
    for message in messages:
        assert message in text


def test_flipped_bits_of_a_vault_never_pass_for_the_original(tmp_path):
    episodes, path = make_episodes(DISCRETE), tmp_path / "vault"
    formats.write(path, "vault", DISCRETE, episodes, {})
    files = sorted((path / "d").iterdir())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        try:
            assert_equal(formats.read(path).episodes, as_vaults_keep(episodes))
        except DatasetError as error:
            assert "\n" not in str(error)
            refused += 1
        file.write_bytes(content)
    assert refused > 3


def test_spec_of_another_task_is_refused(tmp_path):
    write_omiga(tmp_path / "hopper.hdf5", make_episodes(CONTINUOUS))
    with pytest.raises(DatasetError, match="spec: expected 3 agents, .*, found 2 agents, 3 observation"):
        formats.read(tmp_path / "hopper.hdf5", spec=EnvSpec(3, 3, 4, 2, False))
