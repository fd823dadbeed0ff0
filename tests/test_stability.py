"""docs/stability.md names every existing command, flag, setting, exit status and public name, and no other.

The tests that make files and metrics check them against it: see the uses of `missing` in stability.py.
"""

import dataclasses
import importlib
import os
import re
from pathlib import Path

import pytest
from absl import flags
from stability import PAGE, missing, names

import omcda_jax
from omcda_jax import config, data, system
from omcda_jax.data.__main__ import COMMANDS as DATA_COMMANDS
from omcda_jax.evaluate import EpisodeResults, summarise
from omcda_jax.runner import zoo
from omcda_jax.runner.main import COMMANDS

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
SECTION = "Commands and flags"


class FlagsAreKnown(BaseException):
    """Ends a command once it has defined its flags."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_listed_and_no_other(command, monkeypatch):
    taken = set()

    def read(values, argv, known_only=False):
        taken.update(values)
        raise FlagsAreKnown

    monkeypatch.setattr(flags.FlagValues, "__call__", read)
    with pytest.raises(FlagsAreKnown):
        importlib.import_module(COMMANDS[command][0]).main([command])
    assert {f"--{name}" for name in taken} == names(SECTION, command)


def test_every_command_is_listed():
    section = PAGE.partition(f"## {SECTION}")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == set(COMMANDS)
    assert all(f"`{word}`" in section for word in [*DATA_COMMANDS, *zoo.COMMANDS, "omcda-jax --version"])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("the experiment", config.ExperimentConfig),
        ("data", config.DataConfig),
        ("learner", config.LearnerConfig),
        ("evaluation", config.EvaluationConfig),
    ],
)
def test_every_setting_is_listed_and_no_other(row, kind):
    assert names("Settings", row) == {field.name for field in dataclasses.fields(kind)}


def test_every_exit_status_is_listed():
    """The exit statuses of os and of `system` that the package names; 1 is Python's own."""
    text = " ".join(path.read_text() for path in (ROOT / "omcda_jax").rglob("*.py"))
    statuses = {name: getattr(os, name, None) for name in re.findall(r"\bEX_[A-Z]+\b", text)}
    found = {1, *(getattr(system, name) if value is None else value for name, value in statuses.items())}
    section = PAGE.partition("## Exit statuses")[2].partition("\n## ")[0]
    assert {int(status) for status in re.findall(r"`(\d+)`", section)} == found


@pytest.mark.parametrize("module", [omcda_jax, data])
def test_every_public_name_is_listed_and_no_other(module):
    assert names("Python", module.__name__) - {"__version__"} == set(module.__all__)


def test_every_name_of_the_api_reference_is_listed():
    """By itself, or by the module that is listed as changing."""
    rows = re.findall(r"^\| `(omcda_jax[.\w]*)` \|", PAGE, re.MULTILINE)
    listed = {f"{row}.{name}" for row in rows for name in names("Python", row)} | set(rows)
    listed |= {f"omcda_jax.{name}" for name in re.findall(r"`([\w.]+)`", PAGE.partition("API reference (")[2])}
    referred = {
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)
    }
    assert sorted(referred - listed) == ["omcda_jax.data.hdf5"], "which is the layout of the files"


def test_every_field_of_an_evaluation_is_listed():
    results = EpisodeResults([1.0, 2.0], [True, False], [3, 4], [False, False])
    assert missing(summarise(results), "Files", "an evaluation") == []
    assert missing((f"evaluation/{name}" for name in summarise(results)), "Metrics") == []
