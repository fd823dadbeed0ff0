"""The zoo: entries are made, unpacked and evaluated; damage and wrong returns are reported; the shipped entries."""

import csv
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stability import missing
from test_hub import NAME, Hub, hub_name

import omcda_jax
from benchmarks import table
from benchmarks.zoo import _made_with as zoo_of_table_made_with
from benchmarks.zoo import main as zoo_of_table
from omcda_jax.checkpoint import Checkpoints, digest, load_policy
from omcda_jax.config import to_dict
from omcda_jax.evaluate import EpisodeResults
from omcda_jax.runner import zoo
from omcda_jax.runner.jobs import Job, write_json
from omcda_jax.runner.presets import resolve

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "benchmarks" / "zoo"
SETTINGS = [
    "algorithm.name=bc",
    "algorithm.hidden_sizes=8",
    "data.environment=benchmarks.toy/any",
    "learner.updates=60",
    "learner.updates_per_call=10",
    "learner.log_every=10",
    "learner.evaluate_every=60",
    "learner.checkpoint_every=60",
    "evaluation.episodes=4",
]
TRIALS = ["learner.mode=trials", "learner.trials=seed=3,5"]


def leave_a_run(directory, *more, step=60):
    """The directory of a run that ended after `step` updates, which changed nothing."""
    config = resolve("smac_3m", [*SETTINGS, *more])
    directory.mkdir(parents=True)
    write_json(directory / "config.json", to_dict(config))
    job = zoo.job_of_run(str(directory))
    state = job.fresh(zoo.envs.make("benchmarks.toy/any").spec)
    state = state.replace(step=jnp.full_like(state.step, step))
    write_json(directory / "config.json", to_dict(job.config))
    metadata = {"config": to_dict(job.config), "data": {"statistics": {"episodes": 6}}, "seconds": 1.0}
    with Checkpoints(job.checkpoints()) as checkpoints:
        checkpoints.save(state, metadata)
    return job, state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one entry of two seeds, and the state that they are from."""
    place = tmp_path_factory.mktemp("zoo")
    _, state = leave_a_run(place / "run", *TRIALS)
    command = ["zoo", "add", str(place / "run"), f"--zoo={place / 'zoo'}", "--name=toy/bc"]
    assert zoo.main(command) == 0
    return place / "zoo", state


def run(folder, *words):
    return zoo.main(["zoo", *map(str, words), f"--zoo={folder}"])


def test_an_entry_is_listed_unpacked_and_reaches_what_its_card_says(made, tmp_path, capsys):
    folder, state = made
    assert run(folder, "list") == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    archive = folder / "toy" / "bc.zip"
    said = (folder / "toy" / "bc.zip.sha256").read_text()
    assert line[:6] == ["toy/bc", "benchmarks.toy/any", "medium", "bc", "60", "2"] and said.startswith(line[-1])
    for _ in range(2):  # the second time it is there
        assert run(folder, "get", "toy/bc", f"--out={tmp_path}") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'toy' / 'bc'}\n" * 2
    entry = tmp_path / "toy" / "bc"
    assert sorted(path.name for path in entry.iterdir()) == ["card.json", "seed_3", "seed_5"]
    assert missing(["card.json"], "Files", "an entry of a zoo") == []
    second = omcda_jax.policy(jax.tree.map(lambda leaf: leaf[1], state))
    assert digest(load_policy(entry / "seed_5")) == digest(second)
    assert run(folder, "evaluate", "toy/bc") == 0
    assert run(folder, "evaluate", entry, "--episodes=3", "--seed=1") == 0
    out = capsys.readouterr().out.splitlines()
    assert " in 4 episodes of 2 policies; the card says " in out[0] and "which is within " in out[0]
    assert " in 3 episodes of 2 policies" in out[1]
    card = json.loads((entry / "card.json").read_text())
    assert card["settings"]["learner"]["trials"] == "seed=3,5" and card["data"]["statistics"]["episodes"] == 6
    means = [each["return_mean"] for each in card["policies"].values()]
    assert card["evaluation"]["return_mean"] == np.mean(means) and card["evaluation"]["episodes"] == 4
    with zipfile.ZipFile(archive) as file:
        assert all(info.date_time[0] == 1980 for info in file.infolist()), "equal contents give equal bytes"


def test_a_return_that_is_not_reached_ends_with_1_after_all_were_played(made, tmp_path, capsys):
    folder, _ = made
    assert run(folder, "get", "toy/bc", f"--out={tmp_path}") == 0
    path = tmp_path / "toy" / "bc" / "card.json"
    card = json.loads(path.read_text())
    card["evaluation"]["return_mean"] += 0.1
    card["environment_versions"] = {"toysim": "0.9"}
    path.write_text(json.dumps(card))
    capsys.readouterr()
    assert run(folder, "evaluate", path.parent, "toy/bc") == 1
    shown = capsys.readouterr()
    assert shown.out.count("which is outside") == 1 and shown.out.count("which is within") == 1
    assert "were made with toysim 0.9, evaluation uses 1.0" in shown.out


def test_what_is_damaged_or_missing_is_one_line(made, tmp_path, capsys):
    folder, _ = made
    content = bytearray((folder / "toy" / "bc.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    (tmp_path / "flipped.zip.sha256").write_text(
        (folder / "toy" / "bc.zip.sha256").read_text().replace("bc.zip", "flipped.zip")
    )
    (tmp_path / "alone.zip").write_bytes(content)
    for name, expected in [
        ("flipped", "expected SHA-256"),
        ("alone", "alone.zip.sha256, found none"),
        ("../up", "expected a name such as"),
        ("other", f"no such entry of {tmp_path}"),
    ]:
        assert run(tmp_path, "evaluate", name) == 78
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
    (tmp_path / "text.zip").write_text("no archive")
    for words, expected in [
        (["list"], "text.zip: expected an entry of a zoo with a card.json"),
        (["evaluate"], "expected one of list; get NAME; evaluate NAME ...; add RUN, found 'evaluate'"),
        (["get", "a", "b"], "found 'get a b'"),
        (["evaluate", "alone", "--episodes=0"], "--episodes: expected at least 1, found 0"),
    ]:
        assert run(tmp_path, *words) == 78
        assert expected in capsys.readouterr().err
    assert run(tmp_path / "nowhere", "list") == 78
    assert "--zoo: expected a folder of entries, found none" in capsys.readouterr().err


def test_only_finished_runs_of_one_setting_become_entries(made, tmp_path, capsys):
    folder, _ = made
    leave_a_run(tmp_path / "short", step=40)
    leave_a_run(tmp_path / "several", "learner.mode=trials", "learner.trials=algorithm.learning_rate=0.1,0.2")
    for name, more, expected in [
        ("short", [], "short: expected a finished run of 60 updates, found 40"),
        ("several", [], "expected trials that differ by their seed alone"),
        ("short", ["--name=toy/bc"], "--name: expected a new entry, found"),
        ("nothing", [], "nothing: expected the directory of a run, found no config.json in it"),
    ]:
        assert run(folder, "add", tmp_path / name, *more) == 78
        assert expected in capsys.readouterr().err
    assert [path.name for path in (folder / "toy").iterdir()] == ["bc.zip", "bc.zip.sha256"]


def test_the_cell_of_a_table_becomes_an_entry(tmp_path, capsys):
    job, state = leave_a_run(tmp_path / "table" / "smac_3m-good" / "bc" / "final" / "rate=1", *TRIALS)
    config = json.loads((Path(job.directory) / "config.json").read_text())
    config["learner"]["trials"] = "settings=rate=1; seeds=3,5"
    write_json(Path(job.directory) / "config.json", config)
    with Checkpoints(job.checkpoints()) as checkpoints:
        checkpoints.save(state, {"config": config, "data": {}, "seconds": 1.0}, replace=True)
    (tmp_path / "table" / "notes.txt").touch()
    words = ["zoo", f"--directory={tmp_path / 'table'}", f"--zoo={tmp_path / 'zoo'}"]
    for word, expected in [
        ("--tasks=smac_3n:good", "--tasks: no final run of 'smac_3n:good' there; did you mean 'smac_3m:good'?"),
        ("--algorithms=cb", "--algorithms: no final run of 'cb' there; did you mean 'bc'?"),
        (f"--directory={tmp_path}", "--directory: expected the folder of a table's final runs, found none at"),
    ]:
        assert zoo_of_table([*words, word]) == 78
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
    assert zoo_of_table(words) == 0
    assert list(zoo.entries(tmp_path / "zoo")["smac_3m:good/bc"]["policies"]) == ["seed_3", "seed_5"]


@pytest.mark.quick
def test_a_card_says_where_its_own_run_was_trained(tmp_path):
    """Among rows of one task and algorithm, those with the run's settings and protocol."""
    given = ["table", "--tasks=smac_3m:good", "--algorithms=bc", "--config.learner.log_every=20"]
    command = table.parse([*given, "--config.data.reward_scale=2"])
    [method], settings = command.methods, "learning_rate=0.0005 policy_average_rate=1"
    cell = command.final(method, settings)
    write_json(tmp_path / "config.json", to_dict(table.job_of(command, method, cell).config))
    row = {"task": cell.task, "algorithm": "bc", "stage": "final", "settings": settings, "protocol": cell.protocol}
    row["seed"] = cell.seeds[0]
    other = table.parse(given)
    others = [
        {"settings": "learning_rate=0.0005 policy_average_rate=0.003"},
        {"stage": "tuning"},
        {"protocol": other.final(other.methods[0], settings).protocol},
        {"protocol": cell.protocol.replace("updates=20000", "updates=10000")},
        {"protocol": cell.protocol.replace("episodes=32", "episodes=320")},
        {"seed": 99},
    ]
    rows = [row | change | {"made_with": "elsewhere"} for change in others]
    job = table.job_of(command, method, cell)
    job = Job(job.configs, str(tmp_path), population=True, flag="--directory")
    made_with = lambda rows: zoo_of_table_made_with(rows, cell.task, settings, job)
    assert made_with(rows) is None
    assert made_with([row | {"made_with": ""}, row | {"made_with": "here"}, *rows]) == "here"


