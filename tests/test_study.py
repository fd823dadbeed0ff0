"""A study of variants: a cell with a row is not run again, and the table is over the seeds with rows."""

import json
import os
import pathlib
import signal
import sys
import textwrap
import threading
import time
import types

import pytest

from benchmarks import children, study
from omcda_jax.config import to_dict
from omcda_jax.runner.presets import resolve
from omcda_jax.system import Interrupted

pytestmark = pytest.mark.quick


@pytest.fixture
def order(tmp_path, monkeypatch):
    """Return a function that returns the command, with runs that only write a run's files, and a list of the runs."""
    runs = []

    def pretend(child, core):
        command = child.command
        runs.append(command)
        (directory,) = [word.partition("=")[2] for word in command if word.startswith("--workdir")]
        seed = int(directory[-1])
        if "--config.algorithm.name=bc" in command and seed == 1:
            return types.SimpleNamespace(poll=lambda: 75, returncode=75)
        (tmp_path / directory).mkdir(parents=True)
        statistics = {"return_mean": 1.0, "win_rate": 0.5}
        last = {"return_mean": 2.0 + seed, "win_rate": 0.75}
        config = to_dict(resolve("smac_3m", [word[9:] for word in command if word.startswith("--config.")]))
        data = {"statistics": statistics, "max_return_to_go": 2.0}
        result = {"finished": True, "step": 40, "evaluation": last, "config": config, "data": data}
        learning = {
            "step": 40,
            "critic/q_return": 10.0,
            "critic/q_deviation": -1.0,
            "allocation/budget": [0.1, 0.4],
            "allocation/weight_divergence": [0.1, 0.2],
            "policy/divergence": [0.2, 0.4],
        }
        evaluations = [{"step": step, "evaluation/return_mean": mean} for step, mean in ((10, 9.0), (20, 1.0))]
        written = {"result.json": [result], "metrics.jsonl": [*evaluations, learning]}
        for name, rows in written.items():
            (tmp_path / directory / name).write_text("\n".join(map(json.dumps, rows)))
        return types.SimpleNamespace(poll=lambda: 0, returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(children, "_start", pretend)
    monkeypatch.setattr(study.os, "sched_getaffinity", lambda pid: {0})
    words = ["--presets=smac_3m", "--variants=bc,softmax", "--seeds=0,1", "--csv=rows.csv", "--jobs=1"]

    def give(*more):
        study.FLAGS.unparse_flags()
        return study.main(["study", *words, *more], study.__doc__, study.FLAGS, study.work)

    return give, runs


def test_what_has_a_row_is_not_run_again(order, capsys):
    give, runs = order
    assert give() == 1 and len(runs) == 4
    shown = capsys.readouterr()
    assert "smac_3m bc 1: exit 75, runs/study/smac_3m/bc/seed_1/log.txt" in shown.err
    lines = shown.out.splitlines()[2:]
    # of 2 and 3; of (1 + 2) / 2 and (1 + 3) / 2; 10 of 20; of .1 / .1 and .2 / .4; of .2 / .1 and .4 / .4
    means = "2.500 ± 0.707 | 1.750 ± 0.354 | 0.750 | 1.000 (0.500) | 0.50 | -1.00 | 0.75 | 1.50 |"
    assert lines[1] == f"| smac_3m | softmax | 2 | {means}"
    assert lines[0].startswith("| smac_3m | bc | 1 | 2.000 ± 0.000 | 1.500 ± 0.000 |"), "one seed was stopped"

    assert give("--directory=elsewhere") == 1 and len(runs) == 5, "only the one without a row"
    assert give("--norun") == 0 and len(runs) == 5
    assert capsys.readouterr().out.splitlines()[-2:] == lines
    assert give("--variants=softmax", "--overrides=learner.updates=500") == 0 and len(runs) == 7, "other settings"
    places = {word for command in runs for word in command if word.startswith("--workdir=runs/")}
    assert len(places) == 4 + 2, "and another directory"


def test_a_run_of_other_settings_gives_no_row(order, monkeypatch):
    give, runs = order
    assert give("--variants=softmax", "--seeds=0") == 0 and len(runs) == 1
    monkeypatch.setitem(study.VARIANTS, "softmax", ["algorithm.d_tot=0.5"])
    refused = types.SimpleNamespace(poll=lambda: 78, returncode=78)
    monkeypatch.setattr(children, "_start", lambda child, core: runs.append(child) or refused)
    assert give("--variants=softmax", "--seeds=0", "--csv=others.csv") == 1 and len(runs) == 2
    assert not pathlib.Path("others.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--variants=softmx", "--variants: expected some of bc, softmax"),
        ("--variants=", "--presets, --variants: expected at least one of each, found none"),
        ("--presets=smac_3m,nope", "--presets: no config 'nope'"),
        ("--quality=nope", "quality: expected one of poor, medium, good, random, found 'nope' of 'smax/3m'"),
        ("--presets=nope --norun", "--presets: no config 'nope'"),
        ("--seeds=0,0", "--seeds: expected different numbers, found '0,0'"),
        ("--seeds=0,x", "--seeds: expected numbers separated by commas, found '0,x'"),
        ("--overrides=learner.updtes=1", "learner.updtes: no such key; did you mean 'learner.updates'?"),
        ("--jobs=0", "jobs"),
        ("--csv=/proc/nope/rows.csv", "expected a folder to write to"),
        ("--csv=folder", "folder: expected a CSV file, found a folder"),
        ("--csv=others.csv", "others.csv, line 1: expected the columns task,variant,"),
        ("--csv=damaged.csv", "damaged.csv, line 2: could not convert string to float: 'x'"),
    ],
)
def test_mistakes_are_named_in_one_line_before_the_first_run(order, capsys, words, message):
    give, runs = order
    pathlib.Path("folder").mkdir()
    pathlib.Path("others.csv").write_text("a,b\n1,2\n")
    pathlib.Path("damaged.csv").write_text(f"{','.join(study.COLUMNS)}\n{'x,' * 13}x\n")
    assert give(*words.split()) == 78 and not runs
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_signal_lets_children_save_and_waits_for_them(tmp_path):
    """One child is started with a core and one without; the third never is."""
    script = """
        import pathlib, signal, sys, time
        def save(*_):
            time.sleep(0.3)
            pathlib.Path(sys.argv[1], "saved").touch()
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        pathlib.Path(sys.argv[1], "ready").touch()
        time.sleep(60)
    """
    places = [tmp_path / str(number) for number in range(3)]
    command = lambda place: [sys.executable, "-c", textwrap.dedent(script), str(place)]
    runs = [children.Child("one", command(place), place / "log.txt", lambda: True) for place in places]

    def wait_and_stop():
        while not all((place / "ready").exists() for place in places[:2]):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)

    def stopped(number, frame):
        raise Interrupted

    previous = signal.signal(signal.SIGTERM, stopped)
    thread = threading.Thread(target=wait_and_stop)
    try:
        thread.start()
        with pytest.raises(Interrupted):
            children.run_all(runs, [None, min(os.sched_getaffinity(0))])
    finally:
        signal.signal(signal.SIGTERM, previous)
        thread.join()
    assert [(place / "saved").exists() for place in places] == [True, True, False]
