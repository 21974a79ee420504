"""The differences between arms: which arm is better, in which structure, by how much.

A *side* of a comparison is an arm's final output (`pointrend_s2`: refined where the arm has a head) or the
unrefined output of the same checkpoint (`pointrend_s2:unrefined`). Comparisons are written `FIRST - SECOND`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from vnet.core.errors import InputError
from vnet.evaluation.metrics import HIGHER_IS_BETTER
from vnet.evaluation.statistics import Paired, holm, summarise, verdict
from vnet.evaluation.study_tables import UNREFINED, Study

MEAN = "mean"  # of the foreground structures of a case
USUAL = (
    "pointrend_s2 - coarse_s2",
    "pointrend_s4 - coarse_s4",
    "pointrend_s2 - dense",
    "pointrend_s1 - dense",
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison in one structure (or their `MEAN`) and metric."""

    comparison: str
    structure: str
    metric: str
    summary: Paired | None  # None where the sides share no case
    p_holm: float | None  # of the confirmatory tests only
    verdict: str
    one_sided: int  # pairs left out as one side is blank: the structure is absent, and one side alone predicted it
    seed_spread: float | None  # standard deviation between seeds of the mean difference; None where nothing tells
    spread_measured: bool = True  # False: it is that of other comparisons, pooled

    @property
    def confirmatory(self) -> bool:
        return self.p_holm is not None


def usual_comparisons(study: Study) -> list[str]:
    """Those of the study's config, else the contract's among the arms present, else every arm against the first."""
    named = [c for c in study.settings.get("comparisons") or () if _sides_present(study, str(c))]
    usual = [c for c in USUAL if _sides_present(study, c)]
    first = study.arms[0]
    return named or usual or [f"{arm} - {first}" for arm in study.arms[1:]]


def refinement_comparisons(study: Study) -> list[str]:
    """Refinement on and off on one checkpoint, an arm with a head each."""
    return [f"{arm} - {arm}{UNREFINED}" for arm in study.heads]


def check_comparisons(study: Study, comparisons: Iterable[str]) -> None:
    """Raises InputError for a comparison that is not `A - B` of sides present in the study."""
    faults = [
        f"comparison {c!r}: must be `A - B` of {', '.join(study.arms)} (`:unrefined` after an arm with a head)"
        for c in comparisons
        if not _sides_present(study, c)
    ]
    if faults:
        raise InputError(faults)


def compare(study: Study, comparisons: Sequence[str], margin: float | None = None) -> list[Difference]:
    """Every comparison by metric and structure, the mean over structures first.

    The comparisons' mean foreground Dice are the confirmatory tests, corrected together by Holm's rule;
    refinement on and off is added for every arm with a head, and is exploratory like all else, unless it is
    named.

    Args:
        comparisons: named beforehand, as `pointrend_s2 - coarse_s2`.
        margin: Dice within which two sides are equivalent.
    """
    check_comparisons(study, comparisons)
    own = [name for name in refinement_comparisons(study) if name not in comparisons]
    found = [
        (name, structure, metric, *_paired(study, name, structure, metric))
        for name in [*comparisons, *own]
        for structure in (MEAN, *study.structures)
        for metric in study.metrics
    ]
    tested = {
        i: summary.p
        for i, (name, structure, metric, summary, _) in enumerate(found)
        if summary and name in comparisons and structure == MEAN and metric == "dice"
    }
    p_holm = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Difference(
            comparison=name,
            structure=structure,
            metric=metric,
            summary=summary,
            p_holm=p_holm.get(i),
            verdict=_verdict(summary, metric, margin),
            one_sided=one_sided,
            seed_spread=summary.seed_spread if summary else None,
        )
        for i, (name, structure, metric, summary, one_sided) in enumerate(found)
    ]


