"""Cost and Dice of the head on a trained network, by number of points, precision and points at once.

A run with a head predicts its validation fold. `share` and `margin` rows hold the Dice when fewer voxels are refined.
The others time the head (reading features and the small network) at the most uncertain voxels of the first case's
grid, rendered finer, and count the labels that change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, sample_at
from pointrend.uncertain import uncertain_voxels
from scripts.benchmarks.rows import Row
from scripts.benchmarks.subdivision import fastest
from vnet.core.errors import InputError
from vnet.data.prepared import prepare_data
from vnet.data.volumes import read_image, read_label
from vnet.evaluation.metrics import dice_scores
from vnet.inference.predictor import Predictor

SHARES = (0.12, 0.06, 0.04, 0.03, 0.02, 0.01, 0.005)
MARGINS = (8.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.25)
CHUNKS = (1024, 4096, 16384, 65536, 262144)
FINER = 4  # times the case's own grid, so that there are points enough to time
POINTS = 262144


@dataclass(frozen=True)
class Refined:
    """A validation case refined at its most uncertain voxels, as many as the largest of `SHARES`."""

    truth: np.ndarray
    unrefined: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    margin: np.ndarray  # of the voxels at `index`, best minus second-best coarse logit

    def dice(self, asked: np.ndarray, classes: int) -> float:
        """Mean Dice over structures if only the voxels index[asked] were refined."""
        labels, some = self.unrefined.copy(), self.index[asked]
        labels.reshape(-1)[some] = self.labels.reshape(-1)[some]
        return float(np.nanmean(dice_scores(labels, self.truth, classes)))


def refined_cases(predictor: Predictor, count: int | None) -> list[Refined]:
    """The first `count` cases of the validation fold; None is all of them."""
    prepared = prepare_data(predictor.config)
    cases = []
    for case in prepared.cases(prepared.fold.val[:count]):
        assert case.label is not None  # folds hold labelled cases only
        found = predictor.predict(read_image(case.images))
        truth = read_label(case.label).array
        cases.append(Refined(truth, found.unrefined, found.labels, found.index, -found.uncertainty))
    return cases


def dice_rows(cases: Sequence[Refined], classes: int) -> list[Row]:
    """Rows of Dice by the share of refined voxels, chosen by rank or by a margin."""

    def row(name: str, chosen: Callable[[Refined], np.ndarray]) -> Row:
        asked = [chosen(case) for case in cases]
        share = np.mean([a.sum() / case.truth.size for a, case in zip(asked, cases, strict=True)])
        dice = np.mean([case.dice(a, classes) for a, case in zip(asked, cases, strict=True)])
        return {"case": name, "voxels_asked": round(float(share), 5), "dice": round(float(dice), 5)}

    rows = [row("nothing refined", lambda case: np.zeros(len(case.index), bool))]
    for share in SHARES:
        rows.append(row(f"share {share:g}", partial(most_uncertain, share=share)))
    for margin in MARGINS:
        rows.append(row(f"margin {margin:g}", partial(within, margin=margin)))
    return rows


def most_uncertain(case: Refined, share: float) -> np.ndarray:
    """True for the voxels of `index` that are the most uncertain `share` of the volume; ties go to the lower index."""
    asked = np.zeros(len(case.index), bool)
    asked[np.argsort(case.margin, kind="stable")[: round(share * case.truth.size)]] = True
    return asked


def within(case: Refined, margin: float) -> np.ndarray:
    """True for the voxels of `index` within a margin."""
    return case.margin <= margin


@torch.inference_mode()
def head_rows(predictor: Predictor, points: int, rounds: int) -> list[Row]:
    """The head's seconds on one thread, by precision and points at once, and the share of labels that change."""
    prepared = prepare_data(predictor.config)
    volume = read_image(prepared.cases(prepared.fold.val[:1])[0].images)
    image = torch.from_numpy(np.ascontiguousarray(predictor.preprocessing.apply(volume)))[None]
    stride = [16 * -(-n // 16) - n for n in image.shape[2:]]
    image = torch.nn.functional.pad(image, [p for pad in reversed(stride) for p in (0, pad)])
    coarse, features = predictor.model.predict(image)
    size = tuple(FINER * n for n in image.shape[2:])
    index, _ = uncertain_voxels(coarse[0], size, num_points=points)
    where = voxel_centres(index[None], size)
    head = predictor.model.head
    assert head is not None

    def ask(dtype: torch.dtype, chunk: int) -> Tensor:
        maps = {name: value.to(dtype) for name, value in features.items()}
        source, picture = coarse.to(dtype), image.to(dtype)
        some = [head.predict_points(p, sample_at(source, p), maps, picture) for p in where.split(chunk, dim=1)]
        return best_class(torch.cat(some, dim=2).float())

    expected = ask(torch.float32, 65536)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        head.to(dtype)
        for chunk in CHUNKS if dtype == torch.float32 else (65536,):
            name = f"{str(dtype).removeprefix('torch.')}, {chunk} at once"
            seconds = fastest({name: partial(ask, dtype, chunk)}, rounds)[name]
            changed = float((ask(dtype, chunk) != expected).float().mean())
            rows.append({"case": name, "points": len(index), "seconds": round(seconds, 4), "changed": changed})
    head.float()
    return rows


def run(quick: bool = False, trained: Path | None = None) -> list[Row]:
    """Rows of the table; `quick` takes four cases and fewer points.

    Raises:
        InputError: no run named, or one without a head.
    """
    if trained is None:
        raise InputError("command line: --run RUN is needed, a trained run with a head; see --help")
    predictor = Predictor(
        trained, overrides=["--points.refine_fraction", str(max(SHARES)), "--points.max_margin", "null"]
    )
    if predictor.model.head is None:
        raise InputError(f"--run {trained}: a run without a head; name one of an arm such as pointrend_s2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = dice_rows(refined_cases(predictor, 4 if quick else None), len(predictor.structures))
        return rows + head_rows(predictor, POINTS // (8 if quick else 1), 1 if quick else 5)
    finally:
        torch.set_num_threads(threads)
