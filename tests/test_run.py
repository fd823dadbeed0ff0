"""The runner: in this process on a toy simulator, and once on the real SMAX, stopped by a signal and resumed."""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import re
import shutil
import signal
import socket
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from stability import missing, missing_metrics

from benchmarks.toy import SPEC, arguments, environment, episodes, write
from omcda_jax import checkpoint, data, envs
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.data import formats, manifest
from omcda_jax.files import exclusive
from omcda_jax.metrics import MetricsFile, Progress, overestimates, read
from omcda_jax.runner import datasets, evaluation, jobs, records, report, training
from omcda_jax.runner import run as runner
from omcda_jax.runner.presets import PRESETS

MAKE = envs.make
ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The runner's module, with the toy as simulator and its dataset at data.h5 in the working directory."""
    monkeypatch.setattr(envs, "make", lambda name: environment())
    monkeypatch.chdir(tmp_path)
    write("data.h5")
    return runner


def command(*more, updates=60):
    return ["run.py", *arguments("data.h5", *more, updates=updates)]


DIRECTORY = Path("runs/smac_3m/medium/bc/seed_0")


def result_of(directory=DIRECTORY):
    return json.loads((directory / "result.json").read_text())


def learning_curve(directory=DIRECTORY):
    times = ("seconds", "updates_per_second")
    return [{key: row[key] for key in row if key not in times} for row in read(directory / "metrics.jsonl")]


@pytest.mark.parametrize("place", [training, evaluation])
def test_training_and_evaluation_are_compiled_with_the_options_of_their_device(run, monkeypatch, place):
    asked = []
    monkeypatch.setattr(place, "compiler_options", lambda platform: asked.append(platform) or {"xla_no_such": 1})
    with pytest.raises(RuntimeError, match="xla_no_such"):
        run.main(command())
    assert asked == ["cpu"]


def test_what_asking_for_options_compiles_is_not_taken_for_the_update(run, monkeypatch):
    order = []

    @contextlib.contextmanager
    def programs_read():
        order.append("watching")
        yield []

    monkeypatch.setattr(training, "programs_read", programs_read)
    monkeypatch.setattr(training, "compiler_options", lambda platform: order.append("options") or {})
    assert run.main(command()) == 0
    assert order == ["options", "watching"]


@pytest.mark.quick
def test_a_run_leaves_everything_behind_and_says_what_it_did(run, capsys):
    assert run.main(command()) == 0
    out = capsys.readouterr().out
    assert "data data.h5: 24 transitions in 6 episodes, return 1.500 ± " in out
    assert "starting at step 0 of 60" in out
    assert "bc on smax/toy medium, seed 0" in out
    assert "return (mean ± se)" in out
    assert {path.name for path in DIRECTORY.iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "curves.png",
        "lock",
    }
    assert missing([path.name for path in DIRECTORY.iterdir()], "Files", "a run") == []
    result = result_of()
    assert missing(result, "Files", "result.json") == []
    assert (result["step"], result["finished"]) == (60, True)
    assert result["evaluation"]["episodes"] == 4
    assert 1.0 <= result["evaluation"]["return_mean"] <= 2.0, "agent 0 was cloned at least"
    assert result["data"]["statistics"]["return_mean"] == 1.5
    assert result["data"]["max_return_to_go"] == 1.5
    assert result["config"] == json.loads((DIRECTORY / "config.json").read_text())
    assert result["versions"]["jax"] == jax.__version__
    assert result["best_during_training"]["step"] == 30
    assert missing_metrics({key for row in read(DIRECTORY / "metrics.jsonl") for key in row}) == []
    rows = learning_curve()
    assert [row["step"] for row in rows if "policy/loss" in row] == [10, 20, 30, 40, 50, 60]
    assert [row["step"] for row in rows if "evaluation/return_mean" in row] == [30]
    assert (DIRECTORY / "curves.png").read_bytes().startswith(b"\x89PNG")


def stop_when(monkeypatch, owner, name, condition=lambda *arguments: True, number=signal.SIGTERM):
    """Make this process receive a signal in the middle of the next call of `owner.name` that fits."""
    original, sent = getattr(owner, name), []

    def wrapped(*arguments, **options):
        if not sent and condition(*arguments):
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


def test_a_signal_in_training_saves_and_the_same_command_ends_as_if_never_stopped(run, monkeypatch, capsys):
    assert run.main(command(f"--workdir={Path('whole').resolve()}")) == 0
    stop_when(monkeypatch, Progress, "update", lambda self, step, metrics: step == 30, signal.SIGINT)
    capsys.readouterr()
    assert run.main(command()) == 75
    assert "stopped and saved at step 30 of 60; the same command resumes" in capsys.readouterr().out
    assert not (DIRECTORY / "result.json").exists()
    assert run.main(command()) == 0
    assert "resumed at step 30 of 60" in capsys.readouterr().out
    with Checkpoints(DIRECTORY / "checkpoints/latest") as resumed, Checkpoints("whole/checkpoints/latest") as whole:
        job, _ = run.job_of(run.parse(command()))
        template = job.template(SPEC)
        states = [jax.tree.leaves(checkpoints.restore(template)[0].params) for checkpoints in (resumed, whole)]
    for leaf, expected in zip(*states, strict=True):
        np.testing.assert_array_equal(leaf, expected)
    assert learning_curve() == learning_curve(Path("whole"))
    assert result_of()["evaluation"] == result_of(Path("whole"))["evaluation"]


