"""What an arm costs: seconds, memory, parameters and multiply-adds, by arm."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable

import numpy as np

from vnet.evaluation.study_tables import Study
from vnet.report.formatting import marked_side
from vnet.report.tables import Table

ALONE = "seconds_per_step_alone"  # from the benchmark of steps, not from the runs
COSTS = {
    ALONE: "s per step, alone",
    "seconds_per_step": "s per step",
    "seconds": "s of training",
    "seconds_per_case": "s per case",
    "peak_memory_mib": "peak MiB",
    "peak_memory_prediction_mib": "peak MiB, prediction",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
}


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
    rows = [
        (marked_side(study, arm), *(_cost(key, values[key], base[key]) for key in shown))
        for arm, values in by_arm.items()
    ]
    note = f"In brackets: the ratio to {study.arms[0]}. Means over the runs of an arm."
    if alone:
        note += (
            " Alone: the arms taking turns in one process, nothing else running (python scripts/benchmark.py step);"
            " the runs' own seconds may hold other load."
        )
    return Table("Costs", ("arm", *(COSTS[key] for key in shown)), tuple(rows), note, first_number=1)


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
