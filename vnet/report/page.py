"""The report as one HTML page that opens from disk: figures inline, no network, light and dark, fit to print."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from vnet.evaluation.study_tables import Study
from vnet.report import methods
from vnet.report.figures import Figure
from vnet.report.report import Report
from vnet.report.sentences import QUESTION
from vnet.report.tables import Table

MAX_PICTURES = 12
MAX_PICTURE_BYTES = 400_000

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #59636e; --paper: #fff; --line: #d5dae0; --tint: #f3f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4ae; --paper: #14181d; --line: #353c45; --tint: #1d232a; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { max-width: 52rem; margin: .5rem 0; }
.answer {
  font-size: 1.12rem; padding: .8rem 1.1rem; max-width: none;
  background: var(--tint); border-left: 4px solid #3d8fc4;
}
.note, figcaption { color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th.number, td.number { text-align: right; padding: .28rem 0 .28rem .9rem; }
figure { margin: 1rem 0; }
figure svg { width: 100%; max-width: 52rem; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figure img { max-width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2rem; }
pre { background: var(--tint); padding: .7rem 1rem; overflow-x: auto; font-size: .86rem; }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --tint: #f4f4f4; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 7pt; }
  th, td { white-space: normal; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


def html_page(report: Report, figures: Sequence[Figure]) -> str:
    """The page as text."""
    study = report.study
    scores, cost = report.score_tables()
    parts = [
        f"<h1>{escape(QUESTION)}</h1>",
        f'<p class="answer">{escape(" ".join(report.headline()))}</p>',
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes()),
        "<h2>The differences</h2>",
        *map(_table, report.difference_tables()),
        *_figures(figures, "differences"),
        "<h2>The scores, and what they cost</h2>",
        _table(scores),
        _table(cost),
        *_figures(figures, "costs", paired=True),
        "<h2>Case by case</h2>",
        *_figures(figures, "cases"),
        *_where(report, figures),
        "<h2>By structure and metric</h2>",
        _table(report.structures_table()),
        *map(_table, report.checkpoint_tables()),
        *_pictures(study),
        "<h2>Methods</h2>",
        *(f"<p>{escape(paragraph)}</p>" for paragraph in methods.methods(study, report.named, report.margin)),
        "<h2>Environment and commands</h2>",
        *(f'<p class="note">{escape(line)}</p>' for line in methods.environments(study)),
        f"<pre>{escape(chr(10).join(methods.commands(study)))}</pre>",
    ]
    return _document("\n".join(parts))


def _document(body: str) -> str:
    # the policy keeps the page from fetching anything, whatever a name in the tables holds
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(QUESTION)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        kinds = ["" if i < table.first_number else ' class="number"' for i in range(len(table.columns))]
        found = zip(cells, kinds, strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in found) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    head = row(table.columns, "th")
    return (
        f'<h3>{escape(table.title)}</h3>\n<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n'
        f"</tbody></table></div>\n{note}"
    )


def _figure(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def _figures(figures: Sequence[Figure], section: str, *, paired: bool = False) -> list[str]:
    parts = [_figure(f.svg, f.caption) for f in figures if f.section == section]
    return ['<div class="pair">', *parts, "</div>"] if paired and parts else parts


def _where(report: Report, figures: Sequence[Figure]) -> list[str]:
    drawn, tables = _figures(figures, "where", paired=True), report.refinement_tables()
    return ["<h2>Where refinement helps</h2>", *drawn, *map(_table, tables)] if drawn or tables else []


def _pictures(study: Study) -> list[str]:
    """PNG files in the `pictures` folders of the runs, small ones only; the first fold and the heads come first."""
    order = [*study.heads, *(arm for arm in study.arms if arm not in study.heads)]
    runs = sorted(study.runs, key=lambda run: (run.fold, run.seed, order.index(run.arm)))
    folders = {run.pictures: run for run in runs}
    found = [
        (picture, run)
        for folder, run in folders.items()
        for picture in sorted(folder.glob("*.png"), reverse=True)  # worst, median, best
        if picture.stat().st_size <= MAX_PICTURE_BYTES
    ][:MAX_PICTURES]
    parts = [_figure(_image(path), f"{path.stem.replace('_', ' ')}, {run.name}") for path, run in found]
    notes = dict.fromkeys(path.with_name("SOURCE.md") for path, _ in found)
    sources = dict.fromkeys(_one_line(note) for note in notes if note.is_file())
    told = [f'<p class="note">{escape(source)}</p>' for source in sources]
    return ["<h2>Pictures</h2>", *parts, *told] if parts else []


def _one_line(note: Path) -> str:
    """A note of a few Markdown lines as running text."""
    lines = (line.lstrip("- ").strip() for line in note.read_text(encoding="utf-8").splitlines())
    return "; ".join(line.rstrip(".") for line in lines if line) + "."


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'
