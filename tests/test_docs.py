"""The book builds without a warning; code in it and in README.md runs, commands parse, and defaults are correct."""

import ast
import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import library, own_algorithm

import omcda_jax
from benchmarks import analysis, table
from omcda_jax import data, envs
from omcda_jax.checkpoint import Checkpoints
from omcda_jax.config import to_dict
from omcda_jax.data.__main__ import _flags as data_flags
from omcda_jax.runner import compare, run
from omcda_jax.runner.collect import _flags as collect_flags
from omcda_jax.runner.jobs import write_json
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.sweep import command as sweep
from omcda_jax.runner.train_behaviour import _flags as train_behaviour_flags
from omcda_jax.runner.zoo import COMMANDS as ZOO_COMMANDS
from omcda_jax.runner.zoo import _flags as zoo_flags
from omcda_jax.system import read_flags
from omcda_jax.training import CriticSettings

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "api"),
]
# how long an example trains and plays in these tests
REDUCED = {
    "updates=20_000": "updates=20, updates_per_call=10, log_every=10, checkpoint_every=10, evaluate_every=10",
    "environment), 256)": "environment), 2)",
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def name_of(page):
    return str(page.relative_to(ROOT)).removesuffix(".md").replace("/", "_")


@pytest.mark.quick
def test_the_book_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "arithmatex" in (tmp_path / "site" / "algorithm" / "index.html").read_text()


@pytest.fixture
def names():
    """What the pages' code assumes: a task, batches of its data, and the arrays of one episode."""
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
    )
    inside = np.arange(rows) < rows - 1  # no action and no reward on an episode's final row
    arrays = {
        "obs": batch.obs,
        "global_state": batch.global_state,
        "avail": everything,
        "action": action * inside[:, None],
        "reward": normal(rows) * inside,
        "length": np.array([rows - 1], np.int32),
        "terminated": np.array([True]),
        "won": np.array([False]),
    }
    dataset = data.from_arrays(spec, data.Episodes(**arrays))
    return {"spec": spec, "dataset": dataset, "batch": batch, "batches": [batch, batch], **arrays}


def leave_a_file_and_a_run(names):
    """Write the files that the library's page reads: a dataset file, and a checkpoint of smac_3m."""
    episodes = data.Episodes(*(names[field] for field in data.Episodes._fields))
    data.write("mine.h5", names["spec"], episodes, {"environment": "my_module/easy", "quality": "medium"})
    config = resolve("smac_3m", [])
    state = omcda_jax.init(jax.random.key(0), envs.make(config.data.environment).spec, config.algorithm)
    folder = pathlib.Path("runs/smac_3m/medium/omcda/seed_0")
    write_json(folder / "config.json", to_dict(config))
    with Checkpoints(folder / "checkpoints" / "latest") as checkpoints:
        checkpoints.save(state, {"config": to_dict(config)})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem == "library":
        leave_a_file_and_a_run(names)
    for block in blocks(page, "python"):
        if block.startswith("--8<--"):  # a file, which has a test of its own
            continue
        for written, reduced in REDUCED.items():
            block = block.replace(written, reduced)
        exec(compile(block, str(page), "exec"), names)
    if page == README:
        assert int(names["state"].step) == 2 and names["action"].shape == (8, 3)
        np.testing.assert_allclose(names["metrics"]["allocation/budget"].sum(), 0.6, rtol=1e-5)
    if page.stem == "library":
        assert int(names["state"].step) == 20
    if page.stem == "data":
        assert data.read("mine.h5", spec=names["spec"])[2]["statistics"]["transitions"] == 7


def test_the_example_of_the_library_gives_the_larger_budget_to_the_agent_that_is_paid_more(capsys):
    results = library.main(updates=400)
    np.testing.assert_allclose(results["budgets"].sum(-1), [0.1, 0.3, 1.0], rtol=1e-5)
    np.testing.assert_allclose(results["shares"].sum(), 1.0, rtol=1e-5)
    assert (results["budgets"][:, 0] > results["budgets"][:, 1]).all()
    assert results["shares"][0] > results["shares"][1]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_algorithm_in_one_file_learns_from_random_play():
    config = own_algorithm.CrrConfig(hidden_sizes=(32,))
    state = omcda_jax.init(jax.random.key(0), library.SPEC, config)
    keys = jax.random.split(jax.random.key(1), 1000)
    state, _ = jax.lax.scan(lambda state, key: omcda_jax.update(state, library.draw(key)), state, keys)
    np.testing.assert_array_equal(omcda_jax.act(omcda_jax.policy(state), jnp.zeros((1, 2, 3))), [[0, 0]])


def test_the_algorithm_in_one_file_refuses_a_wrong_setting():
    with pytest.raises(omcda_jax.ConfigError, match="least_weight: expected between 0 and 1, found 2"):
        omcda_jax.init(jax.random.key(0), library.SPEC, own_algorithm.CrrConfig(least_weight=2.0))


