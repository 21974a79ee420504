"""The files of a report: an HTML page, Markdown with its figures, CSV tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vnet.core.files import write_text
from vnet.evaluation.comparison import Difference
from vnet.report import methods, provenance
from vnet.report.cases import worst_cases_table
from vnet.report.comparison_tables import scores_table
from vnet.report.costs import costs_table
from vnet.report.figures import Figure, figures_of
from vnet.report.page import html_page
from vnet.report.report import Report
from vnet.report.sentences import QUESTION
from vnet.report.tables import Table, markdown
from vnet.report.training_table import arms_table, training_table


def write_report(report: Report, folder: Path) -> Path:
    """Write report.html, report.md, figures/NAME.svg, scores.csv, differences.csv and costs.csv.

    Returns:
        report.html.
    """
    figures = figures_of(report)
    for figure in figures:
        write_text(folder / "figures" / f"{figure.name}.svg", figure.file())
    write_text(folder / "report.md", markdown_page(report, figures))
    write_text(folder / "scores.csv", scores_table(report.study).csv())
    write_text(folder / "differences.csv", differences_csv(report.differences))
    write_text(folder / "costs.csv", costs_table(report.study).csv())
    page = folder / "report.html"
    write_text(page, html_page(report, figures))
    return page


def markdown_page(report: Report, figures: Sequence[Figure]) -> str:
    """The report as Markdown; its figures are files beside it."""
    commands = "\n".join(["```", *provenance.commands(report.study), "```"])
    parts = [
        f"# {provenance.title(report.study)}",
        QUESTION,
        " ".join(report.headline()),
        *report.notes(),
        *(f"![{figure.caption}](figures/{figure.name}.svg)\n\n{figure.caption}" for figure in figures),
        *map(markdown, _tables(report)),
        "### Methods",
        *methods.methods(report.study, report.named, report.margin),
        "### Environment",
        *provenance.environments(report.study),
        "### Commands",
        commands,
    ]
    return "\n\n".join(parts) + "\n"


def _tables(report: Report) -> list[Table]:
    found = [arms_table(report.study), *report.tables(), *report.refinement_tables(), worst_cases_table(report.study)]
    return [table for table in [*found, training_table(report.study)] if table.rows]


def differences_csv(differences: Sequence[Difference]) -> str:
    """Every difference with all of its numbers, to six digits."""
    rows = []
    for d in differences:
        row: dict[str, Any] = {"comparison": d.comparison, "structure": d.structure, "metric": d.metric}
        row |= {"confirmatory": d.confirmatory, "verdict": d.verdict}
        row |= _summary_cells(d)
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _summary_cells(d: Difference) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    if d.summary and d.means:
        cells = dict(zip(("first_mean", "second_mean"), d.means, strict=True)) | vars(d.summary)
        trainings = cells.pop("over_trainings") or (None, None)
        cells |= dict(zip(("low_over_trainings", "high_over_trainings"), trainings, strict=True))
    spread = d.seed_spread
    return cells | {
        "seed_spread": spread and spread.sd,
        "seed_spread_low": spread and spread.low,
        "seed_spread_high": spread and spread.high,
        "seed_spread_trainings": spread and spread.trainings,
        "p_holm": d.p_holm,
        "missed": d.missed,
        "mean_without_missed": d.without_missed,
        "absent": d.absent,
        "invented": d.invented,
    }
