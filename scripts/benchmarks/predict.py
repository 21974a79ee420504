"""Prediction of one volume by each arm, against the `dense` network and against MONAI's sliding window.

Each prediction is a process of its own, so that its peak memory is its own. All read the same file, preprocess it alike
and use the same tiles; arms differ in the network, MONAI's sides in how tiles become labels on the image's grid: the
sliding window's logits are resampled to it, all classes of them, and the argmax is taken. Sides take turns, equally
often; ratios are medians of the ratios within a turn.

Seconds by stage: `tiles` (the network), `labels` (resampling and argmax, or rendering), `refine` (search and head),
`write`. Networks are first trained for some steps on phantoms of the same kind, so that their labels have surfaces as
real ones do.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.harness import Row, call, paired, timed
from scripts.benchmarks.volume import KEPT, LONG, MR, Trial
from vnet.core.hardware import peak_memory_mib, set_threads, share_freed_memory
from vnet.core.runs import open_run
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.data.volumes import Volume, read_image, write_labels
from vnet.inference import segment as inference
from vnet.inference.ensemble import largest_margin, predict_volume, tile_size
from vnet.model.checkpoints import load_model

STAGES = ("tiles", "labels", "refine", "write")
Clock = dict[str, list[float]]  # by stage


@dataclass(frozen=True)
class Setup:
    """A volume to predict.

    Attributes:
        name: of the rows.
        tried: the phantom that is predicted.
        learnt: phantoms that the networks are trained on, other subjects.
        spacing_mm: of the working grid.
    """

    name: str
    tried: PhantomKind
    learnt: PhantomKind
    spacing_mm: str

    def train(self, arm: str, folder: Path, steps: int) -> Path:
        """The run of an arm below `folder`, trained there if it is not."""
        words = ("--data.spacing_mm", self.spacing_mm, "--points.max_margin", "auto")
        name = f"predict{len(self.learnt.structures)}"
        config = "study_hippocampus"
        trial = Trial(
            name=name, learnt=self.learnt, tried=self.learnt, config=config, arm=arm, words=words, steps=steps
        )
        return trial.train(folder)

    def volume(self, folder: Path) -> Path:
        """The image file, written below `folder` if it is not there."""
        data = folder / self.name
        if not data.exists():
            write_phantoms(data, 1, seed=1, kind=self.tried)
        (source,) = (data / "imagesTr").glob("*.nii.gz")
        return source


MANY = replace(MR, organs=24)
NATIVE = Setup(
    "128x256x256, 3 classes, working grid = native",
    replace(LONG, size=(256, 256, 128), spacing_mm=(1.0, 1.0, 1.0)),
    MR,
    "[1,1,1]",
)
HALF = Setup("512x512x300, 25 classes, working grid half", replace(LONG, organs=24), MANY, "[2,1.6,1.6]")
SHORT = Setup("96x96x60, 3 classes, working grid half", replace(LONG, size=(60, 96, 96)), MR, "[2,1.6,1.6]")

SHARE = ("--points.max_margin", "null", "--points.refine_fraction")
# side: arm, keys. Without keys the margin measured at the end of training decides, at most 6 % of the voxels
SIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense": ("dense", ()),
    "lean_dense": ("lean_dense", ()),
    "pointrend_s2, 6 % asked": ("pointrend_s2", (*SHARE, "0.06")),
    "pointrend_s4, 6 % asked": ("pointrend_s4", (*SHARE, "0.06")),
    "lean_s4, not refined": ("lean_s4", ("--points.refine", "false")),
    "lean_s4, 6 % asked": ("lean_s4", (*SHARE, "0.06")),
    "lean_s4, by margin": ("lean_s4", ()),
    "points_only_s4, by margin": ("points_only_s4", ()),
    "monai, dense": ("dense", ()),
}


def ours(run: str, keys: list[str], volume: Volume, clock: Clock) -> tuple[np.ndarray, Row]:
    """Labels as `vnet predict` makes them, and what was asked of the head."""
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
    prediction = predict_volume(trained.model, volume, trained.preprocessing, config)
    asked = len(prediction.index) / prediction.labels.size
    margin = largest_margin([trained.model], config) if prediction.refined else None
    facts = {"asked_percent": round(100 * asked, 2) or None, "margin": None if margin is None else round(margin, 2)}
    return prediction.labels, facts


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
    """Measure one side in this process. `added` is the peak beyond libraries and image. Labels go to `output`."""
    import_module("monai.transforms")  # every side holds the same libraries in memory
    import_module("monai.inferers")

    set_threads(0)
    share_freed_memory()
    clock: Clock = defaultdict(list)
    start = time.perf_counter()
    volume = read_image([Path(source)])
    before = peak_memory_mib()
    keys: list[str] = list(SIDES[side][1])
    facts: Row = {}
    if side.startswith("monai"):
        labels = under_monai(run, keys, volume, clock)
    else:
        labels, facts = ours(run, keys, volume, clock)
    timed(write_labels, clock["write"])(Path(output), labels, volume)
    row: Row = {"seconds": round(time.perf_counter() - start, 3)}
    row |= {f"{stage}_s": round(sum(clock[stage]), 3) for stage in STAGES}
    peak = peak_memory_mib()
    return row | {"peak_memory_mib": round(peak), "added_mib": round(peak - before), **facts}


def count(side: str, run: str, source: str) -> Row:
    """Multiply-adds of one prediction, in units of 1e9: tiles, and the head at the voxels that it is asked about."""
    set_threads(1)  # the counter sees its own thread alone
    with FlopCounterMode(display=False) as counter:
        ours(run, list(SIDES[side][1]), read_image([Path(source)]), defaultdict(list))
    return {"multiply_adds_g": round(counter.get_total_flops() / 2e9, 1)}


def measure(setup: Setup, folder: Path, *, steps: int, turns: int) -> list[Row]:
    """One row a side: medians over the turns, and medians of the ratios to `dense` within a turn."""
    source = setup.volume(folder)
    runs = {arm: setup.train(arm, folder, steps) for arm, _ in SIDES.values()}
    measured: dict[str, list[Row]] = {side: [] for side in SIDES}
    for turn in range(turns):
        for side, (arm, _) in SIDES.items():
            with tempfile.TemporaryDirectory() as output:
                labels = f"{output}/a.nii.gz"
                row = call("predict", "predict", side=side, run=str(runs[arm]), source=str(source), output=labels)
            measured[side].append({**row, "network_s": row["tiles_s"] + row["refine_s"]})
            print(f"{setup.name}, turn {turn + 1} of {turns}: {side}: {row}", flush=True)
    rows = [summary(setup, side, rows, measured["dense"]) for side, rows in measured.items()]
    for row in rows:
        if not row["side"].startswith("monai"):
            row |= call("predict", "count", side=row["side"], run=str(runs[SIDES[row["side"]][0]]), source=str(source))
            row["multiply_adds_of_dense"] = round(row["multiply_adds_g"] / rows[0]["multiply_adds_g"], 3)
    return rows


def summary(setup: Setup, side: str, rows: Sequence[Row], dense: Sequence[Row]) -> Row:
    """Medians over the turns. `network` is tiles and refinement; `peak` holds the libraries, `added` does not."""
    result: Row = {"side": side, "volume": setup.name, "turns": len(rows)}
    for key in ("seconds", *(f"{stage}_s" for stage in STAGES), "peak_memory_mib", "added_mib"):
        result[key] = round(statistics.median(row[key] for row in rows), 3)
    result |= {key: rows[0].get(key) for key in ("asked_percent", "margin")}
    ratios = {"seconds": "seconds", "network_s": "network", "peak_memory_mib": "peak_memory", "added_mib": "added"}
    for key, name in ratios.items():
        result[f"{name}_of_dense"] = round(paired([row[key] for row in rows], [row[key] for row in dense]), 3)
    return result


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes a small volume, few steps and one turn."""
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            return measure(SHORT, Path(folder), steps=10, turns=1)
    return [row for setup in (NATIVE, HALF) for row in measure(setup, KEPT, steps=400, turns=3)]
