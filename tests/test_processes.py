"""One trial on several processes of this machine, joined by gloo: the same numbers as on one."""

import errno
import json
import os
import stat

import numpy as np
import pytest

from benchmarks import toy
from benchmarks.faults import Run
from omcda_jax.runner import processes
from omcda_jax.system import exit_status
from omcda_jax.types import ConfigError, DatasetError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processes")
    toy.write(directory / "data.h5")
    return directory


@pytest.fixture(scope="module")
def whole(place):
    """Two processes with two devices each; every process has its own half of the data."""
    run = Run(place / "whole", updates=200, processes=2, devices=2).go()
    assert run.codes == [0, 0], run.err
    assert ["2 processes, 4 devices" in out for out in run.out] == [True, False], "only the first process talks"
    return run


def evaluation(run):
    return json.loads((run.directory / "result.json").read_text())["evaluation"]


@pytest.mark.parametrize(("number", "devices"), [(1, 4), (4, 1)])
def test_the_number_of_processes_changes_nothing(place, whole, number, devices):
    run = Run(place / f"on_{number}_{devices}", updates=200, processes=number, devices=devices).go()
    assert run.codes == [0] * number, run.err
    np.testing.assert_allclose(run.losses(), whole.losses(), rtol=1e-5)
    assert evaluation(run) == evaluation(whole)


def test_what_differs_between_processes_is_refused_in_all(monkeypatch):
    theirs = []
    monkeypatch.setattr(processes, "broadcast", lambda own: theirs[0] if theirs else theirs.append(own) or own)
    monkeypatch.setattr(processes, "anywhere", lambda condition: condition)
    processes.require_same("settings", {"seed": 0, "rate": 0.1})
    processes.require_same("settings", {"rate": 0.1, "seed": 0})
    with pytest.raises(ConfigError, match="settings: expected the same in all 1 processes, found others"):
        processes.require_same("settings", {"seed": 1, "rate": 0.1})


def test_a_full_disk_is_one_line_and_other_errors_are_not_hidden(capsys):
    def fail(number):
        raise OSError(number, os.strerror(number), "runs/state.json")

    for run in (processes.guarded, exit_status):
        assert run(lambda *_: fail(errno.ENOSPC)) == 1
        assert capsys.readouterr().err == "error: runs/state.json: No space left on device\n"
    with pytest.raises(FileNotFoundError):
        processes.guarded(lambda _: fail(errno.ENOENT))


def test_a_mistake_of_one_process_ends_the_others(monkeypatch):
    monkeypatch.setattr(processes, "anywhere", lambda condition: True)
    with pytest.raises(ConfigError, match="another process cannot continue"):
        processes.by_all(lambda: 3)
    with pytest.raises(DatasetError, match="nothing there"):
        processes.by_all(lambda: (_ for _ in ()).throw(DatasetError("nothing there")))
    monkeypatch.setattr(processes, "anywhere", lambda condition: condition)
    assert processes.by_all(lambda: 3) == 3


def test_a_mistake_ends_every_process_with_status_78(whole):
    run = Run(whole.directory, "--config.algorithm.hidden_sizes=9", updates=200, processes=2).go()
    assert run.codes == [78, 78], run.err
    assert all("holds a run with other settings" in error for error in run.err)


def test_processes_that_only_help_write_nothing(whole):
    """No files next to the run or in the system's temporary folders."""
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert {path.name for path in whole.directory.iterdir()} == {
        "checkpoints",
        "config.json",
        "curves.png",
        "lock",
        "metrics.jsonl",
        "result.json",
    }
