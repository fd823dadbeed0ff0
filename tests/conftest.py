"""Shared by all tests: one deterministic hypothesis profile, strict broadcasting, and bounded memory."""

import ctypes
import gc
import os
import shutil
import signal
import tempfile

from benchmarks import quick

# most test programs are compiled once and run once; set before jax is imported, also for processes that tests start
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick.flags()}".strip()

import hypothesis
import jax
import numpy as np
import pytest

hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=60, database=None)
hypothesis.settings.load_profile("quick")


def pytest_configure(config):
    """Compile each program only once, in the worker or the process of a test that needs it first."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests send it, under nohup too
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
    """Free a file's compiled programs when it is done, so that a worker keeps the programs of one file at a time."""
    yield
    jax.clear_caches()
    gc.collect()
    if os.uname().sysname == "Linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return freed memory to the system


@pytest.fixture
def random():
    """A fresh generator with the same seed for every test, so that the order and selection of tests change nothing."""
    return np.random.default_rng(20250519)


@pytest.fixture
def strict_ranks():
    """Arrays of different rank do not broadcast silently within the test."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def double():
    """Compute in float64 within the test."""
    with jax.enable_x64(True):
        yield
