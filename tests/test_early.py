"""What an advantage was worth: the slope that `benchmarks/early.py` prints, on numbers with a known answer."""

import os

import numpy as np
import pytest

from benchmarks import early

pytestmark = pytest.mark.quick


def test_advantages_that_are_right_are_worth_one_and_noise_is_worth_nothing(random):
    episodes, steps = 400, 20
    episode = np.repeat(np.arange(episodes), steps)
    right, noise = random.normal(size=(2, episodes * steps))
    luck = np.repeat(random.normal(size=episodes), steps)
    slope, error = early.worth(right + 3.0, right + luck - 2.0, episode)
    assert abs(slope - 1) < 3 * error < 0.1
    slope, error = early.worth(noise, right + luck, episode)
    assert abs(slope) < 3 * error < 0.1


@pytest.mark.parametrize("words", [["--every=0"], ["--updates=4500"], ["--updates=0"]])
def test_rows_that_do_not_fit_the_updates_are_refused(capsys, words):
    assert early.main(["early", *words]) == os.EX_CONFIG
    error = capsys.readouterr().err
    assert error.startswith("error: --every: expected a divisor of --updates=") and error.count("\n") == 1


def test_an_unknown_preset_is_told_by_its_flag(capsys):
    early.FLAGS.unparse_flags()
    assert early.main(["early", "--preset=nope"]) == os.EX_CONFIG
    assert capsys.readouterr().err.startswith("error: --preset: no config 'nope'; ")


def test_the_standard_error_counts_episodes_not_steps():
    advantage = np.repeat([-1.0, 1.0, -1.0, 1.0], 5)
    excess = np.repeat([-2.0, 1.0, 0.0, 1.0], 5)  # slope 1, left over -1, 0, 1, 0 in every step of the four episodes
    slope, error = early.worth(advantage, excess, np.repeat(np.arange(4), 5))
    assert slope == pytest.approx(1.0)
    # two episodes: the five products of advantage and residual sum to 5 and -5 in them; the sum of squares is 20
    assert error == pytest.approx(np.sqrt(2 * 5**2) / 20)