def test_a_signal_in_any_other_phase_loses_nothing(run, monkeypatch, capsys):
    stop_when(monkeypatch, data, "load")
    assert run.main(command()) == 75
    assert "stopped by SIGTERM with nothing more to save" in capsys.readouterr().err
    stop_when(monkeypatch, evaluation, "summarise")
    assert run.main(command()) == 75
    assert "stopped and saved at step 30 of 60" in capsys.readouterr().out
    stop_when(monkeypatch, Checkpoints, "save", lambda kept, *_: kept.directory.endswith("latest"))
    assert run.main(command()) == 75
    assert "stopped and saved at step 40 of 60" in capsys.readouterr().out
    stop_when(monkeypatch, run, "finish")
    assert run.main(command()) == 75
    assert "stopped by SIGTERM with nothing more to save" in capsys.readouterr().err
    assert not (DIRECTORY / "result.json").exists()
    assert run.main(command()) == 0
    assert [row["step"] for row in learning_curve() if "policy/loss" in row] == [10, 20, 30, 40, 50, 60]


def test_a_finished_run_is_evaluated_again_or_extended(run, capsys):
    assert run.main(command()) == 0
    first = result_of()
    for mode in ("--mode=train", "--mode=eval"):
        (DIRECTORY / "result.json").unlink()
        capsys.readouterr()
        assert run.main(command(mode)) == 0
        assert "evaluating step 60, no training" in capsys.readouterr().out
        again = result_of()
        for key in ("step", "evaluation", "metrics", "data", "training_seconds"):
            assert again[key] == first[key]
    assert run.main(command("--config.evaluation.episodes=3", updates=80)) == 0
    assert "resumed at step 60 of 80" in capsys.readouterr().out
    assert (result_of()["step"], result_of()["evaluation"]["episodes"]) == (80, 3)
    assert result_of()["training_seconds"] > first["training_seconds"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.data.path=none.h5"], "none.h5: expected a dataset file, found nothing there"),
        (["--config.data.quality=good"], "data.h5: quality: expected 'good', found 'medium'"),
        (["--config.data.environment=smax/3m"], "data.h5: environment: expected 'smax/3m', found 'smax/toy'"),
        (
            ["--config.learner.updates=55"],
            "learner.updates: expected a multiple of learner.updates_per_call=10",
        ),
        (["--config.algorithm.d_tot=1"], "algorithm.d_tot: no such key; did you mean"),
        (["--config.algorithm.name=omcda", "--config.algorithm.d_min=0.4"], "omcda: d_tot: expected at least"),
        (["--config.seed"], "--config.seed: expected --config.seed=VALUE"),
        (["--workdr=x"], "--workdr: no such flag; did you mean '--workdir'?"),
        (["--config.data.path="], "data.path: expected a file or a folder, found ''"),
        (["--coordinator=host:1"], "--coordinator: expected --num_processes and --process_id, or --distributed, with"),
        (["--gpu"], "--gpu: no such flag; JAX uses the accelerator that it finds"),
        (["--mode=evla"], "flag --mode=evla: value should be one of <train|eval>"),
        (["--mode=eval"], "expected a run to evaluate, found none"),
        (["--config=smac_3n"], "--config: no config 'smac_3n'; did you mean 'smac_3m'?"),
        (["stray"], "stray: no such flag"),
        (["--algorithm=bc"], "--algorithm: no such flag; did you mean '--config.algorithm.name'?"),
        (["--learner.updates=5"], "--learner.updates: no such flag; did you mean '--config.learner.updates'?"),
        (["--workdir=data.h5/below"], "cannot write the run directory"),
    ],
)
def test_mistakes_end_with_one_line_and_status_78(run, monkeypatch, capsys, more, message):
    monkeypatch.setattr(
        training, "make_train_step", lambda *arguments: pytest.fail("compiled before the mistake was seen")
    )
    assert run.main(command(*more)) == 78
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_directory_of_another_run_is_refused(run, capsys):
    assert run.main(command(updates=10)) == 0
    assert run.main(command("--config.algorithm.hidden_sizes=9", updates=10)) == 78
    error = capsys.readouterr().err
    assert "holds a run with other settings (algorithm.hidden_sizes was [8], is [9])" in error
    assert "--workdir" in error


