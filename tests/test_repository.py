"""What README.md promises: its main command works, at reduced size, and the code has one style."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def command(name):
    """The single line of the code block after README's marker."""
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


@pytest.mark.parametrize(("given", "which"), [([], "test"), (["run command"], "run")])
def test_the_continuous_integration_runs_the_commands_of_the_readme(given, which):
    script = (ROOT / ".ci" / "run").read_text().split("eval")[0] + "true"
    line = ["bash", "-c", script, ".ci/run", *given]
    printed = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == f"+ {command(which)}"


def test_style():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
