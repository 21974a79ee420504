"""The study's tables: scores of each arm, by size of nucleus, and paired differences by image and seed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vnet.core.errors import InputError
from vnet.evaluation.statistics import Paired, holm, summarise, verdict

SCORES = {
    "ap": "AP",
    "boundary_ap": "AP at boundary",
    "wide_boundary_ap": "AP at wide boundary",
    "mask_iou": "mask IoU",
    "boundary_iou": "boundary IoU",
}
POOLED = ("ap", "boundary_ap", "wide_boundary_ap")  # of all test images together, as pycocotools counts
BASELINE = "conv28"
NAMED = (("pointrend28", BASELINE), ("pointrend7", BASELINE))  # named before the trainings
PARTS = (("pointrend28", "pointrend28, unrefined"), ("pointrend28, unrefined", BASELINE))
SIZES = (0.0, 24.0, 40.0, float("inf"))  # edges of the groups of nuclei by diameter, in pixels
NOTES = """\
AP over IoU .50:.05:.95 (pycocotools); at boundary: the smaller of mask IoU and boundary IoU (arXiv 2103.16562), of a
boundary of 2 pixels, and wide: of 2 % of the image's diagonal. Mask and boundary IoU: in true boxes, mean over the
nuclei of an image, then over images. Differences are those of the images' own scores, AP included, paired by image and
seed. Unrefined: the same weights without the point head."""


def report(results: Path) -> str:
    """The tables as text.

    Raises:
        InputError: no such tables.
    """
    runs, cases, nuclei = (read(results, name) for name in ("runs.csv", "cases.csv", "nuclei.csv"))
    table = labelled(cases)
    parts = [arm_table(runs, table), size_table(labelled(nuclei))]
    parts.append("Named beforehand; p after Holm over the comparisons of a score:")
    parts.append(difference_table(table, NAMED, corrected=True))
    parts.append("Not named beforehand: what the point head does, and what exact boxes and pixels alone do:")
    parts.append(difference_table(table, PARTS, corrected=False))
    return "\n\n".join([*parts, NOTES])


def read(results: Path, name: str) -> pd.DataFrame:
    """A table of the study.

    Raises:
        InputError: it is not there.
    """
    path = results / name
    if not path.is_file():
        raise InputError(f"{path}: is not there; name a folder of the study's tables, as results/nuclei")
    return pd.read_csv(path)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `row`: the arm, marked where its point head was left out."""
    left_out = (table["arm"] != BASELINE) & ~table["refined"].astype(bool)
    return table.assign(row=table["arm"].where(~left_out, table["arm"] + ", unrefined"))


def arm_scores(runs: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """The scores and the cost of the mask part by row and seed: AP of all images together, else means over images."""
    own = [key for key in SCORES if key not in POOLED]
    by_seed = cases.groupby(["row", "seed"])[[*own, "mask_seconds", "mask_memory_mib"]].mean()
    for key in POOLED:
        by_seed[key] = [_pooled(runs, str(row), int(seed), key) for row, seed in by_seed.index]
    return by_seed


def arm_table(runs: pd.DataFrame, cases: pd.DataFrame) -> str:
    """Means over seeds, with the standard deviation between them, and the cost of the mask part."""
    head = f"{'arm':<24}{'seeds':>6}" + "".join(f"{name:>21}" for name in SCORES.values())
    lines = [f"{head}{'mask part, 1 image':>26}"]
    for row, own in arm_scores(runs, cases).groupby("row"):
        cells = [f"{own[key].mean():.4f} +- {own[key].std():.4f}" for key in SCORES]
        cost = f"{1000 * own['mask_seconds'].mean():.0f} ms, {own['mask_memory_mib'].mean():.1f} MiB"
        lines.append(f"{row:<24}{len(own):>6}" + "".join(f"{cell:>21}" for cell in cells) + f"{cost:>26}")
    return "\n".join(lines)


def _pooled(runs: pd.DataFrame, row: str, seed: int, key: str) -> float:
    """A score over all test images together, of an arm with or without its point head."""
    arm, _, unrefined = row.partition(", ")
    run = runs[(runs["arm"] == arm) & (runs["seed"] == seed)].iloc[0]
    return float(run[f"{key}_unrefined" if unrefined or arm == BASELINE else key])


def size_table(nuclei: pd.DataFrame) -> str:
    """Mean mask and boundary IoU at true boxes, by diameter of the nucleus."""
    table = nuclei.assign(size=pd.cut(nuclei["diameter_pixels"], list(SIZES), right=False))
    lines = [f"{'diameter, pixels':<20}{'arm':<24}{'nuclei':>8}{'mask IoU':>10}{'boundary IoU':>14}"]
    for (size, row), own in table.groupby(["size", "row"], observed=True):
        count = int(own.groupby("seed").size().iloc[0])
        lines.append(
            f"{size!s:<20}{row:<24}{count:>8}{own['mask_iou'].mean():>10.4f}{own['boundary_iou'].mean():>14.4f}"
        )
    return "\n".join(lines)


def difference_table(cases: pd.DataFrame, pairs: tuple[tuple[str, str], ...], *, corrected: bool) -> str:
    """Paired differences of each score by image: mean, intervals over images and over seeds, p, verdict.

    Args:
        corrected: whether p is Holm's over the pairs of a score.
    """
    lines = [
        f"{'first - second':<48}{'score':<22}{'mean':>8}{'95 % over images':>22}{'over seeds':>22}{'p':>8}  verdict"
    ]
    for key, name in SCORES.items():
        found = {pair: summary for pair in pairs if (summary := paired(cases, *pair, key)) is not None}
        chances = [summary.p for summary in found.values()]
        for (pair, summary), p in zip(found.items(), holm(chances) if corrected else chances, strict=True):
            said = verdict(summary, p)
            lines.append(f"{' - '.join(pair):<48}{name:<22}{_numbers(summary)}{_chance(p):>8}  {said}")
    return "\n".join(lines)


def _numbers(summary: Paired) -> str:
    images = f"{summary.low:+.4f} to {summary.high:+.4f}"
    seeds = "" if summary.over_trainings is None else "{:+.4f} to {:+.4f}".format(*summary.over_trainings)
    return f"{summary.mean:>+8.4f}{images:>22}{seeds:>22}"


def _chance(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "<.0001"


def paired(cases: pd.DataFrame, first: str, second: str, key: str) -> Paired | None:
    """The summary of `first - second` over the images and seeds that both have; None where there are none."""
    by = ["seed", "image"]
    one, two = (cases[cases["row"] == row].set_index(by)[key] for row in (first, second))
    difference = (one - two).dropna().rename("difference").reset_index().rename(columns={"image": "case"})
    return summarise(difference.assign(fold=0)) if len(difference) else None
