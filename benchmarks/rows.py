"""Rows of results in CSV files, to which later commands add."""

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omcda_jax.files import locked, replacing, require_folder
from omcda_jax.runner.tables import csv_text
from omcda_jax.types import ConfigError

Row = Mapping[str, Any]


def read(
    path: str | os.PathLike, columns: Sequence[str], parse: Callable[[dict[str, str]], dict[str, Any]] = dict
) -> list[dict[str, Any]]:
    """Return the rows of a file; none if it is missing.

    Args:
        path: the file.
        columns: its columns.
        parse: turns a row of texts into a row, or raises ValueError.

    Raises:
        ConfigError: the file has other columns, or `parse` refuses a row.
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
    """Check, before costly work, that rows can be written to a file.

    Raises:
        ConfigError: the path is a folder, or is in a folder that cannot be written to.
    """
    require_folder(Path(path).parent)
    _refuse_folder(path)


def _refuse_folder(path: str | os.PathLike) -> None:
    if os.path.isdir(path):
        raise ConfigError(f"{path}: expected a CSV file, found a folder")


@contextlib.contextmanager
def changing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path for a new version of a file, which then replaces it; other processes that change it wait."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), lambda holder: None), replacing(path) as partial:
        yield partial


def put(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Row], key: Callable[[Row], Any]) -> None:
    """Write rows into a file, atomically. They replace rows with the same key; other rows stay.

    Args:
        path: the file, made if missing. Other processes may add to it at the same time.
        columns: its columns; a missing value or None is written as an empty cell.
        rows: the rows to write.
        key: returns the key of a row; rows of a file contain texts.

    Raises:
        ConfigError: as in `read`.
    """
    rows = list(rows)
    new = set(map(key, rows))
    with changing(path) as partial:
        kept = [row for row in read(path, columns) if key(row) not in new]
        partial.write_text(csv_text(columns, [*kept, *rows]))
