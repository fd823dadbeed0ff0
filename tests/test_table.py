"""The tuned comparison: its grid, the rule that chooses, kept rows, cells that are not run twice, and its words."""

import collections
import json
import re
import signal

import jax
import numpy as np
import pytest

from benchmarks import standings, table, toy
from benchmarks.standings import Cell, Standing
from omcda_jax import envs
from omcda_jax.algorithms import ALGORITHMS, find
from omcda_jax.config import replace_settings
from omcda_jax.learner import NonFiniteMetrics
from omcda_jax.runner import presets
from omcda_jax.runner.jobs import Saved
from omcda_jax.system import Interrupted
from omcda_jax.types import ConfigError, EnvSpec

pytestmark = pytest.mark.quick

SPECS = {"smac": EnvSpec(5, 4, 3, 6, True), "mujoco": EnvSpec(3, 4, 3, 1, False)}
PRESETS = {"smac": "smac_5m6m:medium", "mujoco": "mujoco_hopper_expert"}


def parse(*words):
    return table.parse(["table", *words])


# The grid


@pytest.mark.parametrize("kind", table.GRID)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_tuned_over_six_settings_about_the_presets(kind, name):
    [method] = parse(f"--tasks={PRESETS[kind]}", f"--algorithms={name}").methods
    settings, algorithm = method.final.algorithm, find(name)
    keys = list(table.GRID[kind][name])
    assert len(method.grid) == 6 and method.preset in method.grid
    assert [len({each[key] for each in method.grid.values()}) for key in keys] == [3, 2]
    template = lambda config: jax.eval_shape(lambda: algorithm.init(jax.random.key(0), SPECS[kind], config))
    structure = jax.tree.structure(template(settings))
    for text, each in method.grid.items():
        config = replace_settings(settings, each)
        assert text == " ".join(f"{key}={getattr(config, key):g}" for key in keys)
        assert jax.tree.structure(template(config)) == structure, "one program serves all six"
        assert {key: float(word) for key, word in (part.split("=") for part in text.split())} == each
    own = {key: getattr(settings, key) for key in keys}
    assert method.grid[method.preset] == pytest.approx(own, rel=1e-5)


def test_the_papers_budgets_are_among_omcdas():
    for kind, budgets in (("smac", {0.6, 1.8, 3.0}), ("mujoco", {0.3, 1.2, 3.0})):
        [method] = parse(f"--tasks={PRESETS[kind]}", "--algorithms=omcda").methods
        assert {each["d_tot"] for each in method.grid.values()} == budgets


def test_every_critic_is_primed_and_no_setting_of_omcda_is_shared():
    by_name = {method.algorithm: method.final for method in parse("--tasks=mujoco_hopper_medium").methods}
    assert list(by_name)[:2] == ["omcda", "bc"] and set(by_name) == set(ALGORITHMS)
    primed = {name: getattr(config.algorithm, "priming", None) for name, config in by_name.items()}
    assert primed == {name: None if name == "bc" else primed["omcda"] for name in ALGORITHMS} and primed["omcda"] > 0
    assert by_name["cql"].algorithm.penalty == 10.0 and by_name["cql"].algorithm.hidden_sizes == (128, 128)


def test_a_critic_that_waits_for_a_clone_is_primed_after_it():
    waits = ("--tasks=mujoco_hopper_medium", "--algorithms=cfcql,omiga", "--config.algorithm.target_rate=0.02")
    cfcql, omiga = (method.final.algorithm for method in parse(*waits).methods)
    assert cfcql.priming == omiga.priming + cfcql.behaviour_updates
    waits = ("--tasks=mujoco_hopper_medium", "--algorithms=cfcql", "--config.algorithm.behaviour_updates=500")
    assert parse(*waits).methods[0].final.algorithm.priming == omiga.priming + 500
    assert parse(*waits, "--config.algorithm.priming=507").methods[0].final.algorithm.priming == 507


