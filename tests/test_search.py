"""Searches: what Optuna is asked and told, also when a search is stopped at any moment."""

import json
import math
import os
from pathlib import Path

import pytest

from benchmarks.toy import arguments, write
from omcda_jax import grid
from omcda_jax.runner.sweep import check, collect, local, manifest, plan, search, state
from omcda_jax.runner.sweep import command as sweep
from omcda_jax.runner.sweep.study import Search, Study, space_of
from omcda_jax.system import Interruption
from omcda_jax.types import ConfigError

pytest.importorskip("optuna")
GRID = "seed=0,1; algorithm.learning_rate=loguniform(0.0001,0.1); algorithm.hidden_sizes=[8],[4]"
UNSEARCHED = ("environment", "learning_rate", "hidden_sizes")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The command line of a search on the toy simulator, without the grid and without slow checks."""
    monkeypatch.chdir(tmp_path)
    write("data.h5", "benchmarks.toy/any")
    monkeypatch.setattr(check, "check", lambda directory, rows: None)
    settings = [word for word in arguments("data.h5") if not any(key in word for key in UNSEARCHED)]
    line = ["sweep", *settings, "--config.data.environment=benchmarks.toy/any", "--directory=sweep"]
    return [*line, "--search=optuna", "--trials=10", "--parallel=4"]


def goodness(said):
    """Best at a rate of 0.01; wide networks are better, and seed 1 gives 2 more than seed 0."""
    distance = math.log10(float(said["algorithm.learning_rate"])) + 2
    return -(distance**2) + 2 * int(said["seed"]) - (said["algorithm.hidden_sizes"] == "[4]")


class Engine:
    """Replaces the local engine: runs end at once with `goodness`; `status` gives some rows another exit status."""

    def __init__(self, status=lambda row: 0, diverged=lambda said: None):
        self.worked, self._status, self._diverged = [], status, diverged

    def __call__(self, directory, rows, options, interruption):
        statuses = {row.name: self._status(row) for row in rows}
        for row in rows:
            if statuses[row.name] == os.EX_OK:
                self._leave(Path(directory, row.directory), row)
                self.worked.append(row.name)
        return statuses

    def _leave(self, place, row):
        place.mkdir(parents=True)
        ends = [
            {
                "trial": {"seed": int(said["seed"])},
                "evaluation": {key: goodness(said) for key in collect.SUMMARY},
                "skipped": 0,
                "diverged": self._diverged(said),
            }
            for said in row.trials
        ]
        result = {"finished": True, "step": 60, "training_seconds": 2.0, "trials": ends}
        result |= {"config": {"data": {"environment": "toy"}}, "data": {"statistics": {"return_mean": 1.0}}}
        (place / "result.json").write_text(json.dumps(result))
        (place / "config.json").write_text(json.dumps({"data": {"environment": "benchmarks.toy/any"}}))
        row_of = {"step": 60, "critic/q": [2 * goodness(said) for said in row.trials]}
        (place / "metrics.jsonl").write_text(json.dumps(row_of | {"level": [[1.0, 2.0] for _ in row.trials]}) + "\n")
        estimates = [{"trial": {}, "fqe": {"value": 3 * goodness(said)}, "dr": {"value": None}} for said in row.trials]
        (place / "selection.json").write_text(json.dumps({"trials": estimates}))


@pytest.fixture
def engine(monkeypatch):
    """Make an engine that the command uses as the local one."""

    def make(**given):
        made = Engine(**given)
        monkeypatch.setattr(local, "run", made)
        return made

    return make


def written(directory="sweep"):
    return json.loads(Path(directory, "search.json").read_text())


def test_a_search_asks_for_settings_and_is_told_means_over_their_seeds(toy, engine, capsys):
    made = engine()
    assert sweep.main([*toy, f"--grid={GRID}", "--dry_run", "--rate=10"]) == 0
    planned = capsys.readouterr().out
    assert "search: 0 of 10 trials ended; 10 more in 3 rounds" in planned and not Path("sweep").exists()
    assert sweep.main([*toy, f"--grid={GRID}"]) == 0
    rows, found = manifest.read("sweep"), written()
    # the shown rows are run first; a population has at most 4 settings and 2 seeds, and one size of network
    assert all(f"{row.name}  new, {len(row.trials)} trials" in planned for row in rows[:2])
    assert sum(len(row.trials) for row in rows) == 20 and max(len(row.trials) for row in rows) <= 8
    assert made.worked == [row.name for row in rows]
    assert [trial["number"] for trial in found["trials"]] == list(range(10))
    for trial in found["trials"]:
        each = [goodness(trial["settings"] | {"seed": seed}) for seed in ("0", "1")]
        assert trial["ended"] and trial["value"] == pytest.approx(sum(each) / 2)
    best = max(found["trials"], key=lambda trial: trial["value"])
    said = capsys.readouterr().out
    assert f"10 of 10 trials ended, the best {best['value']:.4g} with algorithm.learning_rate=" in said
    assert [value for *_, value in search.best_so_far(found)][-1] == best["value"]
    # again: nothing is asked, run or told; two more trials are just two more
    assert sweep.main([*toy, f"--grid={GRID}"]) == 0 and written() == found and len(made.worked) == len(rows)
    assert sweep.main([*toy, f"--grid={GRID}", "--trials=12"]) == 0
    assert written()["trials"][:10] == found["trials"] and len(written()["trials"]) == 12
    assert sweep.main(["sweep", "--status=sweep"]) == 0 and sweep.main(["sweep", "--collect=sweep"]) == 0
    said = capsys.readouterr().out
    assert said.count("search by evaluation/return_mean: 12 of 12 trials ended") == 2
    lines = Path("sweep/tried.csv").read_text().splitlines()
    assert lines[0] == "trial,algorithm.learning_rate,algorithm.hidden_sizes,evaluation/return_mean"
    assert len(lines) == 13 and "{seeds,trials,tried}" in said
    # tables are written next to the search's files, not over them
    assert sweep.main(["sweep", "--collect=sweep"]) == 0 and len(written()["trials"]) == 12


class Killed(BaseException):
    """Replaces a signal that cannot be handled."""


def test_a_search_that_was_stopped_or_killed_comes_to_what_it_would_have_come_to(toy, engine, monkeypatch):
    engine()
    assert sweep.main([*toy, f"--grid={GRID}", "--directory=whole"]) == 0
    # in the second round one row saves and the other is done; the next time, telling the values is interrupted
    stopped = engine(status=lambda row: os.EX_TEMPFAIL if row.number == 3 else 0)
    assert sweep.main([*toy, f"--grid={GRID}"]) == os.EX_TEMPFAIL
    assert [trial["ended"] for trial in written()["trials"]].count(False) > 0
    told, tell = [], Study.tell

    def once(self, number, value):
        if told:
            raise Killed
        told.append(number)
        tell(self, number, value)

    monkeypatch.setattr(Study, "tell", once)
    later = engine()
    command = sweep.parse([*toy, f"--grid={GRID}"])
    work = lambda rows: later("sweep", rows, None, None)
    with pytest.raises(Killed):
        search.run("sweep", command.search, work, Interruption())
    monkeypatch.setattr(Study, "tell", tell)
    assert sweep.main([*toy, f"--grid={GRID}"]) == 0
    assert written() == written("whole") and manifest.read("sweep") == manifest.read("whole")
    # no row was run again once it was done
    assert sorted(stopped.worked + later.worked) == [row.name for row in manifest.read("sweep")]


def test_a_trial_that_was_being_asked_for_when_the_search_was_killed_is_no_trial(toy, engine):
    engine()
    study = Study(os.makedirs("sweep") or "sweep", *_parsed(toy))
    study._study.ask()  # no setting was drawn yet
    assert study.trials() == []
    assert sweep.main([*toy, f"--grid={GRID}"]) == 0
    assert len(written()["trials"]) == 10 and all(trial["ended"] for trial in written()["trials"])


def _parsed(line):
    asked = sweep.parse([*line, f"--grid={GRID}"]).search
    return asked, space_of(asked)


def test_what_diverged_or_failed_has_no_value_and_a_round_of_failures_ends_the_search(toy, engine, capsys):
    engine(
        status=lambda row: 1 if row.trials[0]["algorithm.hidden_sizes"] == "[4]" else 0,
        diverged=lambda said: "q" if float(said["algorithm.learning_rate"]) > 0.01 and said["seed"] == "1" else None,
    )
    assert sweep.main([*toy, f"--grid={GRID}", "--trials=6"]) == 0
    for trial in written()["trials"]:
        rate, sizes = float(trial["settings"]["algorithm.learning_rate"]), trial["settings"]["algorithm.hidden_sizes"]
        assert trial["ended"] and (trial["value"] is None) == (rate > 0.01 or sizes == "[4]")
    assert {trial["value"] is None for trial in written()["trials"]} == {True, False}
    # the machine may be the cause: they run once more, and only then count as failed
    engine(status=lambda row: 1)
    line = [*toy, f"--grid={GRID}", "--trials=6", "--directory=failing"]
    assert sweep.main(line) == 1
    assert [trial["ended"] for trial in written("failing")["trials"]] == [False] * 4
    engine(status=lambda row: 1 if row.number < 2 else 0)
    assert sweep.main(line) == 0
    assert [trial["value"] is None for trial in written("failing")["trials"]] == [True] * 4 + [False] * 2
    # a row that failed in an earlier round is not part of this one
    engine(status=lambda row: 1 if row.number in (0, 2, 3) else 0)
    assert sweep.main([*toy, f"--grid={GRID}", "--trials=8", "--directory=mixed"]) == 1
    assert [trial["ended"] for trial in written("mixed")["trials"]] == [True] * 4 + [False] * 4
    # rows that need a fix are not told to Optuna
    engine(status=lambda row: 78)
    assert sweep.main([*toy, f"--grid={GRID}", "--directory=refused"]) == 78
    assert not any(trial["ended"] for trial in written("refused")["trials"])


@pytest.mark.parametrize(
    ("metric", "factor", "offline"), [("select/fqe", 3, True), ("critic/q", 2, True), ("evaluation/win_rate", 1, False)]
)
def test_a_metric_is_an_estimate_one_of_the_learner_or_of_the_evaluation(toy, engine, metric, factor, offline):
    engine()
    more = ["--trials=2", "--direction=minimize", *(["--select_updates=20"] if "select" in metric else [])]
    assert sweep.main([*toy, f"--grid={GRID}", f"--metric={metric}", *more]) == 0
    found = written()
    for trial in found["trials"]:
        each = [goodness(trial["settings"] | {"seed": seed}) for seed in ("0", "1")]
        assert trial["value"] == pytest.approx(factor * sum(each) / 2)
    assert found["offline"] == offline and f"the best {min(trial['value'] for trial in found['trials']):.4g}" in (
        search.status(found)
    )
    for row in manifest.read("sweep"):
        assert ("--select=fqe" in row.command) == ("--select_updates=20" in row.command) == (metric == "select/fqe")
        assert len(row.trials) % 2 == 0  # a setting's seeds stay together


@pytest.mark.quick
def test_a_row_that_selects_is_done_once_it_has_selected(tmp_path):
    row = manifest.Row(0, "a", ["omcda-jax", "run", "--select=fqe"], "host", 60, "p", [{"seed": "0"}])
    place = tmp_path / row.directory
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps({"finished": True}))
    assert state.result_of(str(tmp_path), row) is None
    (place / "selection.json").write_text("{}")
    assert state.result_of(str(tmp_path), row) == {"finished": True}


def test_a_metric_that_no_run_has_can_be_corrected_and_other_settings_are_another_search(toy, engine, capsys):
    made = engine()
    line = [*toy, f"--grid={GRID}", "--trials=4"]
    assert sweep.main([*line, "--metric=critic/p"]) == 78
    assert (
        "--metric=critic/p: no such metric in" in (said := capsys.readouterr().err)
        and "did you mean 'critic/q'" in said
    )
    assert sweep.main([*line, "--metric=level"]) == 78
    assert "--metric=level: expected one number for each trial" in capsys.readouterr().err
    worked = list(made.worked)
    assert sweep.main([*line, "--metric=critic/q"]) == 0 and made.worked == worked
    assert sweep.main([*line, "--metric=evaluation/return_mean"]) == 78
    assert "metric was critic/q, is evaluation/return_mean" in capsys.readouterr().err
    assert sweep.main([*line, "--metric=critic/q", "--config.learner.updates=80"]) == 78
    assert "holds another search (settings was" in capsys.readouterr().err


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--metric=critic/q"], "--metric: expected --search with it"),
        (["--search=optuna", "--grid=seed=0"], "--grid: expected a setting to search"),
        (["--search=optuna"], "--grid: expected one grid without | to search"),
        (["--search=optuna", "--grid=seed=0 | seed=1"], "--grid: expected one grid without | to search"),
        (["--search=optuna", "--grid=task=smac_3m,smac_8m"], "--grid: task: expected a setting of the one task"),
        (["--search=optuna", "--grid=algorithm.d_tot=uniform(-1,1)"], "d_tot"),
        (
            ["--search=optuna", "--grid=seed=uniform(0,1); algorithm.d_tot=1,2"],
            "--grid: seed: expected seeds, the same for every trial",
        ),
        (["--search=optuna", "--grid=algorithm.d_tot=1,2", "--metric=evaluation/return"], "did you mean 'evaluation/r"),
        (["--search=optuna", "--grid=algorithm.d_tot=1,2", "--metric=select/fqe"], "seed: expected two seeds or more"),
        (["--search=optuna", "--grid=algorithm.gamma=.9,.99", "--metric=select/fqe"], "algorithm.gamma: expected one"),
        (
            ["--search=optuna", "--grid=algorithm.d_tot=1,2", "--engine=slurm"],
            "an engine that waits for its rows",
        ),
        (["--search=optuna", "--grid=algorithm.d_tot=1,2", "--hosts=2"], "an engine that waits for its rows"),
        (["--search=optuna", "--grid=algorithm.d_tot=1,2", "--emit=xpk"], "--emit: expected none with --search"),
        (["--grid=algorithm.d_tot=uniform(0,1)"], "expected uniform(low,high,n), with a count"),
    ],
)
def test_what_cannot_be_searched_is_one_line(tmp_path, monkeypatch, capsys, words, error):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["sweep", "--config=smac_3m", "--directory=sweep", *words]) == 78
    said = capsys.readouterr().err
    assert error in said and said.count("\n") == 1
    assert not Path("sweep/search.db").exists() and not Path("sweep/manifest.jsonl").exists()


@pytest.mark.quick
def test_without_optuna_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    order = plan.Order("smac_3m", (), ["algorithm.d_tot=uniform(0.3,3)"])
    asked = Search(order, "evaluation/return_mean", "maximize", 4, 2)
    with pytest.raises(ConfigError, match="pip install 'omcda-jax.search.'"):
        search.ahead(str(tmp_path), asked)


@pytest.mark.quick
def test_axes_are_values_or_ranges():
    assert grid.axes("a=1..3; b=loguniform(0.1,10); c=uniform(0,1,5)", "--grid") == {
        "a": ["1", "2", "3"],
        "b": grid.Range("loguniform", 0.1, 10.0, None),
        "c": grid.Range("uniform", 0.0, 1.0, 5),
    }
