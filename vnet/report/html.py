"""Pieces of an HTML page: tables, figures, pictures and sections that a keyboard and a screen reader can use."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vnet.report.figures import Figure
from vnet.report.tables import Table


def slug(text: str) -> str:
    """An id made of a heading: `The differences` -> `the-differences`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def scroll_box(content: str, label: str, extra_class: str = "") -> str:
    """A box that scrolls when its content is wider, reachable by keyboard, with a name."""
    classes = f"scroll {extra_class}".strip()
    return f'<div class="{classes}" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def table_html(
    table: Table,
    *,
    row_ids: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
    extra_class: str = "",
    titled: bool = True,
) -> str:
    """A table under its title, in a scroll box, its note below.

    Args:
        row_ids: first cell of a row to the row's id.
        links: first cell of a row to the id that it links to.
        extra_class: of the scroll box.
        titled: False where the section's heading says the same.
    """
    head = "".join(f'<th scope="col"{_number(table, i)}>{escape(name)}</th>' for i, name in enumerate(table.columns))
    body = "\n".join(_row(table, cells, row_ids or {}, links or {}) for cells in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    inner = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    title = f"<h3>{escape(table.title)}</h3>\n" if titled else ""
    return f"{title}{scroll_box(inner, table.title, extra_class)}\n{note}"


def _row(table: Table, cells: Sequence[str], row_ids: Mapping[str, str], links: Mapping[str, str]) -> str:
    first, *rest = cells
    row_id = f' id="{row_ids[first]}"' if first in row_ids else ""
    name = f'<a href="#{links[first]}">{escape(first)}</a>' if first in links else escape(first)
    others = "".join(f"<td{_number(table, i)}>{escape(cell)}</td>" for i, cell in enumerate(rest, 1))
    return f'<tr{row_id}><th scope="row">{name}</th>{others}</tr>'


def _number(table: Table, column: int) -> str:
    return ' class="number"' if column >= table.first_number else ""


def figure_html(figure: Figure) -> str:
    """A chart above its caption."""
    return f"<figure>{figure.svg}<figcaption>{escape(figure.caption)}</figcaption></figure>"


def figures_html(figures: Sequence[Figure], section: str) -> list[str]:
    """The charts of a section, two in a row where the page is wide."""
    parts = [figure_html(figure) for figure in figures if figure.section == section]
    return ['<div class="pair">', *parts, "</div>"] if parts else []


def picture_html(path: Path, alternative: str, caption: str) -> str:
    """A PNG file inside the page.

    Args:
        alternative: what is seen, for a reader who cannot see it.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def section_html(heading: str, parts: Sequence[str]) -> str:
    """A section with its heading; empty where it has no parts."""
    if not parts:
        return ""
    anchor = slug(heading)
    inner = "\n".join(parts)
    return f'<section>\n<h2 id="{anchor}">{escape(heading)}</h2>\n{inner}\n</section>'


def contents_html(sections: Mapping[str, Sequence[str]]) -> str:
    """Links to the sections that have parts."""
    found = (heading for heading, parts in sections.items() if parts)
    links = "\n".join(f'<li><a href="#{slug(heading)}">{escape(heading)}</a></li>' for heading in found)
    return f'<nav aria-label="Contents"><ol>\n{links}\n</ol></nav>'
