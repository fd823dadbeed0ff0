"""A wheel of the package, in an environment of its own and far from the checkout, trains through the console script."""

import json
import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
QUICK = [
    "--config.data.episodes=4",
    "--config.algorithm.hidden_sizes=8",
    "--config.algorithm.mixer_hidden=8",
    "--config.algorithm.critic_warmup=50",
    "--config.learner.updates=100",
    "--config.learner.log_every=100",
    "--config.learner.batch_size=16",
    "--config.learner.evaluate_every=0",
    "--config.evaluation.episodes=2",
]


# without the checkout: pip would find the package there
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}


def call(*words, cwd=None):
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "omcda_jax", place / "omcda_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    call(*PIP, "wheel", "--no-deps", "--wheel-dir", place, place)
    [built] = place.glob("*.whl")
    return built


def test_a_wheel_trains_3m(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home)
    python = home / "bin" / "python"
    call(*PIP, "--python", python, "install", "--no-deps", wheel)
    # the package's dependencies come from the environment of the tests
    packages = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))

    place = tmp_path / "place"
    place.mkdir()
    assert str(packages) in call(python, "-c", "import omcda_jax; print(omcda_jax.__file__)", cwd=place)
    call(home / "bin" / "omcda-jax", "run", "--config=smac_3m", *QUICK, "--workdir=run", cwd=place)
    result = json.loads((place / "run" / "result.json").read_text())
    assert (result["step"], result["finished"]) == (100, True)
    assert result["git"] is None, "an installed package belongs to no checkout"
    shown = call(home / "bin" / "omcda-jax", "report", "run", "--noreplay", cwd=place)
    assert "omcda on smax/3m medium, seed 0" in shown and (place / "run" / "report.html").exists()


DATASET = """
import numpy as np
from omcda_jax import EnvSpec, data
spec = EnvSpec(num_agents=2, obs_dim=1, state_dim=1, action_dim=2, discrete=True)
rows = lambda *shape: np.zeros((4, *shape), np.float32)
arrays = rows(2, 1), rows(1), np.ones((4, 2, 2), bool), np.zeros((4, 2), np.int32), rows()
ends = np.array([3], np.int32), np.array([True]), np.array([False])
data.write("a.h5", spec, data.Episodes(*arrays, *ends), {"environment": "a/b", "quality": "c"})
assert data.read("a.h5")[2]["statistics"]["transitions"] == 3
"""
POLICY = """
import jax, omcda_jax
spec = omcda_jax.EnvSpec(num_agents=2, obs_dim=3, state_dim=4, action_dim=5, discrete=True)
actor = omcda_jax.policy(omcda_jax.init(jax.random.key(0), spec, omcda_jax.OmcdaConfig(hidden_sizes=(8,))))
"""
# what each extra alone is for, as a program
SERVES = {
    "": POLICY,
    "data": DATASET,
    "smax": DATASET + "from omcda_jax import envs; assert envs.make('smax/3m').spec.num_agents == 3",
    "mujoco": DATASET + "from omcda_jax import envs; assert envs.make('mamujoco/Hopper_3x1').spec.num_agents == 3",
    "mjx": "from omcda_jax import envs; assert envs.make('mjx/HalfCheetah_6x1').spec.num_agents == 6",
    "pettingzoo": DATASET + "import pettingzoo; from omcda_jax.envs import pettingzoo; from gymnasium import spaces",
    "mpe": DATASET + "from omcda_jax import envs; assert envs.make('mpe/simple_tag').spec.num_agents == 3",
    "minari": DATASET + "import gymnasium, minari; from omcda_jax.data.formats import minari",
    "plot": "import matplotlib.pyplot; from omcda_jax.runner import plots",
    "log": "from omcda_jax.runner import sinks; sinks.check(['tensorboard', 'trackio']); import wandb; wandb.init",
    "report": "import PIL; from omcda_jax.runner import page, comparison_page, sweep_page",
    "hub": "from omcda_jax.data import hub; hub._require().hf_hub_url",
    "export": POLICY + "assert len(omcda_jax.export(actor).serialize()) > 1000",
    "slurm": "from omcda_jax.runner.sweep import slurm; import submitit; submitit.AutoExecutor",
    "ray": "from omcda_jax.runner.sweep import ray; from ray.train.v2.jax import JaxTrainer",
    "search": "from omcda_jax.runner.sweep import study; study._optuna().create_study(storage='sqlite:///study.db')",
    "notebook": "import jupytext, nbclient, ipykernel, nbformat",
    "docs": "from mkdocs.__main__ import cli; import material, mkdocstrings, mkdocstrings_handlers.python, pymdownx",
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv, which installs an environment in seconds")
@pytest.mark.parametrize("extra", SERVES)
def test_an_extra_alone_brings_what_it_is_for(extra, wheel, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    call("uv", "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    call("uv", "pip", "install", "--quiet", "--python", python, f"{wheel}[{extra}]" if extra else wheel)
    call(python, "-c", SERVES[extra], cwd=tmp_path)
    assert "omcda-jax" in call(python.with_name("omcda-jax"), "--version", cwd=tmp_path)


def test_every_extra_has_a_program_that_needs_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert SERVES.keys() - {""} == extras.keys() - {"test"}