def test_lengths_and_sizes_are_the_same_for_every_method_whatever_the_presets_are():
    command = parse("--tasks=mujoco_hopper_medium,smac_2s3z:medium", "--algorithms=bc", "--tuning_updates=10000")
    hopper, smax = command.methods
    assert command.protocol(hopper.final) == "updates=30000 batch=64 hidden=128-128 episodes=32"
    assert command.protocol(hopper.tuning) == "updates=10000 batch=64 hidden=128-128 episodes=32"
    assert command.protocol(smax.final) == "updates=20000 batch=256 hidden=256-256 episodes=32"
    assert (hopper.final.learner.evaluate_every, hopper.tuning.learner.evaluate_every) == (3_000, 1_000)
    more = ("--config.learner.updates=1000", "--config.data.reward_scale=2", "--config.learner.log_every=20")
    [other] = parse("--tasks=smac_3m:good", "--algorithms=bc", *more).methods
    protocol = parse("--tasks=smac_3m:good", "--algorithms=bc", *more).protocol(other.final)
    assert protocol == "updates=1000 batch=256 hidden=256-256 episodes=32 data.reward_scale=2"
    assert other.final.data.quality == "good"


def test_a_preset_that_changes_leaves_its_finished_cells_behind(monkeypatch):
    argv = ("--tasks=smac_3m:good", "--algorithms=omiga")
    command = parse(*argv)
    before = command.final(command.methods[0], "alpha=1 learning_rate=0.0005").protocol
    assert before == parse(*argv).final(command.methods[0], "alpha=1 learning_rate=0.0005").protocol
    preset = presets.PRESETS["smac_3m"]
    for changed, same in (({"priming": 7}, False), ({"learning_rate": 5e-4}, True)):
        monkeypatch.setitem(presets.PRESETS, "smac_3m", preset._replace(shared={**preset.shared, **changed}))
        command = parse(*argv)
        assert (command.final(command.methods[0], "").protocol == before) == same


def test_a_job_is_the_cells_trials():
    command = parse("--tasks=smac_3m:good", "--algorithms=omiga", "--tuning_seeds=7,8", "--directory=runs")
    [method] = command.methods
    tuning = table.job_of(command, method, command.tuning(method))
    assert [(c.algorithm.alpha, c.algorithm.learning_rate, c.seed) for c in tuning.configs[:3]] == [
        (0.333333, 2e-4, 7),
        (0.333333, 2e-4, 8),
        (0.333333, 5e-4, 7),
    ]
    assert len(tuning.configs) == 12 and tuning.directory.endswith("runs/smac_3m-good/omiga/tuning")
    final = table.job_of(command, method, command.final(method, "alpha=3 learning_rate=0.0002"))
    assert {(c.algorithm.alpha, c.algorithm.learning_rate) for c in final.configs} == {(3.0, 2e-4)}
    assert [c.seed for c in final.configs] == [0, 1, 2, 3, 4, 5]
    assert final.directory.endswith("final/alpha=3_learning_rate=0.0002")
    assert tuning.config.learner.trials != final.config.learner.trials, "a later start is compared with what varies"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks=smac_3n"], "--tasks: no config 'smac_3n'; did you mean 'smac_3m'?"),
        (["--tasks=mpe_spread"], "--tasks: expected presets of smac_* and mujoco_*, found mpe_spread"),
        (["--tasks=smac_3m,smac_3m:meduim"], "quality: expected one of poor, medium, good, random, found 'meduim' of"),
        (["--tasks="], "--tasks: expected names separated by commas, found none"),
        (["--algorithms=omgia"], "--algorithms: no algorithm 'omgia' in the grid; did you mean 'omiga'?"),
        (["--seeds=1,1"], "--seeds: expected different numbers, found '1,1'"),
        (["--tuning_seeds=one"], "--tuning_seeds: expected numbers separated by commas, found 'one'"),
        (["--seeds=1,100"], "--seeds: expected none of --tuning_seeds, found 100"),
        (["--tuning_updates=50"], "--tuning_updates: expected a positive multiple of 10 times"),
        (["--config.learner.updates=100"], "learner.updates: expected a positive multiple of 10 times"),
        (
            ["--config.learner.evaluate_every=5"],
            "--config.learner.evaluate_every: expected learner.updates (it is a tenth of that) instead",
        ),
        (["--config.seed=1"], "--config.seed: expected --seeds and --tuning_seeds instead"),
        (["--config.algorithm.name=bc"], "--config.algorithm.name: expected --algorithms instead"),
        (["--config.learner.updtes=1"], "learner.updtes: no such key; did you mean 'learner.updates'?"),
        (["--taks=smac_3m"], "--taks: no such flag; did you mean '--tasks'?"),
    ],
)
def test_mistakes_are_named_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert table.main(["table", *words]) == 78
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


