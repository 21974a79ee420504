"""A table of text cells, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text; columns from `first_number` on are numbers, aligned right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    first_number: int = 2

    def only(self, *columns: str) -> Table:
        """The table with these columns."""
        kept = [i for i, column in enumerate(self.columns) if column in columns]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        first = sum(i < self.first_number for i in kept)
        return Table(self.title, tuple(self.columns[i] for i in kept), rows, self.note, first)

    def without(self, *columns: str) -> Table:
        """The table without these columns."""
        return self.only(*(column for column in self.columns if column not in columns))

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def markdown(table: Table) -> str:
    """A Markdown table with its title as a heading and its note below."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i < table.first_number else "---:" for i in range(len(table.columns))]
    parts = [f"### {table.title}", "\n".join(map(line, [table.columns, rule, *table.rows]))]
    return "\n\n".join(parts + ([table.note] if table.note else []))
