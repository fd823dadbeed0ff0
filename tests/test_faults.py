"""Every fault of `benchmarks/faults.py`, a few times."""

import pytest

from benchmarks import faults


@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_run_survives(name):
    try:
        outcome = faults.do(name, full=False)
    except faults.NotRun as reason:
        pytest.skip(str(reason))
    assert 0 < outcome.passed == outcome.tried, outcome.note
