"""Reports and run summaries on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from vnet.core.config import Config
from vnet.core.files import read_table
from vnet.core.runs import RunKey
from vnet.evaluation.study_tables import finished_tables, read_study
from vnet.report import run_summary
from vnet.report.files import write_report
from vnet.report.report import Report, build_report
from vnet.report.tables import Table

PIPED_COLUMNS = 180
SHOWN_COLUMNS = (
    "comparison",
    "arm",
    "seeds",
    "verdict",
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
    for line in [*report.headline(), *report.notes()]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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
