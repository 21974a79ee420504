"""The tables of a comparison: differences, differences by structure, seeds of one arm, scores by arm."""

from __future__ import annotations

from collections.abc import Sequence

from vnet.evaluation.comparison import Difference, Null, arm_means
from vnet.evaluation.metrics import HIGHER_IS_BETTER
from vnet.evaluation.pairs import MEAN
from vnet.evaluation.study_tables import Study
from vnet.report.formatting import (
    METRIC_TITLES,
    MISSED_MARK,
    change,
    changed_note,
    comparison_name,
    interval,
    marked_side,
    over_trainings,
    p_value,
    score,
    spread,
)
from vnet.report.tables import Table

DIFFERENCE_COLUMNS = (
    "comparison",
    "verdict",
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
    return Table(title, DIFFERENCE_COLUMNS, tuple(rows), note)


def _difference_cells(d: Difference) -> tuple[str, ...]:
    s = d.summary
    if s is None or d.means is None:
        return (comparison_name(d.comparison), d.verdict, *["-"] * (len(DIFFERENCE_COLUMNS) - 2))
    return (
        comparison_name(d.comparison),
        d.verdict,
        " / ".join(score("dice", mean) for mean in d.means),
        change("dice", s.mean),
        interval("dice", s.low, s.high),
        over_trainings(d),
        spread("dice", d.seed_spread),
        p_value(s.p),
        p_value(d.p_holm) if d.p_holm is not None else "-",
        f"{s.effect:+.2f}",
        f"{s.better:.0%} / {s.worse:.0%}",
        str(s.cases),
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
