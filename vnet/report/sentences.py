"""The words of a report, made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vnet.evaluation.comparison import MEAN, Difference
from vnet.evaluation.statistics import RUNS_TO_RESAMPLE
from vnet.evaluation.study_tables import Study
from vnet.report.costs import ALONE, costs
from vnet.report.formatting import change, interval, p_value, side_name, spread

OWN = "seconds_per_step"
QUESTION = "Does point refinement (PointRend) help V-Net, where, and at what price?"


def headline(study: Study, differences: Sequence[Difference], named: Sequence[str], margin: float | None) -> list[str]:
    """Two sentences: the first named comparison, and the next one of the same arm (else the next one)."""
    found = [
        d for d in differences if d.summary and d.comparison in named and d.structure == MEAN and d.metric == "dice"
    ]
    same = [d for d in found[1:] if d.comparison.split(" - ")[0] == found[0].comparison.split(" - ")[0]]
    sentences = [sentence(d, margin, costs(study)) for d in [*found[:1], *(same or found[1:])[:1]]]
    return sentences or ["The named arms share no case yet: there is nothing to compare."]


def sentence(difference: Difference, margin: float | None, by_arm: Mapping[str, Mapping[str, float]]) -> str:
    """What the interval of a difference of mean foreground Dice says, and what the first arm costs."""
    summary = difference.summary
    assert summary is not None
    first, second = (side_name(side) for side in difference.comparison.split(" - "))
    said = {
        "better": f"{first} is better than {second}",
        "worse": f"{first} is worse than {second}",
        "equivalent": f"{first} and {second} are equivalent within {margin or 0:g} Dice",
        "better, but equivalent": f"{first} is better than {second}, by less than the margin of {margin or 0:g} Dice",
        "worse, but equivalent": f"{first} is worse than {second}, by less than the margin of {margin or 0:g} Dice",
        "no difference shown": f"No difference between {first} and {second} is shown",
    }.get(difference.verdict, f"{first} and {second} share too few cases to tell")
    facts = [f"{change('dice', summary.mean)} mean foreground Dice"]
    if math.isfinite(summary.low):
        facts.append(f"95 % interval {interval('dice', summary.low, summary.high)}")
    if difference.seed_spread is not None:
        facts.append(f"seed spread {spread(difference)}")
    facts.append(f"{summary.cases} cases")
    if difference.p_holm is not None:
        facts.append(f"p {_with_sign(p_value(difference.p_holm))} after Holm's correction")
    price = _price(first, second, by_arm)
    return f"{said} ({', '.join(facts)}){price}."


def scope(differences: Sequence[Difference]) -> str:
    """What the intervals speak of."""
    summaries = [d.summary for d in differences if d.summary]
    if not summaries:
        return ""
    if all(s.runs_resampled for s in summaries):
        return "The intervals resample cases and runs: they speak of networks trained again on such data."
    return (
        f"Where a comparison rests on fewer than {RUNS_TO_RESAMPLE} runs, its interval resamples cases only: it speaks"
        " of these trained networks on such cases, not of networks trained again. The seed spread, where there are"
        " several seeds, says how far another training may lie."
    )


def _price(first: str, second: str, by_arm: Mapping[str, Mapping[str, float]]) -> str:
    key = ALONE if all(math.isfinite(by_arm.get(arm, {}).get(ALONE, math.nan)) for arm in (first, second)) else OWN
    step = [by_arm.get(arm, {}).get(key, math.nan) for arm in (first, second)]
    if first == second or not all(map(math.isfinite, step)) or not step[1]:
        return ""
    return f", at {step[0] / step[1]:.2f} times the seconds per training step"


def _with_sign(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"
