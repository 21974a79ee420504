"""Where refinement helped: the refinement.csv of the runs, summed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from vnet.core.errors import InputError
from vnet.evaluation.refinement import COUNTS
from vnet.evaluation.study_tables import Study
from vnet.report.tables import Table

BINS = ("distance_upto_mm", "margin_upto")
Counts = dict[str, dict[str, dict[str, int]]]  # arm -> bin -> kind -> voxels


def read_refinement(study: Study) -> pd.DataFrame:
    """Rows of every run's refinement.csv with its `arm`; empty where no run has one.

    Raises:
        InputError: a file that is not such a table.
    """
    frames, faults = [], []
    for run in study.runs:
        frame = run.rows("refinement.csv")
        if frame.empty:
            continue
        try:
            frame = frame.astype(dict.fromkeys(BINS, float) | dict.fromkeys(COUNTS, int))
            frames.append(frame[["structure", *BINS, *COUNTS]].assign(arm=run.arm))
        except (ValueError, KeyError) as error:
            path = run.table.with_name("refinement.csv")
            faults.append(f"{path}: not a table of refined voxels ({error}); run the evaluation again")
    if faults:
        raise InputError(faults)
    columns = ["arm", "structure", *BINS, *COUNTS]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def by_bin(rows: pd.DataFrame, structure: str, bins: str) -> Counts:
    """Voxels of one structure, summed over runs and cases.

    Args:
        rows: from `read_refinement`.
        bins: one of `BINS`.
    """
    counts: Counts = {}
    part = rows[rows["structure"] == structure]
    for arm, of_arm in part.groupby("arm", sort=False):
        table = of_arm.groupby(bins)[list(COUNTS)].sum()
        named = zip(_bin_names(list(table.index)), table.to_dict("records"), strict=True)
        counts[str(arm)] = {name: {str(k): int(v) for k, v in row.items()} for name, row in named}
    return counts


def refinement_table(counts: Mapping[str, Mapping[str, Mapping[str, int]]], title: str, bins: str) -> Table:
    """Voxels by arm and bin, from `vnet.report.refinement_counts.by_bin`."""
    rows = []
    for arm, table in counts.items():
        for name, c in table.items():
            refined = c["fixed"] + c["broken"] + c["unchanged"]
            after = c["wrong_before"] - c["fixed"] + c["broken"]
            shares = [f"{n / refined:.1%}" if refined else "-" for n in (c["wrong_before"], after)]
            rows.append((arm, name, f"{refined:,}", f"{c['fixed']:,}", f"{c['broken']:,}", *shares))
    columns = ("arm", bins, "refined", "fixed", "broken", "wrong before", "wrong after")
    return Table(title, columns, tuple(rows))


def _bin_names(edges: list[float]) -> list[str]:
    """`to 1`, `to 2`, ..., `beyond`."""
    return ["beyond" if math.isinf(edge) else f"to {edge:g}" for edge in edges]
