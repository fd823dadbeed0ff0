"""Rows of results in CSV files, to which later commands add."""

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omcda_jax.runner.tables import csv_text
from omcda_jax.system import locked, replacing, require_folder
from omcda_jax.types import ConfigError

Row = Mapping[str, Any]


def read(
    path: str | os.PathLike, columns: Sequence[str], parse: Callable[[dict[str, str]], dict[str, Any]] = dict
) -> list[dict[str, Any]]:
    """Return the rows of a file; none where it is missing.

    Args:
        path: the file.
        columns: that it has.
        parse: makes a row of its texts, or raises ValueError.

    Raises:
        ConfigError: it has other columns, or `parse` refuses a row.
    """
    if not os.path.exists(path):
        return []
    _refuse_folder(path)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            found = ",".join(reader.fieldnames or ()) or "nothing"
            if found != ",".join(columns):
                raise ValueError(f"expected the columns {','.join(columns)}, found {found}")
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"expected {len(columns)} columns, found more or less")
                rows.append(parse(row))
            return rows
        except (ValueError, csv.Error) as error:
            raise ConfigError(f"{path}, line {reader.line_num}: {error}") from None


def check_writable(path: str | os.PathLike) -> None:
    """Find out, before costly work, whether its rows can be written.

    Raises:
        ConfigError: it is a folder, or is in one that cannot be written to.
    """
    require_folder(Path(path).parent)
    _refuse_folder(path)


def _refuse_folder(path: str | os.PathLike) -> None:
    if os.path.isdir(path):
        raise ConfigError(f"{path}: expected a CSV file, found a folder")


@contextlib.contextmanager
def changing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write a file to that replaces the one there; until then others who change it wait."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), lambda holder: None), replacing(path) as partial:
        yield partial


def put(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Row], key: Callable[[Row], Any]) -> None:
    """Write rows into a file, in one piece, in the place of those there whose key one of them has; others stay.

    Args:
        path: the file, made if missing. Other processes may add to it at the same time.
        columns: its columns; what a row lacks, and None, is written as nothing.
        rows: what to write.
        key: of a row; rows of a file hold texts.

    Raises:
        ConfigError: as `read`.
    """
    rows = list(rows)
    new = set(map(key, rows))
    with changing(path) as partial:
        kept = [row for row in read(path, columns) if key(row) not in new]
        partial.write_text(csv_text(columns, [*kept, *rows]))
