"""Prediction of a large volume: ours against the same network under MONAI's sliding window.

MONAI's side resamples all logits to the image's grid, takes the argmax and saves.

Each side is a process of its own, so that its peak memory is its own. Both read the same file, preprocess it alike and
use the same trained weights and tiles. They differ in how tiles become labels on the image's grid. Seconds by stage:
`tiles` (the network), `labels` (resampling and argmax, or rendering), `refine` (search and head), `write`.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from scripts.benchmarks.fresh import call
from scripts.benchmarks.rows import Row, timed
from scripts.benchmarks.volume import KEPT, LONG, MR, Trial
from vnet.core.hardware import peak_memory_mib, set_threads
from vnet.core.runs import open_run
from vnet.data.phantoms import write_phantoms
from vnet.data.volumes import Volume, read_image, write_labels
from vnet.inference import segment as inference
from vnet.inference.ensemble import predict_volume, tile_size
from vnet.model.checkpoints import load_model

# working grid: half the voxels of the image along each axis
SPACING = ("--data.spacing_mm", "[2,1.6,1.6]")
NO_HEAD = ("--points.refine", "false")
# side: arm, keys
SIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "monai, dense": ("dense", ()),
    "dense": ("dense", ()),
    "monai, coarse of pointrend_s2": ("pointrend_s2", ()),
    "pointrend_s2, not refined": ("pointrend_s2", NO_HEAD),
    "pointrend_s2, 1 % refined": ("pointrend_s2", ("--points.refine_fraction", "0.01")),
    "pointrend_s2, 6 % refined": ("pointrend_s2", ("--points.refine_fraction", "0.06")),
}
Clock = dict[str, list[float]]  # by stage


def trial(classes: int, arm: str, steps: int) -> Trial:
    """A network trained on small phantoms of `classes` labels, so that its labels have surfaces."""
    learnt = replace(MR, organs=classes - 1)
    return Trial(name=f"organs{classes}", learnt=learnt, tried=learnt, arm=arm, words=SPACING, steps=steps)


def ours(run: str, keys: list[str], volume: Volume, clock: Clock) -> np.ndarray:
    """Labels as `vnet predict` makes them."""
    stages = {
        "mean_logits": "tiles",
        "render_labels": "labels",
        "uncertain_voxels": "refine",
        "refine_labels": "refine",
    }
    for name, stage in stages.items():
        setattr(inference, name, timed(getattr(inference, name), clock[stage]))
    opened, config = open_run(run, keys)
    trained = load_model(opened, config, "last")
    return predict_volume(trained.model, volume, trained.preprocessing, config).labels


def resampled(logits: torch.Tensor, size: Sequence[int]) -> np.ndarray:
    """Labels on another grid of the same box: all classes resampled with MONAI, then the argmax."""
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    # both grids span one box: voxel centres lie half a voxel inside it
    ratio = np.array(size) / logits.shape[1:]
    placed = np.diag([*ratio, 1.0])
    placed[:3, 3] = (ratio - 1) / 2
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
    native = resample(MetaTensor(logits, affine=placed), dst_affine=torch.eye(4), spatial_size=tuple(size))
    return np.asarray(native.argmax(0).to(torch.uint8))


def under_monai(run: str, keys: list[str], volume: Volume, clock: Clock) -> np.ndarray:
    """Labels of the same network under MONAI's inferer, its logits resampled to the image's grid."""
    from monai.inferers import sliding_window_inference

    opened, config = open_run(run, keys)
    trained = load_model(opened, config, "last")
    image = torch.from_numpy(np.ascontiguousarray(trained.preprocessing.apply(volume)))
    with torch.inference_mode():
        logits = timed(sliding_window_inference, clock["tiles"])(
            image[None],
            tile_size(config),
            1,
            lambda tile: trained.model.network(tile).logits,
            overlap=config.inference.overlap,
            mode="gaussian",
        )[0]
        return timed(resampled, clock["labels"])(logits, volume.array.shape[1:])


def predict(side: str, run: str, source: str, output: str) -> Row:
    """Measure one side in this process: seconds in all and by stage, and peak memory. Labels go to `output`."""
    import_module("monai.transforms")  # every side holds the same libraries in memory
    import_module("monai.inferers")

    set_threads(0)
    clock: Clock = defaultdict(list)
    start = time.perf_counter()
    volume = read_image([Path(source)])
    function = under_monai if side.startswith("monai") else ours
    labels = function(run, list(SIDES[side][1]), volume, clock)
    timed(write_labels, clock["write"])(Path(output), labels, volume)
    row: Row = {"seconds": round(time.perf_counter() - start, 2)}
    row |= {f"{stage}_s": round(sum(clock[stage]), 2) for stage in ("tiles", "labels", "refine", "write")}
    return row | {"peak_memory_mib": round(peak_memory_mib())}


def measure(classes: int, size: tuple[int, int, int], folder: Path, steps: int) -> list[Row]:
    """One row a side. `times_faster` and `times_leaner` compare with MONAI on the same network; `export` is labels,
    refinement and writing."""
    data = folder / f"large{classes}_{size[0]}"
    if not data.exists():
        write_phantoms(data, 1, seed=1, kind=replace(LONG, organs=classes - 1, size=size))
    (source,) = (data / "imagesTr").glob("*.nii.gz")
    rows: list[Row] = []
    rivals: dict[str, Row] = {}
    for side, (arm, _) in SIDES.items():
        run = trial(classes, arm, steps).train(folder)
        with tempfile.TemporaryDirectory() as output:
            row = call(
                "predict_monai", "predict", side=side, run=str(run), source=str(source), output=f"{output}/a.nii.gz"
            )
        row = {"side": side, "classes": classes, "size": "x".join(map(str, size)), **row}
        row["export_s"] = round(sum(row[f"{stage}_s"] for stage in ("labels", "refine", "write")), 2)
        if side.startswith("monai"):
            rivals[arm] = row
        rival = rivals[arm]
        row["times_faster"] = round(rival["seconds"] / row["seconds"], 2)
        row["export_times_faster"] = round(rival["export_s"] / row["export_s"], 1)
        row["times_leaner"] = round(rival["peak_memory_mib"] / row["peak_memory_mib"], 2)
        rows.append(row)
        print(row, flush=True)
    return rows


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes a small volume and few steps."""
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            return measure(3, (60, 96, 96), Path(folder), steps=10)
    return [row for classes in (3, 25) for row in measure(classes, LONG.size, KEPT, steps=100)]
