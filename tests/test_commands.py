"""Commands in users' environments: JAX's switches, missing devices, a home folder, moved data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_run import DIRECTORY, ROOT, command, result_of, run

from benchmarks.toy import SPEC, episodes
from benchmarks.toy import environment as toy
from omcda_jax import data
from omcda_jax.data.__main__ import main as data_command
from omcda_jax.runner import collect, compare, report, train_behaviour
from omcda_jax.runner.behaviours import actor_of_run
from omcda_jax.runner.jobs import load_run
from omcda_jax.types import ConfigError

__all__ = ["run"]  # fixture


@pytest.fixture
def finished(run):
    """A finished toy run of 60 updates, in the working directory."""
    assert run.main(command()) == 0
    return run


def test_64_bits_and_no_compilation_change_nothing(finished, capsys):
    expected = result_of()
    capsys.readouterr()
    with jax.enable_x64(True):
        assert finished.main(command("--workdir=wide")) == 0
        assert finished.main(command("--mode=eval")) == 0
    assert capsys.readouterr().err == ""
    with jax.disable_jit(True):
        assert finished.main(command("--workdir=eager", updates=20)) == 0
    assert capsys.readouterr().err == "warning: JAX_DISABLE_JIT has no effect, commands run compiled programs\n"
    for found in (result_of(Path("wide")), result_of()):
        assert [found[key] == expected[key] for key in ("state_sha256", "metrics_sha256", "evaluation")] == [True] * 3


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    name = "cuda" if jax.default_backend() == "cpu" else "tpu"
    words = [sys.executable, str(ROOT / "experiments" / "run.py"), "--config=smac_3m", f"--workdir={tmp_path / 'run'}"]
    surroundings = os.environ | {"JAX_PLATFORMS": name, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, env=surroundings, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 78
    assert ended.stderr.startswith(f"error: JAX_PLATFORMS={name}: expected a device of this kind, found none")
    assert ended.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_home_folder_is_expanded_in_every_path(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    Path("data.h5").rename(tmp_path / "home" / "own.h5")
    assert run.main(command("--workdir=~/run", "--config.data.path=~/own.h5", updates=10)) == 0
    assert (tmp_path / "home" / "run" / "result.json").exists()
    assert run.parse(command("--config.directory=~/runs")).directory.startswith(f"{tmp_path}/home/runs/")
    assert data_command(["data", "card", "~/own.h5", "--out", "~/card"]) == 0
    assert (tmp_path / "home" / "card" / "card.md").exists()
    assert not Path("~").exists()


@pytest.mark.parametrize("main", [collect.main, train_behaviour.main])
def test_every_seed_flag_is_checked(main, capsys):
    assert main(["command", "--seed=4294967301"]) == 78
    assert "error: --seed: expected a whole number from 0 to 4294967295, found 4294967301" in capsys.readouterr().err


def test_data_may_move(finished, capsys):
    Path("elsewhere").mkdir()
    Path("data.h5").rename("elsewhere/data.h5")
    assert finished.main(command("--config.data.path=elsewhere/data.h5", updates=80)) == 0
    assert "resumed at step 60 of 80" in capsys.readouterr().out
    assert result_of()["config"]["data"]["path"] == "elsewhere/data.h5"
    metadata = {"environment": "smax/toy", "quality": "medium", "versions": {"toysim": "1.0"}}
    data.write("other.h5", SPEC, episodes(7), metadata)
    assert finished.main(command("--config.data.path=other.h5", updates=100)) == 78
    assert "was started on other data than the file now contains" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["checkpoints", "checkpoints/latest", "checkpoints/latest/60/deeper"])
def test_a_run_among_the_checkpoints_of_another_is_refused(finished, capsys, below):
    before = sorted(DIRECTORY.rglob("*"))
    assert finished.main(command(f"--workdir={DIRECTORY / below}")) == 78
    error = capsys.readouterr().err
    assert f"{below}: expected a directory of its own for the run, found one among the checkpoints of" in error
    assert sorted(DIRECTORY.rglob("*")) == before


def test_an_evaluation_needs_no_more_than_the_runs_directory_and_leaves_its_settings(finished, capsys):
    settings, first = json.loads((DIRECTORY / "config.json").read_text()), result_of()
    for words in (command("--mode=eval", updates=20), ["run.py", "--mode=eval", f"--workdir={DIRECTORY}"]):
        assert finished.main(words) == 0
        assert "evaluating step 60, no training" in capsys.readouterr().out
        assert json.loads((DIRECTORY / "config.json").read_text())["learner"] == settings["learner"]
        assert [result_of()[key] == first[key] for key in ("config", "step", "finished", "evaluation")] == [True] * 4
    assert finished.main(["run.py", "--mode=eval", f"--workdir={DIRECTORY}", "--config.evaluation.episodes=3"]) == 0
    assert result_of()["evaluation"]["episodes"] == 3
    assert finished.main(["run.py", "--mode=eval", "--workdir=nowhere"]) == 78
    assert "nowhere: expected the directory of a run, found no config.json in it" in capsys.readouterr().err


def test_a_run_is_loaded_with_its_settings(finished):
    config, state = load_run(str(DIRECTORY))
    assert (config.learner.updates, config.algorithm.hidden_sizes, int(state.step)) == (60, (8,), 60)
    kept = [int(path.name) for path in (DIRECTORY / "checkpoints" / "best").iterdir()]
    assert [int(load_run(str(DIRECTORY), checkpoint="best")[1].step)] == kept
    trials = "--config.learner.mode=trials", "--config.learner.trials=algorithm.learning_rate=0.01,0.02"
    assert finished.main(command(*trials, "--workdir=trials", updates=10)) == 0
    config, state = load_run("trials", trial=1)
    assert config.algorithm.learning_rate == 0.02 == pytest.approx(float(state.config.learning_rate))
    for directory, trial, message in (
        ("trials", 2, "trials: trial: expected less than 2, its trials, found 2"),
        ("nowhere", 0, "nowhere: expected the directory of a run, found no config.json in it"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run(directory, trial=trial)


def test_an_evaluation_with_another_grid_or_mode_is_refused(run, capsys):
    trials = "--config.learner.mode=trials", "--workdir=trials"
    assert run.main(command(*trials, "--config.learner.trials=seed=0,1", updates=10)) == 0
    first = result_of(Path("trials"))
    for more in ([*trials, "--config.learner.trials=seed=0,7"], ["--workdir=trials"]):
        capsys.readouterr()
        assert run.main(command("--mode=eval", *more, updates=10)) == 78
        assert "trials: holds a run with other settings (learner." in capsys.readouterr().err
    assert result_of(Path("trials")) == first


def test_shares_are_evaluated_and_loaded_by_their_directories(run, capsys):
    grid = "algorithm.learning_rate=0.01,0.02,0.03"
    trials = "--config.learner.mode=trials", f"--config.learner.trials={grid}", "--workdir=shared"
    for index in "01":
        assert run.main(command(*trials, "--num_processes=2", f"--process_id={index}", updates=10)) == 0
    first = result_of(Path("shared/share_1_of_2"))
    assert run.main(["run.py", "--mode=eval", "--workdir=shared", "--num_processes=2", "--process_id=1"]) == 0
    assert result_of(Path("shared/share_1_of_2"))["trials"] == first["trials"]
    assert load_run("shared/share_1_of_2")[0].algorithm.learning_rate == 0.03
    config, state = load_run("shared/share_0_of_2", trial=1)
    assert config.algorithm.learning_rate == 0.02 == pytest.approx(float(state.config.learning_rate))


def test_a_cell_of_a_comparison_is_loaded(run, capsys):
    words = [word for word in command(updates=10)[2:] if "algorithm.name" not in word and "evaluat" not in word]
    assert compare.main(["compare.py", *words, "--tasks=smac_3m", "--algorithms=bc", "--seeds=0,3"]) == 0
    config, state = load_run("runs/compare/smac_3m/bc/seeds_0-3", trial=1)
    assert config.seed == 3 and int(state.step) == 10
    with pytest.raises(ConfigError, match="--policy: expected a run of one trial, found several in runs/compare"):
        actor_of_run("runs/compare/smac_3m/bc/seeds_0-3", toy(), "latest")
    capsys.readouterr()
    assert report.main(["report", "runs/compare/smac_3m/bc/seeds_0-3"]) == 78
    assert "expected a run, a comparison or a sweep, found one cell of a comparison" in capsys.readouterr().err
    assert run.main(["run", "--mode=eval", "--workdir=runs/compare/smac_3m/bc/seeds_0-3"]) == 78
    assert "seeds_0-3: expected a run, found a cell of a comparison" in capsys.readouterr().err


def test_a_run_of_another_name_or_version_is_told(finished, capsys):
    assert finished.main(command("--config.name=mine", "--workdir=mine", updates=10)) == 0
    assert finished.main(["run.py", "--mode=eval", "--workdir=mine"]) == 0
    settings = json.loads(Path("mine/config.json").read_text())
    settings["learner"]["patience"] = 3
    Path("mine/config.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert finished.main(["run.py", "--mode=eval", "--workdir=mine"]) == 78
    error = capsys.readouterr().err
    assert "mine/config.json: expected the settings of a run of this version of omcda-jax: learner.patience" in error


def test_a_checkpoints_own_folder_is_evaluated(finished, capsys):
    for below, step, name in (
        ("latest", 60, "result.json"),
        ("latest/40", 40, "result_latest_40.json"),
        ("best", 30, "result_best.json"),
        ("", 60, "result.json"),
    ):
        (DIRECTORY / name).unlink(missing_ok=True)
        capsys.readouterr()
        if below == "best":
            step = int(max(path.name for path in (DIRECTORY / "checkpoints" / "best").iterdir()))
        assert finished.main(command("--mode=eval", f"--workdir={DIRECTORY / 'checkpoints' / below}")) == 0
        assert f"evaluating step {step}, no training" in capsys.readouterr().out
        assert json.loads((DIRECTORY / name).read_text())["step"] == step
    for below in ("latest/50", "newest", "latest/40/state"):
        assert finished.main(command("--mode=eval", f"--workdir={DIRECTORY / 'checkpoints' / below}")) == 78
        assert "expected a run, its checkpoints/latest or checkpoints/best, or a step" in capsys.readouterr().err


def test_fewer_updates_than_are_done_are_refused_and_change_nothing(finished, capsys):
    before = {path.name: path.read_bytes() for path in DIRECTORY.glob("*.json")}
    capsys.readouterr()
    assert finished.main(command(updates=40)) == 78
    assert "learner.updates: expected at least 60, which are already done, found 40" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in DIRECTORY.glob("*.json")} == before
    assert finished.main(command("--mode=eval", updates=40)) == 0
    # as an earlier version left it on disk
    saved = json.loads((DIRECTORY / "config.json").read_text())
    saved["learner"]["updates"] = 40
    (DIRECTORY / "config.json").write_text(json.dumps(saved))
    assert finished.main(["run", "--mode=eval", f"--workdir={DIRECTORY}"]) == 0


SAYS = "import sys; from omcda_jax.runner import main; main.COMMANDS['say'] = ('said', ''); main.main(sys.argv[1:])"


@pytest.mark.parametrize(
    ("words", "surroundings", "expected"),
    [
        ("say", {"PYTHONIOENCODING": "ascii"}, "1 ? 2"),  # a terminal that knows no ±
        ("say >&-", {}, ""),  # no output at all
        ("say 2>&-", {}, "1 ± 2"),
    ],
)
def test_any_output_will_do(tmp_path, words, surroundings, expected):
    (tmp_path / "said.py").write_text("def main(argv):\n    print('1 ± 2')\n    return 0\n")
    line = f'"{sys.executable}" -c "{SAYS}" {words}'
    found = os.environ | {"PYTHONPATH": str(ROOT)} | surroundings
    ended = subprocess.run(line, shell=True, env=found, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, expected, "")


def test_a_plot_that_cannot_be_written_leaves_the_result(finished, capsys):
    (DIRECTORY / "curves.png").unlink()
    (DIRECTORY / "curves.png").mkdir()
    capsys.readouterr()
    assert finished.main(command("--mode=eval")) == 0
    said = capsys.readouterr()
    assert "no plot: " in said.out and "curves.png: Is a directory" in said.out and not said.err
