"""Sweeps: what becomes a row, and how rows are run by processes that finish, crash, wait or are killed."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from stability import missing

from benchmarks.toy import arguments, write
from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.config import expand_trials
from omcda_jax.files import exclusive
from omcda_jax.metrics import read
from omcda_jax.runner.command import parse as parse_run
from omcda_jax.runner.outcomes import short_names
from omcda_jax.runner.presets import PRESETS
from omcda_jax.runner.run import job_of
from omcda_jax.runner.sweep import check, collect, local, machine, manifest, plan, state
from omcda_jax.runner.sweep import command as sweep
from omcda_jax.runner.sweep.task import Busy, Task
from omcda_jax.system import Interruption
from omcda_jax.types import ConfigError

ROOT = Path(__file__).parent.parent


def rows_of(*grids, task="smac_3m", present=(), **more):
    return plan.rows(plan.Order(task, more.pop("assignments", ()), grids, **more), present)


def configs_of(row):
    """Settings of a row's trials, as the run of its command expands them."""
    return [config for config in job_of(parse_run(["run", *row.command[2:]]))[0].configs]


# ---- what becomes a row


@pytest.mark.quick
def test_numbers_share_a_row_and_structure_does_not():
    rows = rows_of("seed=0..4; algorithm.d_tot=0.6,1.8; algorithm.allocation=softmax,uniform,projected")
    assert [len(row.trials) for row in rows] == [10, 10, 10]
    assert len({row.program for row in rows}) == 3
    for row, rule in zip(rows, ("softmax", "uniform", "projected"), strict=True):
        configs = configs_of(row)
        assert {config.algorithm.allocation for config in configs} == {rule}
        assert {(config.seed, config.algorithm.d_tot) for config in configs} == {
            (seed, budget) for seed in range(5) for budget in (0.6, 1.8)
        }
        # trial by trial in the order of the run's result
        for config, said in zip(configs, row.trials, strict=True):
            assert (said["seed"], said["algorithm.d_tot"]) == (str(config.seed), str(config.algorithm.d_tot))


@pytest.mark.quick
def test_a_population_has_a_largest_size_and_one_trial_is_a_run_of_its_own():
    rows = rows_of("seed=0..4", population=2)
    assert [len(row.trials) for row in rows] == [2, 2, 1]
    assert [parse_run(["run", *row.command[2:]]).config.learner.mode for row in rows] == ["trials", "trials", "data"]
    assert configs_of(rows[2])[0].seed == 4
    assert len({row.program for row in rows}) == 1


@pytest.mark.quick
def test_tasks_algorithms_qualities_and_sizes_are_axes():
    rows = rows_of(
        "task=smac_3m:good,mujoco_hopper_medium; algorithm.name=bc,omcda; learner.batch_size=64,128", task=None
    )
    found = {
        (config.name, config.data.quality, config.algorithm.name, config.learner.batch_size)
        for row in rows
        for config in configs_of(row)
    }
    assert len(rows) == 8 and found == {
        (task, quality, name, size)
        for task, quality in (("smac_3m", "good"), ("mujoco_hopper_medium", "medium"))
        for name in ("bc", "omcda")
        for size in (64, 128)
    }
    sizes = rows_of("algorithm.hidden_sizes=[8,8],[16]")
    assert [configs_of(row)[0].algorithm.hidden_sizes for row in sizes] == [(8, 8), (16,)]


@pytest.mark.quick
def test_the_same_order_adds_nothing_and_a_value_adds_its_rows_only(tmp_path):
    first = manifest.extend(tmp_path, lambda rows: rows_of("seed=0..2; algorithm.d_tot=0.6,1.8", present=rows))
    # written differently, the same trials
    again = "algorithm.d_tot=.6,1.80; seed=2,1,0"
    assert manifest.extend(tmp_path, lambda rows: rows_of(again, present=rows)) == first
    more = manifest.extend(tmp_path, lambda rows: rows_of("seed=0..3; algorithm.d_tot=0.6,1.8,3", present=rows))
    assert more[: len(first)] == first and manifest.read(tmp_path) == more
    added = [(said["seed"], said["algorithm.d_tot"]) for row in more[len(first) :] for said in row.trials]
    assert set(added) == {("3", "0.6"), ("3", "1.8"), *((str(seed), "3.0") for seed in range(4))}
    assert len(added) == 6 and len({row.directory for row in more}) == len(more)