# The rule


def made_up(cell, returns, diverged=(), episodes=None):
    """Rows of a cell in which trial t has the mean returns `returns[t]`, one after every step."""
    rows = []
    for trial, (settings, seed) in enumerate(cell.trials):
        base = {"task": cell.task, "algorithm": cell.algorithm, "stage": cell.stage, "protocol": cell.protocol}
        base |= {"settings": settings, "seed": seed, "return_sd": 0.5, "win_rate": 0.0, "episodes": 2.0}
        base |= {"seconds": None, "diverged": "", "made_with": "", "returns": []}
        if trial in diverged:
            numbers = dict.fromkeys(standings.NUMBERS)
            rows.append(base | numbers | {"step": cell.updates, "diverged": "critic/td"})
            continue
        for place, value in enumerate(returns[trial]):
            step = cell.updates - len(returns[trial]) + 1 + place
            rows.append(base | {"step": step, "return_mean": value})
        rows[-1]["returns"] = list((episodes or returns)[trial])
    return rows


TUNING = Cell("task", "omiga", "tuning", "short", ("a", "b", "c"), (100, 101), 10)


def test_the_highest_mean_of_the_last_five_evaluations_is_chosen():
    early = [9, 9, 9, 9, 9]
    returns = [[*early, 1, 1, 1, 1, 1]] * 2 + [[*early, 1, 1, 1, 1, 4]] * 2 + [[*early, 3, 1, 1, 1, 1]] * 2
    assert standings.choose(made_up(TUNING, returns), TUNING, "a") == "b"
    returns[4:] = [[*early, 3, 1, 1, 1, 1], [*early, 3, 3, 1, 1, 1]]
    assert standings.choose(made_up(TUNING, returns), TUNING, "a") == "b"
    returns[5] = [*early, 3, 3, 1, 1, 2]
    assert standings.choose(made_up(TUNING, returns), TUNING, "a") == "c", "over both seeds"


def test_of_equals_the_presets_are_chosen_and_then_the_first():
    # the same numbers in another order have a sum that differs in the last digit
    returns = [[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1], [0.3, 0.1, 0.5, 0.2, 0.4]]
    rows = made_up(TUNING, [returns[trial // 2] for trial in range(6)])
    assert [standings.choose(rows, TUNING, preset) for preset in ("a", "b", "c", "elsewhere")] == ["a", "b", "c", "a"]


def test_settings_with_a_trial_that_diverged_are_not_chosen():
    returns = [[3]] * 2 + [[2]] * 2 + [[1]] * 2
    rows = made_up(TUNING, returns, diverged=[1])
    assert standings.is_finished(rows, TUNING) and standings.choose(rows, TUNING, "a") == "b"
    assert standings.choose(made_up(TUNING, returns, diverged=range(0, 6, 2)), TUNING, "a") is None


def test_rows_of_another_protocol_stage_or_seed_count_nowhere():
    rows = made_up(TUNING, [[3]] * 6)
    assert standings.is_finished(rows, TUNING)
    for change in ({"protocol": "long"}, {"stage": "final"}, {"task": "other"}, {"seeds": (1, 100)}, {"updates": 11}):
        assert not standings.is_finished(rows, TUNING._replace(**change)), change
    assert standings.is_finished(rows, TUNING._replace(seeds=(101,), settings=("c", "b")))


# Rows


def test_rows_survive_the_file_and_are_merged_with_those_there(tmp_path):
    path = tmp_path / "results" / "table.csv"
    rows = made_up(TUNING, [[1.25, 2.0]] * 6, diverged=[0])
    assert standings.load(path) == []
    assert standings.merge(path, rows) == standings.load(path) == sorted(rows, key=standings._key)
    elsewhere = made_up(TUNING._replace(algorithm="bc"), [[7.0]] * 6)
    assert len(standings.merge(path, elsewhere)) == len(rows) + len(elsewhere)
    newer = made_up(TUNING._replace(settings=("b",)), [[3.0]] * 2)
    merged = standings.merge(path, newer)
    assert len(merged) == len(rows) + len(elsewhere)
    changed = [row["return_mean"] for row in merged if row["settings"] == "b" and row["algorithm"] == "omiga"]
    assert sorted(changed) == [1.25, 1.25, 3.0, 3.0]
    text = path.read_text()
    assert standings.merge(path, []) == merged and path.read_text() == text, "the order is the rows' own"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: ["<<<<<<< HEAD", *lines], "expected the columns task,algorithm,.* found <<<<<<< HEAD$"),
        (lambda lines: [lines[0], "<<<<<<< HEAD", *lines[1:]], "line 2: expected 15 columns, found more or less$"),
        (lambda lines: [lines[0], lines[1] + ",1"], "line 2: expected 15 columns, found more or less$"),
        (lambda lines: [lines[0], lines[1].replace("1.25", "1.2.5")], "line 2: could not convert .* '1.2.5'$"),
    ],
)
def test_a_damaged_file_is_refused_and_stays_as_it_is(tmp_path, damage, message):
    path = tmp_path / "table.csv"
    rows = made_up(TUNING, [[1.25]] * 6)
    standings.merge(path, rows)
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    before = path.read_text()
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}.*{message}"):
        standings.merge(path, rows)
    assert path.read_text() == before


