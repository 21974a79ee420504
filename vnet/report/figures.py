"""The figures of a report: which chart, in which section, under which name and caption."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Chart

from vnet.evaluation.comparison import MEAN, Difference, arm_means, refinement_comparisons
from vnet.evaluation.refinement import ALL
from vnet.evaluation.study_tables import Study
from vnet.report import charts
from vnet.report.arms import ALONE, costs
from vnet.report.charts import svg_text
from vnet.report.curves import mean_curves
from vnet.report.report import Report
from vnet.report.subgroups import OF_STRUCTURES, Counts, by_bin, case_anchors
from vnet.report.tables import change, comparison_name, score

COST_TITLES = {
    ALONE: "seconds per training step, alone",
    "seconds_per_step": "seconds per training step",
    "multiply_adds": "multiply-adds (G)",
}
TOGETHER = 8  # structures up to which all comparisons share one chart


@dataclass(frozen=True)
class Figure:
    """One chart of the report.

    Attributes:
        section: of the page: `differences`, `costs`, `curves`, `cases` or `where`.
        name: of its file.
        svg: text that takes its ink from the page.
        caption: what the chart shows.
    """

    section: str
    name: str
    svg: str
    caption: str

    def file(self) -> str:
        """The figure as a file of its own, in a grey that reads on white and on near black; links lead to the page."""
        return self.svg.replace("currentColor", charts.GREY).replace('<a href="#', '<a href="../report.html#')


@dataclass(frozen=True)
class Drawn:
    """A chart with its words.

    Attributes:
        seen: what a reader who cannot see the chart is told: its numbers in a sentence.
    """

    name: str
    chart: Chart
    caption: str
    seen: str


def figures_of(report: Report) -> list[Figure]:
    """Every figure, in the order of the page."""
    parts = (
        ("differences", _forests(report)),
        ("costs", _accuracy_cost(report)),
        ("curves", _learning_curves(report.study)),
        ("cases", _dumbbells(report)),
        ("where", _where(report)),
    )
    return [_figure(section, drawn) for section, found in parts for drawn in found]


def _figure(section: str, drawn: Drawn) -> Figure:
    name = re.sub(r"\W+", "_", drawn.name).strip("_")
    return Figure(section, name, svg_text(drawn.chart, name, drawn.caption, drawn.seen), drawn.caption)


def _shown(report: Report) -> list[str]:
    return list(dict.fromkeys([*report.named, *report.others, *refinement_comparisons(report.study)]))


def _forests(report: Report) -> Iterator[Drawn]:
    of_dice = [d for d in report.differences if d.metric == "dice" and d.summary]
    means = [d for name in _shown(report) for d in of_dice if d.comparison == name and d.structure == MEAN]
    if not means:
        return
    margin = report.margin.dice if report.margin else None
    lines = "Thick lines: 95 % interval over cases. Thin lines: over trainings, where there are few."
    caption = f"Mean foreground Dice: right of 0 the first arm is better. {lines}"
    yield Drawn("forest", charts.forest(means, margin), caption, _differences_seen(means))
    wanted = [*report.named, *report.others]
    rows = [d for name in wanted for d in of_dice if d.comparison == name]
    if not rows:  # one arm alone: the means are what its own head does
        return
    if len(report.study.structures) <= TOGETHER:
        caption = f"Dice of each structure below the mean of its comparison. {lines}"
        yield Drawn("forest structures", charts.forest(rows, margin), caption, _differences_seen(rows))
        return
    for name in wanted:
        own = [d for d in rows if d.comparison == name]
        caption = f"{comparison_name(name)}, Dice of each structure. {lines}"
        yield Drawn(f"forest {name}", charts.forest(own, margin), caption, _differences_seen(own))


def _differences_seen(differences: Sequence[Difference]) -> str:
    return "; ".join(
        f"{comparison_name(d.comparison)}, {d.structure}: {change('dice', d.summary.mean)}"
        for d in differences
        if d.summary
    )


def _accuracy_cost(report: Report) -> Iterator[Drawn]:
    means = arm_means(report.study)
    means = means[(means["structure"] == MEAN) & means["side"].isin(report.study.arms)]
    dice = {str(side): float(value) for side, value in zip(means["side"], means["dice"], strict=True)}
    by_arm = costs(report.study)
    alone = all(math.isfinite(values[ALONE]) for values in by_arm.values())
    for key in (ALONE if alone else "seconds_per_step", "multiply_adds"):
        known = {arm: values[key] for arm, values in by_arm.items() if math.isfinite(values[key])}
        if known:
            title = COST_TITLES[key]
            chart = charts.accuracy_cost(dice, by_arm, key, title)
            caption = f"Dice against {title}: up and left is better. Arrows add the head to the same network."
            seen = "; ".join(f"{arm}: Dice {score('dice', dice[arm])} at {value:.4g}" for arm, value in known.items())
            yield Drawn(key, chart, caption, seen)


def _learning_curves(study: Study) -> Iterator[Drawn]:
    curves = mean_curves(study)
    if curves:
        caption = "Validation Dice while training, a line an arm, mean over its runs."
        ends = (
            f"{arm}: {score('dice', [*curve.values()][-1])} at step {[*curve][-1]}" for arm, curve in curves.items()
        )
        yield Drawn("learning curves", charts.learning_curves(curves), caption, "; ".join(ends))


def _dumbbells(report: Report) -> Iterator[Drawn]:
    found = {d.comparison: d for d in report.differences if d.structure == MEAN and d.metric == "dice"}
    anchors = case_anchors(report.study)
    for name in _shown(report):
        summary = found[name].summary
        if summary:
            caption = f"{comparison_name(name)}, case by case. Each line leads to the row of its case."
            seen = f"Better in {summary.better:.0%} and worse in {summary.worse:.0%} of {summary.cases} cases"
            yield Drawn(f"cases {name}", charts.dumbbells(report.study, name, anchors), caption, seen)


def _where(report: Report) -> Iterator[Drawn]:
    rows, study = report.refined, report.study
    if rows.empty or not study.heads:
        return
    surface, margin = (by_bin(rows, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
    in_table = "The table below holds the numbers"
    caption = "Voxels fixed (up) and broken (down), by distance to the true surface."
    yield Drawn("surface", charts.fixed_and_broken(surface, "distance to the true surface (mm)"), caption, in_table)
    caption = "A margin that means something falls from left to right before refinement, near the dotted line."
    yield Drawn("calibration", charts.calibration(margin), caption, in_table)
    for structure in study.structures:
        counts = by_bin(rows, structure, "distance_upto_mm")
        if counts:
            chart = charts.fixed_and_broken(counts, "distance to its true surface (mm)")
            caption = f"{structure}: voxels fixed (up) and broken (down), by distance to its true surface."
            yield Drawn(f"surface {structure}", chart, caption, _voxels_seen(counts))
    own = refinement_comparisons(study)[0]
    for column, title in OF_STRUCTURES.items():
        if column in study.cases:
            unit = f"{title} (ml)" if column.endswith("_ml") else title
            caption = f"{comparison_name(own)}, by {title}; a point a case and structure."
            yield Drawn(
                f"gain {column}", charts.gain_by(study, own, column, unit), caption, "Thirds are in a table below"
            )


def _voxels_seen(counts: Counts) -> str:
    seen = []
    for arm, table in counts.items():
        fixed, broken = (sum(voxels[kind] for voxels in table.values()) for kind in ("fixed", "broken"))
        seen.append(f"{arm}: {fixed:,} fixed, {broken:,} broken")
    return "; ".join(seen)
