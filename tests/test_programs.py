"""Compiled programs are kept for the next process."""

import errno
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from omcda_jax import system

PROGRAM = """
import sys, jax, jax.numpy as jnp
from omcda_jax.system import exit_status, programs_read

def work():
    with programs_read() as read:
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
    print(bool(read), jax.config.jax_compilation_cache_dir)

sys.exit(exit_status(work))
"""


def run(home, **variables):
    left_out = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {"HOME": str(home), "PYTHONPATH": str(pathlib.Path(__file__).parents[1])} | variables
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    folder = tmp_path / ".cache" / "omcda-jax" / "programs"
    assert run(tmp_path) == ["False", str(folder)]
    assert any(folder.iterdir())
    assert run(tmp_path) == ["True", str(folder)]


def test_the_cache_can_be_turned_off(tmp_path):
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == ["False", "None"]
    assert not any(tmp_path.iterdir())


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """JAX has no cache folder within the test, and the user's is this one."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "omcda-jax" / "programs"
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_longest_unused_go_first(unset, monkeypatch):
    monkeypatch.setattr(system, "PROGRAMS_SIZE", 25)
    unset.mkdir(parents=True)
    for age, name in enumerate(("new", "old", "oldest")):
        (unset / name).write_bytes(bytes(10))
        os.utime(unset / name, (1000 - age, 1000))
    (unset / "folder_of_jax").mkdir()
    system.keep_programs()
    assert {file.name for file in unset.iterdir()} == {"new", "old", "folder_of_jax"}
    assert jax.config.jax_compilation_cache_dir == str(unset)


@pytest.mark.parametrize("error", [None, PermissionError(errno.EACCES, "Permission denied")])
def test_a_folder_that_cannot_be_made_is_done_without(unset, monkeypatch, error):
    unset.parent.write_text("a file")
    if error:
        monkeypatch.setattr(pathlib.Path, "stat", lambda *_, **__: (_ for _ in ()).throw(error))
    system.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert jnp.ones(2).sum() == 2


def test_only_a_cpu_compiles_otherwise_and_the_users_flags_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(system, "cores", lambda: [0, 1])
    options = system.compiler_options("cpu")
    assert options.keys() == {"xla_backend_optimization_level", "xla_disable_hlo_passes"}
    assert jax.jit(lambda x: jnp.sum(x * x), compiler_options=options)(jnp.arange(100.0)) == 328_350
    assert system.compiler_options("cpu", once=True) == options | {"xla_backend_optimization_level": 0}
    assert system.compiler_options("gpu") == system.compiler_options("tpu") == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_xnnpack=false --xla_backend_optimization_level=2")
    assert system.compiler_options("cpu").keys() == {"xla_disable_hlo_passes"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_enable_hlo_passes_only=fusion")
    assert system.compiler_options("cpu").keys() == {"xla_backend_optimization_level"}
    monkeypatch.setenv("XLA_FLAGS", "flags.txt")
    assert system.compiler_options("cpu") == {}, "nobody knows what the file sets"


def test_one_core_has_an_order_of_its_own(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    ordering = {"xla_cpu_scheduler_type", "xla_cpu_copy_insertion_use_region_analysis"}
    monkeypatch.setattr(system, "cores", lambda: [0, 1])
    as_usual = system.compiler_options("cpu")
    assert not ordering & as_usual.keys()
    monkeypatch.setattr(system, "cores", lambda: [1])
    options = system.compiler_options("cpu")
    assert options.keys() == as_usual.keys() | ordering
    assert jax.jit(lambda x: jnp.sum(x * x), compiler_options=options)(jnp.arange(100.0)) == 328_350
    assert system.compiler_options("cpu", once=True).keys() == as_usual.keys(), "an order would not pay"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_DEFAULT")
    assert ordering - system.compiler_options("cpu").keys() == {"xla_cpu_scheduler_type"}


def test_an_order_that_xla_knows_no_longer_is_done_without(monkeypatch):
    def compile_fails(*unused, compiler_options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(system, "cores", lambda: [0])
    monkeypatch.setattr(jax, "jit", compile_fails)
    system._one_core.cache_clear()
    try:
        options = system.compiler_options("cpu")
    finally:
        system._one_core.cache_clear()
    assert options.keys() == {"xla_backend_optimization_level", "xla_disable_hlo_passes"}
