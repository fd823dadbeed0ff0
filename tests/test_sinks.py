"""Loggers next to the metrics file: every row once, whatever stopped the run, and mistakes that cost nothing."""

import json
import shutil
import signal
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from test_compare import arguments
from test_run import DIRECTORY, command, run, stop_when

from omcda_jax.metrics import Progress, read
from omcda_jax.runner import compare as comparison
from omcda_jax.runner import sinks

__all__ = ["run"]  # fixture

ALL = "--log=tensorboard,wandb,trackio"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing leaves the test's folder."""
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    return storage.SQLiteStorage


def framed(data):
    """The records of TensorFlow's format: length, checksum, bytes, checksum."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def in_blocks(data):
    """The records of LevelDB's format, of 32 KiB blocks: checksum, length, kind (whole, first, middle, last), bytes."""
    place, parts = 7, []
    while place + 7 <= len(data):
        if (-place) % 2**15 < 7:
            place += (-place) % 2**15
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def of_tensorboard(directory):
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((directory / "tensorboard").iterdir()):
        for record in framed(path.read_bytes()):
            event = Event.FromString(record)
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def of_wandb(directory):
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((directory / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1, "one run, whose files go together"
    for path in files:
        for record in map(Record.FromString, in_blocks(path.read_bytes())):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for key, value in items.items():
                if key != "updates" and not key.startswith("_"):
                    yield int(items["updates"]), key, float(value)


def of_trackio(directory, storage):
    (name,) = storage.get_runs(sinks.PROJECT)
    for row in storage.get_logs(sinks.PROJECT, name):
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                yield row["step"], key, value


def expected(directory, population=False):
    """The contents of the metrics file, number by number, without what a repeated update measures again."""
    return sorted(
        (row["step"], key, pytest.approx(value, rel=1e-5, nan_ok=True))
        for row in read(directory / "metrics.jsonl")
        for key, value in sinks.scalars({k: v for k, v in row.items() if k != "step"}, population).items()
        if key not in ("seconds", "updates_per_second")
    )


def timeless(numbers):
    return sorted((step, key, value) for step, key, value in numbers if key not in ("seconds", "updates_per_second"))


def test_a_writer_of_the_same_second_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1.0e9)
    for step in (1, 2):
        sink = sinks.tensorboard(types.SimpleNamespace(directory=str(tmp_path)), "run")
        sink.write(step, {"policy/loss": 0.5})
        sink.close()
    assert sorted(of_tensorboard(tmp_path)) == [(1, "policy/loss", 0.5), (2, "policy/loss", 0.5)]


def test_every_row_is_logged_once_through_a_stop_and_a_lost_checkpoint(run, offline, monkeypatch, capsys):
    stop_when(monkeypatch, Progress, "update", lambda self, step, metrics: step == 30, signal.SIGTERM)
    assert run.main(command(ALL)) == 75
    assert len(read(DIRECTORY / "metrics.jsonl")) < 7
    assert run.main(command(ALL)) == 0
    # as after a crash: the last updates are lost, and done again
    shutil.rmtree(DIRECTORY / "checkpoints" / "latest" / "60")
    assert run.main(command(ALL)) == 0
    assert "resumed at step 40" in capsys.readouterr().out
    rows = expected(DIRECTORY)
    assert {step for step, _, _ in rows} == {10, 20, 30, 40, 50, 60}
    assert timeless(of_tensorboard(DIRECTORY)) == rows
    assert timeless(of_wandb(DIRECTORY)) == rows
    assert timeless(of_trackio(DIRECTORY, offline)) == rows


def test_a_sink_that_comes_late_is_given_what_was_logged_before(run, offline):
    assert run.main(command(updates=20)) == 0
    assert not (DIRECTORY / "logged.json").exists()
    assert run.main(command("--log=tensorboard", updates=40)) == 0
    rows = expected(DIRECTORY)
    assert {step for step, _, _ in rows} == {10, 20, 30, 40}
    assert timeless(of_tensorboard(DIRECTORY)) == rows


def test_another_run_in_the_same_folder_is_logged_from_its_start(run, offline):
    assert run.main(command("--log=tensorboard", updates=20)) == 0
    first, before = expected(DIRECTORY), json.loads((DIRECTORY / "logged.json").read_text())
    shutil.rmtree(DIRECTORY / "checkpoints")
    assert run.main(command("--log=tensorboard", "--config.algorithm.learning_rate=0.02", updates=40)) == 0
    assert json.loads((DIRECTORY / "logged.json").read_text())["tensorboard"]["id"] != before["tensorboard"]["id"]
    found, second = timeless(of_tensorboard(DIRECTORY)), expected(DIRECTORY)
    assert len(found) == len(first) + len(second) and all(row in found for row in second)


def test_a_comparison_logs_every_trial(run, offline):
    assert comparison.main(arguments("--log=tensorboard", algorithms="bc", updates=20)) == 0
    cell = Path("runs/compare/smac_3m/bc/seeds_0-3")
    rows = expected(cell, population=True)
    assert {key for _, key, _ in rows} >= {"policy/loss/trial_0", "policy/loss/trial_1"}
    assert timeless(of_tensorboard(cell)) == rows


def test_a_sink_that_fails_ends_with_a_warning_and_training_goes_on(run, monkeypatch, capsys):
    full = lambda step, numbers: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    monkeypatch.setitem(sinks.SINKS, "tensorboard", (lambda job, name: sinks.Sink(full, lambda: None), "tensorboardX"))
    assert run.main(command("--log=tensorboard", updates=20)) == 0
    warned = capsys.readouterr().err
    assert warned.count("warning: --log=tensorboard has stopped, metrics.jsonl continues:") == 1
    assert "No space left on device" in warned
    assert [row["step"] for row in read(DIRECTORY / "metrics.jsonl")] == [10, 20]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("trackio", "trackio")]
)
@pytest.mark.parametrize("main", ["run", "compare"])
def test_a_missing_package_is_one_line_before_anything_starts(run, monkeypatch, capsys, main, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    before = sorted(Path().rglob("*"))
    flag = f"--log={name}"
    status = run.main(command(flag)) if main == "run" else comparison.main(arguments(flag))
    assert status == 78
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: --log={name} needs a package (") and shown.err.count("\n") == 1
    assert "pip install 'omcda-jax[log]'" in shown.err and shown.out == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.quick
def test_an_unknown_logger_is_refused_with_the_nearest(run, capsys):
    assert run.main(command("--log=tensorbord")) == 78
    assert "--log: no logger 'tensorbord'; did you mean 'tensorboard'" in capsys.readouterr().err


def test_wandb_without_a_login_is_refused_before_anything_starts(run, monkeypatch, capsys, tmp_path):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert run.main(command("--log=wandb")) == 78
    assert "--log=wandb: expected a login, found none: run `wandb login`" in capsys.readouterr().err
    assert not DIRECTORY.exists()


@pytest.mark.quick
def test_lists_become_numbers_with_names():
    values = {"a": 1, "b": np.array([2.0, 3.0])}
    assert sinks.scalars(values, False) == {"a": 1.0, "b/agent_0": 2.0, "b/agent_1": 3.0}
    assert sinks.scalars(values | {"c": [[4, 5]]}, True) == {
        "a": 1.0,
        "b/trial_0": 2.0,
        "b/trial_1": 3.0,
        "c/trial_0/agent_0": 4.0,
        "c/trial_0/agent_1": 5.0,
    }
    assert json.dumps(sinks.scalars({"a": np.float32(1.5)}, False)) == '{"a": 1.5}'
