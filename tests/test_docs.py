"""The book builds without a warning; its code and README.md's runs, commands parse, and defaults are as written."""

import ast
import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import omcda_jax
from omcda_jax import data
from omcda_jax.data.__main__ import _flags as data_flags
from omcda_jax.runner import compare, run
from omcda_jax.runner.collect import _flags as collect_flags
from omcda_jax.training import CriticSettings

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "api")
# how long an example trains in these tests
REDUCED = {"updates=20_000": "updates=20, updates_per_call=10, log_every=10, checkpoint_every=10, evaluate_every=10"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_book_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "arithmatex" in (tmp_path / "site" / "algorithm" / "index.html").read_text()


@pytest.fixture
def names():
    """What the pages' code takes for given: a task, batches of it, and the arrays of one episode."""
    spec = omcda_jax.EnvSpec(num_agents=3, obs_dim=30, state_dim=48, action_dim=9, discrete=True)
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
    ends = {"length": np.array([rows - 1], np.int32), "terminated": np.array([True]), "won": np.array([False])}
    reward = normal(rows)
    reward[-1] = 0
    return {
        "spec": spec,
        "batches": [batch, batch],
        "batch": batch,
        "obs": batch.obs,
        "global_state": batch.global_state,
        "avail": everything,
        "action": action * (np.arange(rows) < rows - 1)[:, None],
        "reward": reward,
        **ends,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "python"):
        if block.startswith("--8<--"):  # a file, which has a test of its own
            continue
        for written, reduced in REDUCED.items():
            block = block.replace(written, reduced)
        exec(compile(block, str(page), "exec"), names)
    if page.stem == "data":
        assert data.read("mine.h5", spec=names["spec"])[2]["statistics"]["transitions"] == 7


def commands(page):
    """The commands of a page's bash blocks, as lists of words; variables that a block sets are filled in."""
    for block in blocks(page, "bash"):
        variables = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            assigned = re.fullmatch(r'(\w+)="(.*)"', line)
            if assigned:
                variables[assigned[1]] = assigned[2]
                continue
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            if words:
                yield words


def check(words):
    """Raises unless the command names a script or module that is there, with flags that it takes."""
    if words[0] in ("srun", "pip", "source", "python3", ".venv/bin/pip", ".venv/bin/ruff"):
        words = words[1:]
    if not words or not words[0].endswith("python"):
        return
    target, *arguments = words[1:]
    if target == "-m":
        module, *arguments = arguments
        if module == "omcda_jax.data":
            data_flags()(["data", *arguments])
        elif module.startswith("benchmarks."):
            source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
            for argument in arguments:
                name = argument.removeprefix("--").partition("=")[0]
                assert re.search(rf'DEFINE_\w+\(\s*"{name}"', source), argument
        else:
            assert module in ("mkdocs", "pytest"), module
        return
    assert (ROOT / target).is_file(), target
    parse = {"experiments/run.py": run.parse, "experiments/compare.py": compare.parse}.get(target)
    if parse:
        parse([target, *arguments])
    elif target == "experiments/collect.py":
        collect_flags()([target, *arguments])


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_command_of_a_page_parses(page, capsys):
    for words in commands(page):
        check(words)


def settings_table(page):
    """The keys and defaults of a page's tables of settings."""
    found = {}
    for key, default in re.findall(r"^\| `(\w+)` \|.*\| (.+?) \|$", page.read_text(), re.MULTILINE):
        try:
            found[key] = ast.literal_eval(default)
        except (ValueError, SyntaxError):
            found[key] = default
    return found


def defaults(config):
    return {field.name: field.default for field in dataclasses.fields(config) if field.name != "name"}


def test_the_shared_settings_have_the_defaults_that_are_written():
    assert settings_table(ROOT / "docs" / "algorithms" / "index.md") == defaults(CriticSettings)


@pytest.mark.parametrize("name", omcda_jax.ALGORITHMS)
def test_an_algorithms_own_settings_have_the_defaults_that_are_written(name):
    shared = defaults(CriticSettings)
    own = {
        key: value
        for key, value in defaults(omcda_jax.ALGORITHMS[name].config).items()
        if key not in shared or shared[key] != value
    }
    assert settings_table(ROOT / "docs" / "algorithms" / f"{name}.md") == own
