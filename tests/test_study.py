"""A study of variants: what has a row is not run again, and the table is over the seeds that have one."""

import json
import types

import pytest

from benchmarks import study
from omcda_jax.config import to_dict
from omcda_jax.runner import frame
from omcda_jax.runner.presets import resolve

pytestmark = pytest.mark.quick


@pytest.fixture
def order(tmp_path, monkeypatch):
    """Returns a function that gives the command, whose runs only write what a run leaves, and a list of those runs."""
    runs = []

    def pretend(command, **_):
        runs.append(command)
        (directory,) = [word.partition("=")[2] for word in command if word.startswith("--workdir")]
        seed = int(directory[-1])
        if "--config.algorithm.name=bc" in command and seed == 1:
            return types.SimpleNamespace(returncode=75)
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
        return types.SimpleNamespace(returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study.subprocess, "run", pretend)
    monkeypatch.setattr(study.os, "sched_getaffinity", lambda pid: {0})
    words = ["--presets=smac_3m", "--variants=bc,softmax", "--seeds=0,1", "--csv=rows.csv", "--jobs=1"]

    def give(*more):
        study.FLAGS.unparse_flags()
        return frame.main(["study", *words, *more], study.__doc__, study.FLAGS, study.work)

    return give, runs


def test_what_has_a_row_is_not_run_again(order, capsys):
    give, runs = order
    assert give() == 0 and len(runs) == 4
    lines = capsys.readouterr().out.splitlines()[2:]
    # of 2 and 3; of (1 + 2) / 2 and (1 + 3) / 2; 10 of 20; of .1 / .1 and .2 / .4; of .2 / .1 and .4 / .4
    means = "2.500 ± 0.707 | 1.750 ± 0.354 | 0.750 | 1.000 (0.500) | 0.50 | -1.00 | 0.75 | 1.50 |"
    assert lines[1] == f"| smac_3m | softmax | 2 | {means}"
    assert lines[0].startswith("| smac_3m | bc | 1 | 2.000 ± 0.000 | 1.500 ± 0.000 |"), "one seed was stopped"

    assert give("--directory=elsewhere") == 0 and len(runs) == 5, "only the one without a row"
    assert give("--norun") == 0 and len(runs) == 5
    assert capsys.readouterr().out.splitlines()[-2:] == lines
    assert give("--overrides=learner.updates=500", "--directory=longer") == 0 and len(runs) == 9, "other settings"


def test_a_run_of_other_settings_gives_no_row(order, monkeypatch):
    give, runs = order
    assert give("--variants=softmax", "--seeds=0") == 0 and len(runs) == 1
    refused = lambda command, **_: runs.append(command) or types.SimpleNamespace(returncode=78)
    monkeypatch.setattr(study.subprocess, "run", refused)
    assert give("--variants=softmax", "--seeds=0", "--overrides=learner.updates=500") == 0 and len(runs) == 2
    assert len(study.read("rows.csv")) == 1


def test_an_unknown_variant_is_told(order, capsys):
    give, runs = order
    assert give("--variants=softmx") == 78 and not runs
    assert "--variants: expected some of bc, softmax" in capsys.readouterr().err
