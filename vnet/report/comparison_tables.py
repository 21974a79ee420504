"""The tables of a comparison: differences, differences by structure, scores by arm."""

from __future__ import annotations

from collections.abc import Sequence

from vnet.evaluation.comparison import MEAN, Difference, arm_means
from vnet.evaluation.study_tables import Study
from vnet.report.formatting import METRIC_TITLES, change, comparison_name, interval, p_value, score, side_name, spread
from vnet.report.tables import Table


def answers_table(differences: Sequence[Difference], named: Sequence[str], title: str, note: str = "") -> Table:
    """Mean foreground Dice of each comparison in `named`: the difference and all that is known of it."""
    found = {d.comparison: d for d in differences if d.structure == MEAN and d.metric == "dice"}
    known = ("comparison", "verdict", "difference", "95 % interval", "seed spread", "p", "p (Holm)", "effect")
    rows = []
    for name in named:
        d, s = found[name], found[name].summary
        if s is None:
            rows.append((comparison_name(name), d.verdict, *["-"] * 9))
            continue
        rows.append(
            (
                comparison_name(name),
                d.verdict,
                change("dice", s.mean),
                interval("dice", s.low, s.high),
                spread(d),
                p_value(s.p),
                p_value(d.p_holm) if d.p_holm is not None else "-",
                f"{s.effect:+.2f}",
                f"{s.better:.0%} / {s.worse:.0%}",
                str(s.cases),
                str(s.runs),
            )
        )
    columns = (*known, "better / worse", "cases", "runs")
    return Table(title, columns, tuple(rows), note)


def structures_table(differences: Sequence[Difference], metrics: Sequence[str]) -> Table:
    """Every comparison by structure: mean difference, interval and seed spread of each metric."""
    rows: dict[tuple[str, str], list[str]] = {}
    for d in (d for d in differences if d.metric in metrics):
        cells = rows.setdefault((comparison_name(d.comparison), d.structure), [])
        s = d.summary
        seeds = "" if d.seed_spread is None else f"; {spread(d)}"
        cells.append(f"{change(d.metric, s.mean)} ({interval(d.metric, s.low, s.high)}{seeds})" if s else "-")
    dropped = sum(d.one_sided for d in differences if d.metric == "dice" and d.structure != MEAN)
    note = "Exploratory but for the mean foreground Dice of the named comparisons."
    if dropped:
        note += (
            f" {dropped} pairs are left out: the structure is absent, and one side alone predicted it"
            " (its score of 0 is in the means by arm)."
        )
    return Table(
        "Differences by structure: mean (95 % interval; seed spread)",
        ("comparison", "structure", *(METRIC_TITLES[metric] for metric in metrics)),
        tuple((*key, *cells) for key, cells in rows.items()),
        note,
    )


def scores_table(study: Study) -> Table:
    """Means by arm and structure, refined and unrefined."""
    means = arm_means(study)
    rows = [
        (
            side_name(str(row["side"])),
            str(row["structure"]),
            *(score(metric, float(row[metric])) for metric in study.metrics),
            str(row["missed"]),
            str(row["cases"]),
            str(row["runs"]),
        )
        for row in means.to_dict("records")
    ]
    note = (
        "Missed: rows with a Dice of 0; they count with 0 and with the diagonal of the image in mm."
        " Arms may rest on different runs; the differences never do."
    )
    columns = ("arm", "structure", *(METRIC_TITLES[m] for m in study.metrics), "missed", "cases", "runs")
    return Table("Scores by arm", columns, tuple(rows), note)
