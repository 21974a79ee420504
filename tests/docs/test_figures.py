"""Every figure of Dice, distance and difference in README.md, docs/ and results/LOG.md is that of results/.

A figure is found by its form: Dice and differences of Dice stand without the leading zero (.8708, +.0128). It is
accounted for in one of three ways: its table follows a comment `<!-- figures: STUDY folds 1 2 3 -->`, its sentence
stands in `SENTENCES`, or a dagger marks it as one whose raw data are not kept.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import LOG, PAGES, ROOT, MarkdownTable, cells, one_line, prose, tables
from tests.docs.sentences import SENTENCES
from tests.docs.table_figures import expected_row

FIGURE = re.compile(r"(?<![\w.])[+-]?\.\d{2,4}\b")
DAGGER = "†"
CHECKED = [
    pytest.param(table, id=f"{page.name}: {table.comment}: {table.header[0]}")
    for page in [*PAGES, LOG]
    for table in tables(page.read_text())
    if table.comment.startswith("figures:")
]


@pytest.mark.parametrize("table", CHECKED)
def test_a_table_holds_the_figures_of_results(table: MarkdownTable) -> None:
    for row in table.rows:
        assert list(row) == expected_row(table, row)


@pytest.mark.parametrize("page", SENTENCES)
def test_sentences_hold_the_figures_of_results(page: str) -> None:
    text = one_line((ROOT / page).read_text())
    for sentence in SENTENCES[page]():
        assert sentence in text


FIGURED = [page for page in [*PAGES, LOG] if page.name != "errors.md"]  # that page shows what people typed


@pytest.mark.parametrize("page", FIGURED, ids=lambda page: page.name)
def test_every_figure_is_recomputed_or_marked(page: Path) -> None:
    text = prose(page.read_text())
    for table in tables(text):
        if table.comment.startswith("figures:"):
            text = text.replace(table.text, "")
        for line in table.text.splitlines():
            if DAGGER in cells(line)[0]:
                text = text.replace(line, "")
    text = one_line(text)
    for sentence in SENTENCES.get(str(page.relative_to(ROOT)), list)():
        text = text.replace(sentence, "")
    loose = [found[0] for found in FIGURE.finditer(text) if text[found.end() : found.end() + 1] != DAGGER]
    assert loose == []


def test_the_page_of_results_explains_the_dagger() -> None:
    assert f"**{DAGGER}** marks a figure whose raw data are not kept" in (ROOT / "docs/results.md").read_text()