@pytest.mark.quick
def test_a_file_of_rows_is_crossed_with_the_grid(tmp_path):
    lines = [{"task": "smac_3m:good", "algorithm.d_tot": 0.3}, {"task": "smac_3m", "algorithm.hidden_sizes": [8, 8]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of("seed=0,1", task=None, file=str(tmp_path / "rows.jsonl"))
    assert [len(row.trials) for row in rows] == [2, 2]
    configs = [configs_of(row)[0] for row in rows]
    assert (configs[0].data.quality, configs[0].algorithm.d_tot) == ("good", 0.3)
    assert configs[1].algorithm.hidden_sizes == (8, 8)
    (tmp_path / "rows.csv").write_text("task,algorithm.d_tot,seed\nsmac_3m,0.3,5\nsmac_3m,0.6,\n")
    [row] = rows_of(task=None, file=str(tmp_path / "rows.csv"))
    assert [(config.seed, config.algorithm.d_tot) for config in configs_of(row)] == [(5, 0.3), (0, 0.6)]
    # as a spreadsheet writes it, with a byte order mark
    (tmp_path / "rows.csv").write_bytes("\ufeffseed,task\n5,smac_3m\n".encode())
    [row] = rows_of(task=None, file=str(tmp_path / "rows.csv"))
    assert configs_of(row)[0].seed == 5


@pytest.mark.quick
def test_a_path_keeps_its_brackets_and_a_list_needs_none():
    [row] = rows_of(assignments=["data.path=/data[1]", "algorithm.hidden_sizes=8,8"])
    [config] = configs_of(row)
    assert (config.data.path, config.algorithm.hidden_sizes) == ("/data[1]", (8, 8))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("order", "error"),
    [
        (dict(grids=["algorithm.d_tott=1"]), "algorithm.d_tott: no such key"),
        (dict(grids=["task=smac_4m"]), "--grid: task: no config 'smac_4m'"),
        (dict(grids=["learner.trials=seed"]), "--grid: learner.trials: expected --grid instead"),
        (dict(grids=["seed=1"], assignments=["directory=x"]), "directory: expected --directory instead"),
        (dict(grids=["distributed=maybe"]), "distributed: expected true or false, found 'maybe'"),
        (dict(grids=["seed=-1"]), "seed: expected a whole number"),
        (dict(grids=["algorithm.d_tot=-1"]), "d_tot"),
        (dict(grids=[], task=None), "--config: expected a config, found none"),
        (dict(grids=[], file="none.jsonl"), "--rows=none.jsonl: No such file"),
    ],
)
def test_an_order_that_cannot_be_is_refused_in_one_line(order, error):
    with pytest.raises(ConfigError) as raised:
        plan.trials(plan.Order(**({"task": "smac_3m", "assignments": ()} | order)))
    assert error in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "error"),
    [("[1]\n", "row 1: expected an object"), ("{\n", "expected a JSON object per line"), ("\n", "expected a line of")],
)
def test_a_file_that_holds_no_rows_is_refused(tmp_path, text, error):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=error):
        rows_of(file=str(tmp_path / "rows.jsonl"))


@pytest.mark.quick
def test_a_broken_manifest_names_its_line(tmp_path):
    manifest.extend(tmp_path, lambda rows: rows_of("seed=0", present=rows))
    with open(manifest.path_of(tmp_path), "a") as file:
        file.write("{}\n")
    with pytest.raises(ConfigError, match="manifest.jsonl: line 2: expected a JSON object with name, command"):
        manifest.read(tmp_path)


