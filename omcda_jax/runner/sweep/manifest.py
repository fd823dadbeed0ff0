"""The manifest of a sweep: one JSON line for each command to run, in the sweep's folder.

SWEEP/manifest.jsonl        the rows, one per line; lines are only ever added
SWEEP/runs/NAME/            run directory of the row with this name
SWEEP/logs/NAME/            what the row's process printed, how it ended, and the lock of the process that runs it
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from omcda_jax.files import locked, replacing
from omcda_jax.types import ConfigError

FLAG = "--directory"


class Row(NamedTuple):
    """One command. It can be run any number of times: it begins, resumes, or finds its work done.

    Attributes:
        number: its index in the manifest, from 0.
        name: name of its folders in the sweep's folder.
        command: its words, without the run directory; the first is `omcda-jax`.
        shape: which devices it takes: `host`, those of one host, or `slice`, those of all hosts together.
        updates: number of updates of each trial.
        program: a digest of everything that is compiled in, without the number of trials.
        trials: what each trial's command line says, by key; they differ only in numbers of one compiled program.
    """

    number: int
    name: str
    command: Sequence[str]
    shape: str
    updates: int
    program: str
    trials: Sequence[Mapping[str, str]]

    @property
    def directory(self) -> str:
        """The run directory, inside the sweep's directory."""
        return os.path.join("runs", self.name)

    @property
    def log(self) -> str:
        """The folder with its process's output and end, inside the sweep's directory."""
        return os.path.join("logs", self.name)


def path_of(directory: str) -> str:
    """Return the path of a sweep's manifest."""
    return os.path.join(directory, "manifest.jsonl")


def read(directory: str) -> list[Row]:
    """Return the rows of a sweep; none if there is no manifest.

    Raises:
        ConfigError: a line is not a row.
    """
    path = path_of(directory)
    if not os.path.exists(path):
        return []
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file):
            try:
                rows.append(Row(number, **{key: json.loads(line)[key] for key in Row._fields[1:]}))
            except (ValueError, KeyError, TypeError):
                expected = f"a JSON object with {', '.join(Row._fields[1:])}"
                raise ConfigError(
                    f"{path}: line {number + 1}: expected {expected}, found {line.strip()[:80]}"
                ) from None
    return rows


def extend(directory: str, more: Callable[[Sequence[Row]], list[Row]]) -> list[Row]:
    """Add rows to a sweep's manifest, safely if other processes do so too, and return all rows.

    Args:
        directory: the sweep's directory, made if missing.
        more: takes the existing rows and returns the rows to add.

    Raises:
        ConfigError: the directory cannot be written; or as in `read`.
    """
    try:
        os.makedirs(directory, exist_ok=True)
        with locked(os.path.join(directory, "manifest.lock"), lambda holder: None):
            rows = read(directory)
            added = more(rows)
            if added:
                with replacing(path_of(directory)) as partial:
                    partial.write_text("".join(map(_line, [*rows, *added])))
    except OSError as error:
        raise ConfigError(f"{FLAG}={directory}: cannot write the sweep's directory: {error.strerror}") from error
    return [*rows, *added]


def _line(row: Row) -> str:
    values: dict[str, Any] = row._asdict()
    del values["number"]
    return json.dumps(values) + "\n"
