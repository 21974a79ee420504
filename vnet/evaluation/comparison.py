"""The differences between arms: which arm is better, in which structure, by how much.

A *side* of a comparison is an arm's final output (`pointrend_s2`: refined where the arm has a head) or the
unrefined output of the same checkpoint (`pointrend_s2:unrefined`). Comparisons are written `FIRST - SECOND`.

A pair is the same training, case and structure, scored for both sides. A blank score says that a structure is
absent in the truth and in the prediction. Where it is absent in both sides, the pair is left out. Where one side
invents it (its Dice is 0), the other side's blank counts as perfect: Dice 1, distance 0. Leaving that
pair out would reward inventing structures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from vnet.core.errors import InputError
from vnet.evaluation.metrics import HIGHER_IS_BETTER
from vnet.evaluation.statistics import Paired, SeedSpread, holm, noninferiority, summarise, verdict
from vnet.evaluation.study_tables import KEYS, UNREFINED, Study

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


USUAL = (
    "pointrend_s2 - coarse_s2",
    "pointrend_s4 - coarse_s4",
    "pointrend_s2 - dense",
    "pointrend_s1 - dense",
)
NOTHING_SHARED = "no shared case"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison in one structure (or their `MEAN`) and metric.

    Attributes:
        means: of both sides, over the pairs of this difference; None where they share no case.
        summary: None where the sides share no case.
        p_holm: of the mean Dice of comparisons named beforehand, corrected together.
        seed_spread: of these trainings, else of the same comparison in another study; None where neither has seeds.
        missed: pairs in which one side's Dice is 0, so that its distances are the diagonal of the image.
        without_missed: mean difference of the other pairs; NaN where there is none.
        absent: pairs left out, as the structure is absent in the truth and on both sides.
        invented: pairs in which one side's blank counts as perfect, as the other side invents the structure.
        unpaired: cases and trainings that one side alone scored.
        noninferior: of a Dice and a margin, what `statistics.noninferiority` says; empty else.
    """

    comparison: str
    structure: str
    metric: str
    means: tuple[float, float] | None
    summary: Paired | None
    p_holm: float | None
    verdict: str
    seed_spread: SeedSpread | None
    missed: int
    without_missed: float
    absent: int
    invented: int
    unpaired: tuple[str, ...] = ()
    noninferior: str = ""

    @property
    def confirmatory(self) -> bool:
        return self.p_holm is not None


def named_comparisons(study: Study) -> list[str]:
    """Those that the study's config names beforehand, among the arms present."""
    return [name for name in map(str, study.settings.get("comparisons") or ()) if study.has(name)]


def usual_comparisons(study: Study) -> list[str]:
    """The usual comparisons among the arms present, else every arm against the first."""
    return [name for name in USUAL if study.has(name)] or [f"{arm} - {study.arms[0]}" for arm in study.arms[1:]]


def refinement_comparisons(study: Study) -> list[str]:
    """Refined minus unrefined output of one checkpoint, of each arm with a head."""
    return [f"{arm} - {arm}{UNREFINED}" for arm in study.heads]


def check_comparisons(study: Study, comparisons: Iterable[str]) -> None:
    """Raises InputError for a comparison that is not `A - B` of two different sides present in the study."""
    faults = [
        f"comparison {c!r}: must be `A - B` of {', '.join(study.arms)} (`:unrefined` after an arm with a head)"
        for c in comparisons
        if not study.has(c)
    ]
    if faults:
        raise InputError(faults)


def compare(
    study: Study, named: Sequence[str], others: Sequence[str] = (), *, margin: float | None = None
) -> list[Difference]:
    """Every comparison by structure and metric, the mean over structures first.

    The mean foreground Dice of the comparisons named beforehand are the confirmatory tests, corrected together by
    Holm's rule. All else is exploratory, and its verdicts use the unadjusted p.

    Args:
        named: comparisons named beforehand, as `pointrend_s2 - coarse_s2`.
        others: further ones; `refinement_comparisons` are added.
        margin: Dice within which two sides are equivalent.

    Raises:
        InputError: a comparison of sides that are not there, or tables that contradict each other.
    """
    check_comparisons(study, [*named, *others])
    refuse_contradictions(study)
    comparisons = dict.fromkeys([*named, *others, *refinement_comparisons(study)])
    alone = {name: tuple(unpaired(study, name)) for name in comparisons}
    found = [
        replace(_difference(study, name, structure, metric), unpaired=alone[name])
        for name in comparisons
        for structure in (MEAN, *study.structures)
        for metric in study.metrics
    ]
    tested = [d for d in found if d.summary and d.comparison in named and d.structure == MEAN and d.metric == "dice"]
    corrected = holm([d.summary.p for d in tested if d.summary])
    p_holm = {d.comparison: p for d, p in zip(tested, corrected, strict=True)}
    return [_judged(d, p_holm if d in tested else {}, margin) for d in found]