@pytest.mark.quick
def test_a_full_study_expands_quickly():
    began = time.process_time()
    grid = f"task={','.join(PRESETS)}; algorithm.name={','.join(ALGORITHMS)}; seed=0..4; data.episodes=100,300,1000"
    tasks = [name for name in PRESETS if PRESETS[name].data.episodes]
    rows = rows_of(grid.replace(",".join(PRESETS), ",".join(tasks)), task=None)
    assert sum(len(row.trials) for row in rows) == len(tasks) * len(ALGORITHMS) * 5 * 3
    assert time.process_time() - began < 10


def test_a_population_of_alternatives_is_what_the_run_expands():
    text = "seed=0,1; algorithm.learning_rate=0.01 | seed=0; algorithm.learning_rate=0.1"
    command = ["run", *arguments("data.h5"), "--config.learner.mode=trials", f"--config.learner.trials={text}"]
    labels = [label for label, _ in expand_trials(parse_run(command).config)]
    assert [tuple(label.values()) for label in labels] == [(0, 0.01), (1, 0.01), (0, 0.1)]
    with pytest.raises(ConfigError, match=r"seed: expected the same keys on both sides of '\|'"):
        expand_trials(parse_run([*command[:-1], "--config.learner.trials=seed=0 | algorithm.gamma=0.9"]).config)


# ---- running rows: stubs instead of training

STUB = """
import json, os, signal, sys, time
what = sys.argv[1]
[directory] = [word.partition("=")[2] for word in sys.argv if word.startswith("--workdir=")]
os.makedirs(directory, exist_ok=True)
tries = os.path.join(directory, "tries")
with open(tries, "a") as file:
    file.write(json.dumps({"argv": sys.argv[2:], "cores": sorted(os.sched_getaffinity(0)),
                           "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\\n")
count = len(open(tries).readlines())
if what == "refuse":
    print("a word first\\nerror: it is broken\\nand a last word")
    sys.exit(78)
if what == "diverge":
    print("error: training diverged: policy/loss was not finite")
    sys.exit(65)
if what == "crash" or (what == "crash once" and count == 1):
    raise ValueError("of the stub")
if what == "killed once" and count == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "75 once" and count == 1:
    sys.exit(75)
if what == "wait" or (what == "wait once" and count == 1):
    def save(*_):
        open(os.path.join(directory, "saved"), "w").close()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    open(os.path.join(directory, "at_work"), "w").close()
    time.sleep(60)
if what == "grow":
    held = bytearray(300_000_000)
    time.sleep(60)
with open(os.path.join(directory, "result.json"), "w") as file:
    json.dump({"finished": what != "nothing", "step": 10, "training_seconds": 2.0}, file)
"""


@pytest.fixture
def stubs(tmp_path):
    """Make a sweep of stubs; each does what its word says."""
    (tmp_path / "stub.py").write_text(textwrap.dedent(STUB))

    def make(*words, shape="host"):
        rows = [
            manifest.Row(
                number=number,
                name=f"{number}-{word.replace(' ', '-')}",
                command=[sys.executable, "-S", str(tmp_path / "stub.py"), word],
                shape=shape,
                updates=10,
                program="stub",
                trials=[{"seed": str(number)}],
            )
            for number, word in enumerate(words)
        ]
        return manifest.extend(tmp_path, lambda present: rows)

    return make


def work(directory, rows, interruption=None, **options):
    interruption = interruption or Interruption()
    return local.run(str(directory), rows, machine.Options(**options), interruption)


def tries_of(directory, row):
    return [json.loads(line) for line in (directory / row.directory / "tries").read_text().splitlines()]


def kinds(directory, rows):
    return [state.state_of(str(directory), row).kind for row in rows]


