"""Rows of results in CSV files, to which later commands add."""

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omcda_jax.runner.tables import csv_text
from omcda_jax.system import replacing

Row = Mapping[str, Any]


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """Return the rows of a file as they are written; none where it is missing."""
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def put(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Row], key: Callable[[Row], Any]) -> None:
    """Write rows into a file, in one piece, in the place of those there whose key one of them has; others stay.

    Args:
        path: the file, made if missing.
        columns: its columns; what a row lacks, and None, is written as nothing.
        rows: what to write.
        key: of a row; rows of a file hold texts.
    """
    rows = list(rows)
    new = set(map(key, rows))
    kept = [row for row in read(path) if key(row) not in new]
    with replacing(path) as partial:
        partial.write_text(csv_text(columns, [*kept, *rows]))
