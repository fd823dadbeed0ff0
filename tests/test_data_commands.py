import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_data import METADATA, SPEC, make_episodes
from test_formats import CONTINUOUS, write_omiga
from test_formats import make_episodes as make_continuous

from omcda_jax import data
from omcda_jax.data import card, formats, manifest
from omcda_jax.data.__main__ import main
from omcda_jax.data.episodes import final_rows
from omcda_jax.types import DatasetError


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.write("data.h5", SPEC, make_episodes(), METADATA)
    return tmp_path / "data.h5"


def command(*words):
    return main(["data", *words])


def test_coverage_and_entropy_by_hand():
    episodes = make_episodes((4, 4), (True, True))
    steps = np.delete(np.arange(10), final_rows(episodes.length))
    obs, state, action = (np.zeros_like(getattr(episodes, key)) for key in ("obs", "global_state", "action"))
    # agent 0 takes action 1 twice and 2 six times; agent 1 always 3; the state tells two halves apart
    action[steps, 0] = [1, 2, 2, 2, 1, 2, 2, 2]
    action[steps, 1] = 3
    state[steps[4:]] = 1
    found = card.describe(SPEC, episodes._replace(obs=obs, global_state=state, action=action))
    assert found["coverage"] == {"joint": 4 / 8, "agents": [2 / 8, 1 / 8]}
    np.testing.assert_allclose(found["action_entropy"], [-0.25 * np.log(0.25) - 0.75 * np.log(0.75), 0.0])
    assert found["largest_entropy"] == pytest.approx(np.log(4))
    assert sum(found["return_histogram"]["counts"]) == 2
    # rewards are row numbers plus one: 1 + 2 + 3 + 4 and 6 + 7 + 8 + 9
    assert found["return_quantiles"]["0"] == 10 and found["return_quantiles"]["100"] == 30
    json.dumps(found)


def test_entropy_of_continuous_actions_looks_at_an_agents_own_dimensions():
    episodes = make_continuous(CONTINUOUS, (400,), (True,))
    action, avail = episodes.action.copy(), episodes.avail.copy()
    # dimension 0 of agent 0 fills all bins alike; agent 1 has none but a constant one
    action[:400, 0, 0] = action[:400, 0, 1] = np.linspace(-0.999, 0.999, 400)
    action[:400, 1, 0] = 0.5
    avail[:, 1, 1] = False
    found = card.describe(CONTINUOUS, episodes._replace(action=action, avail=avail))
    np.testing.assert_allclose(found["action_entropy"], [np.log(card.BINS), 0.0], atol=1e-6)


def test_verify(file, capsys):
    assert command("verify", "data.h5") == 0
    out = capsys.readouterr().out
    assert "data.h5: intact, format omcda" in out and "transitions      5" in out


def test_who_won_stays_unknown_when_foreign_data_are_converted(file, capsys):
    spec, episodes, _ = data.read("data.h5")
    formats.write("vault", "vault", spec, episodes, {})
    assert command("convert", "vault", "own.h5") == 0
    for path in ("vault", "own.h5"):
        assert command("verify", path) == 0
        assert re.search(r"win_rate +unknown", capsys.readouterr().out)
        assert command("card", path, "--out=it") == 0
        assert "won" not in Path("it/card.md").read_text()
        assert json.loads(Path("it/card.json").read_text())["statistics"]["win_rate"] is None
    assert command("verify", "data.h5") == 0
    assert re.search(r"win_rate +\d", capsys.readouterr().out)


def test_verify_compares_with_the_checksums_of_sha256sum(file, capsys):
    with open("data.h5.sha256", "w") as sums:
        subprocess.run(["sha256sum", "data.h5"], stdout=sums, check=True)
    assert manifest.find("data.h5").name == "data.h5.sha256"
    assert command("verify", "data.h5") == 0
    assert "1 files match data.h5.sha256" in capsys.readouterr().out
    with open("data.h5", "ab") as content:
        content.write(b"x")
    assert command("verify", "data.h5") == 78
    assert "data.h5: data.h5: expected SHA-256" in capsys.readouterr().err


