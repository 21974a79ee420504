"""Pairs of two sides of a comparison: the same training, case and structure, scored for both.

A blank score says that a structure is absent in the truth and in the prediction. Where it is absent in both sides, the
pair is left out. Where one side invents it (its Dice is 0), the other side's blank counts as perfect: Dice 1, distance
0. Leaving that pair out would reward inventing structures.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vnet.core.errors import InputError
from vnet.evaluation.metrics import HIGHER_IS_BETTER
from vnet.evaluation.study_tables import UNREFINED, Study

MEAN = "mean"  # of the foreground structures of a case
CASE = ["fold", "seed", "case"]


@dataclass(frozen=True)
class Pairs:
    """Pairs of one structure (or of all) in one metric.

    Attributes:
        scores: `first` and `second`, indexed by fold, seed, case and structure; no blanks.
        missed: of each pair, whether one side's Dice is 0: the structure is missed, or invented.
        absent: pairs left out, as the structure is absent in the truth and on both sides.
        invented: pairs in which one side's blank counts as perfect, as the other side invents the structure.
    """

    scores: pd.DataFrame
    missed: pd.Series
    absent: int
    invented: int


def sides_of(comparison: str) -> tuple[str, str]:
    """The two sides of `FIRST - SECOND`."""
    first, second = comparison.split(" - ")
    return first.strip(), second.strip()


def structure_pairs(study: Study, comparison: str, structure: str, metric: str) -> Pairs:
    """The pairs of a comparison in one structure, or in every structure for `MEAN`."""
    first, second = (study.side(side) for side in sides_of(comparison))
    if structure != MEAN:
        first, second = (rows[rows.index.get_level_values("structure") == structure] for rows in (first, second))
    return pair_rows(first, second, metric)


def pair_rows(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> Pairs:
    """The pairs of two tables with the index fold, seed, case and structure."""
    shared = first.index[first.index.isin(second.index)]
    dice, scores = (
        pd.DataFrame({"first": first.loc[shared, column], "second": second.loc[shared, column]})
        for column in ("dice", metric)
    )
    blank = dice.isna()
    one_blank = blank["first"] ^ blank["second"]
    perfect = 1.0 if HIGHER_IS_BETTER[metric] else 0.0
    scores = scores.mask(blank.where(one_blank, False), perfect)
    # a table of another tool may hold a Dice and no distance
    known = scores.notna().all(axis=1) & ~blank.all(axis=1)
    missed = (dice == 0).any(axis=1)
    return Pairs(scores[known], missed[known], absent=int(blank.all(axis=1).sum()), invented=int(one_blank.sum()))


def case_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Both sides averaged over the structures of a case: `fold, seed, case, first, second, difference`.

    Args:
        scores: of `Pairs`; both sides average over the same structures.
    """
    means = scores.groupby(CASE)[["first", "second"]].mean().reset_index()
    return means.assign(difference=means["first"] - means["second"])


def paired_cases(study: Study, comparison: str, structure: str, metric: str) -> pd.DataFrame:
    """`case_means` of a comparison's pairs."""
    return case_means(structure_pairs(study, comparison, structure, metric).scores)


def paired_structures(study: Study, comparison: str, metric: str) -> pd.DataFrame:
    """A row a training, case and structure: `fold, seed, case, structure, first, second, difference`."""
    scores = structure_pairs(study, comparison, MEAN, metric).scores.reset_index()
    return scores.assign(difference=scores["first"] - scores["second"])


def unpaired(study: Study, comparison: str) -> list[str]:
    """What one side of a comparison scored and the other did not: cases by name, whole trainings by fold and seed."""
    names = sides_of(comparison)
    scored = [dict.fromkeys(zip(*map(study.side(name).index.get_level_values, CASE), strict=True)) for name in names]
    trainings = [{key[:2] for key in keys} for keys in scored]
    lines: dict[str, None] = {}
    for name, mine, other in zip(names, (0, 1), (1, 0), strict=True):
        arm = name.removesuffix(UNREFINED)
        for fold, seed in sorted(trainings[mine] - trainings[other]):
            count = sum(key[:2] == (fold, seed) for key in scored[mine])
            lines[f"fold {fold} seed {seed} of {arm} ({count} cases)"] = None
        for *training, case in scored[mine]:
            if tuple(training) in trainings[other] and (*training, case) not in scored[other]:
                lines[f"{case} of {arm}"] = None
    return list(lines)


def refuse_contradictions(study: Study) -> None:
    """Refuse tables that disagree on whether a structure is in the truth of a case.

    Raises:
        InputError: a structure is blank (absent in the truth) in one row and has a Dice above 0 in another.
    """
    dice = study.cases.groupby(["case", "structure"])["dice"]
    contradicted = dice.apply(lambda scores: bool(scores.isna().any() and (scores > 0).any()))
    faults = [
        f"case {case}, structure {structure}: absent in the truth by one row (blank) and overlapping by another (Dice "
        f"{dice.get_group((case, structure)).max():.4g}); score all arms against the same labels"
        for case, structure in contradicted[contradicted].index
    ]
    if faults:
        raise InputError(faults)
