"""What README.md promises: its main command works, at reduced size, and the code has one style."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np

import omcda_jax
from omcda_jax import data

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def command(name):
    """The one line of the code block after README's marker."""
    lines = re.search(rf"<!-- {name} command -->\n```bash\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_main_command_runs_at_reduced_size(tmp_path):
    set_up, install, run = command("run").split(" && ")
    assert set_up == "python3 -m venv .venv"
    extras = re.fullmatch(r"\.venv/bin/pip install -q -e '\.\[(.*)\]'", install).group(1).split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= project["optional-dependencies"].keys()
    python, script, *arguments = run.split()
    assert python == ".venv/bin/python"
    reduced = [
        "--config.data.episodes=12",
        "--config.learner.updates=20",
        "--config.learner.updates_per_call=10",
        "--config.learner.log_every=10",
        "--config.learner.checkpoint_every=10",
        "--config.learner.evaluate_every=0",
        "--config.algorithm.critic_warmup=10",
        "--config.evaluation.episodes=8",
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments, *reduced],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (result_file,) = tmp_path.rglob("result.json")
    result = json.loads(result_file.read_text())
    assert result["step"] == 20 and result["finished"]
    assert result["evaluation"]["episodes"] == 8
    assert len(result["metrics"]["allocation/budget"]) == 5
    assert {file.name for file in result_file.parent.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints"}
    assert list(result_file.parent.glob("*.png"))


def test_the_library_examples_run(tmp_path, monkeypatch):
    n, o, s, a, rows = 3, 30, 48, 9, 8
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    everything = np.ones((rows, n, a), bool)
    action = random.integers(a, size=(rows, n), dtype=np.int32)
    batch = omcda_jax.Batch(
        obs=normal(rows, n, o),
        global_state=normal(rows, s),
        avail=everything,
        action=action,
        reward=normal(rows),
        discount=np.ones(rows, np.float32),
        next_obs=normal(rows, n, o),
        next_global_state=normal(rows, s),
        next_avail=everything,
        next_action=action,
        first=np.zeros(rows, bool),
        last=np.zeros(rows, bool),
    )
    names = {"batches": [batch, batch], "batch": batch, "obs": batch.obs, "avail": batch.avail}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks[:2]:
        exec(block, names)
    assert int(names["state"].step) == 2 and names["action"].shape == (rows, n)
    np.testing.assert_allclose(names["metrics"]["allocation/budget"].sum(-1), [0.6, 1.8, 3.0] * 3, rtol=1e-5)
    arrays = {key: getattr(batch, key) for key in ("obs", "global_state", "avail", "action", "reward")}
    arrays["action"], arrays["reward"] = action * (np.arange(rows) < rows - 1)[:, None], normal(rows)
    arrays["reward"][-1] = 0
    ends = {"length": np.array([rows - 1], np.int32), "terminated": np.array([True]), "won": np.array([False])}
    monkeypatch.chdir(tmp_path)
    names |= arrays | ends
    exec(blocks[2], names)
    assert data.read("mine.h5", spec=names["spec"])[2]["statistics"]["transitions"] == rows - 1
    assert "updates=20_000" in blocks[3]
    exec(blocks[3].replace("updates=20_000", "updates=1000, updates_per_call=1000, log_every=1000"), names)
    assert int(names["state"].step) == 1000


def test_the_continuous_integration_runs_the_readme_test_command():
    script = (ROOT / ".ci" / "run").read_text().split("eval")[0] + "true"
    printed = subprocess.run(["bash", "-c", script, ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == f"+ {command('test')}"


def test_style():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
