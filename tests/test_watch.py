"""`omcda-jax watch`: episodes of a policy next to those of the behaviour policy or of the data."""

import dataclasses
import json
import os
import re

import jax.numpy as jnp
import pytest
from test_page import on_host, read, with_map
from test_run import DIRECTORY, command, result_of, run

from benchmarks.toy import environment
from omcda_jax import envs
from omcda_jax.behaviour import acts
from omcda_jax.behaviour.policies import Quality
from omcda_jax.checkpoint import save_policy
from omcda_jax.runner import watch, watch_page
from omcda_jax.runner.jobs import restore_trial, settings_of_run
from omcda_jax.runner.outcomes import Trial
from omcda_jax.types import ConfigError

__all__ = ["run"]  # fixture


def watched(*words):
    assert watch.main(["watch", *words]) == 0


def titles(shown):
    return re.findall(r"(Policy|Data|Behaviour), episode (\d+)", shown.text)


def test_a_policy_is_watched_beside_its_data_and_its_behaviour(run, monkeypatch, capsys):
    assert run.main(command(updates=10)) == 0
    final = result_of()["evaluation"]["return_mean"]
    watched(str(DIRECTORY), "--episodes=3")
    out = capsys.readouterr().out
    shown = read(DIRECTORY / "watch.html")
    assert titles(shown) == [(name, number) for number in "123" for name in ("Policy", "Data")]
    (_, policy, data), (_, evaluated, _) = shown.tables[:2]
    assert policy[5] == "bc after 10 updates, greedy" and float(policy[1]) == pytest.approx(final)
    assert data[1:5] == ["1.500", "1.5, 1.5, 1.5", "0 of 3", "4.0"] and "of data.h5" in data[5]
    assert evaluated[1] == f"{final:.3f}" and policy[5] in out
    assert sum("yaxis2" in figure["layout"] for figure in shown.figures) == 6, "no map: rewards and actions"

    # a result of an earlier state does not belong to this state
    kept = (DIRECTORY / "result.json").read_text()
    (DIRECTORY / "result.json").write_text(json.dumps(json.loads(kept) | {"step": 5}))
    watched(str(DIRECTORY), "--episodes=1")
    assert len(read(DIRECTORY / "watch.html").tables) == len(shown.tables) - 1
    (DIRECTORY / "result.json").write_text(kept)

    # a saved policy, alone and next to a dataset
    config = settings_of_run(DIRECTORY)
    job, state = restore_trial(Trial({}, [], 0, {}, None, str(DIRECTORY)), config, environment().spec)
    save_policy("saved", job.algorithm.policy(state))
    watched("saved", "--environment=smax/toy", "--episodes=1")
    shown = read("saved/watch.html")
    assert titles(shown) == [("Policy", "1")] and "name one with --quality, or a dataset with --data" in shown.text
    assert float(shown.tables[0][1][1]) == pytest.approx(final)
    watched("saved", "--environment=smax/toy", "--data=data.h5", "--episodes=2", "--out=there/it.html")
    assert titles(read("there/it.html"))[1] == ("Data", "1")
    save_policy(DIRECTORY / "selected", job.algorithm.policy(state))
    watched(str(DIRECTORY / "selected"), "--episodes=1")
    assert titles(read(DIRECTORY / "selected" / "watch.html")) == [("Policy", "1"), ("Data", "1")]

    # alternating policies, on a map
    monkeypatch.setattr(envs, "make", lambda name: with_map())
    act = lambda params, obs, avail, key: jnp.full(2, params)
    facts = {"description": "a policy of two; only won episodes kept"}
    stages = acts.Behaviour(Quality(("one", "none"), won_only=True), (1, 0), act, facts, ())
    monkeypatch.setattr(watch_page, "of_stages", lambda name, quality: stages)
    watched("saved", "--environment=smax/toy", "--quality=medium", "--episodes=3")
    shown = read("saved/watch.html")
    assert shown.tables[0][2][1:] == ["1.333", "2, 0, 2", "2 of 3", "4.0", "a policy of two"]
    assert sum("frames" in figure for figure in shown.figures) == 6
    assert "contains only the episodes that it won" in shown.text

    # films, with and without graphics
    monkeypatch.setattr(envs, "make", lambda name: on_host())
    watched("saved", "--environment=smax/toy", "--quality=medium", "--episodes=1")
    assert sum(tag == "img" for tag, _ in read("saved/watch.html").tags) == 2

    def dark(copies):
        def render():
            raise ConfigError("no graphics here")

        return on_host().open(copies)._replace(render=render)

    monkeypatch.setattr(envs, "make", lambda name: dataclasses.replace(on_host(), open=dark))
    watched("saved", "--environment=smax/toy", "--quality=medium", "--episodes=1")
    shown = read("saved/watch.html")
    assert "No film: no graphics here." in shown.text and len(shown.figures) == 2
    mistakes(monkeypatch, capsys)


def mistakes(monkeypatch, capsys):
    monkeypatch.setattr(envs, "make", lambda name: environment())
    for words, message in (
        ([], "expected the directory of one run or policy, found none"),
        (["saved", str(DIRECTORY)], "expected the directory of one run or policy, found saved"),
        (["nowhere"], "nowhere: expected the directory of a run, with config.json, or of a saved policy"),
        ([str(DIRECTORY), "--trial=1"], "--trial: expected less than 1, the trials of"),
        ([str(DIRECTORY), "--quality=good"], "--quality: expected a saved policy, found"),
        (["saved", "--trial=0"], "--trial: expected a run, found the saved policy saved"),
        (["saved"], "saved: expected --environment, because the policy is neither in a run nor in the zoo"),
        ([str(DIRECTORY), "--episodes=0"], "episodes"),
        ([str(DIRECTORY), "--out=data.h5/it.html"], "data.h5/it.html: cannot write the page"),
    ):
        assert watch.main(["watch", *words]) == 78, words
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_the_trial_that_is_named_is_watched_or_else_the_best(run, capsys):
    trials = "seed=0..1; algorithm.learning_rate=0.01,0.0001"
    assert run.main(command("--config.learner.mode=trials", f"--config.learner.trials={trials}", updates=10)) == 0
    directory = DIRECTORY.parent / "trials"
    for number, one in enumerate(json.loads((directory / "result.json").read_text())["trials"]):
        watched(str(directory), f"--trial={number}", "--episodes=4")
        shown = read(directory / "watch.html")
        assert f"seed={one['trial']['seed']}" in shown.text
        assert float(shown.tables[0][1][1]) == pytest.approx(one["evaluation"]["return_mean"], abs=1e-3)
    os.remove(directory / "result.json")
    assert watch.main(["watch", str(directory)]) == 78
    assert "expected finished trials, with result.json" in capsys.readouterr().err
