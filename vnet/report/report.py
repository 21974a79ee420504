"""What a report of a comparison says, before it is laid out: differences, tables, notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vnet.core.errors import InputError
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
from vnet.report import sentences
from vnet.report.comparison_tables import answers_table, scores_table, structures_table
from vnet.report.costs import costs_table
from vnet.report.refinement_counts import by_bin, read_refinement, refinement_table
from vnet.report.subgroups import subgroups_table
from vnet.report.tables import Table

SHOWN_MISSING = 12


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        study: the runs that are evidence.
        named: the comparisons named beforehand, whose mean Dice is tested.
        differences: every comparison by structure and metric.
        refined: rows of every refinement.csv.
        margin: Dice within which two arms are equivalent; None for no such verdict.
        missing: runs that the study's config asks for and that have no table.
        apart: differences on the folds on which choices were made; empty where there are none.
        spread_note: the study that the seed spread is from, if not this one.
    """

    study: Study
    named: tuple[str, ...]
    differences: tuple[Difference, ...]
    refined: pd.DataFrame
    margin: float | None
    missing: tuple[str, ...] = ()
    apart: tuple[Difference, ...] = ()
    spread_note: str = ""

    def headline(self) -> list[str]:
        """One or two sentences: the outcome of the first named comparisons."""
        return sentences.headline(self.study, self.differences, self.named, self.margin)

    def notes(self) -> list[str]:
        """What limits the outcome, a sentence or two each."""
        more = len(self.missing) - SHOWN_MISSING
        shown = ", ".join(self.missing[:SHOWN_MISSING]) + (f" and {more} more" if more > 0 else "")
        folds = {run.fold for run in self.study.runs}
        chosen = self.study.choice_folds and folds <= self.study.choice_folds
        notes = [
            f"Runs not there yet: {shown}." if self.missing else "",
            f"No evidence yet: choices of the method were made on fold {', '.join(sorted(folds))}." if chosen else "",
            sentences.scope(self.differences),
            self.spread_note,
        ]
        return [note for note in notes if note]

    def tables(self) -> list[Table]:
        """The main tables; differences first, then scores, costs and differences by structure."""
        return [
            *self._difference_tables(),
            scores_table(self.study),
            costs_table(self.study),
            structures_table(self.differences, self.study.metrics),
        ]

    def refinement_tables(self) -> list[Table]:
        """Where refinement helped: by kind of case, and by voxel where a run has a head."""
        by_kind = [subgroups_table(self.study, self.named)] if self.named else []
        tables = [table for table in by_kind if table.rows]
        if self.refined.empty:
            return tables
        surface, margin = (by_bin(self.refined, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
        return [
            *tables,
            refinement_table(surface, "Refined voxels by distance to the true surface", "mm"),
            refinement_table(margin, "Refined voxels by margin of the unrefined output", "logits"),
        ]

    def _difference_tables(self) -> list[Table]:
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
            untested = [column for column in tables[0].columns if column not in ("p", "p (Holm)", "verdict")]
            shown = [d.comparison for d in self.apart if d.structure == MEAN and d.metric == "dice"]
            tables.append(answers_table(self.apart, shown, title).only(*untested))
        return tables


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
    """Differences of the study of several seeds that `study.spread_from` names, and a sentence that names it.

    That study lies beside this one. Nothing is returned where it is not there.
    """
    name = study.settings.get("spread_from")
    roots = dict.fromkeys([*(run.root for run in study.runs if run.root), Path("results")])
    folder = next((root / name for root in roots if name and (root / name).is_dir()), None)
    if folder is None or not find_tables([folder], missing_ok=True):
        return [], ""
    seeds = read_study([folder])
    folds, numbers = ({str(getattr(run, key)) for run in seeds.runs} for key in ("fold", "seed"))
    note = f"Seed spread: from {name} (fold {', '.join(sorted(folds))}, seeds {', '.join(sorted(numbers))})"
    return compare(seeds, usual_comparisons(seeds)), note + "; ~ marks the root mean square of what was measured there."