# Cells are trained once


class Fake:
    """Fake training and evaluation: a trial's return is 1, 2, ... in the order of its population, or as in `worth`."""

    def __init__(self):
        self.trained, self.stop_at, self.worth, self.diverge = [], None, {}, None

    def train(self, job, environment, judge, interruption):
        stage, trials = job.directory.partition("table/")[2], range(len(job.configs))
        if self.stop_at and self.stop_at in stage:
            return Saved(State(np.array([4])), {})
        self.trained.append(stage)
        if self.diverge and self.diverge in stage:
            raise NonFiniteMetrics("critic/td was not finite")
        with open(job.metrics, "w", encoding="utf-8") as file:
            for step in range(4, 40, 4):
                values = {key: [1.0 + trial for trial in trials] for key in ("return_mean", "return_sd", "win_rate")}
                row = values | {"episodes": [32] * len(trials), "length_mean": [4.0] * len(trials)}
                file.write(json.dumps({"step": step} | {f"evaluation/{key}": row[key] for key in row}) + "\n")
                file.write(json.dumps({"step": step, "policy/loss": [0.0] * len(trials)}) + "\n")
        guard = {"culprits": [None] * len(trials)}
        return Saved(State(np.array([40] * len(trials))), {"seconds": 12.0, "guard": guard})

    def judge(self, job, environment):
        def summaries(state):
            worth = [self.worth.get(config.algorithm.name, 1.0 + trial) for trial, config in enumerate(job.configs)]
            return [
                {"return_mean": x, "return_sd": 0.0, "win_rate": 0.0, "episodes": 2, "returns": [x, x]} for x in worth
            ]

        return summaries


