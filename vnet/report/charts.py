"""Charts of a comparison, matplotlib figures in the page's own ink, and their SVG text with links to rows.

Charts are `WIDTH_IN` wide and stand two in a row on a wide page. On a phone, where a chart has about 350 px, text of
`TEXT_PT` is 9 px high.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from vnet.data.colours import structure_colours
from vnet.evaluation.comparison import MEAN, Difference, paired_cases
from vnet.evaluation.study_tables import Study
from vnet.report.subgroups import Counts
from vnet.report.tables import comparison_name, side_name

INK = "#010203"  # stands for the page's own colour until the SVG is written


def svg_text(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as inline SVG: transparent, text kept as text, the same bytes each time.

    A link of the figure (`set_urls` of an artist) is `#ANCHOR NAME`: the anchor it leads to, and its name.

    Args:
        name: unique on the page; it starts every id.
        title, description: what a screen reader says.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :].replace(INK, "currentColor")
    # a width of its own would not shrink on a phone
    body = re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*"([^>]*?)(?:width|height)="[^"]*"', r"<svg \1\2", body, count=1)
    body = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(url\(#|xlink:href="#)([^")\s]*)(?=[")])', rf"\1{name}-\2", body)
    body, links = re.subn(r'<a xlink:href="#([^ "]*) ([^"]*)"', r'<a href="#\1" aria-label="\2"', body)
    # what has the role of an image hides its links from screen readers
    role = "group" if links else "img"
    tag, _, inner = body.partition(">")
    named = f'role="{role}" aria-labelledby="{name}-title {name}-description"'
    words = (
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-description">{escape(description)}</desc>'
    )
    return f"{tag} {named}>\n{words}{inner}"


# mid tones of Okabe and Ito, legible on white and on near black
BLUE, ORANGE, GREEN, GREY = "#3d8fc4", "#d9740b", "#1a9c76", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, GREY)
WIDTH_IN = 5.0  # 360 points: a point is .97 px where the chart has 350 px
TEXT_PT = 9.5
ROW_IN = 0.2  # of a legend
ROWS_WITHIN = 4  # of a legend that the charts have room for


def forest(differences: Sequence[Difference], margin: float | None) -> Figure:
    """Dice differences with their intervals, a row each: over cases, and thin below it over trainings.

    Args:
        differences: of Dice; rows of `MEAN` are set apart by weight and colour.
        margin: half width of the band of equivalence.
    """
    rows = [(d, d.summary) for d in differences if d.summary]
    heights = [0.42 if d.structure == MEAN else 0.27 for d, _ in rows]  # two lines of text, or one
    places = np.cumsum(heights) - np.array(heights) / 2
    figure, axes = _canvas(0.7 + sum(heights))
    if margin:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    shown = [0.0]
    for y, (d, s) in zip(places, rows, strict=True):
        main = d.structure == MEAN
        shown += [value for value in (s.mean, s.low, s.high) if math.isfinite(value)]
        if s.over_trainings is not None:
            axes.plot(s.over_trainings, [y + 0.11] * 2, color=GREY, linewidth=1, marker="|", markersize=5)
        if math.isfinite(s.low):
            axes.plot([s.low, s.high], [y, y], color=BLUE if main else GREEN, linewidth=2.4 if main else 1.6)
        axes.plot([s.mean], [y], marker="s" if main else "o", color=BLUE if main else GREEN, markersize=6)
    axes.set_yticks(places, [_row_name(d) for d, _ in rows])
    axes.set_ylim(sum(heights), 0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    # of two trainings the interval is many times as wide: it may leave the chart
    room = 0.35 * (max(shown) - min(shown) or 0.01)
    axes.set_xlim(min(shown) - room, max(shown) + room)
    axes.set_xlabel("difference of Dice" + (f"; band: ±{margin:g}" if margin else ""))
    return figure


def _row_name(d: Difference) -> str:
    if d.structure != MEAN:
        return d.structure
    name = comparison_name(d.comparison)
    return name.replace(": ", ":\n") if ": " in name else name.replace(" - ", "\n- ")


def accuracy_cost(dice: Mapping[str, float], costs: Mapping[str, Mapping[str, float]], key: str, title: str) -> Figure:
    """Mean foreground Dice against one cost, an arm a point; arrows join coarse_sN and pointrend_sN.

    Args:
        dice: arm to mean Dice.
        costs: arm to its costs.
        key: of the cost.
        title: of the cost's axis.
    """
    figure, axes = _canvas(3.4)
    unit = 1e9 if key == "multiply_adds" else 1
    places = {arm: (costs[arm][key] / unit, dice[arm]) for arm in dice if math.isfinite(costs[arm][key])}
    for arm, place in places.items():
        plain = places.get(arm.replace("pointrend", "coarse").replace("coarse_s1", "dense"))
        if arm.startswith("pointrend") and plain:
            axes.annotate("", place, plain, arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 5, "shrinkB": 5})
        axes.plot(*place, marker="o", color=BLUE if arm.startswith("pointrend") else ORANGE, markersize=7)
        side, offset = ("right", -6) if has_name_right(place, places.values()) else ("left", 6)
        axes.annotate(arm, place, (offset, 5), textcoords="offset points", color=INK, fontsize=TEXT_PT, ha=side)
    axes.set_xlabel(title)
    axes.set_ylabel("mean foreground Dice")
    axes.margins(x=0.3, y=0.15)
    axes.set_xlim(left=0)
    return figure


def has_name_right(place: tuple[float, float], places: Iterable[tuple[float, float]]) -> bool:
    """Whether a name on the right of a point would run into that of another point at about its height."""
    points = np.array(list(places))
    reach, height = 0.35 * points[:, 0].max(), 0.08 * np.ptp(points[:, 1])
    ahead = points - place
    return bool(((ahead[:, 0] > 0) & (ahead[:, 0] < reach) & (abs(ahead[:, 1]) < height)).any())


def dumbbells(study: Study, comparison: str, anchors: Mapping[str, str]) -> Figure:
    """Mean foreground Dice of each case on both sides, a line a case, sorted by their difference.

    Args:
        anchors: case to the id of its row in the table of cases, which its line leads to.
    """
    pairs = paired_cases(study, comparison, MEAN, "dice").groupby("case")[["first", "second", "difference"]].mean()
    pairs = pairs.sort_values("difference")
    figure, axes = _canvas(3.0)
    x = np.arange(len(pairs))
    colours = [BLUE if gain >= 0 else ORANGE for gain in pairs["difference"]]
    names = [
        f"#{anchors[str(case)]} {case}: {row.first:.4f} against {row.second:.4f}"
        for case, row in zip(pairs.index, pairs.itertuples(index=False), strict=True)
    ]
    lines = axes.vlines(x, pairs["second"], pairs["first"], colors=colours, linewidth=1.6)
    first, second = map(side_name, comparison.split(" - "))
    axes.scatter(x, pairs["second"], s=9, color=GREY, label=second, zorder=3)
    ends = axes.scatter(x, pairs["first"], s=12, color=colours, zorder=4)
    for artist in (lines, ends):
        artist.set_urls(names)
    axes.plot([], [], color=BLUE, marker="o", markersize=4, label=f"{first}, better")
    axes.plot([], [], color=ORANGE, marker="o", markersize=4, label=f"{first}, worse")
    axes.set_xticks([])
    axes.set_xlabel(f"{len(pairs)} cases, from the largest loss to the largest gain")
    axes.set_ylabel("mean foreground Dice")
    _legend_above(axes, columns=2)
    return figure


def learning_curves(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Mean validation Dice against steps, a line an arm.

    Args:
        curves: arm to step to Dice.
    """
    figure, axes = _canvas(3.4)
    for i, (arm, curve) in enumerate(curves.items()):
        style = ("-", "--", ":")[i // len(COLOURS) % 3]
        axes.plot(
            [*curve], [*curve.values()], style, color=COLOURS[i % len(COLOURS)], marker="o", markersize=4, label=arm
        )
    axes.set_xlabel("training steps")
    axes.set_ylabel("validation Dice")
    _legend_above(axes, columns=3)
    return figure


def fixed_and_broken(counts: Counts, title: str) -> Figure:
    """Voxels fixed (up) and broken (down) by bin, arms side by side, as a share of the arm's refined voxels."""
    figure, axes = _canvas(3.2)
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
    _legend_above(axes, columns=2)
    return figure


def calibration(counts: Counts) -> Figure:
    """Share of voxels that were wrong before and after refinement, by margin."""
    figure, axes = _canvas(3.4)
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
    axes.set_xlabel("margin: best minus second-best logit, unrefined")
    axes.set_ylabel("% wrong")
    axes.set_ylim(bottom=0)
    _legend_above(axes, columns=2)
    return figure


def gain_by(study: Study, comparison: str, column: str, title: str) -> Figure:
    """Difference of Dice of each case and structure against a property of the structure, a colour a structure."""
    figure, axes = _canvas(3.2)
    first = study.side(comparison.split(" - ")[0])
    axes.axhline(0, color=INK, linewidth=0.8)
    colours = np.array(structure_colours(len(study.structures))) / 255  # those of the pictures
    for structure, colour in zip(study.structures, colours, strict=True):
        pairs = paired_cases(study, comparison, structure, "dice").groupby("case")["difference"].mean()
        of_structure = first[first.index.get_level_values("structure") == structure]
        property_of = of_structure.groupby("case")[column].mean().reindex(pairs.index)
        axes.scatter(property_of, pairs, s=9, color=colour, alpha=0.75, label=structure, linewidths=0)
    volumes = first[column][first[column] > 0]
    if column.endswith("_ml") and len(volumes) and volumes.max() >= 10 * volumes.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(title)
    axes.set_ylabel("difference of Dice")
    _legend_above(axes, columns=3)
    return figure


def _expected_wrong(name: str, bins: Sequence[str]) -> float:
    """Chance of the second-best class under a softmax of two, in the middle of a margin bin (its edge if open)."""
    edges = [0.0, *(float(b.removeprefix("to ")) for b in bins if b != "beyond")]
    i = bins.index(name)
    middle = (edges[i] + edges[i + 1]) / 2 if i + 1 < len(edges) else edges[-1]
    return 1 / (1 + math.exp(middle))


def _legend_above(axes: Axes, columns: int) -> None:
    """A legend above the axes. The chart grows with its rows, so that the axes keep their height."""
    names = len(axes.get_legend_handles_labels()[0])
    figure = axes.get_figure(root=True)
    assert figure is not None
    rows = -(-names // min(columns, names))
    figure.set_figheight(figure.get_figheight() + ROW_IN * max(rows - ROWS_WITHIN, 0))
    axes.legend(
        frameon=False,
        fontsize=TEXT_PT,
        labelcolor=INK,
        ncols=min(columns, names),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        handlelength=1.4,
        columnspacing=1.2,
    )


def _canvas(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in))
    figure.set_layout_engine("constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=TEXT_PT)
    axes.xaxis.label.set(color=INK, fontsize=TEXT_PT)
    axes.yaxis.label.set(color=INK, fontsize=TEXT_PT)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    return figure, axes