def test_a_directory_of_another_version_is_refused_with_what_to_do(run, capsys):
    assert run.main(command()) == 0
    settings = json.loads((DIRECTORY / "config.json").read_text())
    settings["algorithm"]["discount"] = 0.99
    (DIRECTORY / "config.json").write_text(json.dumps(settings))
    assert run.main(command()) == 78
    error = capsys.readouterr().err
    assert "was started by another version of omcda-jax, whose settings differ (algorithm.discount)" in error
    assert "finish it with that version, or choose another --workdir" in error and error.count("\n") == 1


def test_a_start_that_failed_claims_nothing(run, capsys):
    assert run.main(command("--config.data.path=elsewhere.h5", updates=10)) == 78
    assert "elsewhere.h5" in capsys.readouterr().err
    assert run.main(command(updates=10)) == 0


def test_other_data_than_the_run_began_with_are_refused(run, capsys):
    assert run.main(command(updates=10)) == 0
    metadata = {"environment": "smax/toy", "quality": "medium", "versions": {"toysim": "0.9"}}
    data.write("data.h5", SPEC, episodes(7), metadata)
    assert run.main(command(updates=20)) == 78
    captured = capsys.readouterr()
    assert "was started on other data" in captured.err
    assert "warning: the data were made with toysim 0.9, evaluation uses 1.0" in captured.out


def test_a_foreign_file_trains_and_its_oddities_are_told(run, capsys):
    found = episodes()._replace(terminated=np.zeros(6, bool))
    formats.write("vault", "vault", SPEC, found, {})
    assert run.main(command("--config.data.path=vault")) == 0
    out = capsys.readouterr().out
    assert "note: vault: 6 episodes were cut by the time limit" in out
    assert "note: the data do not say which simulator made them; evaluation uses toysim 1.0" in out
    assert result_of()["step"] == 60
    assert result_of()["data"]["statistics"]["win_rate"] is None, "a vault does not say who won"
    shutil.rmtree("vault")
    formats.write("vault", "vault", SPEC, found._replace(reward=2 * found.reward), {})
    assert run.main(command("--config.data.path=vault", updates=80)) == 78
    assert "was started on other data" in capsys.readouterr().err


def test_data_that_differ_from_the_checksum_beside_them_are_refused(run, capsys):
    manifest.write("data.h5")
    assert run.main(command(updates=10)) == 0
    assert "data data.h5: matches data.h5.sha256" in capsys.readouterr().out
    bsd = f"SHA256 (elsewhere/data.h5) = {Path('data.h5.sha256').read_text().split()[0].upper()}"
    Path("data.h5.sha256").write_text(bsd)
    assert manifest.verify_beside("data.h5") == Path("data.h5.sha256")
    data.write("data.h5", SPEC, episodes(7), {"environment": "smax/toy", "quality": "medium"})
    assert run.main(command(updates=20)) == os.EX_CONFIG
    assert re.search(r"data.h5: expected SHA-256 \w+, as data.h5.sha256 says, found", capsys.readouterr().err)
    Path("data.h5.sha256").write_text("none")
    assert manifest.verify_beside("data.h5") is None


def test_an_evaluation_warns_if_the_data_were_made_in_another_simulator(run, capsys, monkeypatch):
    assert run.main(command(updates=10)) == 0
    newer = dataclasses.replace(environment(), versions={"toysim": "1.1"})
    monkeypatch.setattr(envs, "make", lambda name: newer)
    capsys.readouterr()
    for flags in ((), ("--mode=eval",)):
        assert run.main(command(*flags, updates=10)) == 0
        assert "warning: the data were made with toysim 1.0, evaluation uses 1.1" in capsys.readouterr().out


def test_divergence_stops_with_status_1_and_says_where(run, capsys):
    assert run.main(command("--config.algorithm.learning_rate=1e30")) == 65
    assert (
        "training diverged: policy/loss was not finite in 10 updates in a row, up to update 20"
        in capsys.readouterr().err
    )
    [row] = learning_curve()
    assert row["guard/skipped"] == 9


