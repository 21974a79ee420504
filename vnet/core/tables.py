"""CSV tables, written whole."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from vnet.core.files import write_text


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Rows of equal keys as CSV; None is a blank, true and false are written small.

    Args:
        columns: the head of a table without rows.
    """
    rows = list(rows)
    text = StringIO()
    head = list(rows[0]) if rows else columns
    if head:
        writer = csv.DictWriter(text, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    # six digits after the point: a thousandth of what a metric's noise is, and files that diff well
    return f"{value:.6f}" if isinstance(value, float) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, [] where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