def test_each_row_comes_to_the_end_it_should(tmp_path, stubs, capsys):
    rows = stubs("fine", "crash", "refuse", "crash once", "killed once", "nothing")
    statuses = work(tmp_path, rows, jobs=2, retries=2)
    assert list(statuses[row.name] for row in rows) == [0, 1, 78, 0, 0, 1]
    assert [len(tries_of(tmp_path, row)) for row in rows] == [1, 3, 1, 2, 2, 3]
    assert kinds(tmp_path, rows) == ["done", "failed", "failed", "done", "done", "failed"]
    shown = state.status(str(tmp_path), rows)
    for reason in ("ValueError: of the stub", "error: it is broken", "ended without a result"):
        assert reason in shown
    assert "3 done  0 running  0 waiting  3 failed" in shown
    assert sweep._status(list(statuses.values()), False) == 1
    assert sweep._status([0, 78], False) == 78 and sweep._status([0, 75], False) == 75
    # rows that are done are left alone; rows that failed are tried again
    again = work(tmp_path, [row for row in rows if kinds(tmp_path, [row]) != ["done"]], retries=0)
    assert len(again) == 3 and len(tries_of(tmp_path, rows[0])) == 1 and len(tries_of(tmp_path, rows[1])) == 4


def test_a_signal_saves_every_row_and_none_is_lost(tmp_path, stubs):
    rows = stubs("wait", "wait", "fine")
    interruption, seen = Interruption(), []

    def stop():
        while not all((tmp_path / row.directory / "at_work").exists() for row in rows[:2]):
            time.sleep(0.05)
        seen.extend(kinds(tmp_path, rows))
        interruption.requested = True

    watch = threading.Thread(target=stop)
    watch.start()
    statuses = work(tmp_path, rows, interruption, jobs=2)
    watch.join()
    assert seen == ["running", "running", "waiting"]
    assert statuses == {rows[0].name: 75, rows[1].name: 75}
    assert all((tmp_path / row.directory / "saved").exists() for row in rows[:2])
    assert kinds(tmp_path, rows) == ["waiting"] * 3


def test_a_row_that_takes_more_memory_than_it_may_fails_and_says_so(tmp_path, stubs):
    rows = stubs("grow", "fine")
    assert list(work(tmp_path, rows, memory=0.2).values()) == [1, 0]
    assert "of memory, more than --memory=0.2" in state.state_of(str(tmp_path), rows[0]).why


def test_a_disk_that_is_full_stops_all_rows_and_they_save(tmp_path, stubs, monkeypatch):
    rows, finish, ended = stubs("wait", "wait", "fine"), Task.finish, set()

    def finish_where_full(task, why=""):
        while not all((tmp_path / row.directory / "at_work").exists() for row in rows[:2]):
            time.sleep(0.05)
        finish(task, why)
        ended.add(task.row.name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Task, "finish", finish_where_full)
    monkeypatch.setattr(machine, "shares_of_cores", lambda jobs, each: [()] * jobs)
    with pytest.raises(OSError, match="No space left"):
        work(tmp_path, rows, jobs=3)
    assert ended == {row.name for row in rows}, "all are waited for"
    assert all((tmp_path / row.directory / "saved").exists() for row in rows[:2])


def test_memory_that_holds_files_is_free(monkeypatch):
    texts = {
        "/proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable:   60000000 kB\n",
        "/sys/fs/cgroup/memory.max": "16000000000\n",
        "/sys/fs/cgroup/memory.current": "14000000000\n",
        "/sys/fs/cgroup/memory.stat": "file 13000000000\nactive_file 1\ninactive_file 12000000000\n",
    }
    monkeypatch.setattr(machine, "open", lambda path, **_: io.StringIO(texts[path]), raising=False)
    assert machine.free_memory() == 14e9
    texts["/sys/fs/cgroup/memory.stat"] = ""
    assert machine.free_memory() == 2e9
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.free_memory() == 60_000_000 * 1024