def test_run_trains_the_algorithm_in_one_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = envs.make("examples.environment_in_jax/9")
    rows = 6
    episodes = data.Episodes(
        obs=np.zeros((rows, 2, 2), np.float32),
        global_state=np.zeros((rows, 2), np.float32),
        avail=np.ones((rows, 2, 3), bool),
        action=np.zeros((rows, 2), np.int32),
        reward=np.zeros(rows, np.float32),
        length=np.array([rows - 1], np.int32),
        terminated=np.array([True]),
        won=np.array([False]),
    )
    data.write("line.h5", line.spec, episodes, {"environment": line.name, "quality": "medium"})
    settings = {
        "algorithm.name": "examples.own_algorithm:ALGORITHM",
        "algorithm.hidden_sizes": "16",
        "algorithm.least_weight": 0.1,
        "data.environment": line.name,
        "data.path": "line.h5",
        "learner.updates": 20,
        "learner.updates_per_call": 10,
        "learner.log_every": 10,
        "learner.checkpoint_every": 10,
        "learner.evaluate_every": 0,
        "evaluation.episodes": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    assert run.main(["run.py", "--config=smac_3m", *flags, "--workdir=out"]) == os.EX_OK
    result = json.loads(pathlib.Path("out/result.json").read_text())
    assert result["step"] == 20 and result["config"]["algorithm"]["least_weight"] == 0.1


def commands(page):
    """The commands in a page's bash blocks, as lists of words; variables that a block sets are filled in."""
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
    """Fail unless the command names an existing script or module, with flags that it accepts."""
    if words[0] == "srun":
        words = words[1:]
    if words[:2] == ["omcda-jax", "zoo"]:
        command, *names = read_flags(zoo_flags(), words[1:])
        assert command in ZOO_COMMANDS and bool(names) == bool(ZOO_COMMANDS[command])
    if not words[0].endswith("python"):
        return
    target, *arguments = words[1:]
    if target != "-m":
        assert (ROOT / target).is_file(), target
        parsers = {"run.py": run.parse, "compare.py": compare.parse, "sweep.py": sweep.parse}
        parsers["collect.py"] = collect_flags()
        parsers["train_behaviour.py"] = train_behaviour_flags()
        name = pathlib.Path(target).name
        if name in parsers:
            parsers[name]([target, *arguments])
        return
    module, *arguments = arguments
    if module == "omcda_jax.data":
        data_flags()(["data", *arguments])
    elif module == "benchmarks.analysis":
        analysis.parse([module, *arguments])
    elif module == "benchmarks.table":
        table.parse([module, *arguments])
    elif module.startswith("benchmarks."):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        for argument in arguments:
            name = argument[2:].partition("=")[0]
            assert re.search(rf'(DEFINE_\w+\(\s*|define\(\s*"\w+",\s*)"{name}"', source), argument
    else:
        assert module in ("mkdocs", "pytest"), module


@pytest.mark.quick
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name_of)
def test_every_command_of_a_page_parses(page, capsys):
    for words in commands(page):
        check(words)


def settings_table(page):
    """The keys and defaults of a page's tables of settings."""
    written = {}
    for key, default in re.findall(r"^\| `(\w+)` \|.*\| (.+?) \|$", page.read_text(), re.MULTILINE):
        try:
            written[key] = ast.literal_eval(default)
        except (ValueError, SyntaxError):
            written[key] = default
    return written


def defaults(config):
    return {field.name: field.default for field in dataclasses.fields(config)}


@pytest.mark.quick
def test_the_shared_settings_have_the_defaults_that_are_written():
    assert settings_table(ROOT / "docs" / "algorithms" / "index.md") == defaults(CriticSettings)


@pytest.mark.quick
@pytest.mark.parametrize("name", omcda_jax.ALGORITHMS)
def test_an_algorithms_own_settings_have_the_defaults_that_are_written(name):
    shared = defaults(CriticSettings)
    own = {
        key: value
        for key, value in defaults(omcda_jax.ALGORITHMS[name].config).items()
        if key not in shared or shared[key] != value
    }
    assert settings_table(ROOT / "docs" / "algorithms" / f"{name}.md") == own


@pytest.mark.quick
def test_every_function_of_the_table_of_equations_exists():
    module = None
    for line in (ROOT / "docs" / "equations.md").read_text().splitlines():
        if not line.startswith("|") or line.startswith("|---"):
            continue
        first, *_, functions = [cell.strip() for cell in line.strip("|").split("|")]
        if first.endswith(".py`"):
            module = importlib.import_module(f"omcda_jax.algorithms.{first.strip('`').removesuffix('.py')}")
        for name in re.findall(r"`([\w.]+)`", functions):
            if "." in name:
                pkgutil.resolve_name(f"omcda_jax.{name}")
            else:
                assert hasattr(module, name), name


@pytest.mark.quick
def test_the_walks_of_the_map_name_functions_that_exist_and_are_short():
    text = (ROOT / "WORKSPACE.md").read_text()
    walks = [
        re.findall(r"^\d+\. `([\w/]+)\.py: ([\w.]+)`", walk, re.MULTILINE)
        for walk in text.partition("## Two walks")[2].partition("## How to")[0].split("\n\n**")
    ]
    assert [len(walk) for walk in walks if walk] == [8, 8]
    for path, name in itertools.chain(*walks):
        owner = importlib.import_module(f"omcda_jax.{path.replace('/', '.')}".removesuffix(".__init__"))
        for part in name.split("."):
            owner = getattr(owner, part)
