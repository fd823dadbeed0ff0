"""Every fault of `benchmarks/faults.py`, a few times."""

import pytest

from benchmarks import faults


@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_run_survives(name):
    outcome = faults.do(name, full=False)
    if outcome.tried == 0:
        pytest.skip(outcome.note)
    assert outcome.passed == outcome.tried, outcome.note
