"""From a user's own simulator to a trained team: behaviour policies, datasets and runs, only by commands."""

import json
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import omcda_jax
from omcda_jax import data, envs
from omcda_jax.behaviour import acts, policies, training
from omcda_jax.checkpoint import save_policy
from omcda_jax.data import __main__ as data_command
from omcda_jax.runner import behaviours, collect, run, train_behaviour
from omcda_jax.types import ConfigError

ROOT = Path(__file__).parent.parent
HOST, IN_JAX = "examples.environment_in_python/5", "examples.environment_in_jax/5"
TRAINING = ["--steps=6000", "--num_envs=8", "--rollout=40", "--snapshots=5", "--episodes=32", "--hidden=16"]
SETTINGS = {
    "algorithm.hidden_sizes": "16",
    "learner.updates": 40,
    "learner.updates_per_call": 20,
    "learner.log_every": 40,
    "learner.evaluate_every": 0,
    "learner.checkpoint_every": 40,
    "evaluation.episodes": 4,
}


def train(environment, out, *more):
    return train_behaviour.main(["train_behaviour.py", f"--environment={environment}", f"--out={out}", *more])


def make(environment, out, *more, episodes=20):
    """Collect, and return the contents of the file."""
    words = [f"--environment={environment}", f"--out={out}", f"--episodes={episodes}", *more]
    assert collect.main(["collect.py", *words]) == 0
    return data.read(out)


def learn(environment, path, out, **settings):
    keys = SETTINGS | {"data.environment": environment, "data.path": path} | settings
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return run.main(["run.py", "--config=smac_3m", *flags, f"--workdir={out}"])