def test_an_entry_comes_from_the_hub(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder, _ = made
    served = Hub((folder / "toy" / "bc.zip").read_bytes())
    where = [f"--repository={hub_name}", f"--endpoint={served.endpoint}", f"--out={tmp_path}"]
    try:
        assert run(folder, "list", *where) == 0
        assert run(folder, "get", NAME, *where) == 0
        assert run(folder, "evaluate", NAME, *where) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0] == NAME and str(tmp_path / NAME) in shown and "toy/bc: " in shown[-1]
        assert run(folder, "list", "--repository=not/there", *where[1:]) == 78
        assert "not/there at main: expected a repository of datasets on the hub" in capsys.readouterr().err
    finally:
        served.server.shutdown()
        served.server.server_close()
    card = tmp_path / NAME / "card.json"
    card.write_text(card.read_text().replace('"updates": 60', '"update": 60'))
    assert run(folder, "evaluate", tmp_path / NAME) == 78
    assert "found no updates" in capsys.readouterr().err


@pytest.mark.quick
def test_the_error_counts_that_all_policies_play_the_same_episodes(random, monkeypatch):
    returns = random.normal(size=(3, 50)) + 4 * random.normal(size=50)
    others = [np.zeros((3, 50), kind) for kind in (bool, int, bool)]
    monkeypatch.setattr(zoo, "make_evaluate", lambda *_, **__: lambda state, key: EpisodeResults(returns, *others))
    played = zoo.play([jnp.zeros(2)] * 3, None, 50, 0)
    assert played.mean == pytest.approx(returns.mean())
    assert played.error == pytest.approx(returns.mean(axis=0).std(ddof=1) / 50**0.5)


