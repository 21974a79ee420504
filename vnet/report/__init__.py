"""The report of a comparison: in the terminal, as Markdown, as CSV and as one HTML page."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from vnet.cases import Study, read_study
from vnet.comparison import (
    Difference,
    compare,
    refinement_comparisons,
    usual_comparisons,
)
from vnet.config import Config
from vnet.errors import InputError
from vnet.files import write_text
from vnet.refinement_report import ALL
from vnet.report import summary, text
from vnet.report.refinement import by_bin, read_refinement
from vnet.report.tables import (
    Table,
    answers_table,
    costs_table,
    markdown,
    refinement_table,
    scores_table,
    structures_table,
)

__all__ = ["Report", "build_report", "print_comparison", "print_run_summary"]


@dataclass(frozen=True)
class Report:
    """Everything a report says, before it is laid out."""

    study: Study
    named: tuple[str, ...]  # the confirmatory comparisons
    differences: tuple[Difference, ...]
    refined: pd.DataFrame  # rows of every refinement.csv
    margin: float | None

    def answer(self) -> list[str]:
        return text.answer(self.study, self.differences, self.named, self.margin)

    def notes(self) -> list[str]:
        missing = self.study.missing()
        shown = ", ".join(missing[:12]) + (f" and {len(missing) - 12} more" if len(missing) > 12 else "")
        scope = text.scope(self.differences)
        return [*([f"Runs not there yet: {shown}."] if missing else []), *([scope] if scope else [])]

    def tables(self) -> list[Table]:
        """The main tables, most telling first."""
        own = [name for name in refinement_comparisons(self.study) if name not in self.named]
        tables = []
        if self.named:
            title = "Named comparisons: mean foreground Dice"
            tables.append(answers_table(self.differences, self.named, title))
        if own:
            title = "Refinement on and off, one checkpoint: mean foreground Dice"
            tables.append(answers_table(self.differences, own, title))
        return [
            *tables,
            scores_table(self.study),
            costs_table(self.study),
            structures_table(self.differences, self.study.metrics),
        ]

    def refinement_tables(self) -> list[Table]:
        """Where refinement helped; none where no run has a head."""
        if self.refined.empty:
            return []
        surface, margin = (by_bin(self.refined, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
        return [
            refinement_table(surface, "Refined voxels by distance to the true surface", "mm"),
            refinement_table(margin, "Refined voxels by margin of the unrefined output", "logits"),
        ]

    def print(self, console: Console | None = None) -> None:
        """What fits a terminal: fewer columns, two metrics by structure, and the answer last."""
        console = console or terminal()
        kept = ("comparison", "verdict", "difference", "95 % interval", "p (Holm)", "better / worse", "cases")
        *answers, scores, price, _ = self.tables()
        by_structure = structures_table(self.differences, ["dice", "hd95_mm"])
        for table in [scores, price, by_structure, *(table.only(*kept) for table in answers)]:
            console.print(rich_table(table), "")
        for line in [*self.answer(), *self.notes()]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    def markdown(self) -> str:
        commands = "\n".join(["```", *text.commands(self.study), "```"])
        parts = [
            f"# {text.QUESTION}",
            " ".join(self.answer()),
            *self.notes(),
            *map(markdown, [*self.tables(), *self.refinement_tables()]),
            "### Methods",
            *text.methods(self.study, self.named, self.margin),
            "### Environment",
            *text.environments(self.study),
            "### Commands",
            commands,
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> Path:
        """report.html, report.md, scores.csv, differences.csv and costs.csv; returns the page."""
        from vnet.report.page import html_page

        write_text(folder / "report.md", self.markdown())
        write_text(folder / "scores.csv", scores_table(self.study).csv())
        write_text(folder / "differences.csv", differences_csv(self.differences))
        write_text(folder / "costs.csv", costs_table(self.study).csv())
        page = folder / "report.html"
        write_text(page, html_page(self))
        return page


def build_report(
    paths: Sequence[Path], comparisons: Sequence[str] | None = None, margin: float | None = None
) -> Report:
    """Read the runs below `paths` and compare them.

    Args:
        paths: folders of runs, or tables; see `vnet.cases.read_study`.
        comparisons: named beforehand; None takes those of the study's config, or the usual ones.
        margin: Dice within which two arms are equivalent; None takes the study's.

    Raises:
        InputError: nothing to compare, or tables that do not fit each other.
    """
    if margin is not None and not 0 <= margin < math.inf:
        raise InputError(f"the margin must be a Dice of 0 or more, got {margin}")
    study = read_study(paths)
    named = tuple(usual_comparisons(study) if comparisons is None else comparisons)
    margin = study.settings.get("margin") if margin is None else margin
    differences = compare(study, named, margin)
    return Report(study, named, tuple(differences), read_refinement(study), margin)


def print_comparison(config: Config) -> None:
    """Print the comparison of a study's finished runs and leave the report below its run folders.

    A run counts from RUN_ROOT where it is finished there, else from results/.
    """
    tables = []
    for arm in config.study.arms:
        for fold in config.study.folds:
            for seed in config.study.seeds:
                place = Path(config.name, arm, f"fold{fold}_seed{seed}", "cases.csv")
                tables += [
                    root / place for root in (Path(config.run_root), Path("results")) if (root / place).is_file()
                ][:1]
    report = build_report(tables, config.study.comparisons or None, config.study.margin)
    report.print()
    page = report.write(Path(config.run_root, config.name, "report"))
    print(f"report: {page}")


def print_run_summary(folder: Path) -> None:
    """Print what a finished run shows, what to look at next, and the commands to go on with.

    Args:
        folder: of its tables: RUN_ROOT/NAME/ARM/foldF_seedS, or RUN/evaluation/NAME.
    """
    console = terminal()
    lines = []
    if (folder / "cases.csv").stat().st_size:
        study = read_study([folder / "cases.csv"])
        console.print(rich_table(summary.summary_table(study)))
        lines = ["look at next:", *(f"  {line}" for line in summary.next_looks(study))]
    else:
        lines = ["no validation case, so no score: the run was trained on all cases"]
    run = folder.parent.parent if folder.parent.name == "evaluation" else folder
    for line in [*lines, *summary.commands(run)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def terminal() -> Console:
    """Standard output; off a terminal wide enough that no cell is broken."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def rich_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if i < table.first_number else "right")
    for row in table.rows:
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    return shown


def differences_csv(differences: Sequence[Difference]) -> str:
    """Every difference with all of its numbers, unrounded enough to build on."""
    rows = []
    for d in differences:
        row: dict[str, Any] = {"comparison": d.comparison, "structure": d.structure, "metric": d.metric}
        row |= {"confirmatory": d.confirmatory, "verdict": d.verdict}
        rows.append(row | (vars(d.summary) if d.summary else {}) | {"p_holm": d.p_holm, "one_sided": d.one_sided})
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
