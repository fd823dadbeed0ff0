"""Engines that place rows elsewhere: submitit with local processes instead of Slurm, and Ray on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import ROOT, STUB, kinds, stubs, tries_of

from benchmarks.toy import arguments, write
from omcda_jax.files import exclusive
from omcda_jax.runner.sweep import command as sweep
from omcda_jax.runner.sweep import machine, slurm, task
from omcda_jax.system import Interruption
from omcda_jax.types import ConfigError

__all__ = ["STUB", "stubs"]  # fixture


def descendants(pid):
    """The descendants of this process."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for path in lists for child in path.read_text().split()]
    return [int(child) for child in children] + [one for child in children for one in descendants(child)]


def test_a_job_of_submitit_that_is_preempted_saves_and_is_requeued(tmp_path, stubs, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [row] = stubs("wait once")
    options = machine.Options(jobs=0, engine={"cluster": "local", "timeout_min": 60})
    assert slurm.run(str(tmp_path), [row], options, Interruption()) == {}
    [job] = (int(folder.name) for folder in (tmp_path / "slurm").iterdir() if folder.name.isdigit())
    deadline = time.monotonic() + 60
    while not (tmp_path / row.directory / "at_work").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # as Slurm does before the time limit, to the job's process and to all that it started
    for pid in descendants(job):
        os.kill(pid, signal.SIGUSR2)
    while kinds(tmp_path, [row]) != ["done"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert kinds(tmp_path, [row]) == ["done"] and len(tries_of(tmp_path, row)) == 2
    assert (tmp_path / row.directory / "saved").exists()


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Do a row's work as its job does; count the signals that would get it requeued."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setattr(slurm, "POLL", 0.02)
    requeued = []
    before = signal.signal(signal.SIGUSR2, lambda *_: requeued.append(1))
    yield lambda row, retries=1: (slurm.Work(str(tmp_path), row, retries)(), len(requeued))
    signal.signal(signal.SIGUSR2, before)


def test_a_job_requeues_what_saved_repeats_what_crashed_and_fails_with_the_rest(tmp_path, stubs, job):
    rows = stubs("75 once", "crash once", "crash", "refuse", "fine")
    assert job(rows[0]) == (75, 1)
    assert job(rows[0]) == (0, 1)
    assert job(rows[1]) == (0, 1)
    for row, reason in ((rows[2], "ValueError: of the stub"), (rows[3], "error: it is broken")):
        with pytest.raises(RuntimeError, match=reason):
            job(row)
    assert [len(tries_of(tmp_path, row)) for row in rows[:4]] == [2, 2, 2, 1]
    assert kinds(tmp_path, rows) == ["done", "done", "failed", "failed", "waiting"]
    # submitted twice: rows that are done or running elsewhere are left alone
    assert job(rows[0]) == (0, 1) and len(tries_of(tmp_path, rows[0])) == 2
    (tmp_path / rows[4].log).mkdir()
    with exclusive(tmp_path / rows[4].log):
        assert job(rows[4]) == (0, 1)
    assert kinds(tmp_path, rows[4:]) == ["waiting"]


def test_somebody_who_only_looked_keeps_no_job_from_its_row(tmp_path, stubs, job, monkeypatch):
    [row] = stubs("fine")
    looks = []

    class Looked(task.Task):
        def __init__(self, *given, **more):
            looks.append(given)
            if len(looks) < 3:
                raise task.Busy("somebody looks")
            super().__init__(*given, **more)

    monkeypatch.setattr(task, "Task", Looked)
    monkeypatch.setattr(task, "PAUSE", 0.01)
    assert job(row) == (0, 0) and kinds(tmp_path, [row]) == ["done"] and len(looks) == 3


@pytest.mark.parametrize(
    ("engine", "error"),
    [
        ({"cluster": "local", "timeot": 1}, "--engine=slurm: "),
        ({"cluster": "nowhere"}, "--engine=slurm: "),
    ],
)
def test_parameters_that_submitit_refuses_are_one_line(tmp_path, stubs, engine, error):
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match=error) as raised:
        slurm.run(str(tmp_path), stubs("fine"), machine.Options(engine=engine), Interruption())
    assert "\n" not in str(raised.value)


@pytest.mark.quick
@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_an_engine_that_is_not_installed_is_one_line(tmp_path, stubs, monkeypatch, engine):
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    run = sweep.importlib.import_module(f"omcda_jax.runner.sweep.{engine}").run
    with pytest.raises(ConfigError, match=f"pip install 'omcda-jax.{engine}.'"):
        run(str(tmp_path), stubs("fine"), machine.Options(), Interruption())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--engine=pbs"], "engine"),
        (["--engine=slurm", "--engine_options=partition"], "--engine_options: expected KEY=VALUE, found 'partition'"),
        (["--engine_options=a=1"], "--engine_options: expected none with --engine=local"),
    ],
)
def test_engine_flags_are_checked(capsys, words, error):
    assert sweep.main(["sweep", "--config=smac_3m", *words]) == 78
    said = capsys.readouterr().err
    assert error in said and said.count("\n") == 1


