"""Every fault of `benchmarks/faults.py`, a few times."""

import pytest

from benchmarks import faults

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