def test_a_damaged_checkpoint_costs_only_its_steps(run, capsys):
    assert run.main(command()) == 0
    whole = result_of()
    newest = DIRECTORY / "checkpoints/latest/60"
    (newest / "record" / "metadata").write_text("{}")
    assert run.main(command()) == 0
    captured = capsys.readouterr()
    assert f"warning: checkpoint {newest.resolve()} is damaged and put aside" in captured.err
    assert "resumed at step 40 of 60" in captured.out
    assert result_of()["evaluation"] == whole["evaluation"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(run, capsys):
    assert run.main(command()) == 0
    curve = learning_curve()
    for step in (DIRECTORY / "checkpoints" / "latest").iterdir():
        shutil.rmtree(step / "state")
    for _ in range(2):
        assert run.main(command()) == os.EX_CONFIG
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ") and "every checkpoint is damaged and put aside in" in message
        assert f"remove {DIRECTORY.resolve()}/checkpoints/latest to start again" in message
    assert learning_curve() == curve
    shutil.rmtree(DIRECTORY / "checkpoints" / "latest")
    assert run.main(command()) == 0
    assert result_of()["step"] == 60


def test_a_damaged_best_checkpoint_leaves_the_latest_as_it_is(run, capsys):
    assert run.main(command()) == 0
    for step in (DIRECTORY / "checkpoints" / "best").iterdir():
        shutil.rmtree(step / "state")
    assert run.main(command("--mode=eval", "--checkpoint=best")) == os.EX_CONFIG
    assert "expected a checkpoint to evaluate, found none" in capsys.readouterr().err
    assert run.main(command("--mode=eval")) == 0


def test_a_page_of_a_run_whose_disk_does_not_answer_has_no_replay(run, capsys, monkeypatch):
    assert run.main(command()) == 0
    refuse = lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(checkpoint, "_read_record", refuse)
    assert report.main(["report", str(DIRECTORY)]) == 0
    assert "Input/output error" in (DIRECTORY / "report.html").read_text()
    assert run.main(command("--mode=eval")) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: checkpoint ")


def test_without_matplotlib_the_result_stands_and_the_remedy_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run.main(command(updates=10)) == 0
    assert "no plot: matplotlib is not installed; pip install 'omcda-jax[plot]'" in capsys.readouterr().out
    assert not (DIRECTORY / "curves.png").exists()


def test_list_and_help_name_the_presets(run, capsys):
    for flag in ("--config=list", "--help"):
        assert run.main(["run.py", flag]) == 0
        out = capsys.readouterr().out
        for name in ("smac_3m", "smac_2s3z", "smac_5m6m", "mujoco_hopper_medium", "mujoco_ant_expert"):
            assert f"  {name} " in out
    assert "_smac" not in out


def test_every_preset_resolves(run):
    for name in PRESETS:
        config = run.parse(["run.py", f"--config={name}"]).config
        assert config.name == name
        assert config.algorithm.critic_warmup < config.learner.updates


def test_report_remakes_table_and_plot(run, capsys):
    assert run.main(command(updates=10)) == 0
    (DIRECTORY / "curves.png").unlink()
    capsys.readouterr()
    assert report.main(["report", str(DIRECTORY)]) == 0
    assert "bc on smax/toy medium, seed 0" in capsys.readouterr().out
    assert (DIRECTORY / "curves.png").exists() and (DIRECTORY / "report.html").exists()
    assert report.main(["report", "nowhere"]) == 78


def test_table_shows_every_agent_and_warns_of_an_overestimating_critic(run):
    run.main(command(updates=10))
    result = result_of()
    result["metrics"] |= {"critic/q_return": 30.0, "allocation/alpha": [0.25, 4.0], "policy/divergence": [0.5, 0.125]}
    lines = report.table(result).splitlines()
    assert "win rate" not in lines[1], "nobody won"
    result["evaluation"]["win_rate"] = 0.25
    won = report.table(result).splitlines()
    assert "win rate" in won[1] and "  0.250  " in won[2] and "  0.000  " in won[3]
    heading = next(index for index, line in enumerate(lines) if line.startswith("agent"))
    assert [line.split() for line in lines[heading : heading + 3]] == [
        ["agent", "alpha", "policy", "KL"],
        ["0", "0.2500", "0.5000"],
        ["1", "4.0000", "0.1250"],
    ]
    assert "critic on the data 3.000; largest return-to-go in the data 1.500" in lines[-1]
    assert "overestimates" in lines[-1]
    result["metrics"]["critic/q"] = result["metrics"].pop("critic/q_return")
    assert report.table(result).splitlines()[-1] == lines[-1], "of any algorithm"
    result["metrics"]["allocation/price"] = 0.25
    rows = [line.split() for line in report.table(result).splitlines()[heading : heading + 3]]
    assert rows[0][-2:] == ["bound", "by"] and [row[-1] for row in rows[1:]] == ["price", "budget"]
    result["metrics"]["policy/divergence"] = [0.5, 0.0]
    assert report.table(result).splitlines()[heading + 2].split()[-1] == "-", "a clone is bound by nothing"


def test_training_warns_once_of_a_critic_above_every_return_of_the_data(run, capsys, monkeypatch):
    monkeypatch.setattr(data, "max_return_to_go", lambda *_: -100.0)
    some = [f"--config.algorithm.{key}" for key in ("name=omiga", "mixer_hidden=4")]
    assert run.main(command(*some, updates=30)) == 0
    warning = "warning: at step 10 the critic values the data above every return in them, which is too high"
    assert capsys.readouterr().out.count("above every return") == 1
    trials = ["--config.learner.mode=trials", "--config.learner.trials=seed=0..1", "--config.learner.evaluate_every=0"]
    assert run.main(command(*some, *trials, "--workdir=trials", updates=10)) == 0
    out = capsys.readouterr().out
    assert warning.replace("critic values", "critics of 2 of 2 trials value") in out
    assert out.count("the critic overestimates") == 2


def test_one_bound_serves_trials_of_several_discount_factors(run, capsys):
    some = [f"--config.algorithm.{key}" for key in ("name=omiga", "mixer_hidden=4", "target_rate=0.5")]
    trials = ["--config.learner.mode=trials", "--config.learner.trials=algorithm.gamma=0.1,0.99"]
    assert run.main(command(*some, *trials, "--config.learner.evaluate_every=0", updates=300)) == 0
    assert "above every return" not in capsys.readouterr().out
    result = json.loads(next(Path("runs").rglob("result.json")).read_text())
    low, high = (trial["metrics"]["critic/q"] for trial in result["trials"])
    bound = result["data"]["max_return_to_go"] * result["config"]["data"]["reward_scale"]
    assert low < high < 1.06 * bound and bound > 1.4 * result["config"]["data"]["reward_scale"]


def test_the_bound_of_several_discount_factors_is_the_largest_also_of_punishments(run, monkeypatch):
    monkeypatch.setattr(data, "max_return_to_go", lambda _, gamma: -1 / (1 - gamma) if gamma < 0.99 else float("nan"))
    some = ["--config.algorithm.name=omiga", "--config.algorithm.mixer_hidden=4", "--config.learner.mode=trials"]
    trials = ["--config.learner.trials=algorithm.gamma=0.5,0.9,0.99", "--config.learner.evaluate_every=0"]
    assert run.main(command(*some, *trials, updates=10)) == 0
    result = json.loads(next(Path("runs").rglob("result.json")).read_text())
    assert result["data"]["max_return_to_go"] == pytest.approx(-2 / result["config"]["data"]["reward_scale"])


@pytest.mark.quick
def test_a_learned_value_may_exceed_the_largest_return_by_what_a_cut_may_hide():
    assert overestimates({"critic/q": [1.0, 10.4, 10.6]}, 5.0, 2.0).tolist() == [False, False, True]
    assert overestimates({"critic/q_return": -9.9}, -10.0, 1.0) and not overestimates({"critic/q": -10.1}, -10.0, 1.0)
    assert overestimates({"critic/q": -9.0}, 10.0, -1.0) and not overestimates({"critic/q": -11.0}, 10.0, -1.0)
    assert not overestimates({}, 1.0, 1.0) and not overestimates({"critic/q": [5.0, 6.0]}, None, 1.0).any()
    assert not overestimates({"critic/q": float("nan")}, 1.0, 1.0)


def test_a_run_within_the_warm_up_is_noted(run, capsys):
    omcda = "--config.algorithm.name=omcda", "--config.algorithm.price=0"
    noted = "note: all 10 updates are warm-up (algorithm.critic_warmup={}): the policy does not follow its values yet"
    for warmup, said in ((9, False), (10, True)):
        more = f"--config.algorithm.critic_warmup={warmup}", f"--workdir=of_{warmup}"
        assert run.main(command(*omcda, *more, updates=10)) == 0
        assert (noted.format(warmup) in capsys.readouterr().out) == said
    assert run.main(command("--config.algorithm.name=bcq", updates=10)) == 0
    assert "warm-up" not in capsys.readouterr().out


def test_rewards_that_are_not_finite_are_named(run, monkeypatch, capsys):
    toy = environment()

    def step(key, env_state, action):
        after, shown = toy.step(key, env_state, action)
        return after, shown.replace(reward=shown.reward / 0)

    monkeypatch.setattr(envs, "make", lambda name: dataclasses.replace(toy, step=step))
    assert run.main(command("--config.learner.evaluate_every=0", updates=10)) == 78
    assert "environment smax/toy: expected finite rewards, found an episode with return" in capsys.readouterr().err
    assert not (DIRECTORY / "result.json").exists()
    assert [path.name for path in (DIRECTORY / "checkpoints" / "latest").iterdir()] == ["10"], "nothing is lost"
    few = "--config.learner.evaluate_every=10", "--config.learner.checkpoint_every=20", "--workdir=few"
    assert run.main(command(*few, updates=10)) == 78
    assert [path.name for path in Path("few/checkpoints/latest").iterdir()] == ["10"]


def test_mujoco_end_to_end(run, monkeypatch, capsys):
    """Collects real Hopper episodes, trains, and a policy restored with its normaliser plays the same episodes."""
    monkeypatch.setattr(envs, "make", MAKE)
    asked = [
        "run.py",
        "--config=mujoco_hopper_medium",
        "--config.data.transitions=1500",
        "--config.algorithm.hidden_sizes=16,16",
        "--config.algorithm.critic_warmup=20",
        "--config.learner.updates=40",
        "--config.learner.updates_per_call=10",
        "--config.learner.log_every=10",
        "--config.learner.checkpoint_every=20",
        "--config.learner.evaluate_every=20",
        "--config.evaluation.episodes=2",
    ]
    assert run.main(asked) == 0
    printed = capsys.readouterr().out
    assert "collecting" in printed and "win rate" not in printed, "nobody wins where there is no goal"
    directory = Path("runs/mujoco_hopper_medium/medium/omcda/seed_0")
    result = result_of(directory)
    assert (result["step"], result["finished"]) == (40, True)
    assert result["data"]["statistics"]["transitions"] >= 1500
    assert sum(result["metrics"]["allocation/budget"]) == pytest.approx(
        result["config"]["algorithm"]["d_tot"], rel=1e-5
    )
    assert result["evaluation"]["return_mean"] > 0.0 and 1 <= result["evaluation"]["length_mean"] <= 1000
    assert run.main([*asked, "--mode=eval"]) == 0
    assert result_of(directory)["evaluation"] == result["evaluation"]


def test_a_video_of_an_environment_without_a_renderer_is_refused_before_training(run, capsys):
    assert run.main(command("--video=film.gif")) == 78
    assert capsys.readouterr().err == "error: video: environment smax/toy has no renderer\n"
    assert not DIRECTORY.exists()


GRID = ("--config.learner.mode=trials", "--config.learner.trials=seed=0..1; algorithm.learning_rate=0.01,1e30")
TRIALS = Path("runs/smac_3m/medium/bc/trials")


def test_trials_train_side_by_side_and_one_that_diverges_hurts_no_other(run, capsys):
    assert run.main(command(*GRID)) == 0
    out = capsys.readouterr().out
    found = result_of(TRIALS)["trials"]
    assert [one["trial"] for one in found] == [
        {"seed": seed, "algorithm.learning_rate": rate} for seed in (0, 1) for rate in (0.01, 1e30)
    ]
    assert [one["diverged"] for one in found] == [None, "policy/loss", None, "policy/loss"]
    assert [one["skipped"] for one in found] == [0, 59, 0, 59]
    assert out.count("diverged: policy/loss") == 2
    assert "4 trials, 4 greedy episodes each" in out
    for seed in (0, 1):
        assert run.main(command(f"--config.seed={seed}")) == 0
        alone = result_of(Path(f"runs/smac_3m/medium/bc/seed_{seed}"))
        assert found[2 * seed]["evaluation"]["return_mean"] == pytest.approx(alone["evaluation"]["return_mean"])
        assert found[2 * seed]["metrics"]["policy/loss"] == pytest.approx(alone["metrics"]["policy/loss"], rel=1e-4)
    means = [one["evaluation"]["return_mean"] for one in found]
    groups = [line.split() for line in out.splitlines() if line.split()[-2:] in (["2", "0"], ["0", "2"])]
    assert groups[0][:4] == [
        "0.01",
        f"{(means[0] + means[2]) / 2:.3f}",
        "±",
        f"{abs(means[0] - means[2]) / 2**0.5:.3f}",
    ]
    assert groups[1] == ["1e+30", "-", "-", "0", "2"]


def test_shares_of_the_trials_are_the_whole_and_each_goes_on_alone(run, monkeypatch, capsys):
    grid = (GRID[0], "--config.learner.trials=seed=0,1,2")
    assert run.main(command(*grid, "--workdir=whole")) == 0
    stop_when(monkeypatch, Progress, "update", lambda self, step, metrics: step == 30)
    share = lambda index: run.main(command(*grid, "--num_processes=2", f"--process_id={index}"))
    assert share(0) == 75
    assert share(1) == 0
    assert "all shares" not in capsys.readouterr().out
    assert share(0) == 0
    assert "all shares of" in capsys.readouterr().out
    other = command(*grid, f"--workdir={TRIALS / 'share_1_of_9'}")
    assert run.main(other) == 78 and "of one of at most 3 trials" in capsys.readouterr().err
    assert run.main(["run.py", "--mode=eval", f"--workdir={TRIALS / 'share_1_of_2'}"]) == 0
    assert "1 trial" in capsys.readouterr().out
    trials = report.shares(str(TRIALS))["trials"]
    expected = result_of(Path("whole"))["trials"]
    assert [one["trial"] for one in trials] == [{"seed": seed} for seed in (0, 1, 2)]
    for one, other in zip(trials, expected, strict=True):
        assert one["evaluation"]["return_mean"] == pytest.approx(other["evaluation"]["return_mean"])
    assert report.main(["report", str(TRIALS)]) == 0
    assert "3 trials" in capsys.readouterr().out
    (TRIALS / "share_0_of_3").mkdir()
    assert len(report.shares(str(TRIALS), 2)["trials"]) == 3
    assert report.main(["report", str(TRIALS)]) == 78
    assert "expected the shares of one run, found those of several: share_0_of_2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([GRID[0]], "learner.trials: expected a grid such as"),
        ([GRID[1]], "learner.mode: expected trials, because learner.trials is set"),
        ([GRID[0], "--config.learner.trials=seed"], "learner.trials: seed: expected key=value,value,..."),
        ([GRID[0], "--config.learner.trials=seed=0..x"], "expected two whole numbers around '..', found '0..x'"),
        ([GRID[0], "--config.learner.trials=seed=1;seed=2"], "learner.trials: seed: expected each key once"),
        ([GRID[0], "--config.learner.trials=algorithm.hidden_sizes=8"], "expected seed or one of algorithm."),
        ([GRID[0], "--config.learner.trials=seed=-1"], "seed: expected a whole number from 0 to 4294967295, found -1"),
        ([*GRID, "--distributed"], "--distributed: trials run independently"),
        ([*GRID, "--num_processes=9", "--process_id=8"], "--num_processes: expected at most 4, the trials, found 9"),
        (["--num_processes=2"], "--num_processes, --process_id: expected both or neither, found one"),
        (["--num_processes=2", "--process_id=2"], "--process_id: expected less than --num_processes=2, found 2"),
        (["--num_processes=2", "--process_id=0"], "needs --coordinator=HOST:PORT or --distributed"),
        (["--distributed"], "--distributed: no cluster found to join"),
        (["--config.data.shards=3"], "data.shards: expected a divisor of learner.batch_size, found 3"),
    ],
)
def test_mistakes_in_sharing_the_work(run, capsys, more, message):
    assert run.main(command(*more)) == 78
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_the_best_checkpoint_is_kept_apart_and_can_be_evaluated(run, monkeypatch):
    returns = iter([1.9, 1.0, 1.2])
    summarise = evaluation.summarise
    monkeypatch.setattr(evaluation, "summarise", lambda found: summarise(found) | {"return_mean": next(returns)})
    assert run.main(command("--config.learner.evaluate_every=20")) == 0
    names = lambda which: sorted(path.name for path in (DIRECTORY / "checkpoints" / which).iterdir())
    assert (names("latest"), names("best")) == (["40", "60"], ["20"])
    # a later evaluation does not count as one during training, however good it is
    monkeypatch.setattr(evaluation, "summarise", lambda found: summarise(found) | {"return_mean": 99.0})
    for mode in ("eval", "train"):
        assert run.main(command("--config.learner.evaluate_every=20", f"--mode={mode}")) == 0
    assert names("best") == ["20"]
    monkeypatch.setattr(evaluation, "summarise", summarise)
    assert run.main(command("--config.learner.evaluate_every=20", "--mode=eval", "--checkpoint=best")) == 0
    best = json.loads((DIRECTORY / "result_best.json").read_text())
    assert best["step"] == best["metrics"]["step"] == 20
    assert result_of()["step"] == 60


