"""Numbers and names as text: one way to write a metric, an interval, a p-value, a comparison."""

from __future__ import annotations

import math

from vnet.evaluation.comparison import Difference
from vnet.evaluation.statistics import SeedSpread
from vnet.evaluation.study_tables import UNREFINED, Study

METRIC_TITLES = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "band_dice": "Dice within 2 mm",
}
MISSED_MARK = "†"  # behind a distance that holds missed or invented structures
CHANGED_MARK = "+"  # behind an arm with a run from a changed tree, as in its commit


def score(metric: str, value: float) -> str:
    """A metric's mean: four digits of a Dice, two of millimetres, `-` where there is none."""
    return "-" if math.isnan(value) else f"{value:.{_digits(metric)}f}"


def change(metric: str, value: float) -> str:
    """As `score`, with its sign."""
    return "-" if math.isnan(value) else f"{value:+.{_digits(metric)}f}"


def interval(metric: str, low: float, high: float) -> str:
    """`-0.0005 to +0.0022`, in the digits of the metric."""
    return f"{change(metric, low)} to {change(metric, high)}"


def p_value(p: float) -> str:
    """Four digits, `< 0.0001` below, `-` where there is none."""
    return "-" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def p_equation(p: float) -> str:
    """`p = 0.0432` or `p < 0.0001`."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def side_name(side: str) -> str:
    """`pointrend_s2 unrefined` for `pointrend_s2:unrefined`; a final output has the name of its arm."""
    return side.replace(UNREFINED, " unrefined")


def marked_side(study: Study, side: str) -> str:
    """The name of a side, marked where a run of its arm was made from a changed tree."""
    arm = side.removesuffix(UNREFINED)
    return side_name(side) + (f" {CHANGED_MARK}" if study.changed_runs(arm) else "")


def changed_note(study: Study) -> str:
    """A sentence on the mark of arms from a changed tree; empty where there is none."""
    counts = {arm: study.changed_runs(arm) for arm in study.arms}
    if not any(counts.values()):
        return ""
    of_arms = ", ".join(f"{arm} {count}" for arm, count in counts.items() if count)
    return f" {CHANGED_MARK}: runs of the arm were made from a tree that differs from its commit ({of_arms})."


def comparison_name(comparison: str) -> str:
    """A comparison for the reader: `pointrend_s2: refined - unrefined` for both outputs of one checkpoint."""
    first, second = comparison.split(" - ")
    if second == first + UNREFINED:
        return f"{first}: refined - unrefined"
    return f"{side_name(first)} - {side_name(second)}"


def spread(metric: str, value: SeedSpread | None) -> str:
    """`0.0013 (0.0007 to 0.0082, n = 3)`: standard deviation, its 95 % interval, trainings; `-` for none."""
    if value is None:
        return "-"
    low, high = score(metric, value.low), score(metric, value.high)
    return f"{score(metric, value.sd)} ({low} to {high}, n = {value.trainings})"


def over_trainings(difference: Difference) -> str:
    """The t interval over trainings; `in the interval` where the bootstrap holds them, `one training` with one."""
    summary = difference.summary
    if summary is None:
        return "-"
    if summary.over_trainings is None:
        return "in the interval" if summary.runs_resampled else "one training"
    return interval(difference.metric, *summary.over_trainings)


def listed(names: list[str] | tuple[str, ...], most: int) -> str:
    """The first `most` names with commas, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _digits(metric: str) -> int:
    return 2 if metric.endswith("_mm") else 4