State = collections.namedtuple("State", "step")


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The command with the toy as simulator and fake training."""
    made = Fake()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(envs, "make", lambda name: toy.environment())
    monkeypatch.setattr(table, "trained", made.train)
    monkeypatch.setattr(table, "make_judge", made.judge)
    return made


def words(*more, algorithms="bc,omcda"):
    return [
        "table",
        "--tasks=smac_3m,smac_5m6m:poor",
        f"--algorithms={algorithms}",
        "--results=results",
        "--seeds=0,1",
        "--config.learner.updates=40",
        "--config.learner.updates_per_call=4",
        "--config.learner.log_every=4",
        "--config.algorithm.hidden_sizes=8",
        *more,
    ]


BC, OMCDA = "learning_rate=0.0015 policy_average_rate=1", "d_tot=3 learning_rate=0.0005"  # the last of their grids


def test_tasks_are_done_one_after_another_omcda_first_and_only_once(fake, capsys):
    assert table.main(words()) == 0
    folder = lambda task, name, chosen: [f"{task}/{name}/tuning", f"{task}/{name}/final/{chosen.replace(' ', '_')}"]
    expected = [
        *folder("smac_3m", "omcda", OMCDA),
        *folder("smac_3m", "bc", BC),
        *folder("smac_5m6m-poor", "omcda", OMCDA),
        *folder("smac_5m6m-poor", "bc", BC),
    ]
    assert fake.trained == expected
    first = capsys.readouterr().out
    assert table.main(words()) == 0 and fake.trained == expected, "also where the runs lie elsewhere:"
    assert table.main(words("--directory=elsewhere")) == 0 and fake.trained == expected
    assert table.main(words("--report_only")) == 0
    shown = capsys.readouterr().out
    assert shown.count("### smac_5m6m:poor") == 3 and shown.endswith(first[first.index("### smac_3m") :])
    assert table.main(words("--seeds=0,1,2", algorithms="bc")) == 0
    assert fake.trained[len(expected) :] == [folder(task, "bc", BC)[1] for task in ("smac_3m", "smac_5m6m-poor")]


def test_what_is_written_of_a_cell(fake):
    assert table.main(words(algorithms="bc")) == 0
    rows = standings.load("results/table.csv")
    assert len(rows) == 2 * (6 + 2) * 10
    final = [row for row in rows if row["stage"] == "final" and row["task"] == "smac_3m" and row["seed"] == 1]
    assert [row["step"] for row in final] == list(range(4, 41, 4))
    assert [row["return_mean"] for row in final] == [2.0] * 10
    protocols = {row["protocol"].partition(" preset=")[0] for row in rows}
    assert protocols == {"updates=40 batch=256 hidden=8 episodes=32"}
    last = final[-1]
    assert (last["settings"], last["returns"], last["seconds"]) == (BC, [2.0, 2.0], 6.0)
    assert f"jax {jax.__version__}, toysim 1.0" in last["made_with"] and not final[0]["made_with"]
    assert not any(row["returns"] for row in rows if row["stage"] == "tuning" or row["step"] < 40)


def test_a_signal_stops_and_the_same_command_goes_on_with_the_cell(fake, capsys):
    fake.stop_at = "smac_3m/bc/final"
    assert table.main(words()) == 75
    assert "stopped and saved; the same command resumes" in capsys.readouterr().out
    assert table.main(words("--report_only")) == 0
    shown = capsys.readouterr().out
    assert f"| bc | tuned: {BC} |" in shown and "| omcda | not trained |" in shown and "| **omcda** | first |" in shown
    done = list(fake.trained)
    fake.stop_at = None
    assert table.main(words()) == 0
    assert fake.trained[len(done)].startswith("smac_3m/bc/final") and len(fake.trained) == len(set(fake.trained)) == 8


def test_a_signal_between_cells_leaves_the_rows_there(fake, monkeypatch):
    def interrupt(*arguments):
        raise Interrupted(signal.Signals.SIGTERM.name)

    monkeypatch.setattr(table, "measured", interrupt)
    assert table.main(words(algorithms="bc")) == 75
    assert standings.load("results/table.csv") == []


def test_a_method_that_diverges_is_told_and_does_not_keep_the_others(fake, capsys):
    fake.diverge = "smac_3m/omcda/tuning"
    assert table.main(words()) == 1
    shown = capsys.readouterr().out
    assert "omcda on smac_3m diverged: critic/td was not finite" in shown
    assert "| omcda | all settings diverged |" in shown
    fake.trained.clear()
    fake.diverge = None
    assert table.main(words()) == 1 and not fake.trained
    assert table.main(words(algorithms="bc")) == 0
    fake.diverge = "smac_3m/bc/final"
    assert table.main(words("--seeds=5", algorithms="bc")) == 1
    assert f"| bc | 1 diverged |  |  | {BC} |  |" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_found_before_the_first_method(fake, tmp_path, capsys):
    (tmp_path / "table.csv").mkdir()
    a_folder = f"--results={tmp_path}"
    for given, message in (
        (["--results=/proc/nope"], "expected a folder to write to"),
        ([a_folder], "found a folder"),
        ([a_folder, "--report_only"], "found a folder"),
    ):
        assert table.main(words(*given)) == 78
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not fake.trained


def test_settings_are_checked_before_the_first_method_of_a_task_is_trained(fake, capsys):
    assert table.main(words("--config.algorithm.critics=0", algorithms="omcda")) == 78
    assert "critics: expected a whole number of at least 1" in capsys.readouterr().err and not fake.trained


# Words


def finals(returns, algorithm="omiga", last=None):
    """A final cell with one more evaluation than `last`, and the rows of its seeds' episodes."""
    cell = Cell("task", algorithm, "final", "p", ("alpha=1",), tuple(range(len(returns))), 10)
    means = [[*(last or []), float(np.mean(episodes))] for episodes in returns]
    return cell, made_up(cell, means, episodes=returns)