def test_the_best_of_other_episodes_or_other_settings_does_not_stay(run, monkeypatch, capsys):
    more = "--config.learner.evaluate_every=20"
    summarise = evaluation.summarise
    returns = iter([9.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr(evaluation, "summarise", lambda found: summarise(found) | {"return_mean": next(returns)})
    best = lambda: [path.name for path in (DIRECTORY / "checkpoints" / "best").iterdir()]
    assert run.main(command(more, updates=20)) == 0 and best() == ["20"]
    assert run.main(command(more, "--config.evaluation.episodes=3", updates=60)) == 0
    assert best() == ["40"]
    shutil.rmtree(DIRECTORY / "checkpoints" / "latest")
    assert run.main(command(more, "--config.seed=7", f"--workdir={DIRECTORY}")) == 78
    assert "holds a run with other settings (seed was 0, is 7" in capsys.readouterr().err


def test_the_best_is_not_what_training_goes_on_from(run, capsys):
    assert run.main(command()) == 0
    assert run.main(command("--checkpoint=best", updates=80)) == 78
    assert "--checkpoint=best: expected --mode=eval with it, found --mode=train" in capsys.readouterr().err


def test_an_evaluation_leaves_the_runs_own_settings(run):
    assert run.main(command()) == 0
    begun = (DIRECTORY / "config.json").read_text()
    assert run.main(command("--mode=eval", "--config.evaluation.episodes=9")) == 0
    assert (DIRECTORY / "config.json").read_text() == begun
    assert result_of()["evaluation"]["episodes"] == 9


def test_a_reader_that_leaves_costs_no_update(run, monkeypatch):
    def gone(self, step, metrics):
        if step == 30:
            raise BrokenPipeError

    more = ("--config.learner.checkpoint_every=60", "--config.learner.log_every=10")
    with monkeypatch.context() as patch:
        patch.setattr(records.Progress, "update", gone)
        with pytest.raises(BrokenPipeError):
            run.main(command(*more))
    assert [path.name for path in (DIRECTORY / "checkpoints" / "latest").iterdir()] == ["30"]
    assert run.main(command(*more)) == 0
    assert [row["step"] for row in learning_curve() if "policy/loss" in row] == [10, 20, 30, 40, 50, 60]


def test_a_result_that_cannot_be_written_says_how_to_go_on(run, monkeypatch, capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(run, "write_json", lambda path, value: (_ for _ in ()).throw(full))
    assert run.main(command()) == 1
    error = capsys.readouterr().err
    assert "result.json: could not be written (No space left on device); training is saved" in error
    assert error.count("\n") == 1


def test_a_second_run_in_the_same_directory_is_refused_and_a_dead_one_is_not_in_the_way(run, capsys):
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "lock").write_text("host elsewhere, process 1\n")
    with exclusive(DIRECTORY):
        assert run.main(command()) == 78
    error = capsys.readouterr().err
    assert f"another run is at work here (host {socket.gethostname()}, process {os.getpid()})" in error
    assert "--workdir" in error and error.count("\n") == 1
    assert run.main(command(updates=10)) == 0


def test_the_whole_dataset_does_not_stay_beside_what_was_placed(run, monkeypatch):
    whole, load = [], data.load

    def watched(*arguments, **options):
        dataset, metadata = load(*arguments, **options)
        whole.append(weakref.ref(dataset.obs))
        return dataset, metadata

    monkeypatch.setattr(data, "load", watched)
    job, _ = run.job_of(run.parse(command("--config.data.shards=2")))
    source = datasets.read_if_there(job)
    gc.collect()
    assert whole[0]() is None
    with source.opened as dataset_at:
        assert dataset_at(0).obs.size


MINE = """
import flax.struct, omcda_jax
from typing import ClassVar
from omcda_jax.algorithms import bc

@flax.struct.dataclass
class Settings(bc.BcConfig):
    \"\"\"Mine.

    Attributes:
        gain: how much louder than behaviour cloning.
    \"\"\"
    name: ClassVar[str] = "gained:ALGORITHM"
    gain: float = 2.0

def update(state, batch, *, axis_name=None):
    state, metrics = bc.update(state, batch, axis_name=axis_name)
    return state, metrics | {"gained/gain": state.config.gain}

ALGORITHM = bc.ALGORITHM._replace(config=Settings, update=update)
"""


def test_an_algorithm_of_ones_own_is_named_by_its_module(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "gained.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("--config.algorithm.name=gained:ALGORITHM", "--config.algorithm.gain=3")
    assert run.main(["run", "--config=smac_3m", *own, "--help"]) == 0
    assert "how much louder than behaviour cloning" in capsys.readouterr().out
    assert run.main(command(*own, "--workdir=own", updates=20)) == 0
    result = result_of(Path("own"))
    assert (result["config"]["algorithm"]["name"], result["config"]["algorithm"]["gain"]) == ("gained:ALGORITHM", 3.0)
    assert result["metrics"]["gained/gain"] == 3.0
    grid = (*GRID[:1], "--config.learner.trials=algorithm.gain=1,2")
    assert run.main(command(*own[:1], *grid, "--workdir=grid", updates=20)) == 0
    assert [one["metrics"]["gained/gain"] for one in result_of(Path("grid"))["trials"]] == [1.0, 2.0]
    assert run.main(command("--config.algorithm.name=gained:GORITHM")) == 78
    assert "gained:GORITHM" in capsys.readouterr().err


def test_equal_runs_have_equal_fingerprints(run):
    found = []
    for directory, seed in (("first", 0), ("second", 0), ("third", 1)):
        assert run.main(command(f"--workdir={directory}", f"--config.seed={seed}", updates=20)) == 0
        found.append([result_of(Path(directory))[key] for key in ("state_sha256", "metrics_sha256")])
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_a_fingerprint_is_of_a_state_and_the_metrics_before_it(run):
    assert run.main(command(updates=20)) == 0
    _, state = jobs.load_run(str(DIRECTORY))
    job, result = jobs.job_of_run(str(DIRECTORY)), result_of(DIRECTORY)
    with (DIRECTORY / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "policy/loss": 0.0}) + "\n")
    assert jobs.fingerprints(job, state)["metrics_sha256"] == result["metrics_sha256"]


def test_debugging_stops_at_the_operation_that_gave_no_number(run):
    with pytest.raises(FloatingPointError, match="nan"):
        run.main(command("--debug_nans", "--config.algorithm.learning_rate=1e30"))


def test_a_profile_is_written(run, capsys):
    assert run.main(command("--profile")) == 0
    assert "profile of calls 2 to 4" in capsys.readouterr().out
    assert list((DIRECTORY / "profile").rglob("*.xplane.pb"))


def test_a_full_disk_is_one_line_and_the_step_before_stays(run, monkeypatch, capsys):
    """Orbax's own error, raised where its thread would raise it."""
    original = ocp.CheckpointManager.save

    def save(self, step, **options):
        if step == 40:
            raise OSError(28, "No space left on device")
        return original(self, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    assert run.main(command()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left on device" in error and "bytes" in error and "step 20 is safe" in error
    monkeypatch.undo()


def test_a_full_disk_under_the_metrics_is_one_line_and_names_what_is_safe(run, monkeypatch, capsys):
    original = MetricsFile.write

    def write(self, step, values):
        if step == 50:
            raise OSError(28, "No space left on device")
        return original(self, step, values)

    monkeypatch.setattr(MetricsFile, "write", write)
    assert run.main(command()) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.jsonl: could not be written (No space left on device)" in error
    assert "the checkpoint of 40 updates" in error
    monkeypatch.setattr(MetricsFile, "write", original)
    assert run.main(command()) == 0
