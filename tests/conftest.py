"""What all tests share: one deterministic hypothesis profile, strict broadcasting."""

import hypothesis
import jax
import numpy as np
import pytest

hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=60, database=None)
hypothesis.settings.load_profile("quick")


@pytest.fixture
def random():
    """A fresh generator with the same seed for every test, so that order and selection change nothing."""
    return np.random.default_rng(20250519)


@pytest.fixture
def strict_ranks():
    """Arrays of different rank do not broadcast silently within the test."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def double():
    """Computes in float64 within the test."""
    with jax.enable_x64(True):
        yield
