"""The report as one HTML page that opens from disk: figures inline, no network, light and dark, fit to print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vnet.report import methods, provenance
from vnet.report.cases import case_anchors, cases_table, worst_cases_table
from vnet.report.figures import Figure
from vnet.report.html import contents_html, figures_html, pictures_html, scroll_box, section_html, table_html
from vnet.report.report import Report
from vnet.report.sentences import QUESTION
from vnet.report.style import STYLE
from vnet.report.training_table import arms_table, training_table


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
        "While training": figures_html(figures, "curves"),
        "Case by case": _cases(report, figures),
        "Where refinement helps": [
            *figures_html(figures, "where"),
            *map(table_html, report.refinement_tables()),
        ],
        "By structure and metric": [table_html(report.structures_table())],
        "Refined and unrefined": [*map(table_html, report.checkpoint_tables())],
        **pictures_html(study),
        "How the arms were trained": _training(report),
        "Methods": [f"<p>{escape(paragraph)}</p>" for paragraph in methods.methods(study, report.named, report.margin)],
        "Environment and commands": _provenance(report),
    }


def _cases(report: Report, figures: Sequence[Figure]) -> list[str]:
    anchors = case_anchors(report.study)
    return [
        *figures_html(figures, "cases"),
        table_html(worst_cases_table(report.study), links=anchors),
        table_html(cases_table(report.study), row_ids=anchors, extra_class="tall"),
    ]


def _training(report: Report) -> list[str]:
    table = training_table(report.study)
    return [table_html(table, extra_class="wrapped", titled=False)] if table.rows else []


def _provenance(report: Report) -> list[str]:
    commands = escape("\n".join(provenance.commands(report.study)))
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