@pytest.mark.quick
def test_the_interval_holds_99_of_100_returns_that_differ_by_chance(random):
    inside = []
    for sample in random.normal(5.0, 2.0, (2000, 2, 64)):
        mean, error = sample.mean(-1), sample.std(-1, ddof=1) / 8
        card = {"evaluation": {"return_mean": mean[0], "return_se": error[0]}}
        inside.append(zoo.holds(card, zoo.Played([], mean[1], error[1]))[2])
    assert 0.98 <= np.mean(inside) <= 0.995
    low, high, held = zoo.holds({"evaluation": {"return_mean": 7.0, "return_se": 0.1}}, zoo.Played([], 6.0, 0.0))
    assert not held and (low, high) == pytest.approx((6 - 0.2583, 6 + 0.2583), abs=1e-3)


@pytest.mark.quick
def test_what_is_shipped_loads_and_is_what_the_tables_say():
    cards = zoo.entries(SHIPPED)
    assert len(cards) >= 3 and all(card["name"] == name for name, card in cards.items())
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 4e6
    with open(ROOT / "benchmarks" / "results" / "table.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["returns"]]
    for name, card in cards.items():
        # a cell of other settings may have come since
        for seed, summary in card["policies"].items():
            cell = [
                float(row["return_mean"])
                for row in rows
                if [row["task"], row["algorithm"]] == name.split("/") and f"seed_{row['seed']}" == seed
            ]
            assert not cell or min(abs(mean / summary["return_mean"] - 1) for mean in cell) < 1e-4
        with zoo.opened(SHIPPED, name) as place:
            actor = load_policy(place / next(iter(card["policies"])))
        spec = actor.spec
        action = omcda_jax.act(actor, jnp.zeros((1, spec.num_agents, spec.obs_dim)))
        assert np.isfinite(action).all() and actor.config.name == card["algorithm"]


@pytest.mark.slow
def test_every_shipped_entry_holds_here():
    assert run(SHIPPED, "evaluate", *zoo.entries(SHIPPED)) == 0
