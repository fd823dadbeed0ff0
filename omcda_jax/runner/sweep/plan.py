"""From grids and files of settings to rows. Trials that share a compiled program are packed into populations."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omcda_jax import grid
from omcda_jax.config import RESUMABLE, ExperimentConfig, population_keys, to_dict, written
from omcda_jax.runner.presets import resolve
from omcda_jax.runner.sweep.manifest import Row
from omcda_jax.types import ConfigError

# settings that the sweep sets for each row, and the flags that give them
OWN = {"directory": "--directory", "learner.mode": "--grid", "learner.trials": "--grid", "name": "--config"}


class Order(NamedTuple):
    """What the command line of a sweep asks for.

    Attributes:
        task: preset, with an optional :quality, of points that name no task.
        assignments: `key=value` of every trial.
        grids: grids as texts, see `omcda_jax.grid`.
        file: file with one point per line, as JSON objects or as CSV with a heading, or None.
        distributed: every trial is spread over all hosts.
        population: largest number of trials in one row.
        words: words of every row's command line besides its settings.
    """

    task: str | None
    assignments: Sequence[str]
    grids: Sequence[str]
    file: str | None = None
    distributed: bool = False
    population: int = 16
    words: Sequence[str] = ()


class Trial(NamedTuple):
    """One trial: what its command line says, in a canonical form, and its settings."""

    said: Mapping[str, str]
    config: ExperimentConfig


def rows(order: Order, present: Sequence[Row]) -> list[Row]:
    """Return the rows that an order adds to the existing rows.

    Raises:
        ConfigError: as in `trials`.
    """
    known = {identity(said) for row in present for said in row.trials}
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials(order):
        own = identity(trial.said)
        if own not in known:
            known.add(own)
            # a trial over all hosts has a row of its own
            alone = own if "distributed" in trial.said else ""
            # trials of one row have the same keys, so no two of them are the same trial written differently
            groups.setdefault((_digest(_structure(trial.config)), alone, *trial.said), []).append(trial)
    added: list[Row] = []
    for group in groups.values():
        for first in range(0, len(group), order.population):
            added.append(_row(len(present) + len(added), group[first : first + order.population], order.words))
    return added


def trials(order: Order) -> list[Trial]:
    """Return every trial of an order, in sequence.

    Raises:
        ConfigError: a file, grid, task, key or value is wrong; the error names it.
    """
    found = []
    for place, point in _points(order):
        task = point.get("task", order.task)
        preset, _, quality = (task or "").partition(":")
        assignments = [*order.assignments, *([f"data.quality={quality}"] if quality else [])]
        assignments += [f"{key}={value}" for key, value in point.items() if key not in ("task", "distributed")]
        assignments = [from_anywhere(text) for text in assignments]
        for key in (text.partition("=")[0] for text in assignments):
            if key in OWN:
                raise ConfigError(f"{place}: {key}: expected {OWN[key]} instead")
        spread = point.get("distributed", str(order.distributed).lower())
        if spread not in ("true", "false"):
            raise ConfigError(f"{place}: distributed: expected true or false, found {spread!r}")
        config = resolve(preset or None, assignments, f"{place}: task" if "task" in point else "--config")
        keys = {text.partition("=")[0] for text in assignments} | {"algorithm.name", "seed"}
        said = {"task": preset} | {key: _text(config, key) for key in sorted(keys)}
        found.append(Trial(said | ({"distributed": "true"} if spread == "true" else {}), config))
    return found


def from_anywhere(assignment: str) -> str:
    """Return an assignment that means the same in a process with another working directory."""
    key, _, path = assignment.partition("=")
    return f"{key}={os.path.abspath(path)}" if key == "data.path" and path != "none" else assignment


def _points(order: Order) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every point with the flag that gave it; each line of the file is combined with every point of the grids."""
    products = [point for text in order.grids for point in grid.points(text, "--grid")] or [{}]
    for place, line in _lines(order.file) if order.file else [("--grid" if order.grids else "--config", {})]:
        for point in products:
            twice = line.keys() & point.keys()
            if twice:
                raise ConfigError(f"{place}: {min(twice)}: expected a key that is not in --grid, found it in both")
            yield place, line | point


def _lines(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.endswith(".csv"):
                lines = [{key: text.strip() for key, text in line.items() if text} for line in csv.DictReader(file)]
            else:
                lines = [json.loads(line) for line in file if line.strip()]
    except OSError as error:
        raise ConfigError(f"--rows={path}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"--rows={path}: expected a JSON object per line, or CSV in a .csv file ({error})") from None
    if not lines:
        raise ConfigError(f"--rows={path}: expected a line of settings, found none")
    for number, line in enumerate(lines):
        place = f"--rows={path}: row {number + 1}"
        if not isinstance(line, dict):
            raise ConfigError(f"{place}: expected an object of settings, found {line!r}")
        yield place, {key: _plain(value) for key, value in line.items()}


def _text(config: ExperimentConfig, key: str) -> str:
    """A setting's value in the manifest's canonical form."""
    return _plain(_value(config, key))


def _value(config: ExperimentConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{','.join(map(_plain, value))}]"
    return written(value)


def _structure(config: ExperimentConfig) -> dict[str, Any]:
    """All settings. Of those in which trials of a population may differ, only the kind counts."""
    values, leaves = to_dict(config), population_keys(config.algorithm)
    for name in (key.partition(".")[2] for key in leaves[1:]):
        value = values["algorithm"][name]
        values["algorithm"][name] = len(value) if isinstance(value, list) else value is None
    return {key: value for key, value in values.items() if key not in ("seed", "directory")}


def program(config: ExperimentConfig) -> str:
    """Return a digest of what is compiled in; runs with the same digest have the same rate on the same device."""
    values = _structure(config)
    for section, name in (key.split(".") for key in RESUMABLE if "." in key):
        del values[section][name]
    return _digest(values)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def identity(said: Mapping[str, str]) -> str:
    """Return a text that identifies a trial."""
    return json.dumps(said, sort_keys=True)


def _row(number: int, members: Sequence[Trial], more: Sequence[str]) -> Row:
    """The row of trials that share a program."""
    first = members[0]
    spread = "distributed" in first.said
    keys = [
        key
        for key in population_keys(first.config.algorithm)
        if len(members) > 1 and len({_text(trial.config, key) for trial in members}) > 1
    ]
    fixed = {key: text for key, text in first.said.items() if key not in ("task", "distributed", *keys)}
    words = ["omcda-jax", "run", f"--config={first.said['task']}"]
    words += [f"--config.{key}={written(_value(first.config, key))}" for key in fixed]
    if keys:
        points = {tuple(_text(trial.config, key) for key in keys): trial for trial in members}
        text = grid.compose([dict(zip(keys, values, strict=True)) for values in points])
        # in the order of the trials in the run's result
        members = [points[tuple(point[key] for key in keys)] for point in grid.points(text, "--grid")]
        words += ["--config.learner.mode=trials", f"--config.learner.trials={text}"]
    return Row(
        number=number,
        name=_name(number, fixed, first.said["task"]),
        command=[*words, *(["--distributed"] if spread else []), *more],
        shape="slice" if spread else "host",
        updates=first.config.learner.updates,
        program=program(first.config),
        trials=[trial.said for trial in members],
    )


def _name(number: int, fixed: Mapping[str, str], task: str) -> str:
    """A row's name: the number makes it unique; the rest is for people."""
    parts = [task, *(fixed[key] for key in ("data.quality", "algorithm.name") if key in fixed)]
    return f"{number:05d}-" + re.sub(r"[^\w.+-]+", ".", "-".join(parts))[:80]
