"""The report as one HTML page that opens from disk: figures inline, no network, light and dark, fit to print."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vnet.core.files import plain_name
from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report import provenance
from vnet.report.arms import arms_table, training_table
from vnet.report.figures import Figure
from vnet.report.report import QUESTION, Report
from vnet.report.subgroups import case_anchors, cases_table, worst_cases_table
from vnet.report.tables import Table

# Contrast of text is 4.5 or more on paper and tint, in light and in dark.
STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2128; --soft: #57606a; --paper: #fff; --line: #d5dae0; --tint: #f3f6f9; --link: #0b5cad; --mark: #3d8fc4;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4ae; --paper: #14181d; --line: #353c45; --tint: #1d232a; --link: #7cb8f2; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 86rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 52rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.question { font-size: 1.05rem; color: var(--soft); margin-bottom: 1rem; }
.answer {
  font-size: 1.12rem; padding: .8rem 1.1rem; max-width: none; margin: 0;
  background: var(--tint); border-left: 4px solid var(--mark);
}
nav ol { columns: 16rem 3; padding-left: 1.4rem; margin: 1.2rem 0 0; }
nav li { padding: .15rem 0; }
.note, figcaption { color: var(--soft); font-size: .88rem; }
.scroll { overflow: auto; }
.tall { max-height: 32rem; }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
.wrapped td { white-space: normal; min-width: 18rem; }
th { font-weight: 600; }
thead th { color: var(--soft); }
tbody th { font-weight: 400; }
tr:target { background: var(--tint); outline: 2px solid var(--mark); outline-offset: -2px; }
th.number, td.number { text-align: right; padding: .28rem 0 .28rem .75rem; }
figure { margin: 1rem 0; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figure img { max-width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem; }
.pair > * { min-width: 0; }
.pair > :only-child { max-width: 44rem; }
.pictures { grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); }
pre { background: var(--tint); padding: .7rem 1rem; font-size: .86rem; margin: 0; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --tint: #f4f4f4; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; max-height: none; }
  .tall thead th { position: static; }
  table { font-size: 7pt; }
  /* words may wrap, numbers may not: a number that is broken is another number */
  th, td { white-space: normal; padding-right: .4rem; }
  th.number { padding-left: .4rem; }
  td.number { white-space: nowrap; padding-left: .4rem; }
  pre { white-space: pre-wrap; }
  .pair { grid-template-columns: 1fr 1fr 1fr; gap: 0 1.5rem; }
  .pictures { grid-template-columns: 1fr 1fr; }
  figure, tr { break-inside: avoid; }
  thead { display: table-header-group; }
  h2, h3 { break-after: avoid; }
}
"""


MAX_PICTURES = 12  # of a section
MAX_PICTURE_BYTES = 400_000
CHANGE = "change_"  # starts the names of pictures of what refinement did
PICTURES = (*(CHANGE + rank for rank in ("best", "median", "worst")), "worst", "median", "best")
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
        caption: HTML.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


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
    changes = [(path, run) for path, run in found if path.name.startswith(CHANGE)][:MAX_PICTURES]
    cases = [(path, run) for path, run in found if not path.name.startswith(CHANGE)][:MAX_PICTURES]
    links = {plain_name(case): (case, anchor) for case, anchor in case_anchors(study).items()}
    sections = {
        "What refinement did": [_change_html(path, run, links) for path, run in changes],
        "Worst, median and best case": [_case_html(path, run, links) for path, run in cases],
    }
    sources = _sources([path for path, _ in [*changes, *cases]])
    return {
        heading: ['<div class="pair pictures">', *parts, "</div>", *sources] if parts else []
        for heading, parts in sections.items()
    }


def _pictures(study: Study) -> list[tuple[Path, RunRecord]]:
    """Small pictures with their runs; the first fold and the arms with a head come first."""
    order = [*study.heads, *(arm for arm in study.arms if arm not in study.heads)]
    runs = sorted(study.runs, key=lambda run: (run.fold, run.seed, order.index(run.arm)))
    folders = {run.pictures: run for run in runs}
    return [
        (picture, run)
        for folder, run in folders.items()
        for name in PICTURES
        for picture in sorted(folder.glob(f"{name}_*.png"))
        if picture.stat().st_size <= MAX_PICTURE_BYTES
    ]


Links = Mapping[str, tuple[str, str]]  # case as in a file's name -> its name and the id of its row


