"""The tables of a comparison as plain text cells, whatever they are printed on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vnet.evaluation.comparison import MEAN, Difference, arm_means
from vnet.evaluation.study_tables import UNREFINED, Study

TITLES = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hd95_mm": "HD95 (mm)",
    "assd_mm": "ASSD (mm)",
    "band_dice": "Dice within 2 mm",
}
ALONE = "seconds_per_step_alone"  # from the benchmark of steps, not from the runs
COSTS = {
    ALONE: "s per step, alone",
    "seconds_per_step": "s per step",
    "seconds_per_case": "s per case",
    "peak_memory_mib": "peak MiB",
    "peak_memory_prediction_mib": "peak MiB, prediction",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
}


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

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


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
        ("comparison", "structure", *(TITLES[metric] for metric in metrics)),
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
    columns = ("arm", "structure", *(TITLES[m] for m in study.metrics), "missed", "cases", "runs")
    return Table("Scores by arm", columns, tuple(rows), note)


def costs(study: Study) -> dict[str, dict[str, float]]:
    """Arm to the means over its runs of what run.json says of `COSTS`; NaN where it says nothing."""
    found: dict[str, dict[str, float]] = {}
    alone = steps_alone(study)
    for arm in study.arms:
        infos = [run.info for run in study.runs if run.arm == arm]
        values = {key: [info[key] for info in infos if isinstance(info.get(key), (int, float))] for key in COSTS}
        found[arm] = {key: float(np.mean(v)) if v else math.nan for key, v in values.items()}
        found[arm][ALONE] = alone.get(arm, math.nan)
    return found


def steps_alone(study: Study) -> dict[str, float]:
    """Arm to the seconds of a step where nothing else runs: benchmarks/step.csv beside the study's folder, of the same
    config, patch and batch; nothing where there is no such row."""
    seconds: dict[str, float] = {}
    for run in study.runs:
        training = run.config.get("training") or {}
        table = run.root / "benchmarks" / "step.csv" if run.root else None
        if run.arm in seconds or table is None or not table.is_file() or "patch" not in training:
            continue
        wanted = {"arm": run.arm, "config": run.config.get("name"), "batch": str(training.get("batch"))}
        wanted["size"] = "x".join(map(str, training["patch"]))
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row.get(key) == wanted[key] for key in wanted)]
        if rows:
            seconds[run.arm] = float(rows[-1]["seconds"])
    return seconds


def costs_table(study: Study) -> Table:
    """Costs by arm, each with its ratio to the first arm (dense where there is one)."""
    by_arm = costs(study)
    base = by_arm[study.arms[0]]
    alone = any(math.isfinite(values[ALONE]) for values in by_arm.values())
    shown = [key for key in COSTS if alone or key != ALONE]
    rows = [(arm, *(_cost(key, values[key], base[key]) for key in shown)) for arm, values in by_arm.items()]
    note = f"In brackets: the ratio to {study.arms[0]}. Means over the runs of an arm."
    if alone:
        note += (
            " Alone: the arms taking turns in one process, nothing else running (python scripts/benchmark.py step);"
            " the runs' own seconds may hold other load."
        )
    return Table("Costs", ("arm", *(COSTS[key] for key in shown)), tuple(rows), note, first_number=1)


def refinement_table(counts: Mapping[str, Mapping[str, Mapping[str, int]]], title: str, bins: str) -> Table:
    """Voxels by arm and bin, from `vnet.report.refinement.by_bin`."""
    rows = []
    for arm, table in counts.items():
        for name, c in table.items():
            refined = c["fixed"] + c["broken"] + c["unchanged"]
            after = c["wrong_before"] - c["fixed"] + c["broken"]
            shares = [f"{n / refined:.1%}" if refined else "-" for n in (c["wrong_before"], after)]
            rows.append((arm, name, f"{refined:,}", f"{c['fixed']:,}", f"{c['broken']:,}", *shares))
    columns = ("arm", bins, "refined", "fixed", "broken", "wrong before", "wrong after")
    return Table(title, columns, tuple(rows))


def markdown(table: Table) -> str:
    """A Markdown table with its title as a heading and its note below."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i < table.first_number else "---:" for i in range(len(table.columns))]
    parts = [f"### {table.title}", "\n".join(map(line, [table.columns, rule, *table.rows]))]
    return "\n\n".join(parts + ([table.note] if table.note else []))


def _digits(metric: str) -> int:
    return 2 if metric.endswith("_mm") else 4


def _cost(key: str, value: float, base: float) -> str:
    if math.isnan(value):
        return "-"
    shown: Callable[[float], str] = {
        "parameters": lambda v: f"{v / 1e6:.2f} M",
        "multiply_adds": lambda v: f"{v / 1e9:.2f} G",
        "peak_memory_mib": lambda v: f"{v:.0f}",
        "peak_memory_prediction_mib": lambda v: f"{v:.0f}",
    }.get(key, lambda v: f"{v:.3f}")
    ratio = "" if math.isnan(base) or not base else f" ({value / base:.2f})"
    return shown(value) + ratio
