"""The comparison: cells, tables, resumption, and mistakes that cost nothing."""

import csv
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from stability import missing
from test_run import command, run, stop_when

from benchmarks.toy import SPEC
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.learner import NonFiniteMetrics
from omcda_jax.metrics import Progress, read
from omcda_jax.runner import compare as comparison
from omcda_jax.runner import evaluation, tables, training

__all__ = ["run"]  # fixtures

OUT = Path("runs/compare")
CELL = OUT / "smac_3m/bc/seeds_0-3"


@pytest.fixture
def compare(run):
    """The comparison's module with the runner's toy simulator."""
    return comparison


def arguments(*more, algorithms="bc,omiga", updates=40):
    kept = [a for a in command(updates=updates) if a.startswith("--config.") and "algorithm.name" not in a]
    kept = [a for a in kept if "evaluate_every" not in a and "evaluation" not in a]
    return ["compare.py", "--tasks=smac_3m", f"--algorithms={algorithms}", "--seeds=0,3", *kept, *more]


def discounted(first, gamma=0.99):
    return sum(0.25 * (1 + (time % 2 == first)) * gamma**time for time in range(4))


def results():
    return {path.parts[-3]: json.loads(path.read_text()) for path in OUT.glob("*/*/*/result.json")}


def result_on(simulator, digest, quality="good"):
    data = {"environment": "mamujoco/Hopper_3x1", "quality": quality}
    return {"config": {"data": data}, "data": {"digest": digest}, "environment_versions": {"mujoco": simulator}}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([result_on("3.3.0", "aaaa")], ""),
        ([result_on("4.0.0", "bbbb", "poor")], ""),
        ([result_on("4.0.0", "aaaa")], "mamujoco/Hopper_3x1 with mujoco 3.3.0 and 4.0.0"),
        ([result_on("3.3.0", "bbbb")], "mamujoco/Hopper_3x1 with data aaaa and bbbb"),
    ],
)
def test_a_table_warns_of_results_that_are_not_comparable(others, words):
    warning = tables.incomparable([result_on("3.3.0", "aaaa"), *others])
    expected = f"Not comparable, because made with different simulators or data: {words}."
    assert warning == (expected if words else "")


def test_the_tables_of_a_comparison_say_what_is_not_comparable_and_how_often_teams_won(compare, capsys):
    assert compare.main(arguments(updates=10)) == 0
    path = next(OUT.glob("*/bc/*/result.json"))
    result = json.loads(path.read_text())
    result["environment_versions"] = {"toysim": "0.9"}
    for seed, rate in zip(result["evaluation"], (0.25, 0.75), strict=True):
        seed["win_rate"] = rate
    path.write_text(json.dumps(result))
    assert compare.main(arguments("--report_only", updates=10)) == 0
    table = (OUT / "comparison.md").read_text()
    assert (
        "**Not comparable, because made with different simulators or data: smax/toy with toysim 0.9 and 1.0.**" in table
    )
    assert "<br>50% won |" in next(line for line in table.splitlines() if line.startswith("| bc |"))


