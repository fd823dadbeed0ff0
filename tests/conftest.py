"""What all tests share: one deterministic hypothesis profile, strict broadcasting, memory that stays bounded."""

import ctypes
import gc
import os
import shutil
import signal
import tempfile

from benchmarks import quick

# most of what tests compute is compiled once and run once; set before jax is imported, for processes of tests as well
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick.flags()}".strip()

import hypothesis
import jax
import numpy as np
import pytest

hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=60, database=None)
hypothesis.settings.load_profile("quick")


def pytest_configure(config):
    """Lets each program be compiled once, by whichever worker, or process that a test starts, needs it first."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup too, tests send it
    if hasattr(config, "workerinput"):
        return  # workers inherit the environment
    directory = tempfile.mkdtemp(prefix="omcda-jax-programs-")
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    settings = {"jax_compilation_cache_dir": directory, "jax_persistent_cache_min_compile_time_secs": 0.0}
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees what a file compiled when it is done, so that a worker holds the programs of one file at a time."""
    yield
    jax.clear_caches()
    gc.collect()
    if os.uname().sysname == "Linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system


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
