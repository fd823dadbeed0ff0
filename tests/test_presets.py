"""The presets, what they pass to each algorithm, and what the command line says about settings."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omcda_jax.algorithms import ALGORITHMS
from omcda_jax.config import expand_trials, to_dict
from omcda_jax.runner import report, settings
from omcda_jax.runner.command import parse
from omcda_jax.runner.presets import PRESETS, algorithm_settings, resolve
from omcda_jax.types import ConfigError

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PRESET = PRESETS["smac_3m"]
SMAC = {"priming": 3_000, "policy_average_rate": 0.003}
SHARED = {"priming": 3_000, "target_rate": 0.01, "policy_average_rate": 0.001, "critic_layer_norm": True}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_suits_every_algorithm(name):
    assert PRESETS[name].description and "\n" not in PRESETS[name].description
    for algorithm in ALGORITHMS:
        config = resolve(name, [f"algorithm.name={algorithm}"])
        assert (config.name, config.algorithm.name) == (name, algorithm)
        for key, value in PRESETS[name].shared.items():
            assert getattr(config.algorithm, key, value) == value
    assert resolve(name, []).algorithm.name == "omcda"


def test_what_a_preset_shares_reaches_every_algorithm_that_has_such_a_setting():
    assert all(preset.shared == SHARED for name, preset in PRESETS.items() if name.startswith("mujoco"))
    smac = [preset.shared for name, preset in PRESETS.items() if name.startswith("smac")]
    assert all(shared.keys() == {"priming", "policy_average_rate"} for shared in smac)
    hopper = PRESETS["mujoco_hopper_medium"]
    assert algorithm_settings(hopper, "bc") == ALGORITHMS["bc"].config(policy_average_rate=0.001)
    omiga = ALGORITHMS["omiga"].config(alpha=1.0, **SHARED)
    assert algorithm_settings(hopper, "omiga") == omiga
    # a value is shared even if it is the default of the algorithm that the preset is made for
    same = ALGORITHMS["omcda"].config().learning_rate
    preset = hopper._replace(shared={"learning_rate": same})
    assert algorithm_settings(preset, "comadice").learning_rate == same
    assert (
        algorithm_settings(preset._replace(settings={"comadice": {"learning_rate": 0.2}}), "comadice").learning_rate
        == 0.2
    )


def test_a_preset_for_an_algorithm_takes_assignments_in_any_order():
    config = resolve("smac_3m", ["algorithm.alpha=3", "algorithm.name=omiga", "seed=4"])
    assert config.algorithm == ALGORITHMS["omiga"].config(**SMAC | {"alpha": 3.0}) and config.seed == 4
    assert resolve("smac_3m", ["algorithm.name=omiga"]).algorithm.alpha == 1.0, "the preset's own"
    assert resolve("smac_3m", ["algorithm.name=bc", "algorithm.name=omcda"]) == resolve("smac_3m", [])


@pytest.mark.parametrize(
    ("name", "assignments", "message"),
    [
        ("smac_3n", [], "--config: no config 'smac_3n'; did you mean 'smac_3m'?"),
        (None, [], "--config: expected a config, found none; valid: mpe_spread"),
        ("smac_3m", ["algorithm.name=omgia"], "algorithm.name: no algorithm 'omgia'; did you mean 'omiga'?"),
        ("smac_3m", ["algorithm=bc"], "algorithm: expected algorithm.name=NAME or a setting of it, found"),
        ("smac_3m", ["algorithm.name=bc", "algorithm.d_tot=1"], "algorithm.d_tot: no such key"),
        ("smac_3m", ["algorithm.d_min=0.7"], "d_min"),
    ],
)
def test_mistakes_name_what_is_valid(name, assignments, message):
    with pytest.raises(ConfigError) as caught:
        resolve(name, assignments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_value_of_a_population_may_be_several_numbers():
    grid = "learner.trials=seed=0..1; algorithm.shares=[.5, .3,.2],[.2,.3,.5]"
    config = resolve("smac_3m", ["algorithm.allocation=fixed", "learner.mode=trials", grid])
    labels, trials = zip(*expand_trials(config), strict=True)
    assert [(trial.seed, trial.algorithm.shares) for trial in trials] == [
        (seed, shares) for seed in (0, 1) for shares in ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5))
    ]
    assert labels[1] == {"seed": 0, "algorithm.shares": "[.2,.3,.5]"}
    summary = {"return_mean": 1.0, "return_se": 0.1, "win_rate": 0.5, "length_mean": 9.0, "episodes": 4}
    result = {
        "config": to_dict(config),
        "data": {"statistics": {**summary, "return_sd": 0.2}},
        "trials": report.trials(labels, [summary] * 4, {}, {"skipped": [0] * 4, "culprits": [None] * 4}),
    }
    table = [line.split() for line in report.trials_table(result).splitlines()]
    assert ["[.2,.3,.5]", "1.000", "±", "0.000", "0.500", "2", "0"] in table


def test_shares_of_a_population_that_are_no_whole_are_refused():
    grid = "learner.trials=algorithm.shares=.5,.3,.2"
    config = resolve("smac_3m", ["algorithm.allocation=fixed", "learner.mode=trials", grid])
    with pytest.raises(ConfigError, match=r"^omcda: shares: expected numbers >= 0 whose sum is 1, found \[0\.5\]$"):
        expand_trials(config)


def keys_of(config):
    values = to_dict(config)
    nested = {f"{section}.{key}" for section in values if isinstance(values[section], dict) for key in values[section]}
    return nested | {"seed", "directory"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_key_is_explained(algorithm):
    config = resolve("mujoco_hopper_medium", [f"algorithm.name={algorithm}"])
    lines = {line.split("=")[0].strip(): line for line in settings.explain(config).splitlines()}
    assert lines.keys() == keys_of(config)
    texts = settings.meanings(type(config.algorithm))
    for key, line in lines.items():
        assert len(re.split("  +", line.strip())) == 3, f"{key} is not explained"
        if key.startswith("algorithm.") and key != "algorithm.name":
            assert texts[key.partition(".")[2]]
    general = settings.explain().splitlines()
    assert keys_of(config) <= {line.split("=")[0].strip() for line in general}


def test_meanings_come_from_docstrings_along_the_bases():
    @dataclasses.dataclass
    class Base:
        """One.

        Attributes:
            first: of the `two; in` backquotes; not said.
            second, third: alike in
                two lines. More.

        Raises:
            fourth: none.
        """

    @dataclasses.dataclass
    class Derived(Base):
        """Two.

        Attributes:
            first: its own.
        """

    assert settings.meanings(Base) == {
        "first": "of the `two; in` backquotes",
        "second": "alike in two lines",
        "third": "alike in two lines",
    }
    assert settings.meanings(Derived)["first"] == "its own" and settings.meanings(Derived)["third"]


def test_values_and_types_are_shown_as_they_are_written():
    shown = {tuple(line.split()[:2]) for line in settings.explain(resolve("mujoco_hopper_medium", [])).splitlines()}
    assert shown >= {
        ("algorithm.d_tot=1.2", "float"),
        ("algorithm.hidden_sizes=256,256", "int,..."),
        ("algorithm.critic_layer_norm=true", "bool"),
        ("data.episodes=none", "int"),
        ("data.placement=device", "device|host"),
    }
    defaults = {tuple(line.split()[:2]) for line in settings.explain().splitlines()}
    assert defaults >= {
        ("learner.updates=?", "int"),
        ("learner.batch_size=128", "int"),
        ("algorithm.d_tot=0.6", "float"),
    }


def test_a_long_meaning_ends_where_it_makes_sense():
    @dataclasses.dataclass
    class Wordy:
        """One.

        Attributes:
            key: a word, another, and one (with more of them, in brackets, up to and past what a line can hold, and
                some) at last.
        """

    assert settings.meanings(Wordy) == {"key": "a word, another, and one"}


def test_the_overview_marks_what_is_not_the_algorithms_own_default():
    text = settings.overview(resolve("mujoco_hopper_medium", ["algorithm.name=cql", "seed=3"]))
    assert max(map(len, text.splitlines())) <= 120 and len(text.splitlines()) <= 14
    words = text.split()
    marked = {word for word in words if word.startswith("*") and len(word) > 1}
    assert marked == {"*priming", "*target_rate", "*policy_average_rate", "*critic_layer_norm", "*penalty"}
    assert words[words.index("*penalty") + 1] == "10.0" and words[words.index("seed") + 1] == "3"


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["run", "--config=list"], ["report", "--help"], ["data", "--help"]]
)
def test_a_reader_that_leaves_early_ends_the_command_quietly(words):
    command = [sys.executable, "-m", "omcda_jax.runner.main", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (error, process.returncode) == (b"", 141)


def test_the_console_script_names_its_commands():
    command = [sys.executable, "-m", "omcda_jax.runner.main"]
    run = lambda *words: subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    shown = run("--help")
    assert shown.returncode == 0
    for name in ("run", "compare", "collect", "data", "train-behaviour", "report"):
        assert f"  {name} " in shown.stdout
    mistaken = run("rnu")
    assert mistaken.returncode == 78 and "no command 'rnu'" in mistaken.stderr


def test_a_file_of_flags_holds_every_setting_that_brings_the_papers_form_back():
    flags = ROOT / "experiments" / "paper.flags"
    found = parse(["run.py", "--config=mujoco_hopper_medium", f"--flagfile={flags}"]).config.algorithm
    usual = resolve("mujoco_hopper_medium", []).algorithm
    changed = {key for key in vars(found) if getattr(found, key) != getattr(usual, key)}
    column = (ROOT / "docs" / "algorithm.md").read_text().partition("## What is ours")[2]
    named = set(re.findall(r"`(\w+)=[^`]*`", column))
    assert changed == named == {line.split("=")[0].rpartition(".")[2] for line in flags.read_text().splitlines()[1:]}
