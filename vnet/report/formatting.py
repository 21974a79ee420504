"""Numbers and names as text: one way to write a metric, an interval, a p-value, a comparison."""

from __future__ import annotations

import math

from vnet.evaluation.comparison import Difference
from vnet.evaluation.study_tables import UNREFINED

METRIC_TITLES = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "band_dice": "Dice within 2 mm",
}


def score(metric: str, value: float) -> str:
    """A metric's mean: four digits of a Dice, two of millimetres, `-` where there is none."""
    return "-" if math.isnan(value) else f"{value:.{_digits(metric)}f}"


def change(metric: str, value: float) -> str:
    """As `score`, with its sign."""
    return "-" if math.isnan(value) else f"{value:+.{_digits(metric)}f}"


def interval(metric: str, low: float, high: float) -> str:
    return f"{change(metric, low)} to {change(metric, high)}"


def p_value(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def side_name(side: str) -> str:
    return side.replace(UNREFINED, " unrefined")


def comparison_name(comparison: str) -> str:
    first, second = comparison.split(" - ")
    if second == first + UNREFINED:
        return f"{first}: refined - unrefined"
    return f"{side_name(first)} - {side_name(second)}"


def spread(difference: Difference) -> str:
    """The seed spread in the digits of the metric, `~` before one that other comparisons lend; `-` for none."""
    value = difference.seed_spread
    if value is None or math.isnan(value):
        return "-"
    return ("" if difference.spread_measured else "~") + score(difference.metric, value)


def _digits(metric: str) -> int:
    return 2 if metric.endswith("_mm") else 4
