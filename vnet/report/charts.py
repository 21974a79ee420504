"""Figures of a comparison as SVG text that takes its ink from the page, so that it reads in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from vnet.evaluation.comparison import Difference
from vnet.evaluation.pairs import MEAN, paired_cases
from vnet.evaluation.study_tables import Study
from vnet.report.formatting import comparison_name, side_name
from vnet.report.refinement_counts import Counts

# mid tones of Okabe and Ito, legible on white and on near black
BLUE, ORANGE, GREEN, GREY = "#3d8fc4", "#d9740b", "#1a9c76", "#8a8f98"
INK = "#010203"  # stands for the page's own colour until the text of the SVG is done


def svg(figure: Figure, name: str) -> str:
    """The figure as inline SVG: transparent, text kept as text, the same bytes each time."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    # a width of its own would not shrink on a phone
    return re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*"([^>]*?)(?:width|height)="[^"]*"', r"<svg \1\2", body, count=1)


def forest(differences: Sequence[Difference], named: Sequence[str], margin: float | None) -> Figure:
    """Dice differences with intervals: the mean over structures in front, each structure below it."""
    found = {(d.comparison, d.structure): d for d in differences if d.metric == "dice" and d.summary}
    rows = [(name, s) for name in named for s in dict.fromkeys(d.structure for d in differences) if (name, s) in found]
    figure, axes = _canvas(7.4, 0.75 + 0.27 * len(rows))
    if margin:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, key in enumerate(rows):
        summary = found[key].summary
        assert summary is not None
        main = key[1] == MEAN
        colour = BLUE if main else GREY
        seeds = found[key].seed_spread
        if seeds is not None:
            ends = [summary.mean - seeds.sd, summary.mean + seeds.sd]
            axes.plot(ends, [y + 0.28] * 2, color=GREY, linewidth=1, marker="|", markersize=4)
        if math.isfinite(summary.low):
            axes.plot([summary.low, summary.high], [y, y], color=colour, linewidth=2.4 if main else 1.4)
        axes.plot([summary.mean], [y], marker="s" if main else "o", color=colour, markersize=6 if main else 4)
    axes.set_yticks(range(len(rows)), [comparison_name(c) if s == MEAN else s for c, s in rows])
    for label, (_, structure) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if structure == MEAN else "normal")
    axes.invert_yaxis()
    axes.set_xlabel("difference of Dice, 95 % interval" + (f"; band: ±{margin:g}" if margin else ""))
    return figure


def accuracy_cost(dice: Mapping[str, float], costs: Mapping[str, Mapping[str, float]], key: str, title: str) -> Figure:
    """Mean foreground Dice against one cost, an arm a point; lines join coarse_sN and pointrend_sN."""
    figure, axes = _canvas(5.2, 3.4)
    unit = 1e9 if key == "multiply_adds" else 1
    places = {arm: (costs[arm][key] / unit, dice[arm]) for arm in dice if math.isfinite(costs[arm][key])}
    for arm, place in places.items():
        plain = places.get(arm.replace("pointrend", "coarse").replace("coarse_s1", "dense"))
        if arm.startswith("pointrend") and plain:
            axes.annotate("", place, plain, arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 5, "shrinkB": 5})
        axes.plot(*place, marker="o", color=BLUE if arm.startswith("pointrend") else ORANGE, markersize=7)
        side, offset = ("right", -6) if has_name_right(place, places.values()) else ("left", 6)
        axes.annotate(arm, place, (offset, 5), textcoords="offset points", color=INK, fontsize=8, ha=side)
    axes.set_xlabel(title)
    axes.set_ylabel("mean foreground Dice")
    axes.margins(x=0.2, y=0.15)
    axes.set_xlim(left=0)
    return figure


def has_name_right(place: tuple[float, float], places: Iterable[tuple[float, float]]) -> bool:
    """Whether a name on the right of a point would run into that of another point at about its height."""
    points = np.array(list(places))
    reach, height = 0.35 * points[:, 0].max(), 0.08 * np.ptp(points[:, 1])
    ahead = points - place
    return bool(((ahead[:, 0] > 0) & (ahead[:, 0] < reach) & (abs(ahead[:, 1]) < height)).any())


