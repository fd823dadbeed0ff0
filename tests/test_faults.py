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