def test_manifests_of_folders_miss_nothing(file, tmp_path):
    assert command("convert", "data.h5", "vault", "--format=vault") == 0
    sums = tmp_path / "vault" / "SHA256SUMS"
    files = sorted(path.relative_to(tmp_path / "vault") for path in (tmp_path / "vault").rglob("*") if path.is_file())
    sums.write_text("".join(f"{manifest.sha256(tmp_path / 'vault' / name)}  {name}\n" for name in files))
    assert manifest.verify("vault", manifest.find("vault")) == len(files) > 3
    (tmp_path / "vault" / "metadata.json").rename(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"vault: metadata.json: expected a file, as .* lists it, found nothing"):
        manifest.verify("vault", sums)
    (tmp_path / "gone").rename(tmp_path / "vault" / "metadata.json")
    (tmp_path / "vault" / "more").write_text("")
    with pytest.raises(DatasetError, match=r"vault: more: expected a line in .*SHA256SUMS, found none"):
        manifest.verify("vault", sums)
    sums.write_text("hello\n")
    with pytest.raises(DatasetError, match=r"line 1: expected '<SHA-256>  <path>', found 'hello'"):
        manifest.verify("vault", sums)


def test_card(file, tmp_path, capsys):
    assert command("card", "data.h5", "--out=card") == 0
    page = (tmp_path / "card" / "card.md").read_text()
    assert page in capsys.readouterr().out
    assert f"- return: 9 ± {72**0.5:.4g} (sd)" in page and "- episodes: 2" in page and "- environment: toy/ring" in page
    numbers = json.loads((tmp_path / "card" / "card.json").read_text())
    assert numbers["statistics"] == data.statistics(make_episodes()) and numbers["metadata"]["seed"] == 3
    assert (tmp_path / "card" / "card.png").read_bytes().startswith(b"\x89PNG")


def test_convert_there_and_back(file, capsys):
    assert command("convert", "data.h5", "vault", "--format=vault") == 0
    out = capsys.readouterr().out
    assert "note: vault: the format cannot store the last observation of 1 episodes cut by the time limit" in out
    assert command("convert", "vault", "back.h5", "--environment=toy/ring", "--quality=good") == 0
    _, episodes, metadata = data.read("back.h5", environment="toy/ring")
    assert metadata["quality"] == "good" and metadata["description"] == "converted from vault"
    np.testing.assert_array_equal(episodes.length, [2, 2])
    np.testing.assert_array_equal(episodes.reward, [1, 2, 0, 4, 5, 0])


def test_repairs_by_flag_are_kept_in_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    episodes = make_continuous(CONTINUOUS)
    write_omiga("far.h5", episodes._replace(action=4 * episodes.action))
    assert command("verify", "far.h5") == 78
    assert "action_scale=" in capsys.readouterr().err
    assert command("convert", "far.h5", "near.h5", "--action_scale=4", "--time_limit=4") == 0
    _, found, metadata = data.read("near.h5")
    np.testing.assert_array_equal(found.action, episodes.action)
    np.testing.assert_array_equal(found.terminated, [True, True, False])
    assert metadata["repairs"]["action_scale"] == 4 and metadata["repairs"]["time_limit"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["look", "data.h5"],
            "expected one of verify PATH; card PATH; convert FROM TO; download NAME, found 'look data.h5'",
        ),
        (["convert", "data.h5"], "found 'convert data.h5'"),
        (["verify", "none.h5"], "none.h5: expected a dataset file, found nothing there"),
        (["verify", "data.h5", "--speed=3"], "Unknown command line flag 'speed'"),
        (["verify", "data.h5", "--action_scale=0"], "action_scale: expected a positive number, found 0.0"),
        (["convert", "data.h5", "data.h5"], "data.h5: expected nothing there, found a file"),
        (["card", "data.h5", "--out=data.h5"], "data.h5: expected a folder to write to, found: File exists"),
    ],
)
def test_mistakes_are_one_line_and_status_78(file, capsys, words, message):
    assert command(*words) == 78
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_help(capsys):
    assert command("--help") == 0
    assert "python -m omcda_jax.data verify PATH" in capsys.readouterr().out