def test_a_comparison_trains_every_cell_and_tabulates_it(compare, capsys):
    assert compare.main(arguments()) == 0
    out = capsys.readouterr().out
    assert "cell 1 of 2: bc on smac_3m, seeds (0, 3)" in out and "cell 2 of 2: omiga" in out
    found = results()
    assert set(found) == {"bc", "omiga"}
    files = [path.name for path in OUT.iterdir() if path.is_file()]
    assert missing(files, "Files", "a comparison") == []
    table = (OUT / "comparison.md").read_text()
    assert table in out
    for name, result in found.items():
        returns = np.array([seed["returns"] for seed in result["evaluation"]])
        assert returns.shape == (2, 32) and [seed["seed"] for seed in result["evaluation"]] == [0, 3]
        row = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        assert f"{returns.mean():.3f} ± {returns.mean(axis=1).std(ddof=1):.3f}" in row
    assert "| data | 1.500 ± 0.000 |" in table
    assert "after 40 updates, 2 seeds with 32 episodes each" in table
    assert f"jax {found['bc']['versions']['jax']}, toysim 1.0 on {found['bc']['device']}" in table
    assert "won" not in next(line for line in table.splitlines() if line.startswith("| bc |"))
    assert found["bc"]["data"]["max_return_to_go"] == 1.5, "behaviour cloning discounts nothing"
    # agent 1 plays 1 every other step, so at the first and the third or at the second and the fourth
    assert found["omiga"]["data"]["max_return_to_go"] == pytest.approx(max(discounted(0), discounted(1)), rel=1e-5)
    with open(OUT / "comparison.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["algorithm"], row["seed"]) for row in rows] == [(a, s) for a in ("bc", "omiga") for s in "03"]
    assert float(rows[0]["return_mean"]) == found["bc"]["evaluation"][0]["return_mean"]
    whole = json.loads((OUT / "comparison.json").read_text())
    assert [entry["algorithm"] for entry in whole] == ["bc", "omiga"] and whole[0]["updates"] == 40


def test_a_finished_comparison_is_only_read_again(compare, capsys):
    assert compare.main(arguments(algorithms="bc")) == 0
    capsys.readouterr()
    assert compare.main(arguments("--report_only")) == 0
    out = capsys.readouterr().out
    assert "cell 1" not in out and "| omiga | - |" in out
    assert compare.main(arguments()) == 0
    assert "cell 1 of 1: omiga" in capsys.readouterr().out


def test_tables_that_cannot_be_written_are_one_line(compare, capsys):
    assert compare.main(arguments(algorithms="bc", updates=10)) == 0
    (OUT / "comparison.md").unlink()
    (OUT / "comparison.md").mkdir()
    capsys.readouterr()
    assert compare.main(arguments(algorithms="bc", updates=10)) == 78
    assert capsys.readouterr().err.endswith("compare: cannot write the tables: Is a directory\n")


def test_a_table_of_nothing_is_not_written_over_one(compare, capsys):
    assert compare.main(arguments(algorithms="bc", updates=10)) == 0
    before = {path: path.read_text() for path in OUT.glob("comparison.*")}
    assert compare.main(arguments("--report_only", algorithms="omiga", updates=10)) == 78
    assert "expected a cell with a result of these --tasks" in (said := capsys.readouterr().err)
    assert "found smac_3m/bc/seeds_0-3" in said and {path: path.read_text() for path in before} == before
    assert compare.main(arguments("--report_only", "--directory=nowhere")) == 78
    assert "nowhere, found none at all" in capsys.readouterr().err and not Path("nowhere").exists()


def test_each_seed_learns_what_a_run_of_its_own_learns(compare, run):
    """Normalised, and evaluated during training: the logged losses and the final episodes are those of single runs."""
    options = ("--config.data.normalise=true", "--config.learner.evaluate_every=20")
    assert compare.main(arguments(*options, algorithms="bc")) == 0
    together = read(CELL / "metrics.jsonl")
    assert [row["step"] for row in together if "policy/loss" in row] == [10, 20, 30, 40]
    for place, seed in enumerate((0, 3)):
        assert run.main(command(*options, "--config.evaluation.episodes=32", f"--config.seed={seed}", updates=40)) == 0
        alone = read(f"runs/smac_3m/medium/bc/seed_{seed}/metrics.jsonl")
        for row, expected in zip(together, alone, strict=True):
            assert row["step"] == expected["step"]
            for key in {"policy/loss", "evaluation/return_mean"} & expected.keys():
                assert row[key][place] == pytest.approx(expected[key], rel=1e-4)
        single = json.loads(Path(f"runs/smac_3m/medium/bc/seed_{seed}/result.json").read_text())
        final = results()["bc"]["evaluation"][place]
        assert final["return_mean"] == pytest.approx(single["evaluation"]["return_mean"], rel=1e-6)


def test_a_signal_saves_and_the_same_command_goes_on(compare, run, monkeypatch, capsys):
    assert compare.main(arguments("--directory=whole", algorithms="bc")) == 0
    stop_when(monkeypatch, Progress, "update", lambda self, step, metrics: step == 20, signal.SIGTERM)
    assert compare.main(arguments(algorithms="bc")) == 75
    assert "stopped and saved at update 20" in capsys.readouterr().out
    assert not results()
    assert compare.main(arguments(algorithms="bc")) == 0
    whole = json.loads(next(Path("whole").glob("*/*/*/result.json")).read_text())
    assert results()["bc"]["evaluation"] == whole["evaluation"]
    cell = compare.parse(arguments(algorithms="bc")).cells[0]
    template = compare.job_of(cell).template(SPEC)
    states = []
    for directory in (CELL, "whole/smac_3m/bc/seeds_0-3"):
        with Checkpoints(Path(directory) / "checkpoints/latest") as kept:
            states.append(kept.restore(template)[0])
    assert states[0].step.tolist() == [40, 40]
    for leaf, expected in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_a_signal_between_training_and_result_loses_nothing(compare, monkeypatch, capsys):
    stop_when(monkeypatch, evaluation, "summarise")
    assert compare.main(arguments(algorithms="bc")) == 75
    assert not results()
    monkeypatch.setattr(training, "train", lambda *arguments, **options: pytest.fail("trained again"))
    assert compare.main(arguments(algorithms="bc")) == 0
    assert results()["bc"]["step"] == 40
    assert results()["bc"]["training_seconds"] > 0


def test_a_finished_cell_is_extended_or_evaluated_anew(compare, capsys):
    assert compare.main(arguments(algorithms="bc")) == 0
    assert compare.main(arguments("--config.evaluation.episodes=5", algorithms="bc")) == 0
    assert {len(seed["returns"]) for seed in results()["bc"]["evaluation"]} == {5}
    assert compare.main(arguments("--config.evaluation.episodes=5", algorithms="bc", updates=60)) == 0
    assert results()["bc"]["step"] == 60
    assert [row["step"] for row in read(CELL / "metrics.jsonl")] == [10, 20, 30, 40, 50, 60]
    capsys.readouterr()
    assert compare.main(arguments("--config.evaluation.episodes=5", algorithms="bc")) == 0
    assert "cell 1" not in capsys.readouterr().out, "40 of 60 updates are done"


def test_a_cell_that_diverges_does_not_keep_the_others_from_their_result(compare, monkeypatch, capsys):
    train = training.train

    def diverge(*arguments, **options):
        diverging.append(0)
        if len(diverging) == 1:
            raise NonFiniteMetrics("policy/loss is nan after 10 updates")
        return train(*arguments, **options)

    diverging = []
    monkeypatch.setattr(training, "train", diverge)
    assert compare.main(arguments()) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: bc on smac_3m diverged: policy/loss is nan after 10 updates\n"
    assert "| bc | - |" in captured.out and set(results()) == {"omiga"}


def test_other_settings_need_another_directory(compare, monkeypatch, capsys):
    assert compare.main(arguments(algorithms="bc")) == 0
    monkeypatch.setattr(compare, "run_cell", lambda *arguments: pytest.fail("a cell began before all were checked"))
    assert compare.main(arguments("--config.learner.batch_size=4", algorithms="omiga,bc")) == 78
    error = capsys.readouterr().err
    assert "learner.batch_size was 8, is 4" in error and "--directory" in error


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--algorithms=bc,omgia", "--algorithms: no algorithm 'omgia'; did you mean 'omiga'?"),
        ("--tasks=smac_3n", "--tasks: no config 'smac_3n'; did you mean 'smac_3m'?"),
        ("--seeds=0,one", "--seeds: expected numbers separated by commas, found '0,one'"),
        ("--seeds=1,1", "--seeds: expected different numbers, found '1,1'"),
        ("--algorithms=bc,bc", "--algorithms: expected different names, found 'bc,bc'"),
        ("--config.algorithm.gamma=0.9", "bc, of --algorithms: algorithm.gamma: no such key; "),
        ("--seeds=1,4294967297", "--seeds: expected a whole number from 0 to 4294967295, found 4294967297"),
        ("--config.learner.updtes=3", "learner.updtes: no such key; did you mean 'learner.updates'?"),
        ("--config.seed=3", "--config.seed: expected --seeds instead"),
        ("--config.algorithm.name=bc", "--config.algorithm.name: expected --algorithms instead"),
        ("--tasks=", "--tasks: expected names separated by commas, found none"),
        ("--taks=smac_3m", "--taks: no such flag; did you mean '--tasks'?"),
        ("--algorithm=bc", "--algorithm: no such flag; did you mean '--algorithms'?"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(compare, capsys, argument, message):
    assert compare.main([*arguments(), argument]) == 78
    assert message in capsys.readouterr().err
    assert not OUT.exists()


def test_interquartile_mean_counts_edges_in_part():
    assert tables.interquartile_mean(np.array([1.0, 2.0, 3.0, 100.0])) == 2.5
    # six values: a quarter is one and a half, so half of the second and of the fifth are left out
    assert tables.interquartile_mean(np.arange(6.0) ** 2) == pytest.approx((0.5 * 1 + 4 + 9 + 0.5 * 16) / 3)
    assert tables.interquartile_mean(np.array([7.0])) == 7.0


def test_the_interval_covers_what_it_should(random):
    same = np.full((3, 8), 2.0)
    assert tables.bootstrap_interval(same) == (2.0, 2.0)
    # two seeds without spread: the same seed is drawn twice with probability a quarter each, more than 2.5 %
    assert tables.bootstrap_interval(np.array([[0.0] * 4, [1.0] * 4])) == (0.0, 1.0)
    # and half of the resamples have one seed of each, in which the middle half is half zeros
    assert tables.bootstrap_interval(np.array([[0.0] * 4, [1.0] * 4]), level=0.4) == (0.5, 0.5)
    # one seed: its episodes remain, and three quarters of a resample are almost always the common one
    low, high = tables.bootstrap_interval(np.array([[5.0] * 31 + [6.0]]))
    assert (low, high) == (5.0, 5.0)
    # one episode per seed: the interval is that of the seeds alone, and contains the median of many seeds
    returns = random.normal(size=(40, 1))
    low, high = tables.bootstrap_interval(returns)
    assert low < tables.interquartile_mean(returns) < high
    # the standard error of an interquartile mean of 40 normal values is about 1.2 / sqrt(40)
    assert high - low == pytest.approx(2 * 1.96 * 1.2 / np.sqrt(40), rel=0.3)
    assert tables.bootstrap_interval(returns) == (low, high)


def test_a_family_of_tasks_has_baselines_of_its_own(compare):
    cells = compare.parse(["compare.py", "--tasks=mujoco_hopper_medium,smac_3m", "--algorithms=icq,cql,comadice"]).cells
    found = {(cell.task, cell.algorithm): cell.config.algorithm for cell in cells}
    assert found["mujoco_hopper_medium", "icq"].policy_temperature == 10.0
    assert found["smac_3m", "icq"].policy_temperature == 0.1
    hopper_cql = found["mujoco_hopper_medium", "cql"]
    assert (hopper_cql.target_rate, hopper_cql.critic_layer_norm) == (0.01, True), "of the preset, for every algorithm"
    assert (hopper_cql.penalty, found["smac_3m", "cql"].penalty) == (10.0, 100.0)
    assert found["mujoco_hopper_medium", "cql"].num_samples == 10, "OMCDA's draws are not CQL's"
    assert found["mujoco_hopper_medium", "comadice"].learning_rate == 1e-4
    assert all(cell.config.evaluation.episodes == 32 and not cell.config.learner.evaluate_every for cell in cells)


def test_a_seed_that_diverged_is_named_and_left_out_of_the_means(compare, capsys):
    assert compare.main(arguments(algorithms="bc")) == 0
    [path] = OUT.glob("*/*/*/result.json")
    result = json.loads(path.read_text())
    assert (result["skipped"], result["diverged"]) == ([0, 0], [None, None])
    result["diverged"][1] = "policy/loss"
    result["evaluation"][1]["returns"] = [9.0] * 32
    path.write_text(json.dumps(result))
    capsys.readouterr()
    assert compare.main(arguments("--report_only", algorithms="bc")) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| bc |"))
    mean = np.mean(result["evaluation"][0]["returns"])
    assert f"| {mean:.3f} ± 0.000<br>" in row and row.endswith("<br>1 diverged |")
    with open(OUT / "comparison.csv", encoding="utf-8") as file:
        assert [line["diverged"] for line in csv.DictReader(file)] == ["", "policy/loss"]