@pytest.fixture(scope="module", autouse=True)
def paths():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with behaviour policies of the example in Python, a dataset, and a run that cloned it."""
    home = tmp_path_factory.mktemp("home")
    assert train(HOST, home / "weights", *TRAINING) == 0
    make(HOST, home / "medium.h5", f"--weights={home / 'weights'}", "--quality=medium")
    assert learn(HOST, home / "medium.h5", home / "run", **{"algorithm.name": "bc"}) == 0
    (home / "few").mkdir()  # without the stages before medium
    for stage in ("medium", "expert"):
        shutil.copy(home / "weights" / policies.file_name(HOST, stage), home / "few")
    np.save(home / "rows.npy", np.zeros(3))
    with np.load(home / "weights" / policies.file_name(HOST, "expert")) as file:
        arrays = {key: file[key] for key in file}
    np.savez(home / "narrow.npz", **arrays | {"actor_1_w": arrays["actor_1_w"][..., :-1, :]})
    (home / "broken_module.py").write_text("raise RuntimeError('no licence')")
    return home


def facts(home, stage):
    with np.load(home / "weights" / policies.file_name(HOST, stage)) as file:
        return {key: file[key].item() for key in file if not key.startswith(("actor", "obs"))}


def test_snapshots_are_cut_into_stages_by_the_rule(home):
    stages = policies.stages(HOST, home / "weights")
    snapshots = [facts(home, stage) for stage in stages if stage.isdigit()]
    returns = [snapshot["return_mean"] for snapshot in snapshots]
    assert len(snapshots) == 6 and snapshots[0]["env_steps"] == 320 and snapshots[-1]["env_steps"] == 6080
    chance, best = snapshots[0]["random_return"], max(returns)
    assert facts(home, "expert")["return_mean"] == best > chance + 1
    medium = next(k for k, value in enumerate(returns) if value >= (chance + best) / 2)
    assert facts(home, "medium") == snapshots[medium]
    assert [stage for stage in stages if stage.startswith("replay")] == [f"replay_{k + 1}" for k in range(medium)]
    command = "train_behaviour.py --environment=examples.environment_in_python/5 --steps=6000 --num_envs=8"
    assert command in facts(home, "expert")["command"]


def test_which_snapshot_is_which_stage():
    snapshots = [("a", -10.0), ("b", -7.0), ("c", -4.9), ("d", -6.0), ("e", 0.0), ("f", -1.0)]
    assert training.cut(snapshots, -10.0, 0.5) == {"expert": "e", "medium": "c", "replay_1": "a", "replay_2": "b"}
    assert training.cut(snapshots, -10.0, 0.3)["medium"] == "b"
    assert training.cut(snapshots[4:], -10.0, 0.5) == {"expert": "e", "medium": "e"}
    with pytest.raises(ConfigError, match=r"better than random play, with return 0.000, found 0.000 at best"):
        training.cut(snapshots, 0.0, 0.5)


def test_replays_of_an_earlier_training_go(home, tmp_path, monkeypatch):
    actor = policies.read_weights(home / "weights" / policies.file_name(HOST, "expert"))
    place = lambda stage: tmp_path / policies.file_name(HOST, stage)
    for stage in ("replay_1", "replay_2", "replay_3", "expert"):
        policies.write_weights(place(stage), actor)
    monkeypatch.setattr(training.mappo_separate, "train", lambda *_: ((steps, actor, {}) for steps in (40, 80, 120)))
    returns, rule = iter([1.0, 3.0, 2.0]), training.Rule(snapshots=3)
    settings = train_behaviour.Settings(steps=120, num_envs=4, rollout=10)
    evaluate = lambda actor, key: {"return_mean": next(returns)}
    named = training.train_by_rule(envs.make(HOST), settings, tmp_path, evaluate, 0.0, rule)
    assert named == {"expert": "000000080", "medium": "000000080", "replay_1": "000000040"}
    assert place("replay_1").read_bytes() == place("000000040").read_bytes()
    assert not place("replay_2").exists() and not place("replay_3").exists()


def test_the_stages_give_the_datasets_of_the_field(home, tmp_path):
    weights = f"--weights={home / 'weights'}"
    _, mixed, metadata = make(HOST, tmp_path / "mixed.h5", weights, "--quality=medium_expert")
    assert metadata["quality"] == "medium_expert" and set(metadata["weights"]) == {"medium", "expert"}
    assert metadata["description"].startswith("actions sampled from the medium and expert policy")
    medium = data.read(home / "medium.h5")[1]
    ten = medium.length[:10]
    np.testing.assert_array_equal(mixed.length[:10], ten)  # the first half is medium's
    np.testing.assert_array_equal(mixed.action[: ten.sum() + 10], medium.action[: ten.sum() + 10])
    _, _, replay = make(HOST, tmp_path / "replay.h5", weights, "--quality=medium_replay")
    assert {"replay_1", "medium"} <= set(replay["weights"]) and "expert" not in replay["weights"]
    _, greedy, metadata = make(HOST, tmp_path / "greedy.h5", weights, "--quality=expert", "--greedy")
    assert metadata["quality"] == "expert_greedy" and metadata["description"].startswith("greedy actions of the expert")
    params = policies.read_weights(home / "weights" / policies.file_name(HOST, "expert"))
    steps = np.delete(np.arange(len(greedy.reward)), np.cumsum(greedy.length + 1) - 1)
    likeliest = policies.logits(params, greedy.obs[steps], greedy.avail[steps]).argmax(-1)
    np.testing.assert_array_equal(greedy.action[steps], likeliest)


def test_a_run_becomes_a_dataset(home, tmp_path):
    own = f"--policy={home / 'run'}"
    _, greedy, metadata = make(HOST, tmp_path / "greedy.h5", own, "--greedy")
    assert metadata["quality"] == "bc_greedy" and metadata["policy"] == str(home / "run")
    assert f"the run {home / 'run'} after 40 updates (bc)" in metadata["description"]
    actor, updates = behaviours.actor_of_run(home / "run", envs.make(HOST), "latest")
    assert updates == 40
    steps = np.delete(np.arange(len(greedy.reward)), np.cumsum(greedy.length + 1) - 1)
    chosen = omcda_jax.act(actor, jnp.asarray(greedy.obs), jnp.asarray(greedy.avail))
    np.testing.assert_array_equal(greedy.action[steps], np.asarray(chosen)[steps])
    _, mixed, metadata = make(HOST, tmp_path / "mixed.h5", own, "--greedy", "--random_share=0.3", episodes=60)
    assert metadata["quality"] == "bc_greedy_random_0.3" and "0.3 of all actions random" in metadata["description"]
    steps = np.delete(np.arange(len(mixed.reward)), np.cumsum(mixed.length + 1) - 1)
    chosen = omcda_jax.act(actor, jnp.asarray(mixed.obs), jnp.asarray(mixed.avail))
    # a random action differs from the policy's in two of three cases
    assert 0.1 < (mixed.action != np.asarray(chosen))[steps].mean() < 0.3
    _, sampled, metadata = make(HOST, tmp_path / "sampled.h5", own)
    assert metadata["quality"] == "bc" and "actions sampled from" in metadata["description"]
    # the same run acts in the example in JAX, which has the same sizes
    save_policy(tmp_path / "actor", actor)
    _, _, metadata = make(IN_JAX, tmp_path / "jax.h5", f"--policy={tmp_path / 'actor'}", "--quality=mine")
    assert metadata["quality"] == "mine" and "the policy saved as" in metadata["description"]


def test_a_card_says_which_policy_made_the_data(home, tmp_path, capsys):
    make(HOST, tmp_path / "own.h5", f"--policy={home / 'run'}", "--random_share=0.3")
    assert data_command.main(["data", "card", str(tmp_path / "own.h5"), f"--out={tmp_path / 'card'}"]) == 0
    card = (tmp_path / "card" / "card.md").read_text()
    digest = json.loads((tmp_path / "card" / "card.json").read_text())["metadata"]["weights"]["bc"]
    made = f"actions sampled from the run {home / 'run'} after 40 updates (bc); every episode kept; 0.3 of all actions"
    assert f"- made from: {made} random" in card and f"- policies: bc (SHA-256 {digest[:12]})" in card
    assert f"- made by: python experiments/collect.py --environment={HOST} --policy={home / 'run'}" in card


def test_an_existing_file_of_another_policy_is_refused(home, tmp_path, capsys):
    make(HOST, tmp_path / "random.h5", "--policy=random")
    make(HOST, tmp_path / "random.h5", "--policy=random")
    words = ["collect.py", f"--environment={HOST}", f"--out={tmp_path / 'random.h5'}", "--episodes=20"]
    assert collect.main([*words, "--policy=random", "--random_share=0.5", "--quality=random"]) == 78
    assert "random.h5: description: expected " in capsys.readouterr().err
    assert collect.main([*words, f"--policy={home / 'run'}", "--quality=random"]) == 78


def test_random_play_is_uniform_over_what_is_legal():
    avail = jnp.array([[True, False, True], [True, True, True]])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: acts.uniform(True)((), None, avail, key))(keys))
    shares = [np.bincount(drawn[:, agent], minlength=3) / 4000 for agent in range(2)]
    np.testing.assert_allclose(shares, [[0.5, 0, 0.5], [1 / 3] * 3], atol=0.03)
    drawn = np.asarray(jax.vmap(lambda key: acts.uniform(False)((), None, avail, key))(keys))
    assert not drawn[:, 0, 1].any() and np.abs(drawn).max() <= 1
    np.testing.assert_allclose(drawn[:, 1].mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(drawn[:, 1].std(axis=0), 3**-0.5, atol=0.02)


@pytest.fixture
def own(monkeypatch):
    """A module of functions that act."""
    module = types.ModuleType("own_policies")
    module.in_jax = lambda obs, avail, key: 1 - jnp.sign(obs[:, 0]).astype(int)
    module.in_numpy = lambda obs, avail, key: np.array([1 - int(np.sign(place)) for place, _ in obs])
    module.chance = lambda obs, avail, key: np.random.default_rng(key).integers(0, 3, 2)
    module.wide = lambda obs, avail, key: np.zeros((2, 3))
    module.illegal = lambda obs, avail, key: np.array([0, 3])
    module.beyond = lambda obs, avail, key: jnp.array([0, 3])
    module.broken = lambda obs, avail, key: np.array(obs) @ np.zeros(7)
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_policies", module)


@pytest.mark.parametrize(("environment", "name"), [(HOST, "in_jax"), (HOST, "in_numpy"), (IN_JAX, "in_jax")])
def test_a_function_acts(own, tmp_path, environment, name):
    _, episodes, metadata = make(environment, tmp_path / "own.h5", f"--policy=own_policies:{name}")
    # both walk straight to the middle, two steps away at most
    assert episodes.won.all() and episodes.length.max() == 2
    assert metadata["quality"] == name and f"actions of own_policies:{name}" in metadata["description"]
    assert f"--policy=own_policies:{name}" in metadata["generator"]


def test_a_function_of_numpy_draws_anew_and_mixes_with_chance(own, tmp_path):
    _, episodes, _ = make(HOST, tmp_path / "chance.h5", "--policy=own_policies:chance")
    assert len(np.unique(episodes.action, axis=0)) == 9
    _, mixed, _ = make(HOST, tmp_path / "mixed.h5", "--policy=own_policies:in_numpy", "--random_share=0.9")
    assert mixed.length.max() > 4
    _, again, _ = make(HOST, tmp_path / "again.h5", "--policy=own_policies:in_numpy", "--random_share=0.9")
    np.testing.assert_array_equal(mixed.action, again.action)


@pytest.mark.parametrize(
    ("environment", "words", "message"),
    [
        (HOST, ["--policy=nowhere"], "--policy: expected random, the directory of a run, a saved policy, an npz file"),
        (HOST, ["--policy=nowhere:at_all"], "--policy: expected module:function, found 'nowhere:at_all': No module"),
        (HOST, ["--policy=own_policies:nothing"], "has no attribute 'nothing'"),
        (HOST, ["--policy=own_policies:number"], "expected a function at own_policies:number, found int"),
        (
            HOST,
            ["--policy=own_policies:wide"],
            "own_policies:wide: expected actions [2] of integers, found [2, 3] of f",
        ),
        (HOST, ["--policy=own_policies:illegal"], f"a policy in {HOST}: expected legal actions, found 3 of agent 1"),
        (HOST, ["--policy=own_policies:broken"], "own_policies:broken(obs, avail, key) failed: "),
        (
            IN_JAX,
            ["--policy=own_policies:in_numpy"],
            "in_numpy: expected a function in JAX, because examples.environment_in",
        ),
        (
            IN_JAX,
            ["--policy=own_policies:illegal"],
            "illegal: expected a function in JAX, because examples.environment_in",
        ),
        (IN_JAX, ["--policy=own_policies:broken"], "own_policies:broken(obs, avail, key) failed: "),
        (IN_JAX, ["--policy=own_policies:beyond"], "examples.environment_in_jax/5 beyond, episode 1: action"),
        (HOST, ["--policy=random", "--greedy"], "--greedy: expected a policy with a likeliest action, found random"),
        (HOST, ["--random_share=1.5", "--policy=random"], "--random_share: expected a number from 0 to 1, found 1.5"),
        (HOST, ["--policy=random", "--weights=."], "--policy, --weights: expected one of them, found both"),
        (HOST, ["--weights=nowhere"], "--weights: expected a folder of behaviour policies, found none at nowhere"),
        (HOST, ["--weights={home}/weights", "--quality=good"], "quality: expected one of "),
        (
            HOST,
            ["--weights={home}/few", "--quality=medium_replay"],
            "quality: expected one of expert, medium, medium_ex",
        ),
        (
            HOST,
            ["--quality=medium"],
            "`collect` makes with --policy or --weights, found 'medium' of 'examples.environment_in_python/5'",
        ),
        ("pettingzoo/particles?horizon=3", ["--policy={home}/run"], "obs_dim: expected 3 for pettingzoo/particles"),
        (HOST, ["--policy={home}/run", "--checkpoint=best"], None),
        (HOST, ["--policy=random", "--checkpoint=best"], "--checkpoint: expected the directory of a run as --policy"),
        (HOST, ["--policy={home}/rows.npy"], "rows.npy: expected actor_0_w .. actor_2_b in an npz file"),
        (HOST, ["--policy={home}/narrow.npz"], "narrow.npz for examples.environment_in_python/5: actor_1_w: expected"),
        (
            "examples.environment_in_python/abc",
            ["--policy=random"],
            "python/abc: ValueError: invalid literal",
        ),
        ("pettingzoo/?N=3", ["--policy=random"], "environment pettingzoo/?N=3: expected a module with parallel_env"),
        ("broken_module/5", ["--policy=random"], "cannot import broken_module: RuntimeError: no licence (broken_modu"),
        (
            "pettingzoo/particles?horizon=3",
            ["--policy={home}/weights/{expert}"],
            "expected (2, 3) inputs and 3 discret",
        ),
    ],
)
def test_mistakes_are_named(own, home, tmp_path, monkeypatch, capsys, environment, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(home)
    names = {"home": home, "expert": policies.file_name(HOST, "expert")}
    words = [word.format(**names) for word in words]
    status = collect.main(["collect.py", f"--environment={environment}", "--episodes=2", "--out=own.h5", *words])
    error = capsys.readouterr().err
    if message is None:
        assert status == 0
    else:
        assert status == 78 and error.startswith("error: ") and error.count("\n") == 1 and message in error
        assert not Path("own.h5").exists()


def test_data_of_other_policies_do_not_take_the_name_of_the_packages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect, "QUALITIES", {(IN_JAX, "medium"): None})
    words = ["collect.py", f"--environment={IN_JAX}", "--quality=medium", "--policy=random", "--episodes=2"]
    assert collect.main(words) == 78
    assert (
        "--policy: expected another --quality, or --out, because datasets/examples.environ" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())
    assert collect.main([*words, "--out=own.h5"]) == 0
    # a dataset with a name of its own is described by that name
    named = [*words[:2], "--quality=mine", "--episodes=2"]
    assert collect.main([*named, "--policy=random"]) == 0 and collect.main(named) == 0
    assert "exists: checking it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--environment=smax/3m", "--steps=100"], "--steps: expected no such flag for smax/3m, which has a recipe"),
        (
            [f"--environment={HOST}", "--every=100"],
            "--every: expected --snapshots for examples.environment_in_python/5",
        ),
        (
            [f"--environment={HOST}", "--medium_share=1.5"],
            "--medium_share: expected a number between 0 and 1, found 1.5",
        ),
        ([f"--environment={HOST}", "--minibatches=7"], "--minibatches: expected a divisor of num_envs * rollout"),
        ([f"--environment={HOST}", "--gamma=much"], "flag --gamma"),
        ([f"--environment={HOST}", "--gamma=2"], "--gamma: expected a number from 0 to 1, found 2.0"),
        ([f"--environment={HOST}", "--trace=-0.1"], "--trace: expected a number from 0 to 1, found -0.1"),
        ([f"--environment={HOST}", "--clip=0"], "--clip: expected a positive number, found 0.0"),
        ([f"--environment={HOST}", "--entropy=-1"], "--entropy: expected a number >= 0, found -1.0"),
        ([f"--environment={HOST}", "--steps=0"], "--steps: expected at least 1, found 0"),
        ([f"--environment={HOST}", "--hidden=-3"], "--hidden: expected at least 1, found -3"),
        ([f"--environment={HOST}", "--initial_log_std=nan"], "--initial_log_std: expected a finite number, found nan"),
        ([f"--environment={HOST}", "--out=a_file/below"], "a_file/below: expected a folder to write to, found: "),
    ],
)
def test_mistakes_of_a_training_are_named(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    assert train_behaviour.main(["train_behaviour.py", f"--out={tmp_path / 'w'}", *words]) == 78
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(("more", "algorithm"), [("", "omcda"), ("&continuous_actions=True", "bc")])
def test_the_road_of_simple_spread(more, algorithm, tmp_path, monkeypatch, capsys):
    """The commands of docs/simulator.md, small: two agents, episodes of ten steps."""
    monkeypatch.chdir(tmp_path)
    name = f"pettingzoo/mpe2.simple_spread_v3?N=2&max_cycles=10{more}"
    assert train(name, "weights", *TRAINING, "--gamma=0.9") == 0
    _, episodes, metadata = make(name, "expert.h5", "--weights=weights", "--quality=expert", episodes=24)
    assert (episodes.length == 10).all() and metadata["environment"] == name
    settings = {"data.quality": "expert", "algorithm.name": algorithm}
    for _ in range(2):
        assert learn(name, "expert.h5", "out", **settings) == 0
    assert "evaluating step 40, no training" in capsys.readouterr().out
    result = json.loads(Path("out/result.json").read_text())
    assert result["config"]["algorithm"]["name"] == algorithm and result["evaluation"]["length_mean"] == 10
    _, played, metadata = make(name, "again.h5", "--policy=out", "--greedy", episodes=4)
    assert metadata["quality"] == f"{algorithm}_greedy" and (played.length == 10).all()
    assert data.returns(played).max() < 0
