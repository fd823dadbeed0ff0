"""One trial on several processes of this machine, joined by gloo: the same numbers as on one."""

import json
import os
import stat

import numpy as np
import pytest

from benchmarks import toy
from benchmarks.faults import Run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processes")
    toy.write(directory / "data.h5")
    return directory


@pytest.fixture(scope="module")
def whole(place):
    """Two processes with two devices each; every process holds its own half of the data."""
    run = Run(place / "whole", updates=200, processes=2, devices=2).go()
    assert run.codes == [0, 0], run.err
    assert ["2 processes, 4 devices" in out for out in run.out] == [True, False], "only the first process talks"
    return run


def evaluation(run):
    return json.loads((run.directory / "result.json").read_text())["evaluation"]


@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (4, 1)])
def test_the_number_of_processes_changes_nothing(place, whole, processes, devices):
    run = Run(place / f"on_{processes}_{devices}", updates=200, processes=processes, devices=devices).go()
    assert run.codes == [0] * processes, run.err
    np.testing.assert_allclose(run.losses(), whole.losses(), rtol=1e-5)
    assert evaluation(run) == evaluation(whole)


def test_a_mistake_ends_every_process_with_status_78(whole):
    run = Run(whole.directory, "--config.algorithm.hidden_sizes=9", updates=200, processes=2).go()
    assert run.codes == [78, 78], run.err
    assert all("holds a run with other settings" in error for error in run.err)


def test_processes_that_only_help_write_nothing(whole):
    """Neither beside the run nor in the system's places for what is thrown away."""
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert {path.name for path in whole.directory.iterdir()} == {
        "checkpoints",
        "config.json",
        "curves.png",
        "lock",
        "metrics.jsonl",
        "result.json",
    }
