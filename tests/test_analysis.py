"""What a budget buys: the points of the sweeps, the measurements, and the text and figures made from them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import analysis, exact, probe, sweeps
from omcda_jax import data
from omcda_jax.allocation import first_budgets
from omcda_jax.config import to_dict
from omcda_jax.types import ConfigError

pytestmark = pytest.mark.quick


def parse(*words):
    return analysis.parse(["analysis", *words])


@pytest.fixture
def command():
    return parse("--preset=ring", "--own=0.5,1,2", "--totals=1,3", "--seeds=0,4")


# The plan


def test_every_point_of_both_sweeps_is_there_with_its_budgets(command):
    points = analysis.points(command, 4)
    assert len(points) == 2 * (4 * 3 + 2 * 4)
    own = next(point for point in points if point.swept == 2 and point.total > 1.4)
    assert own.budget == pytest.approx((0.3, 0.3, 0.6, 0.3)) and own.total == pytest.approx(1.5)
    by_rule = {point.rule: point for point in points if point.sweep == "total" and point.total > 2 and not point.seed}
    assert by_rule["uniform"].budget == pytest.approx((0.9,) * 4)
    assert by_rule["softmax"].budget is None and by_rule["projected"].budget is None
    random = [point.budget for point in points if point.rule == "random" and point.total > 2]
    assert random[0] != random[1], "one point of the simplex for each seed"
    assert [sum(budget) for budget in random] == pytest.approx([3.6, 3.6])
    assert min(map(min, random)) >= command.config.algorithm.d_min


def test_trials_have_the_budgets_of_their_points_and_are_trained_once(command):
    points = analysis.points(command, 4)
    jobs = analysis.populations(command, points)
    assert [job.config.algorithm.allocation for job, _ in jobs] == ["fixed", "softmax", "projected"]
    # for each seed: two more for each agent, the even one (also the uniform rule's), another total, two random ones
    assert [len(job.configs) for job, _ in jobs] == [2 * (4 * 2 + 1 + 1 + 2), 4, 4]
    assert all(job.population and len(keys) == len(job.configs) for job, keys in jobs)
    trials = dict(zip(jobs[0][1], jobs[0][0].configs, strict=True))
    for point in points:
        if point.budget is not None:
            config = trials[point.trial]
            assert config.seed == point.seed
            np.testing.assert_allclose(first_budgets(config.algorithm, None, 4), point.budget, rtol=1e-5)
            assert config.algorithm.d_tot == pytest.approx(sum(point.budget))


def test_what_varies_is_part_of_the_settings_that_a_later_start_is_compared_with(command):
    assert command.config.learner.trials == (
        "own=0.5,1.0,2.0; totals=1.0,3.0; rules=softmax,projected,uniform,random; seeds=0,4"
    )
    real = parse("--preset=mujoco_hopper_medium", "--name=hopper", "--config.algorithm.hidden_sizes=[32,32]")
    assert (real.config.algorithm.hidden_sizes, real.config.learner.evaluate_every) == ((32, 32), 0)
    assert Path(real.csv).name == "analysis_hopper.csv" and Path(real.directory).name == "hopper"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset=rnig"], "--preset: no config 'rnig'"),
        (["--preset=ring", "--own=1,-2"], "--own: expected different positive numbers, found '1,-2'"),
        (["--preset=ring", "--totals=1,1"], "--totals: expected different positive numbers, found '1,1'"),
        (["--preset=ring", "--seeds="], "--seeds: expected different whole numbers, found ''"),
        (["--preset=ring", "--seeds=a"], "--seeds: expected different whole numbers, found 'a'"),
        (["--preset=ring", "--rules=softmax,fair"], "--rules: expected some of softmax, projected, uniform, random"),
        (["--preset=ring", "--own=0.01"], r"above algorithm\.d_min=0\.006, found 0\.003 nats for an agent"),
        (["--preset=ring", "--config.seed=1"], "--config.seed: expected --seeds instead"),
        (["--preset=smac_3m", "--config.algorithm.name=bc"], r"algorithm\.name: expected omcda"),
        (["--preset=ring", "--config.algorithm.name=bc"], r"algorithm\.name: expected omcda, .*found 'bc'"),
        ([], "--preset: expected one of experiments/run.py, or ring or ring_continuous, found None"),
        (
            ["--preset=ring", "--own=", "--totals="],
            "--own, --totals, --rules: expected something to vary, found nothing",
        ),
        (["--preset=ring", "--sedes=1"], "--sedes: no such flag; did you mean '--seeds'"),
    ],
)
def test_mistakes_are_named_in_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        analysis.points(parse(*words), 4)
    assert "\n" not in str(caught.value)


def test_words_of_rows_that_are_not_there_are_refused(tmp_path, capsys):
    words = ["analysis", "--preset=ring", "--report_only", f"--results={tmp_path}"]
    assert analysis.main(words) == 78
    assert "analysis_ring.csv: expected the rows of an analysis, found nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed,agent\n0,0\n", "line 1: expected the columns task,source,.* found seed,agent"),
        (f"{','.join(sweeps.FIELDS)}\n{'x,' * 15}x\n", "line 2: invalid literal for int.*'x'"),
        (f"{','.join(sweeps.FIELDS)}\nx,x\n", "line 2: expected 16 columns, found more or less"),
        (f"{','.join(sweeps.FIELDS)}\n", "expected rows, found none"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path, capsys, text, message):
    (tmp_path / "analysis_ring.csv").write_text(text)
    assert analysis.main(["analysis", "--preset=ring", "--report_only", f"--results={tmp_path}"]) == 78
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_rows_stay_where_there_are_none_to_write(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results" / "analysis_ring.csv"
    sweeps.store(path, made_up())
    monkeypatch.setattr(analysis, "finished", lambda job: [None] * len(job.configs))
    before = path.read_text()
    words = ["analysis", "--preset=ring", f"--directory={tmp_path}", f"--results={path.parent}"]
    assert analysis.main([*words, "--own=1", "--totals="]) == 78
    assert "expected rows to write, found none; every trial diverged" in capsys.readouterr().err
    assert path.read_text() == before


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analysis, "task", lambda command: pytest.fail("too late"))
    (tmp_path / "analysis_ring.csv").mkdir()
    for results, message in (("/proc/nope", "expected a folder to write to"), (tmp_path, "found a folder")):
        assert analysis.main(["analysis", "--preset=ring", f"--results={results}"]) == 78
        assert message in capsys.readouterr().err


# What is measured


def test_what_was_measured_is_the_mean_of_the_last_quarter_in_the_units_of_the_environment(command, tmp_path):
    job = analysis.populations(command, analysis.points(command, 4))[1][0]
    data_settings = job.config.data.__class__("ring/discrete", reward_scale=10.0)
    config = job.config.__class__("ring", job.config.algorithm, data_settings, job.config.learner)
    job = job._replace(configs=[config] * 2, directory=str(tmp_path))
    keys = ("allocation/budget", "policy/divergence", "allocation/alpha", "allocation/influence")
    rows = []
    for step, value in ((100, 50.0), (2600, 1.0), (3000, 3.0)):
        per_agent = {key: [[value, 2 * value], [0.0, 0.0]] for key in keys}
        rows.append({"step": step, **per_agent, "allocation/price": [value, 0.0]})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"return_mean": 7.0, "return_se": 0.5, "length_mean": 9.0}
    found = analysis.measured(job, [summary, summary], [None, "policy/loss"])
    assert found[1] is None
    assert found[0] == {
        "return_mean": 7.0,
        "return_se": 0.5,
        "steps": 9.0,
        "allowed": [2.0, 4.0],
        "spent": [2.0, 4.0],
        "alpha": [0.2, 0.4],
        "price": 0.2,
        "influence": [0.2, 0.4],
    }


def test_a_population_is_finished_when_it_was_evaluated_as_its_settings_ask(command, tmp_path):
    job = analysis.populations(command, analysis.points(command, 4))[1][0]._replace(directory=str(tmp_path))
    assert analysis.finished(job) is None
    result = {"step": 3000, "evaluation": to_dict(job.config.evaluation), "trials": [None]}
    for change, expected in (({}, [None]), ({"step": 2900}, None), ({"evaluation": {"episodes": 1}}, None)):
        (tmp_path / "result.json").write_text(json.dumps(result | change))
        assert analysis.finished(job) == expected


def test_the_ring_is_judged_by_the_exact_value_of_what_every_trial_plays(command, monkeypatch, random):
    problem = exact.rings()
    tables = random.dirichlet(np.ones(3), size=(2, 4, exact.NUM_PLACES))
    monkeypatch.setattr(probe, "policy_table", lambda state, actions: tables[int(state["trial"])])
    job = analysis.populations(command, analysis.points(command, 4))[1][0]._replace(configs=[command.config] * 2)
    found = analysis.judge_exactly(job, problem, {"trial": np.array([0, 1])})
    value = lambda table: sum(exact.true_value(ring, policy) for ring, policy in zip(problem, table, strict=True))
    assert [summary["return_mean"] for summary in found] == [value(table) for table in tables]


def test_the_exact_curves_are_those_of_the_exact_problem():
    command = parse("--preset=ring", "--own=1", "--totals=1", "--seeds=3")
    rows = analysis.exact_rows(command, analysis.points(command, 4))
    assert {row["source"] for row in rows} == {"exact"}
    value = {row["rule"]: row["return_mean"] for row in rows if row["agent"] == 0 and row["swept"] in (None, 0)}
    table = exact.frontier(exact.rings(), "batch", command.config.algorithm.influence_epsilon)
    assert value["uniform"] == pytest.approx(exact.at_budget(table, np.full(4, 0.3)).value.sum())
    assert value["fixed"] == pytest.approx(value["uniform"])
    assert value["uniform"] < value["softmax"] < value["projected"]
    allowed = [row["allowed"] for row in rows if row["rule"] == "projected"]
    assert sum(allowed) == pytest.approx(1.2, abs=1e-3) and allowed == sorted(allowed, reverse=True)


def test_the_rings_data_are_a_file_that_the_readers_take(tmp_path):
    command = parse("--preset=ring_continuous", f"--directory={tmp_path}")
    environment, _ = analysis.task(command)
    loaded, metadata = data.load(command.config.data.path, environment="ring/continuous")
    assert loaded.spec == environment.spec and metadata["statistics"]["episodes"] == probe.NUM_EPISODES


# What is said


def made_up(earns=(3.0, 1.0), bonus=5.0, seeds=(0, 1, 2)):
    """Rows in which agent i earns `earns[i]` per nat, and softmax `bonus` more than uniform; seeds differ by 0.1."""
    rows = []

    def add(sweep, rule, swept, seed, budget, more=0.0):
        earned = 10 * np.dot(earns, budget) + more + 0.1 * seed
        for agent, nats in enumerate(budget):
            rows.append(
                {"task": "made_up", "source": "learned", "sweep": sweep, "rule": rule, "swept": swept, "seed": seed}
                | {"d_tot": sum(budget), "agent": agent, "allowed": nats, "spent": 0.5 * nats, "alpha": 2.0}
                | {"price": 1.0, "influence": earns[agent] + 0.01 * seed, "return_mean": earned, "return_se": 0.2}
                | {"steps": 10.0}
            )

    for seed in seeds:
        for factor in (0.5, 1.0, 2.0):
            for agent in (0, 1):
                add("own", "fixed", agent, seed, [factor if other == agent else 1.0 for other in (0, 1)])
            add("total", "uniform", None, seed, [factor, factor])
            add("total", "softmax", None, seed, [factor, factor], bonus * factor + 0.01 * seed)
            add("total", "random", None, seed, [factor, factor], (-1) ** seed)
    return rows


def test_rows_survive_the_file(tmp_path):
    rows = made_up()
    path = tmp_path / "rows.csv"
    sweeps.store(path, rows)
    assert path.read_text().splitlines()[0] == ",".join(sweeps.FIELDS)
    assert sweeps.load(path) == [
        {key: float(f"{value:.6g}") if key in sweeps.NUMBERS else value for key, value in row.items()} for row in rows
    ]


def test_an_interval_is_students():
    assert sweeps.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302653 / 3**0.5), rel=1e-5)
    mean, width = sweeps.interval([4.0])
    assert mean == 4.0 and np.isnan(width)


def test_slopes_and_influence_of_one_derivative_agree_whatever_the_budgets():
    budgets = np.array([0.1, 0.2, 0.4, 0.8])
    influence = {x: {0: 4 - x, 1: 2 - x} for x in budgets}
    returns = {x: {0: 4 * x - x**2 / 2, 1: 2 * x - x**2 / 2 + 7} for x in budgets}
    np.testing.assert_allclose(sweeps.slopes(sweeps.integrated(influence)), sweeps.slopes(returns), rtol=1e-12)
    returns[0.8].pop(1)
    assert len(sweeps.slopes(returns)) == 1, "a seed without all points has no slope"
    assert sweeps.slopes({0.3: {0: 5.0}}) == [], "nor has a single point"


def test_the_words_are_those_of_the_numbers():
    text = sweeps.markdown(made_up())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert rows[2][0] == "0" and rows[2][1].startswith("3 ± ")
    assert rows[2][2] == f"3.01 ± {4.302653 * 0.01 / 3**0.5:.2g}" and rows[2][3:] == ["50%", "0%"]
    assert rows[3][0] == "1" and rows[3][1].startswith("1 ± ") and rows[3][2].startswith("1.01 ± ")
    assert (
        "agents' order is 0 > 1, by influence 0 > 1. The return rises beyond the interval with the budget of agents 0"
        in text
    )
    header = next(row for row in rows if "softmax - uniform" in row)
    last = dict(zip(header, rows[-1], strict=True))
    assert (
        last[header[0]] == "4"
        and last["uniform"].startswith("80.1 ± ")
        and last["softmax - uniform"] == "10.01 ± 0.025"
    )
    assert "`softmax` against `uniform`, seed by seed: better beyond the interval at $d_\\text{tot}$ 1, 2, 4" in text
    assert (
        "`random` against `uniform`, seed by seed: better beyond the interval nowhere, worse beyond it nowhere" in text
    )
    assert "0.3333 ± 2.9, not distinguishable from zero" in text


def test_a_price_that_binds_is_told():
    rows = [row | {"alpha": 1.0} if row["agent"] == 1 else row for row in made_up()]
    lines = [line for line in sweeps.markdown(rows).splitlines() if line.startswith(("| 0 ", "| 1 |"))]
    assert lines[0].endswith("| 0% |") and lines[1].endswith("| 100% |")


def test_one_sweep_or_one_seed_alone_is_told_too():
    own = [row for row in made_up(seeds=(0,)) if row["sweep"] == "own"]
    assert "softmax" not in sweeps.markdown(own) and "| 0 | 3 | 3 | 50% | 0% |" in sweeps.markdown(own)
    total = [row for row in made_up() if row["sweep"] == "total"]
    assert "Influence" not in sweeps.markdown(total)


def test_the_figure_shows_means_over_seeds_and_is_saved(tmp_path):
    rows = made_up()
    rows += [row | {"source": "exact", "return_mean": 1.0} for row in rows]
    drawn = sweeps.figure(rows)
    panels = {axis.get_title().split(" (")[0].split(";")[0]: axis for axis in drawn.axes}
    line = next(line for line in panels["return"].lines if line.get_label() == "agent 0")
    np.testing.assert_allclose(line.get_xdata(), [0.5, 1, 2])
    np.testing.assert_allclose(line.get_ydata(), [25.1, 40.1, 70.1])
    dashed = [line for line in panels["return"].lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2 and np.all(dashed[0].get_ydata() == 1)
    line = next(line for line in panels["KL spent by the team"].lines if line.get_label() == "uniform")
    np.testing.assert_allclose(line.get_ydata(), [0.5, 1, 2])
    path = sweeps.draw(tmp_path / "figure.png", rows)
    assert path.read_bytes().startswith(b"\x89PNG") and [*tmp_path.iterdir()] == [path]
