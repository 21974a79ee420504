"""Tables of a report as CSV and Markdown, their numbers and names as text, and the tables of a comparison."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vnet.evaluation.comparison import MEAN, Difference, Null, arm_means
from vnet.evaluation.metrics import HIGHER_IS_BETTER
from vnet.evaluation.statistics import SeedSpread
from vnet.evaluation.study_tables import UNREFINED, Study


@dataclass(frozen=True)
class Table:
    """Rows of text; columns from `first_number` on are numbers, aligned right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    first_number: int = 2

    def only(self, *columns: str) -> Table:
        """The table with these columns."""
        kept = [i for i, column in enumerate(self.columns) if column in columns]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        first = sum(i < self.first_number for i in kept)
        return Table(self.title, tuple(self.columns[i] for i in kept), rows, self.note, first)

    def without(self, *columns: str) -> Table:
        """The table without these columns."""
        return self.only(*(column for column in self.columns if column not in columns))

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def markdown(table: Table) -> str:
    """A Markdown table with its title as a heading and its note below."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i < table.first_number else "---:" for i in range(len(table.columns))]
    parts = [f"### {table.title}", "\n".join(map(line, [table.columns, rule, *table.rows]))]
    return "\n\n".join(parts + ([table.note] if table.note else []))


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


NONINFERIOR = "non-inferior"  # column of the tables of differences, where there is a margin
DIFFERENCE_COLUMNS = (
    "comparison",
    "verdict",
    NONINFERIOR,
    "means",
    "difference",
    "95 % interval",
    "over trainings",
    "seed spread",
    "p",
    "p (Holm)",
    "effect",
    "better / worse",
    "cases",
    "runs",
)


def differences_table(differences: Sequence[Difference], shown: Sequence[str], title: str, note: str = "") -> Table:
    """Mean foreground Dice of each comparison in `shown`: both means, the difference and how sure it is."""
    found = {d.comparison: d for d in differences if d.structure == MEAN and d.metric == "dice"}
    rows = [_difference_cells(found[name]) for name in shown]
    table = Table(title, DIFFERENCE_COLUMNS, tuple(rows), note, first_number=3)
    return table if any(found[name].noninferior for name in shown) else table.without(NONINFERIOR)


def _difference_cells(d: Difference) -> tuple[str, ...]:
    s = d.summary
    if s is None or d.means is None:
        return (comparison_name(d.comparison), d.verdict, *["-"] * (len(DIFFERENCE_COLUMNS) - 2))
    return (
        comparison_name(d.comparison),
        d.verdict,
        d.noninferior.replace(NONINFERIOR, "yes") or "-",
        " / ".join(score("dice", mean) for mean in d.means),
        change("dice", s.mean),
        interval("dice", s.low, s.high),
        over_trainings(d),
        spread("dice", d.seed_spread),
        p_value(s.p),
        p_value(d.p_holm) if d.p_holm is not None else "-",
        f"{s.effect:+.2f}",
        f"{s.better:.0%} / {s.worse:.0%}",
        f"{s.cases} of {s.subjects} subjects" if s.subjects < s.cases else str(s.cases),
        str(s.runs),
    )


def structures_table(differences: Sequence[Difference], metrics: Sequence[str]) -> Table:
    """Every comparison by structure: mean difference, interval and seed spread of each metric."""
    rows: dict[tuple[str, str], list[str]] = {}
    for d in differences:
        if d.metric in metrics:
            rows.setdefault((comparison_name(d.comparison), d.structure), []).append(_structure_cell(d))
    return Table(
        "Differences by structure: mean (95 % interval; seed spread)",
        ("comparison", "structure", *(METRIC_TITLES[metric] for metric in metrics)),
        tuple((*key, *cells) for key, cells in rows.items()),
        _structures_note(differences, metrics),
    )


def _structure_cell(d: Difference) -> str:
    s = d.summary
    if s is None:
        return "-"
    seeds = "" if d.seed_spread is None else f"; {score(d.metric, d.seed_spread.sd)}"
    between = interval(d.metric, s.low, s.high)
    if HIGHER_IS_BETTER[d.metric] or not d.missed:
        return f"{change(d.metric, s.mean)} ({between}{seeds})"
    without = f"; {change(d.metric, d.without_missed)} without {d.missed} missed"
    return f"{change(d.metric, s.mean)}{MISSED_MARK} ({between}{seeds}{without})"


def _structures_note(differences: Sequence[Difference], metrics: Sequence[str]) -> str:
    of_structures = [d for d in differences if d.metric == "dice" and d.structure != MEAN]
    absent, invented = (sum(getattr(d, key) for d in of_structures) for key in ("absent", "invented"))
    marked = any(d.missed and d.metric in metrics and not HIGHER_IS_BETTER[d.metric] for d in differences)
    parts = [
        "Exploratory but for the mean foreground Dice of the named comparisons.",
        f"{MISSED_MARK} holds pairs (run, case, structure) that one side missed or invented (Dice 0), whose distance is"
        " the diagonal of the image; behind it their number and the mean difference without them."
        if marked
        else "",
        f"{absent} pairs are left out: the structure is absent in the truth and on both sides." if absent else "",
        f"{invented} pairs hold a structure that is absent in the truth and that one side alone predicts: the other"
        " side counts as perfect (Dice 1, 0 mm)."
        if invented
        else "",
    ]
    return " ".join(part for part in parts if part)


def nulls_table(nulls: Sequence[Null]) -> Table:
    """Mean foreground Dice of one arm with one seed minus that with another: there is no difference to find."""
    rows = []
    for null in nulls:
        s = null.summary
        cells = change("dice", s.mean), interval("dice", s.low, s.high), p_value(s.p), str(s.cases)
        rows.append((null.arm, f"seed {null.first} - seed {null.second}", *cells))
    note = "Two trainings of one arm that differ in the seed alone: the width of a comparison that has nothing to find."
    columns = ("arm", "seeds", "difference", "95 % interval", "p", "cases")
    return Table("Null: seeds of one arm, mean foreground Dice", columns, tuple(rows), note)


def scores_table(study: Study) -> Table:
    """Means by arm and structure, refined and unrefined."""
    rows = []
    for row in arm_means(study).to_dict("records"):
        cells = []
        for metric in study.metrics:
            cell = score(metric, float(row[metric]))
            if not HIGHER_IS_BETTER[metric] and row["missed"]:
                cell += f"{MISSED_MARK} ({score(metric, float(row[f'found_{metric}']))})"
            cells.append(cell)
        counts = (str(row[name]) for name in ("missed", "absent", "cases", "runs"))
        rows.append((marked_side(study, str(row["side"])), str(row["structure"]), *cells, *counts))
    note = (
        "Missed: rows (run, case, structure) with a Dice of 0; they count with 0 and with the diagonal of the image in"
        f" mm. A distance that holds such rows is marked {MISSED_MARK}, with its mean without them in brackets. Absent:"
        " rows left blank, as the structure is absent in truth and prediction. Arms may rest on different runs; the"
        " differences never do."
    )
    columns = ("arm", "structure", *(METRIC_TITLES[m] for m in study.metrics), "missed", "absent", "cases", "runs")
    return Table("Scores by arm", columns, tuple(rows), note + changed_note(study))