def with_spread_of(differences: Sequence[Difference], others: Sequence[Difference]) -> list[Difference]:
    """Differences without a seed spread take that of the same comparison, structure and metric in `others`."""
    measured = {(d.comparison, d.structure, d.metric): d.seed_spread for d in others}
    return [
        replace(d, seed_spread=measured.get((d.comparison, d.structure, d.metric))) if d.seed_spread is None else d
        for d in differences
    ]


def arm_means(study: Study) -> pd.DataFrame:
    """Mean of each metric over cases, a row a side and structure.

    Seeds are averaged within a case first.

    Returns:
        Columns `side, structure, runs, cases`, metrics; `missed`, the rows (training, case, structure) with a Dice of
        0; `absent`, the rows that are blank; `found_METRIC` of each distance, its mean without the missed rows.
    """
    distances = [metric for metric in study.metrics if not HIGHER_IS_BETTER[metric]]
    rows = []
    sides = [side for arm in study.arms for side in ([arm] + [arm + UNREFINED] * (arm in study.heads))]
    for side in sides:
        table = study.side(side).reset_index()
        for structure in (MEAN, *study.structures):
            part = table if structure == MEAN else table[table["structure"] == structure]
            row: dict[Any, Any] = {
                "side": side,
                "structure": structure,
                "runs": len(part[["fold", "seed"]].drop_duplicates()),
                "cases": int(_by_case(part, ["dice"])["dice"].notna().sum()),
                "missed": int((part["dice"] == 0).sum()),
                "absent": int(part["dice"].isna().sum()),
            }
            found = _by_case(part[part["dice"] != 0], distances).mean().add_prefix("found_")
            rows.append(row | _by_case(part, study.metrics).mean().to_dict() | found.to_dict())
    return pd.DataFrame(rows)


def _by_case(rows: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    return rows.groupby(["fold", "seed", "case"])[metrics].mean().groupby("case").mean()


def _difference(study: Study, comparison: str, structure: str, metric: str) -> Difference:
    """A difference without its verdict."""
    pairs = structure_pairs(study, comparison, structure, metric)
    table, found = case_means(pairs.scores), case_means(pairs.scores[~pairs.missed])
    summary = None if table.empty else summarise(study.with_subjects(table), higher_is_better=HIGHER_IS_BETTER[metric])
    by_case = table.groupby("case")[["first", "second"]].mean()
    return Difference(
        comparison=comparison,
        structure=structure,
        metric=metric,
        means=None if table.empty else (float(by_case["first"].mean()), float(by_case["second"].mean())),
        summary=summary,
        p_holm=None,
        verdict=NOTHING_SHARED,
        seed_spread=summary.seed_spread if summary else None,
        missed=int(pairs.missed.sum()),
        without_missed=math.nan if found.empty else float(found.groupby("case")["difference"].mean().mean()),
        absent=pairs.absent,
        invented=pairs.invented,
    )


def _judged(difference: Difference, p_holm: dict[str, float], margin: float | None) -> Difference:
    """The difference with its corrected p, where it is tested, and its verdict."""
    d = difference
    if d.summary is None:
        return d
    corrected = p_holm.get(d.comparison)
    of_dice = margin if d.metric == "dice" else None  # the margin is one of Dice
    said = verdict(
        d.summary,
        d.summary.p if corrected is None else corrected,
        of_dice,
        higher_is_better=HIGHER_IS_BETTER[d.metric],
    )
    noninferior = "" if of_dice is None else noninferiority(d.summary, of_dice)
    return replace(d, p_holm=corrected, verdict=said, noninferior=noninferior)


@dataclass(frozen=True)
class Null:
    """Mean foreground Dice of one arm with `first` seed minus that with `second` seed, over the folds of both."""

    arm: str
    first: int
    second: int
    summary: Paired


def seed_nulls(study: Study) -> list[Null]:
    """Every pair of seeds of every arm that share a case, of the final output."""
    nulls = []
    for arm in study.arms:
        rows = study.side(arm).reset_index()
        seeds = sorted(set(rows["seed"].tolist()))
        of_seed = {seed: rows[rows["seed"] == seed].assign(seed=0).set_index(KEYS) for seed in seeds}
        for first, second in itertools.combinations(seeds, 2):
            table = case_means(pair_rows(of_seed[first], of_seed[second], "dice").scores)
            if not table.empty:
                nulls.append(Null(arm, first, second, summarise(study.with_subjects(table))))
    return nulls
