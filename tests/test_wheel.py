"""A wheel of the package, in an environment of its own and far from the checkout, trains through the console script."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
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


def call(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_trains_3m(tmp_path):
    source, home = tmp_path / "source", tmp_path / "venv"
    shutil.copytree(ROOT / "omcda_jax", source / "omcda_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    call(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    venv.create(home)
    python = home / "bin" / "python"
    call(*pip, "--python", python, "install", "--no-deps", *tmp_path.glob("*.whl"))
    # what the package depends on is taken from the environment of the tests
    packages = Path(call(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))

    place = tmp_path / "place"
    place.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    options = {"cwd": place, "env": environment}
    assert str(packages) in call(python, "-c", "import omcda_jax; print(omcda_jax.__file__)", **options)
    call(home / "bin" / "omcda-jax", "run", "--config=smac_3m", *QUICK, "--workdir=run", **options)
    result = json.loads((place / "run" / "result.json").read_text())
    assert (result["step"], result["finished"]) == (100, True)
    assert result["git"] is None, "an installed package belongs to no checkout"
    shown = call(home / "bin" / "omcda-jax", "report", "run", "--noreplay", **options)
    assert "omcda on smax/3m medium, seed 0" in shown and (place / "run" / "report.html").exists()
