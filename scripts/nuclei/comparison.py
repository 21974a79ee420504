"""The study's tables: scores of each arm, by size of nucleus, and cost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vnet.core.errors import InputError

SCORES = ("ap", "boundary_ap", "wide_boundary_ap", "mask_iou", "boundary_iou")
SIZES = (0.0, 24.0, 40.0, float("inf"))  # edges of the groups of nuclei by diameter, in pixels


def report(results: Path) -> str:
    """The tables as text.

    Raises:
        InputError: no such tables.
    """
    runs, cases, nuclei = (read(results, name) for name in ("runs.csv", "cases.csv", "nuclei.csv"))
    return "\n\n".join([arm_table(runs, cases), size_table(nuclei)])


def read(results: Path, name: str) -> pd.DataFrame:
    """A table of the study."""
    path = results / name
    if not path.is_file():
        raise InputError(f"{path}: is not there; name a folder of the study's tables, as results/nuclei")
    return pd.read_csv(path)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `row`, the arm, marked where the point head was left out."""
    left_out = (table["arm"] != "conv28") & ~table["refined"].astype(bool)
    return table.assign(row=table["arm"].where(~left_out, table["arm"] + ", unrefined"))


def arm_table(runs: pd.DataFrame, cases: pd.DataFrame) -> str:
    """Means over seeds, with the standard deviation between them."""
    by_seed = labelled(cases).groupby(["row", "seed"])[[*SCORES[3:], "mask_seconds", "mask_memory_mib"]].mean()
    for key in SCORES[:3]:
        by_seed[key] = [_pooled(runs, str(row), int(seed), key) for row, seed in by_seed.index]
    lines = [f"{'arm':<24}{'seeds':>6}" + "".join(f"{key:>20}" for key in (*SCORES, "mask part: s, MiB"))]
    for row, own in by_seed.groupby("row"):
        cells = [f"{own[key].mean():.4f} +- {own[key].std():.4f}" for key in SCORES]
        cost = f"{own['mask_seconds'].mean():.3f}, {own['mask_memory_mib'].mean():.1f}"
        lines.append(f"{row:<24}{len(own):>6}" + "".join(f"{cell:>20}" for cell in (*cells, cost)))
    return "\n".join(lines)


def _pooled(runs: pd.DataFrame, row: str, seed: int, key: str) -> float:
    """A score over all test images together, of an arm with or without its point head."""
    arm, _, unrefined = row.partition(", ")
    run = runs[(runs["arm"] == arm) & (runs["seed"] == seed)].iloc[0]
    return float(run[f"{key}_unrefined" if unrefined or arm == "conv28" else key])


def size_table(nuclei: pd.DataFrame) -> str:
    """Mean mask and boundary IoU at true boxes, by diameter of the nucleus."""
    table = labelled(nuclei)
    table["size"] = pd.cut(table["diameter_pixels"], SIZES, right=False)
    lines = [f"{'diameter, pixels':<20}{'arm':<24}{'nuclei':>8}{'mask IoU':>10}{'boundary IoU':>14}"]
    for (size, row), own in table.groupby(["size", "row"], observed=True):
        count = own.groupby("seed").size().iloc[0]
        lines.append(
            f"{size!s:<20}{row:<24}{count:>8}{own['mask_iou'].mean():>10.4f}{own['boundary_iou'].mean():>14.4f}"
        )
    return "\n".join(lines)