@pytest.mark.quick
def test_engine_options_are_numbers_and_texts():
    line = ["sweep", "--config=smac_3m", "--engine=slurm", "--engine_options=timeout_min=60,slurm_partition=gpu"]
    options = sweep.parse(line).options
    assert options.engine == {"timeout_min": 60, "slurm_partition": "gpu"} and options.jobs == 0


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    yield ray
    ray.shutdown()


def test_ray_works_rows_off_and_starts_those_again_that_were_lost(tmp_path, stubs, cluster):
    from omcda_jax.runner.sweep import ray

    rows = stubs("fine", "killed once", "refuse", "crash")
    options = machine.Options(retries=1, engine={"num_cpus": 2, "include_dashboard": False})
    statuses = ray.run(str(tmp_path), rows, options, Interruption())
    assert [statuses[row.name] for row in rows] == [0, 0, 78, 1]
    assert kinds(tmp_path, rows) == ["done", "done", "failed", "failed"]
    assert [len(tries_of(tmp_path, row)) for row in rows] == [1, 2, 1, 2]


def test_ray_stops_rows_that_save(tmp_path, stubs, cluster):
    from omcda_jax.runner.sweep import ray

    [row] = stubs("wait")
    interruption = Interruption()
    deadline = time.monotonic() + 60

    class Stopping:
        @property
        def requested(self):
            return (tmp_path / row.directory / "at_work").exists() or time.monotonic() > deadline

    statuses = ray.run(str(tmp_path), [row], machine.Options(engine={"num_cpus": 2}), Stopping())
    assert statuses == {row.name: 75} and not interruption.requested
    assert (tmp_path / row.directory / "saved").exists()
    assert json.loads((tmp_path / row.log / "outcome.json").read_text())["status"] == 75


def over_workers(directory):
    """Start a sweep of one trial over two Ray workers."""
    settings = [word for word in arguments("data.h5", updates=3000) if "environment" not in word]
    line = [sys.executable, "-m", "omcda_jax.runner.main", "sweep", *settings, f"--directory={directory}"]
    line += ["--config.data.environment=benchmarks.toy/any", "--distributed", "--hosts=2", "--retries=1"]
    return subprocess.Popen([*line, "--engine=ray", "--engine_options=num_cpus=2"], stdout=subprocess.DEVNULL)


def test_ray_trains_one_trial_over_its_workers_and_goes_on_when_one_is_killed(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    write("data.h5", "benchmarks.toy/any")
    assert over_workers("whole").wait() == 0
    process, killed = over_workers("killed"), False
    latest = tmp_path / "killed" / "runs" / "00000-smac_3m-bc" / "checkpoints" / "latest"
    while process.poll() is None:
        if not killed and latest.is_dir() and any(path.name.isdigit() for path in latest.iterdir()):
            workers = [pid for pid in descendants(process.pid) if b"RayTrainWorker" in commandline(pid)]
            os.kill(workers[-1], signal.SIGKILL)
            killed = True
        time.sleep(0.1)
    assert killed and process.returncode == 0
    paths = [tmp_path / name / "runs" / "00000-smac_3m-bc" / "result.json" for name in ("whole", "killed")]
    whole, other = (json.loads(path.read_text()) for path in paths)
    assert whole["step"] == other["step"] == 3000
    for key in ("state_sha256", "metrics_sha256"):
        assert whole[key] == other[key]


def commandline(pid):
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""
