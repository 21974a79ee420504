"""CSV tables, written whole."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from vnet.core.files import write_text


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows of equal keys as CSV; see `cell` for the form of values.

    Args:
        columns: the header of a table without rows.
    """
    rows = list(rows)
    write_text(path, table_text(rows, list(rows[0]) if rows else columns))


def table_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The text of a CSV table; a row without a column has an empty cell there. Empty text without columns."""
    text = StringIO()
    if columns:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def cell(value: object) -> object:
    """A value as a CSV cell: None is an empty cell, booleans are `true` and `false`, floats have six decimals."""
    if isinstance(value, bool):
        return str(value).lower()
    # six decimals: a thousandth of a metric's noise, and files whose differences stay short
    return f"{value:.6f}" if isinstance(value, float) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, [] where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
