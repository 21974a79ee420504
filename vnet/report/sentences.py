"""The sentences of a report: the headline, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from vnet.evaluation.comparison import Difference, Null
from vnet.evaluation.pairs import MEAN, sides_of
from vnet.evaluation.statistics import RUNS_TO_RESAMPLE
from vnet.evaluation.study_tables import Study
from vnet.evaluation.verdicts import NO_DIFFERENCE, THESE, THIS, EquivalenceMargin
from vnet.report.costs import ALONE, costs
from vnet.report.formatting import change, interval, listed, over_trainings, p_equation, score, side_name, spread

QUESTION = "Does point refinement (PointRend) help V-Net, where, and at what price?"
SHOWN_UNPAIRED = 5


def headline(
    study: Study, differences: Sequence[Difference], named: Sequence[str], margin: EquivalenceMargin | None
) -> list[str]:
    """Two sentences: the first comparison named beforehand, and the next one of the same arm (else the next one)."""
    of_dice = [d for d in differences if d.summary and d.structure == MEAN and d.metric == "dice"]
    found = [d for d in of_dice if d.comparison in named]
    if not found:
        return [nothing_to_say(of_dice)]
    same = [d for d in found[1:] if sides_of(d.comparison)[0] == sides_of(found[0].comparison)[0]]
    by_arm = costs(study)
    return [sentence(d, margin, by_arm) for d in [found[0], *(same or found[1:])[:1]]]


def nothing_to_say(of_dice: Sequence[Difference]) -> str:
    """Why there is no headline.

    Args:
        of_dice: differences of mean Dice that share a case.
    """
    if of_dice:
        return "No comparison was named beforehand (study.comparisons), so nothing is claimed."
    return "Nothing to compare: no two arms share a scored case."


def sentence(
    difference: Difference, margin: EquivalenceMargin | None, by_arm: Mapping[str, Mapping[str, float]]
) -> str:
    """The verdict on a difference of mean foreground Dice, its numbers, the costs, and what had no partner."""
    summary, means = difference.summary, difference.means
    assert summary is not None
    assert means is not None
    first, second = map(side_name, sides_of(difference.comparison))
    facts = [
        f"{change('dice', summary.mean)} mean foreground Dice, {' against '.join(score('dice', m) for m in means)}"
    ]
    if math.isfinite(summary.low):
        facts.append(f"95 % interval {interval('dice', summary.low, summary.high)}")
    if summary.over_trainings is not None:
        facts.append(f"over {summary.runs} trainings {over_trainings(difference)}")
    if difference.seed_spread is not None:
        facts.append(f"seed spread {spread('dice', difference.seed_spread)}")
    facts.append(f"{summary.cases} cases")
    if difference.p_holm is not None and math.isfinite(difference.p_holm):
        facts.append(f"{p_equation(difference.p_holm)} after Holm's correction")
    price = _price(first, second, by_arm)
    return f"{_claim(difference, margin)} ({', '.join(facts)}){price}.{_without_partner(difference)}"


def scope(differences: Sequence[Difference]) -> str:
    """A sentence on whether the intervals speak of these trained networks, or of networks trained again."""
    summaries = [d.summary for d in differences if d.summary]
    if not summaries:
        return ""
    if all(s.runs_resampled for s in summaries):
        return "The intervals resample cases and runs: they speak of networks trained again on such data."
    return (
        f"Where a comparison rests on fewer than {RUNS_TO_RESAMPLE} runs, its 95 % interval resamples cases only: it"
        " speaks of these trained networks on such cases, not of networks trained again. The interval over trainings"
        " (Student's t over their means) speaks of networks trained again; a single training has none."
    )


def null_sentences(nulls: Sequence[Null]) -> list[str]:
    """What the interval over cases shows where nothing is to be found, a sentence an arm with several seeds."""
    sentences = []
    for arm, group in groupby(nulls, key=lambda null: null.arm):
        pairs = list(group)
        shown = [
            f"seed {n.first} - seed {n.second} {change('dice', n.summary.mean)}"
            f" ({interval('dice', n.summary.low, n.summary.high)})"
            for n in pairs
        ]
        excluded = sum(n.summary.low > 0 or n.summary.high < 0 for n in pairs)
        sentences.append(
            f"Null of {arm}, the same interval between trainings that differ in the seed alone: {', '.join(shown)};"
            f" {excluded} of {len(pairs)} exclude 0, though there is no difference to find."
        )
    return sentences


def margin_sentence(margin: EquivalenceMargin | None) -> str:
    """The equivalence margin with its reason; empty where there is none."""
    return f"Equivalence margin: ±{margin.dice:g} Dice. Reason: {margin.reason.rstrip('.')}." if margin else ""


def _claim(difference: Difference, margin: EquivalenceMargin | None) -> str:
    first, second = map(side_name, sides_of(difference.comparison))
    verdict, summary = difference.verdict, difference.summary
    assert summary is not None
    within = f"the margin of {margin.dice:g} Dice" if margin else ""
    where = ""
    if verdict.endswith(THESE):
        where = f"In these {summary.runs} trainings "
    elif verdict.endswith(THIS):
        where = "In this training "
    said = verdict.removesuffix(THESE).removesuffix(THIS)
    side, _, equivalent = said.partition(", but ")
    by_less = f", by less than {within}" if equivalent else ""
    if side in ("better", "worse"):
        return f"{where}{first} {'did' if where else 'is'} {side} than {second}{by_less}"
    if side == "equivalent":
        return f"{where}{first} and {second} {'were' if where else 'are'} equivalent within {within}"
    if verdict == NO_DIFFERENCE:
        return f"No difference between {first} and {second} is shown"
    return f"{first} and {second} share too few cases to tell"


def _without_partner(difference: Difference) -> str:
    if not difference.unpaired:
        return ""
    return f" Left out, as the other side did not score it: {listed(difference.unpaired, SHOWN_UNPAIRED)}."


def _price(first: str, second: str, by_arm: Mapping[str, Mapping[str, float]]) -> str:
    alone = all(math.isfinite(by_arm.get(arm, {}).get(ALONE, math.nan)) for arm in (first, second))
    step = [by_arm.get(arm, {}).get(ALONE if alone else "seconds_per_step", math.nan) for arm in (first, second)]
    if first == second or not all(map(math.isfinite, step)) or not step[1]:
        return ""
    return f", at {step[0] / step[1]:.2f} times the seconds per training step"