def _case_html(path: Path, run: RunRecord, links: Links) -> str:
    rank, _, case = path.stem.partition("_")
    seen = (
        f"Three planes of case {case}, the {rank} of {run.name}: the image, tinted where the truth is, with outlines of"
        " the prediction"
    )
    return picture_html(path, seen, f"{rank} {_linked(case, links)}, {escape(run.name)}")


def _change_html(path: Path, run: RunRecord, links: Links) -> str:
    rank, _, case = path.stem.removeprefix(CHANGE).partition("_")
    seen = (
        f"One plane of case {case} of {run.name} twice, around the voxels that refinement changed: on the left without"
        " the head, on the right with it; outlines of the truth and of the prediction, wrong voxels in colour"
    )
    return picture_html(path, seen, f"{GAINS.get(rank, rank)}: {_linked(case, links)}, {escape(run.name)}")


def _linked(plain: str, links: Links) -> str:
    """The name of a case, as a link to its row where it has one."""
    case, anchor = links.get(plain, (plain, ""))
    return f'<a href="#{anchor}">{escape(case)}</a>' if anchor else escape(case)


def _sources(pictures: list[Path]) -> list[str]:
    """Whose images these are, a paragraph a note."""
    notes = dict.fromkeys(path.with_name("SOURCE.md") for path in pictures)
    lines = dict.fromkeys(_one_line(note) for note in notes if note.is_file())
    return [f'<p class="note">{escape(line)}</p>' for line in lines]


def _one_line(note: Path) -> str:
    """A note of a few Markdown lines as running text."""
    lines = (line.lstrip("- ").strip() for line in note.read_text(encoding="utf-8").splitlines())
    return "; ".join(line.rstrip(".") for line in lines if line) + "."


def html_page(report: Report, figures: Sequence[Figure]) -> str:
    """The page as text."""
    sections = {heading: parts for heading, parts in _sections(report, figures).items() if parts}
    title = provenance.title(report.study)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="question">{escape(QUESTION)}</p>',
        f'<p class="answer">{escape(" ".join(report.headline()))}</p>',
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes()),
        contents_html(sections),
        *(section_html(heading, parts) for heading, parts in sections.items()),
    ]
    return _document(title, "\n".join(body))


def _sections(report: Report, figures: Sequence[Figure]) -> dict[str, list[str]]:
    """Heading to the HTML of a section, in the order of the page."""
    study = report.study
    arms = arms_table(study)
    return {
        "The arms": [table_html(arms, extra_class="wrapped", titled=False)] if arms.rows else [],
        "The differences": [*map(table_html, report.difference_tables()), *figures_html(figures, "differences")],
        "The scores, and what they cost": [
            *map(table_html, report.score_tables()),
            *figures_html(figures, "costs"),
        ],
        "While training": _while_training(report, figures),
        "Case by case": _cases(report, figures),
        "Where refinement helps": [
            *figures_html(figures, "where"),
            *map(table_html, report.refinement_tables()),
        ],
        "By structure and metric": [table_html(report.structures_table())],
        "Refined and unrefined": [*map(table_html, report.checkpoint_tables())],
        **pictures_html(study),
        "How the arms were trained": _training(report),
        "Methods": [
            f"<p>{escape(paragraph)}</p>" for paragraph in provenance.methods(study, report.named, report.margin)
        ],
        "Environment and commands": _provenance(report),
    }


def _cases(report: Report, figures: Sequence[Figure]) -> list[str]:
    anchors = case_anchors(report.study)
    return [
        *figures_html(figures, "cases"),
        table_html(worst_cases_table(report.study), links=anchors),
        table_html(cases_table(report.study), row_ids=anchors, extra_class="tall"),
    ]


def _while_training(report: Report, figures: Sequence[Figure]) -> list[str]:
    """The learning curves beside what they say at their end."""
    curves = [figure_html(figure) for figure in figures if figure.section == "curves"]
    tables = [f"<div>{table_html(table)}</div>" for table in report.convergence_tables()]
    return ['<div class="pair">', *curves, *tables, "</div>"] if curves or tables else []


def _training(report: Report) -> list[str]:
    table = training_table(report.study)
    return [table_html(table, extra_class="wrapped", titled=False)] if table.rows else []


def _provenance(report: Report) -> list[str]:
    commands = escape("\n".join(provenance.commands(report.study, report.options)))
    return [
        *(f'<p class="note">{escape(line)}</p>' for line in provenance.environments(report.study)),
        scroll_box(f"<pre>{commands}</pre>", "Commands"),
    ]


def _document(title: str, body: str) -> str:
    # the policy keeps the page from fetching anything, whatever a name in the tables holds
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )
