"""Output of a report: an HTML page, Markdown with its figures, CSV tables, and lines on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from vnet.core.config import Config
from vnet.core.files import read_table, write_text
from vnet.core.runs import RunKey
from vnet.evaluation.comparison import MEAN, Difference
from vnet.evaluation.study_tables import finished_tables, read_study
from vnet.report import provenance, run_summary
from vnet.report.arms import arms_table, costs_table, training_table
from vnet.report.figures import Figure, figures_of
from vnet.report.page import html_page
from vnet.report.report import QUESTION, Report, build_report
from vnet.report.subgroups import worst_cases_table
from vnet.report.tables import NONINFERIOR, Table, markdown, scores_table


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
    commands = "\n".join(["```", *provenance.commands(report.study, report.options), "```"])
    parts = [
        f"# {provenance.title(report.study)}",
        QUESTION,
        " ".join(report.headline()),
        *report.notes(),
        *(f"![{figure.caption}](figures/{figure.name}.svg)\n\n{figure.caption}" for figure in figures),
        *map(markdown, _tables(report)),
        "### Methods",
        *provenance.methods(report.study, report.named, report.margin),
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
        row |= {"confirmatory": d.confirmatory, "verdict": d.verdict, "noninferior": d.noninferior or None}
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


PIPED_COLUMNS = 180
SHOWN_COLUMNS = (
    "comparison",
    "arm",
    "seeds",
    "verdict",
    NONINFERIOR,
    "means",
    "difference",
    "95 % interval",
    "over trainings",
    "p (Holm)",
    "cases",
)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print what fits a terminal: fewer columns than the page, two metrics by structure, the headline last."""
    console = console or terminal()
    details = [*report.score_tables(), report.structures_table(["dice", "hd95_mm"])]
    # the headline comes last, beside the prompt, and the named comparisons right before it
    differences = [*report.checkpoint_tables(), *reversed(report.difference_tables())]
    for table in [*details, *(_narrow(table) for table in differences)]:
        console.print(rich_table(table), "")
    plain = run_summary.plain_words(first_named(report))
    for line in [*([plain, ""] if plain else []), *report.headline(), *report.notes()]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def first_named(report: Report) -> Difference | None:
    """The mean Dice of the first comparison named beforehand, else of the first of all; None without a shared case."""
    of_dice = {d.comparison: d for d in report.differences if d.structure == MEAN and d.metric == "dice" and d.summary}
    return next((of_dice[name] for name in (*report.named, *report.others) if name in of_dice), None)


def _narrow(table: Table) -> Table:
    """The columns of a table of differences that fit a terminal: the corrected p where there is one, else p."""
    return table.only(*SHOWN_COLUMNS, *(() if "p (Holm)" in table.columns else ("p",)))


def print_comparison(configs: Sequence[Config]) -> None:
    """Print the comparison of a study's finished runs and write the report below its run folders.

    A run counts from RUN_ROOT where it is finished there, else from the kept results of the study.

    Args:
        configs: of the runs of one study.
    """
    config, tables = configs[0], finished_tables(configs)
    paths = list(dict.fromkeys(tables.values()))
    print(f"comparing {len(configs)} runs: tables, figures, report", flush=True)
    report = build_report(paths, named=config.study.comparisons, only=tables)
    print_report(report)
    page = write_report(report, Path(config.run_root, config.name, "report"))
    print(f"report: {page}")


def print_run_summary(folder: Path, key: RunKey | None = None) -> None:
    """Print what a finished run shows, what to look at next, and the commands to go on with.

    Args:
        folder: of its tables: RUN_ROOT/NAME/ARM/foldF_seedS, RUN/evaluation/NAME, or the kept results of its study.
        key: which run, where the tables may hold others.
    """
    console = terminal()
    lines = []
    if read_table(folder / "cases.csv"):
        table = folder / "cases.csv"
        study = read_study([table], only=None if key is None else {key: table})
        console.print(rich_table(run_summary.summary_table(study)))
        lines = ["look at next:", *(f"  {line}" for line in run_summary.next_looks(study))]
    else:
        lines = ["no validation case, so no score: the run was trained on all cases"]
    run = folder.parent.parent if folder.parent.name == "evaluation" else folder
    for line in [*lines, *run_summary.commands(run)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def terminal() -> Console:
    """A console on standard output; off a terminal it is wide enough that no cell is broken."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_COLUMNS)


def rich_table(table: Table) -> RichTable:
    """A table as rich draws it."""
    shown = RichTable(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if i < table.first_number else "right")
    for row in table.rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    return shown
