"""Every fault of `benchmarks/faults.py`, a few times, and what benchmarks refuse."""

import os
import subprocess
import sys

import pytest

from benchmarks import faults, loading, probe

SLOW = {"F18b", "F18c"}  # several processes for minutes; installs Slurm


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in faults.FAULTS]
)
def test_a_run_survives(name):
    try:
        outcome = faults.do(name, full=False)
    except faults.NotRun as reason:
        pytest.skip(str(reason))
    assert 0 < outcome.passed == outcome.tried, outcome.note


@pytest.mark.quick
@pytest.mark.parametrize(
    ("module", "word", "message"),
    [
        (faults, "--faults=F1,F99", "--faults: expected some of F1, F2, "),
        (loading, "--data=/nonexistent.h5", "--data: expected files that are there, found '/nonexistent.h5'"),
        (probe, "--rules=softmax,nope", "--rules: expected some of uniform, softmax, projected, found 'nope'"),
    ],
)
def test_mistakes_of_benchmarks_are_one_line(capsys, module, word, message):
    module.FLAGS.unparse_flags()
    assert module.main([module.__name__, word], module.__doc__, module.FLAGS, module.work) == os.EX_CONFIG
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("name", ["fuzz", "mamujoco"])
def test_help_is_all_that_it_shows(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=faults.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"python -m benchmarks.{name}" in done.stdout and "--[no]help" in done.stdout


@pytest.mark.parametrize("error", [TimeoutError, faults.cluster.NotThere])
def test_a_cluster_that_answers_no_more_has_failed_and_one_that_is_not_there_was_not_run(tmp_path, monkeypatch, error):
    def preempted(place, rounds):
        raise error("waited 1 s for the jobs to return")

    monkeypatch.setattr(faults.cluster, "preempted", preempted)
    if error is faults.cluster.NotThere:
        with pytest.raises(faults.NotRun, match="waited 1 s"):
            faults.preempted(tmp_path, full=False)
    else:
        outcome = faults.preempted(tmp_path, full=False)
        assert outcome.passed == 0 < outcome.tried and "the jobs to return" in outcome.note