def with_spread_of(differences: Sequence[Difference], others: Sequence[Difference]) -> list[Difference]:
    """Differences without a seed spread of their own take that of `others`: of the same comparison, structure and
    metric where it was measured, else the root mean square over the comparisons of different arms that were."""
    measured = {(d.comparison, d.structure, d.metric): d.seed_spread for d in others if d.seed_spread is not None}
    found = []
    for d in differences:
        if d.seed_spread is None and d.summary is not None:
            own = measured.get((d.comparison, d.structure, d.metric))
            alike = [
                spread**2
                for (comparison, *rest), spread in measured.items()
                if rest == [d.structure, d.metric] and (UNREFINED in comparison) == (UNREFINED in d.comparison)
            ]
            pooled = (sum(alike) / len(alike)) ** 0.5 if alike else None
            d = replace(d, seed_spread=pooled if own is None else own, spread_measured=own is not None)
        found.append(d)
    return found


def paired_structures(study: Study, comparison: str, metric: str) -> pd.DataFrame:
    """Both sides of a comparison, a row a run, case and structure, without pairs that are blank in either side:
    `fold, seed, case, structure, first, second, difference`."""
    pairs = _structure_pairs(study, comparison, MEAN, metric).dropna().reset_index()
    return pairs.assign(difference=pairs["first"] - pairs["second"])


def paired_cases(study: Study, comparison: str, structure: str, metric: str) -> pd.DataFrame:
    """Both sides of a comparison, a row a run and case: `fold, seed, case, first, second, difference`.

    Pairs that are blank in either side are left out; under `MEAN`, both sides average over the same
    structures.
    """
    return _case_means(_structure_pairs(study, comparison, structure, metric))


def arm_means(study: Study) -> pd.DataFrame:
    """Mean of each metric over cases, a row a side and structure: `side, structure, runs, cases, missed`, metrics.

    Seeds are averaged within a case first; `missed` counts rows (run and case) with a Dice of 0.
    """
    rows = []
    sides = [side for arm in study.arms for side in ([arm] + [arm + UNREFINED] * (arm in study.heads))]
    for side in sides:
        table = study.side(side).reset_index()
        for structure in (MEAN, *study.structures):
            part = table if structure == MEAN else table[table["structure"] == structure]
            by_case = part.groupby(["fold", "seed", "case"])[study.metrics].mean().groupby("case").mean()
            row: dict[Any, Any] = {
                "side": side,
                "structure": structure,
                "runs": len(part[["fold", "seed"]].drop_duplicates()),
                "cases": int(by_case["dice"].notna().sum()),
                "missed": int((part["dice"] == 0).sum()),
            }
            rows.append(row | by_case.mean().to_dict())
    return pd.DataFrame(rows)


def _sides_present(study: Study, comparison: str) -> bool:
    sides = comparison.split(" - ")
    known = {*study.arms, *(arm + UNREFINED for arm in study.heads)}
    return len(sides) == 2 and sides[0] != sides[1] and all(side.strip() in known for side in sides)


def _structure_pairs(study: Study, comparison: str, structure: str, metric: str) -> pd.DataFrame:
    first, second = (study.side(side.strip())[metric] for side in comparison.split(" - "))
    pairs = pd.DataFrame({"first": first, "second": second.reindex(first.index)})
    pairs = pairs[first.index.isin(second.index)]
    return pairs if structure == MEAN else pairs[pairs.index.get_level_values("structure") == structure]


def _case_means(pairs: pd.DataFrame) -> pd.DataFrame:
    means = pairs.dropna().groupby(["fold", "seed", "case"])[["first", "second"]].mean().reset_index()
    return means.assign(difference=means["first"] - means["second"])


def _paired(study: Study, comparison: str, structure: str, metric: str) -> tuple[Paired | None, int]:
    pairs = _structure_pairs(study, comparison, structure, metric)
    one_sided = int((pairs["first"].isna() ^ pairs["second"].isna()).sum())
    table = _case_means(pairs)
    if table.empty:
        return None, one_sided
    return summarise(table, higher_is_better=HIGHER_IS_BETTER[metric]), one_sided


def _verdict(summary: Paired | None, metric: str, margin: float | None) -> str:
    if summary is None:
        return "no shared case"
    # the margin is one of Dice
    return verdict(summary, margin if metric == "dice" else None, higher_is_better=HIGHER_IS_BETTER[metric])