def test_a_standing_is_of_all_episodes_and_of_the_last_evaluations():
    cell, rows = finals([[1.0, 3.0, 2.0, 2.0], [2.0, 2.0, 2.0, 100.0]], last=[9.0, 1.0, 2.0, 3.0, 4.0])
    entry = standings.standing(rows, cell)
    assert entry.iqm == 2.0 and entry.low <= 2.0 <= entry.high
    assert entry.mean == 14.25 and entry.sd == pytest.approx(24.5 / 2**0.5)
    # of 1, 2, 3, 4 and the last mean, the 9 is one too early
    assert entry.spread == pytest.approx((3 / 2.4, 25.5 / 7.3))
    lost = standings.standing(made_up(cell, [[1.0], [2.0]], diverged=[1]), cell)
    assert (lost.diverged, lost.mean, lost.sd) == (1, 1.0, 0.0)


def stand(iqm, low=None, high=None, **more):
    around = (None, None) if iqm is None else (low or iqm - 0.5, high or iqm + 0.5)
    return Standing(iqm, *around, iqm, 0.1, (0.1, 0.2), 0, "alpha=1")._replace(**more)


def test_first_is_the_highest_and_within_reaches_its_interval():
    entries = {"a": stand(2.0, low=1.5), "b": stand(1.5), "c": stand(1.4), "d": stand(None)}
    assert [standings.place(entries, name) for name in entries] == ["first", "within", "", ""]


def test_the_table_is_ranked_and_marked():
    lost = Standing(None, None, None, None, None, (), 5, "alpha=3")
    entries = {"bc": stand(1.4), "cql": lost, "omar": "not trained", "omcda": stand(1.6, low=1.3), "icq": stand(0.5)}
    text = standings.markdown({"task": entries | {"icq": stand(0.5, diverged=2)}}, ["p"], 5)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert [row[:2] for row in rows[2:]] == [
        ["**omcda**", "first"],
        ["**bc**", "within"],
        ["icq", "2 diverged"],
        ["cql", "5 diverged"],
        ["omar", "not trained"],
    ]
    assert rows[2][2:] == ["1.600 [1.300, 2.100]", "1.600 ± 0.100", "alpha=1", "15% (20%)"]
    assert "5 seeds that were not tuned with (p)" in text
    large = standings.markdown({"task": {"bc": stand(3000.4, low=2000.0, high=3100.0)}}, ["p"], 5)
    assert "| 3000 [2000, 3100] | 3000 ± 0 |" in large and "omcda" not in large
    assert "Bold" not in standings.markdown({"task": {"bc": "not trained"}}, ["p"], 5)


def test_where_omcda_stands_is_said():
    tasks = {
        "one": {"omcda": stand(3.0), "bc": stand(1.0)},
        "two": {"omcda": stand(2.8), "bc": stand(1.0), "cql": stand(3.0)},
        "three": {"omcda": stand(1.0), "bc": stand(2.0)},
        "four": {"omcda": stand(None), "cql": stand(2.0)},
        "five": {"bc": stand(2.0)},
    }
    assert standings.verdict(tasks) == (
        "omcda is first on 1 of 4 tasks (one), within the interval of the first on 1 more (two), and below the "
        "interval of bc on 1 of 3 (three)."
    )
