"""Pieces of an HTML page: tables, charts, pictures and sections that a keyboard and a screen reader can use."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.figures import Figure
from vnet.report.tables import Table

MAX_PICTURES = 12  # of a section
MAX_PICTURE_BYTES = 400_000
GAINS = {"best": "largest gain of Dice", "median": "median gain of Dice", "worst": "smallest gain of Dice, or loss"}


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


def pictures_html(study: Study) -> dict[str, list[str]]:
    """Heading to the HTML of a section, from small PNG files in the `pictures` folders of the runs."""
    found = _pictures(study)
    changes = [(path, run) for path, run in found if path.name.startswith("change_")][:MAX_PICTURES]
    cases = [(path, run) for path, run in found if not path.name.startswith("change_")][:MAX_PICTURES]
    sources = _sources([path for path, _ in [*changes, *cases]])
    of_changes = [_change_html(path, run) for path, run in changes]
    of_cases = [_case_html(path, run) for path, run in cases]
    return {
        "What refinement did": [*of_changes, *sources] if of_changes else [],
        "Worst, median and best case": [*of_cases, *sources] if of_cases else [],
    }


def _pictures(study: Study) -> list[tuple[Path, RunRecord]]:
    """Small pictures with their runs; the first fold and the arms with a head come first."""
    order = [*study.heads, *(arm for arm in study.arms if arm not in study.heads)]
    runs = sorted(study.runs, key=lambda run: (run.fold, run.seed, order.index(run.arm)))
    folders = {run.pictures: run for run in runs}
    return [
        (picture, run)
        for folder, run in folders.items()
        for picture in sorted(folder.glob("*.png"), reverse=True)  # worst, median, best
        if picture.stat().st_size <= MAX_PICTURE_BYTES
    ]


def _case_html(path: Path, run: RunRecord) -> str:
    rank, _, case = path.stem.partition("_")
    seen = (
        f"Three planes of case {case}, the {rank} of {run.name}: the image with outlines of the truth and of the"
        " prediction"
    )
    return picture_html(path, seen, f"{rank} {case}, {run.name}")


def _change_html(path: Path, run: RunRecord) -> str:
    _, rank, case = path.stem.split("_", 2)
    seen = (
        f"One slice of case {case} of {run.name} twice, around the voxels that refinement changed: on the left the"
        " outline without refinement, on the right with it, both with that of the truth"
    )
    return picture_html(path, seen, f"{GAINS.get(rank, rank)}: {case}, {run.name}")


def _sources(pictures: list[Path]) -> list[str]:
    """Whose images these are, a paragraph a note."""
    notes = dict.fromkeys(path.with_name("SOURCE.md") for path in pictures)
    lines = dict.fromkeys(_one_line(note) for note in notes if note.is_file())
    return [f'<p class="note">{escape(line)}</p>' for line in lines]


def _one_line(note: Path) -> str:
    """A note of a few Markdown lines as running text."""
    lines = (line.lstrip("- ").strip() for line in note.read_text(encoding="utf-8").splitlines())
    return "; ".join(line.rstrip(".") for line in lines if line) + "."
