"""Verdicts: what the intervals and the test of a comparison allow to say.

- `better` or `worse` needs `FEWEST_CASES` cases, an interval over cases on one side of 0, and a p below `ALPHA`.
- `equivalent` needs `FEWEST_CASES` cases and an interval over cases within the equivalence margin.
- With fewer trainings than a bootstrap can resample, the t interval over trainings must agree; otherwise the verdict
  speaks of the trainings made: `better in these trainings`, and of a single one `better in this training`.
- Else the verdict is `no difference shown` or `too few cases (n)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vnet.evaluation.statistics import Paired

ALPHA = 0.05
FEWEST_CASES = 6  # with five, no two-sided signed-rank test reaches .05
NO_DIFFERENCE = "no difference shown"
THESE, THIS = " in these trainings", " in this training"


@dataclass(frozen=True)
class EquivalenceMargin:
    """Difference of Dice within which two arms are called equivalent, and why it is that large."""

    dice: float
    reason: str


def verdict(summary: Paired, p: float, margin: float | None = None, *, higher_is_better: bool = True) -> str:
    """The verdict on `first - second`, as the module says.

    Args:
        p: of the test; after Holm's correction for a comparison named beforehand.
        margin: difference within which two arms are equivalent; None for no such verdict.
        higher_is_better: which sign of the difference is the better one.

    Returns:
        `better`, `worse`, `equivalent`, `better, but equivalent` or `worse, but equivalent`, with ` in these trainings`
        or ` in this training` behind it where it holds for no more; `no difference shown`; or `too few cases (n)`.
    """
    if summary.cases < FEWEST_CASES or not math.isfinite(summary.low):
        return f"too few cases ({summary.cases})"
    over_cases = _claims((summary.low, summary.high), margin, higher_is_better)
    if not p < ALPHA:
        over_cases = over_cases & {"equivalent"}
    if not over_cases:
        return NO_DIFFERENCE
    said = ", but ".join(word for word in ("better", "worse", "equivalent") if word in over_cases)
    if summary.runs_resampled:
        return said
    if summary.over_trainings is None:
        return said + THIS
    over_trainings = _claims(summary.over_trainings, margin, higher_is_better)
    return said if over_cases <= over_trainings else said + THESE


def _claims(interval: tuple[float, float], margin: float | None, higher_is_better: bool) -> set[str]:
    """What an interval alone shows, among better, worse and equivalent."""
    low, high = interval if higher_is_better else (-interval[1], -interval[0])
    shown = {
        "better": low > 0,
        "worse": high < 0,
        "equivalent": margin is not None and -margin <= low and high <= margin,
    }
    return {claim for claim, holds in shown.items() if holds}
