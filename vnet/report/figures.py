"""The figures of a report: which, in which section, under which name and caption."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure as Chart

from vnet.evaluation.comparison import arm_means, refinement_comparisons
from vnet.evaluation.pairs import MEAN
from vnet.evaluation.refinement import ALL
from vnet.report import charts
from vnet.report.costs import ALONE, costs
from vnet.report.formatting import comparison_name
from vnet.report.refinement_counts import by_bin
from vnet.report.report import Report
from vnet.report.subgroups import OF_STRUCTURES

TITLES = {
    ALONE: "seconds per training step, alone",
    "seconds_per_step": "seconds per training step",
    "multiply_adds": "multiply-adds (G)",
}


@dataclass(frozen=True)
class Figure:
    """One chart of the report.

    Attributes:
        section: of the page: `differences`, `costs`, `cases` or `where`.
        name: of its file.
        svg: text that takes its ink from the page.
        caption: what the chart shows.
    """

    section: str
    name: str
    svg: str
    caption: str

    def file(self) -> str:
        """The figure as a file of its own, in a grey that reads on white and on near black."""
        return self.svg.replace("currentColor", charts.GREY)


def figures_of(report: Report) -> list[Figure]:
    """Every figure, in the order of the page."""
    parts = (
        ("differences", _forest(report)),
        ("costs", _accuracy_cost(report)),
        ("cases", _dumbbells(report)),
        ("where", _where(report)),
    )
    return [
        Figure(section, _plain(name), charts.svg(figure, name), caption)
        for section, found in parts
        for name, figure, caption in found
    ]


Found = Iterator[tuple[str, Chart, str]]  # name, chart, caption


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")


def _shown(report: Report) -> list[str]:
    return list(dict.fromkeys([*report.named, *report.others, *refinement_comparisons(report.study)]))


def _forest(report: Report) -> Found:
    if any(d.summary for d in report.differences):
        figure = charts.forest(report.differences, _shown(report), report.margin.dice if report.margin else None)
        yield (
            "forest",
            figure,
            "Right of 0 the first arm is better. Squares: mean over the structures of a case; dots: each structure."
            " Thin grey lines: the seed spread, where it is known.",
        )


def _accuracy_cost(report: Report) -> Found:
    means = arm_means(report.study)
    means = means[(means["structure"] == MEAN) & means["side"].isin(report.study.arms)]
    dice = {str(side): float(value) for side, value in zip(means["side"], means["dice"], strict=True)}
    by_arm = costs(report.study)
    alone = all(math.isfinite(values[ALONE]) for values in by_arm.values())
    for key in (ALONE if alone else "seconds_per_step", "multiply_adds"):
        if any(math.isfinite(values[key]) for values in by_arm.values()):
            title = TITLES[key]
            figure = charts.accuracy_cost(dice, by_arm, key, title)
            yield key, figure, f"Up and left is better. Arrows add the head to the same network: {title}."


def _dumbbells(report: Report) -> Found:
    found = {d.comparison for d in report.differences if d.summary and d.structure == MEAN and d.metric == "dice"}
    for name in _shown(report):
        if name in found:
            yield f"cases {name}", charts.dumbbells(report.study, name), comparison_name(name)


def _where(report: Report) -> Found:
    rows, study = report.refined, report.study
    if rows.empty or not study.heads:
        return
    surface, margin = (by_bin(rows, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
    figure = charts.fixed_and_broken(surface, "distance to the true surface (mm)")
    yield "surface", figure, "Voxels fixed (up) and broken (down)."
    caption = "A margin that means something falls from left to right before refinement, near the dotted line."
    yield "calibration", charts.calibration(margin), caption
    for structure in study.structures:
        counts = by_bin(rows, structure, "distance_upto_mm")
        if counts:
            title = f"{structure}: distance to its true surface (mm)"
            yield f"surface {structure}", charts.fixed_and_broken(counts, title), structure
    own = refinement_comparisons(study)[0]
    for column, title in OF_STRUCTURES.items():
        if column in study.cases:
            unit = f"{title} (ml)" if column.endswith("_ml") else title
            caption = f"{comparison_name(own)}, by {title}; a point a case."
            yield f"gain {column}", charts.gain_by(study, own, column, unit), caption
