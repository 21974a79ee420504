"""The report of a comparison: in the terminal, as Markdown, as CSV and as one HTML page."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable

from vnet.core.config import Config
from vnet.core.errors import InputError
from vnet.core.files import write_text
from vnet.core.tables import read_table
from vnet.evaluation.comparison import (
    MEAN,
    Difference,
    compare,
    refinement_comparisons,
    usual_comparisons,
    with_spread_of,
)
from vnet.evaluation.refinement import ALL
from vnet.evaluation.study_tables import Study, find_tables, read_study
from vnet.report import summary, text
from vnet.report.refinement import by_bin, read_refinement
from vnet.report.slices import slices_table
from vnet.report.tables import (
    Table,
    answers_table,
    costs_table,
    markdown,
    refinement_table,
    scores_table,
    structures_table,
)

if TYPE_CHECKING:
    from vnet.report.drawings import Drawing

__all__ = ["Report", "build_report", "print_comparison", "print_run_summary"]


@dataclass(frozen=True)
class Report:
    """Everything a report says, before it is laid out."""

    study: Study  # the runs that are evidence
    named: tuple[str, ...]  # the confirmatory comparisons
    differences: tuple[Difference, ...]
    refined: pd.DataFrame  # rows of every refinement.csv
    margin: float | None
    missing: tuple[str, ...] = ()  # runs that are expected and not there
    apart: tuple[Difference, ...] = ()  # on the folds on which choices were made; empty where there are none
    spread_note: str = ""  # where the seed spread is from, if not from these runs

    def answer(self) -> list[str]:
        return text.answer(self.study, self.differences, self.named, self.margin)

    def notes(self) -> list[str]:
        shown = ", ".join(self.missing[:12])
        shown += f" and {len(self.missing) - 12} more" if len(self.missing) > 12 else ""
        folds = {run.fold for run in self.study.runs}
        chosen = self.study.choice_folds and folds <= self.study.choice_folds
        notes = [
            f"Runs not there yet: {shown}." if self.missing else "",
            f"No evidence yet: choices of the method were made on fold {', '.join(sorted(folds))}." if chosen else "",
            text.scope(self.differences),
            self.spread_note,
        ]
        return [note for note in notes if note]

    @cached_property
    def drawings(self) -> list[Drawing]:
        """The figures, in the order of the page."""
        from vnet.report.drawings import drawings

        return drawings(self)

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
        if self.apart:
            title = f"Fold {', '.join(sorted(self.study.choice_folds))}, on which choices were made, and no evidence"
            plain = [c for c in tables[0].columns if c not in ("p", "p (Holm)", "verdict")]
            shown = [d.comparison for d in self.apart if d.structure == MEAN and d.metric == "dice"]
            tables.append(answers_table(self.apart, shown, title).only(*plain))
        return [
            *tables,
            scores_table(self.study),
            costs_table(self.study),
            structures_table(self.differences, self.study.metrics),
        ]

    def refinement_tables(self) -> list[Table]:
        """Where refinement helped: by kind of case, and by voxel where a run has a head."""
        by_kind = [slices_table(self.study, self.named)] if self.named else []
        if self.refined.empty:
            return [table for table in by_kind if table.rows]
        surface, margin = (by_bin(self.refined, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
        return [
            *(table for table in by_kind if table.rows),
            refinement_table(surface, "Refined voxels by distance to the true surface", "mm"),
            refinement_table(margin, "Refined voxels by margin of the unrefined output", "logits"),
        ]

    def print(self, console: Console | None = None) -> None:
        """What fits a terminal: fewer columns, two metrics by structure, and the answer last."""
        console = console or terminal()
        kept = "comparison|verdict|difference|95 % interval|seed spread|p (Holm)|better / worse|cases".split("|")
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
            *self._figures("differences", "costs", "cases", "where"),
            *map(markdown, [*self.tables(), *self.refinement_tables()]),
            "### Methods",
            *text.methods(self.study, self.named, self.margin),
            "### Environment",
            *text.environments(self.study),
            "### Commands",
            commands,
        ]
        return "\n\n".join(parts) + "\n"

    def _figures(self, *sections: str) -> list[str]:
        return [f"![{d.caption}](figures/{d.name}.svg)\n\n{d.caption}" for d in self.drawings if d.section in sections]

    def write(self, folder: Path) -> Path:
        """report.html, report.md, figures/NAME.svg, scores.csv, differences.csv and costs.csv; returns the page."""
        from vnet.report.page import html_page

        for drawing in self.drawings:
            write_text(folder / "figures" / f"{drawing.name}.svg", drawing.file())
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
        paths: folders of runs, or tables; see `vnet.evaluation.study_tables.read_study`.
        comparisons: named beforehand; None takes those of the study's config, or the usual ones.
        margin: Dice within which two arms are equivalent; None takes the study's.

    Raises:
        InputError: nothing to compare, or tables that do not fit each other.
    """
    if margin is not None and not 0 <= margin < math.inf:
        raise InputError(f"the margin must be a Dice of 0 or more, got {margin}")
    whole = read_study(paths)
    chosen = whole.choice_folds
    study = whole.on_folds({run.fold for run in whole.runs} - chosen) or whole
    apart = whole.on_folds(chosen) if study is not whole else None
    named = tuple(usual_comparisons(study) if comparisons is None else comparisons)
    margin = study.settings.get("equivalence_margin") if margin is None else margin
    differences = compare(study, named, margin)
    beside, spread_note = spread_beside(whole)
    return Report(
        study,
        named,
        tuple(with_spread_of(differences, beside)),
        read_refinement(study),
        margin,
        missing=tuple(whole.missing()),
        apart=tuple(compare(apart, [name for name in named if apart.has(name)], margin)) if apart else (),
        spread_note=spread_note,
    )


def spread_beside(study: Study) -> tuple[list[Difference], str]:
    """Differences of the study of several seeds that the config names, which lies beside this one, and where they are
    from; nothing where it is not there."""
    name = study.settings.get("spread_from")
    roots = dict.fromkeys([*(run.root for run in study.runs if run.root), Path("results")])
    folder = next((root / name for root in roots if name and (root / name).is_dir()), None)
    if folder is None or not find_tables([folder], missing_ok=True):
        return [], ""
    seeds = read_study([folder])
    folds, numbers = ({str(getattr(run, key)) for run in seeds.runs} for key in ("fold", "seed"))
    note = f"Seed spread: from {name} (fold {', '.join(sorted(folds))}, seeds {', '.join(sorted(numbers))})"
    return compare(seeds, usual_comparisons(seeds)), note + "; ~ marks the root mean square of what was measured there."


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
    report = build_report(tables, config.study.comparisons or None, config.study.equivalence_margin)
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
    if read_table(folder / "cases.csv"):
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
        row |= (vars(d.summary) if d.summary else {}) | {
            "seed_spread": d.seed_spread,
            "spread_measured": d.spread_measured,
            "p_holm": d.p_holm,
            "one_sided": d.one_sided,
        }
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")