def test_rows_have_cores_and_devices_of_their_own(tmp_path, stubs, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("two cores are needed to give each of two rows its own")
    rows = stubs("fine", "fine")
    work(tmp_path, rows, jobs=2, cores=1, devices=2)
    tried = [tries_of(tmp_path, row)[0] for row in rows]
    assert [one["devices"] for one in tried] == ["3,5", "6,7"]
    assert [one["cores"] for one in tried] == [cores[:1], cores[1:2]]
    with pytest.raises(ConfigError, match="expected 99 cores, 99 each, found"):
        machine.shares_of_cores(1, 99)
    with pytest.raises(ConfigError, match="--devices=3: expected 6 devices for --jobs=2, found CUDA_VISIBLE_DEVICES=3"):
        machine.shares_of_devices(2, 3)
    assert 1e6 < machine.memory_of(os.getpid()) < 1e12 and machine.free_memory() > 0


def test_hosts_share_the_rows_by_number_and_help_when_they_are_done(tmp_path, stubs, monkeypatch):
    monkeypatch.setattr(local, "AGAIN", 0.1)
    rows = stubs("fine", "fine", "fine", "fine")
    assert list(work(tmp_path, rows, host=1, hosts=2)) == [rows[1].name, rows[3].name]
    # another host is running the first row, so it is left to that host
    (tmp_path / rows[0].log).mkdir()
    with exclusive(tmp_path / rows[0].log):
        assert list(work(tmp_path, rows, host=1, hosts=2, claim=True)) == [rows[2].name]
        assert kinds(tmp_path, rows) == ["running", "done", "done", "done"]
        with pytest.raises(Busy, match="process"):
            Task(str(tmp_path), rows[0])
    # that host is gone: the next start of the sweep takes the row
    assert list(work(tmp_path, rows, host=1, hosts=2, claim=True)) == [rows[0].name]


def test_a_row_outlives_a_killed_sweep_and_stays_claimed_until_it_ends(tmp_path, stubs):
    [row] = stubs("wait")
    script = (
        "import sys; from omcda_jax.runner.sweep import manifest, task;"
        f"made = task.Task({str(tmp_path)!r}, manifest.read({str(tmp_path)!r})[0]); print(made.pid, flush=True);"
        "import time; time.sleep(60)"
    )
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=surroundings)
    pid = int(starter.stdout.readline())
    while not (tmp_path / row.directory / "at_work").exists():
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    assert kinds(tmp_path, [row]) == ["running"]
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while kinds(tmp_path, [row]) == ["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kinds(tmp_path, [row]) == ["waiting"]


def test_a_row_over_all_hosts_is_started_by_every_host_with_its_place(tmp_path, stubs):
    [row] = stubs("fine", shape="slice")
    assert work(tmp_path, [row], host=1, hosts=2, coordinator="first:1234") == {row.name: 0}
    words = tries_of(tmp_path, row)[0]["argv"]
    assert words[-3:] == ["--coordinator=first:1234", "--num_processes=2", "--process_id=1"]
    assert (tmp_path / row.log / "host_1" / "outcome.json").exists()
    assert not (tmp_path / row.log / "outcome.json").exists()


def test_a_crash_on_one_host_ends_the_others_too(tmp_path, stubs):
    rows = stubs("crash", "fine", shape="slice")
    assert work(tmp_path, rows) == {rows[0].name: 1}
    assert len(tries_of(tmp_path, rows[0])) == 1


# ---- the command


def test_a_row_that_diverged_is_not_started_again_and_is_counted(tmp_path, stubs):
    rows = stubs("diverge")
    for _ in range(2):
        work(tmp_path, rows, retries=2)
    assert len(tries_of(tmp_path, rows[0])) == 1 and kinds(tmp_path, rows) == ["failed"]
    [record] = collect.trials(str(tmp_path), rows)
    assert (record["seed"], record["diverged"], record["return_mean"]) == ("0", "all", "")
    [group] = collect.over_seeds([record, {**record, "diverged": "", "return_mean": 2.0, "win_rate": 0.0}])
    assert (group["seeds"], group["diverged"], group["mean"]) == (2, 1, 2.0)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A sweep of the toy simulator: its command line without the grid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write("data.h5", "benchmarks.toy/any")
    settings = [
        word
        for word in arguments("data.h5")
        if not any(key in word for key in ("environment", "algorithm.name", "batch_size"))
    ]
    return ["sweep", *settings, "--config.data.environment=benchmarks.toy/any", "--directory=sweep"]


def test_a_sweep_from_the_plan_to_the_end(toy, tmp_path, capsys):
    grid = "--grid=algorithm.name=bc; seed=0,1; learner.batch_size=8,16"
    assert sweep.main([*toy, grid, "--dry_run", "--rate=60"]) == 0
    planned = capsys.readouterr().out
    assert "2 rows, 4 trials: 2 populations of up to 2 trials, 0 single trials" in planned
    assert "2 compilations of different programs" in planned and "120 updates of rows, 240 of trials" in planned
    assert "time: 2s of training with 1 rows at a time, 0.00 device hours" in planned
    assert not (tmp_path / "sweep").exists()
    assert sweep.main([*toy, grid, "--jobs=2"]) == 0
    done = capsys.readouterr().out
    assert "2 done  0 running  0 waiting  0 failed; 4 trials done" in done
    assert done.splitlines()[-1].endswith(" for 2 rows of 2 different programs")
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("runs/*/result.json"))]
    assert [result["config"]["learner"]["batch_size"] for result in results] == [8, 16]
    assert [[one["trial"] for one in result["trials"]] for result in results] == [[{"seed": 0}, {"seed": 1}]] * 2
    for path in (tmp_path / "sweep").glob("runs/*/metrics.jsonl"):
        steps = [row["step"] for row in read(path) if "policy/loss" in row]
        assert steps == list(range(10, 61, 10))
    collected(tmp_path / "sweep", capsys)
    # again: nothing to do; one more seed is one more row of each program, with a known rate
    assert sweep.main([*toy, grid, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to do"
    assert sweep.main([*toy, "--grid=algorithm.name=bc; seed=0..3; learner.batch_size=8,16", "--dry_run"]) == 0
    more = capsys.readouterr().out
    assert "2 rows, 4 trials" in more and " of training with 1 rows at a time" in more
    assert sweep.main(["sweep", "--status=sweep"]) == 0
    assert "2 rows, 4 trials" in capsys.readouterr().out


def collected(directory, capsys):
    """The tables of the sweep above are what its runs wrote."""
    assert sweep.main(["sweep", f"--collect={directory}"]) == 0
    shown = capsys.readouterr().out
    assert "rows not done: 0" in shown and (directory / "seeds.md").read_text() in shown
    records = json.loads((directory / "trials.json").read_text())
    ends = [
        one["evaluation"]["return_mean"]
        for path in sorted(directory.glob("runs/*/result.json"))
        for one in json.loads(path.read_text())["trials"]
    ]
    assert [record["return_mean"] for record in records] == ends
    assert [(record["learner.batch_size"], record["seed"]) for record in records] == [
        (size, seed) for size in ("8", "16") for seed in ("0", "1")
    ]
    assert len((directory / "trials.csv").read_text().splitlines()) == 5
    assert missing([path.name for path in directory.iterdir()], "Files", "a sweep") == []
    assert missing([path.name for path in directory.glob("logs/*/*")], "Files", "a row's log") == []
    groups = json.loads((directory / "seeds.json").read_text())
    for group, pair in zip(groups, (ends[:2], ends[2:]), strict=True):
        assert (group["seeds"], group["diverged"]) == (2, 0)
        assert group["mean"] == pytest.approx(sum(pair) / 2) == pytest.approx(group["iqm"])
        # with two seeds, a quarter of the resamples has the first twice, and a quarter the second
        assert (group["low"], group["high"]) == (min(pair), max(pair))
    [(environment, tasks)] = json.loads((directory / "marl_eval.json").read_text()).items()
    assert environment == "benchmarks.toy" and list(tasks) == ["smac_3m"]
    assert list(tasks["smac_3m"]) == ["BC BATCH_SIZE=8", "BC BATCH_SIZE=16"]
    runs = [run for algorithm in tasks["smac_3m"].values() for run in algorithm.values()]
    assert [list(run) for run in runs] == [["step_1", "step_2", "absolute_metrics"]] * 4
    assert [[run["step_1"]["step_count"], run["step_2"]["step_count"]] for run in runs] == [[30, 60]] * 4
    assert [run["absolute_metrics"]["return"] for run in runs] == [[end] for end in ends]


@pytest.mark.quick
def test_whatever_varies_tells_settings_and_datasets_apart():
    record = {"task": "a", "algorithm.name": "bc", "data.quality": "good", "data.seed": 1, "evaluation.seed": ""}
    record |= {
        "distributed": "true",
        "seed": "0",
        "return_mean": 1.0,
        "win_rate": 0.0,
        "diverged": "",
        "data_mean": 1.0,
    }
    assert collect.dataset_of(record) == "a:good seed=1" and collect.dataset_of({"task": "a"}) == "a"
    assert len(collect.over_seeds([record, record | {"distributed": "false"}])) == 2
    names = short_names(["data.seed", "evaluation.seed", "algorithm.d_tot"])
    assert names == {"data.seed": "data.seed", "evaluation.seed": "evaluation.seed", "algorithm.d_tot": "d_tot"}


@pytest.mark.quick
def test_seeds_that_diverged_are_counted_and_left_out():
    made = lambda seed, mean, diverged="", task="a": {
        "task": task,
        "algorithm.name": "bc",
        "seed": seed,
        "return_mean": mean,
        "win_rate": 0.5,
        "diverged": diverged,
        "data_mean": 1.0,
    }
    records = [made("0", 1.0), made("1", 3.0), made("2", float("nan"), "policy/loss"), made("0", 9.0, "x", "b")]
    first, second = collect.over_seeds(records)
    assert (first["seeds"], first["diverged"], first["mean"]) == (3, 1, 2.0)
    assert (second["seeds"], second["diverged"]) == (1, 1) and "mean" not in second
    assert collect.markdown([first, second]).splitlines()[3].startswith("| b | bc | 1 | 1 |  |")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--grid=algorithm.name=bc; algorithm.d_tot=1"], "algorithm.d_tot: no such key"),
        (["--config.data.path=gone.h5"], "gone.h5: no such file"),
        (["--grid=algorithm.name=bc; data.path=data.h5,gone.h5"], "gone.h5: no such file"),
        (
            ["--population=1", "--grid=algorithm.d_min=0.2; algorithm.d_tot=1.2,0.3"],
            "d_tot: expected at least num_agents",
        ),
        (["--config.data.environment=nowhere/4m"], "00000-smac_3m-omcda: environment: expected smax/<scenario>"),
        (["--host=2", "--hosts=2"], "--host: expected less than --hosts=2, found 2"),
        (["--status=nowhere"], "nowhere: expected a sweep, found no manifest.jsonl"),
        (["--dry_run", "--rates=nowhere"], "nowhere: expected the directory of a sweep, found no manifest.jsonl"),
        (["--status=a", "--collect=b"], "--status, --collect: expected one of the two, found both"),
        (["--grit=seed=1"], "--grit: no such flag"),
        (["--directory=data.h5"], "data.h5: cannot write the sweep's directory"),
        (["--population=0"], "population"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(toy, capsys, words, error):
    assert sweep.main([*toy, *words]) == 78
    said = capsys.readouterr()
    assert error in said.err and said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert not list(Path("sweep").glob("logs/*")) and not list(Path("sweep").glob("runs/*"))


@pytest.mark.quick
def test_time_is_estimated_from_rows_of_the_same_program_and_size():
    rows = rows_of("seed=0..3; algorithm.allocation=softmax,uniform", assignments=["learner.updates=1000"])
    rates = {(rows[0].program, 4): 10.0}
    assert "no rate known" in check.estimate(rows, {}, None, 1, 0)
    found = check.estimate(rows, rates, None, 2, 4)
    assert "1m40s of training with 2 rows at a time, 0.22 device hours with 4 devices per row" in found
    assert "1 rows without a known rate taken at the mean" in found
    assert "200 s" not in found and "3m20s" in check.estimate(rows, rates, 5.0, 2, 0)
    # three equal rows take two rounds at two places, and one at more places than rows
    rows = rows_of("seed=0; learner.batch_size=8,16,32", assignments=["learner.updates=1000"])
    assert "time: 3m20s of training with 2 rows" in check.estimate(rows, {}, 10.0, 2, 0)
    assert "time: 1m40s of training with 5 rows" in check.estimate(rows, {}, 10.0, 5, 0)