def dumbbells(study: Study, comparison: str) -> Figure:
    """Mean foreground Dice of each case on both sides, a line a case, sorted by their difference."""
    pairs = paired_cases(study, comparison, MEAN, "dice").groupby("case")[["first", "second", "difference"]].mean()
    pairs = pairs.sort_values("difference")
    figure, axes = _canvas(7.4, 2.9)
    x = np.arange(len(pairs))
    colours = [BLUE if gain >= 0 else ORANGE for gain in pairs["difference"]]
    axes.vlines(x, pairs["second"], pairs["first"], colors=colours, linewidth=1.6)
    first, second = map(side_name, comparison.split(" - "))
    axes.scatter(x, pairs["second"], s=9, color=GREY, label=second, zorder=3)
    axes.scatter(x, pairs["first"], s=12, color=colours, zorder=4)
    axes.plot([], [], color=BLUE, marker="o", markersize=4, label=f"{first}, better")
    axes.plot([], [], color=ORANGE, marker="o", markersize=4, label=f"{first}, worse")
    axes.set_xticks([])
    axes.set_xlabel(f"{len(pairs)} cases, from the largest loss to the largest gain")
    axes.set_ylabel("mean foreground Dice")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def fixed_and_broken(counts: Counts, title: str) -> Figure:
    """Voxels fixed (up) and broken (down) by bin, arms side by side, as a share of the arm's refined voxels."""
    figure, axes = _canvas(5.2, 3.0)
    bins = list(dict.fromkeys(name for table in counts.values() for name in table))
    width = 0.8 / len(counts)
    for i, (arm, table) in enumerate(counts.items()):
        total = sum(c["fixed"] + c["broken"] + c["unchanged"] for c in table.values())
        x = np.arange(len(bins)) + (i - (len(counts) - 1) / 2) * width
        for kind, sign, colour in (("fixed", 1, BLUE), ("broken", -1, ORANGE)):
            heights = [sign * 100 * table[b][kind] / total if b in table else 0 for b in bins]
            axes.bar(x, heights, width * 0.92, color=colour, alpha=1 - 0.6 * i / len(counts), label=f"{arm}: {kind}")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(bins)), bins)
    axes.set_xlabel(title)
    axes.set_ylabel("% of refined voxels")
    columns = min(len(counts), 3)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def calibration(counts: Counts) -> Figure:
    """Share of voxels that were wrong before and after refinement, by margin."""
    figure, axes = _canvas(5.2, 3.0)
    bins = list(dict.fromkeys(name for table in counts.values() for name in table))
    for (arm, table), marker in zip(counts.items(), "osD^v*" * len(counts), strict=False):
        refined = np.array([sum(table[b][k] for k in ("fixed", "broken", "unchanged")) for b in table])
        before = np.array([table[b]["wrong_before"] for b in table])
        after = before + [table[b]["broken"] - table[b]["fixed"] for b in table]
        x = [bins.index(b) for b in table]
        for wrong, colour, when in ((before, GREY, "before"), (after, BLUE, "after")):
            axes.plot(x, 100 * wrong / refined, color=colour, marker=marker, markersize=4, label=f"{arm}, {when}")
    axes.plot(range(len(bins)), [100 * _expected_wrong(b, bins) for b in bins], ":", color=ORANGE, label="softmax")
    axes.set_xticks(range(len(bins)), bins)
    axes.set_xlabel("margin of the unrefined output: best minus second-best logit")
    axes.set_ylabel("% wrong")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def gain_by(study: Study, comparison: str, column: str, title: str) -> Figure:
    """Difference of Dice of each case and structure against a property of the structure, a colour a structure."""
    figure, axes = _canvas(5.2, 3.0)
    first = study.side(comparison.split(" - ")[0])
    axes.axhline(0, color=INK, linewidth=0.8)
    for structure, colour in zip(study.structures, (BLUE, ORANGE, GREEN, GREY) * len(study.structures), strict=False):
        pairs = paired_cases(study, comparison, structure, "dice").groupby("case")["difference"].mean()
        of_structure = first[first.index.get_level_values("structure") == structure]
        property_of = of_structure.groupby("case")[column].mean().reindex(pairs.index)
        axes.scatter(property_of, pairs, s=9, color=colour, alpha=0.75, label=structure, linewidths=0)
    if column.endswith("_ml") and (first[column] > 0).any():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel(title)
    axes.set_ylabel("difference of Dice")
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    return figure


def _expected_wrong(name: str, bins: Sequence[str]) -> float:
    """Chance of the second-best class under a softmax of two, in the middle of a margin bin (its edge if open)."""
    edges = [0.0, *(float(b.removeprefix("to ")) for b in bins if b != "beyond")]
    i = bins.index(name)
    middle = (edges[i] + edges[i + 1]) / 2 if i + 1 < len(edges) else edges[-1]
    return 1 / (1 + math.exp(middle))


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    return figure, axes
