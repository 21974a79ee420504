"""Refinement: cost and Dice of the head on a trained network, and candidates against loops over the dense fine grid.

`run` is the table `refinement`. A run with a head predicts its validation fold. `share` and `margin` rows hold the Dice
when fewer voxels are refined. The others time the head (reading features and the small network) at the most uncertain
voxels of the first case's grid, rendered finer, and count the labels that change.

`run_subdivision` refines 3D logits. `straight` is a direct port of the paper's loop: up-sample, top-2 over the classes,
top-k over the grid, sample, predict, write back. `tuned` has running maxima in the place of torch's `topk` and `argmax`
over the class axis. `bounds` is `PointRend.refine`. All refine the same voxels with the same head, and their labels are
compared. Columns `_rest` time everything but sampling and MLP: the head returns the coarse logits.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, sample_at, uncertainty
from pointrend.refine import PointRend
from pointrend.uncertain import uncertain_voxels
from scripts.benchmarks.harness import Row, chosen_names, take_turns
from vnet.core.errors import InputError
from vnet.data.prepared import prepare_data
from vnet.data.volumes import read_image, read_label
from vnet.evaluation.metrics import dice_scores
from vnet.inference.predictor import Predictor

Predict = Callable[[Tensor, Tensor], Tensor]  # points (1, N, 3), coarse logits there (1, K, N) -> (1, K, N)


@dataclass(frozen=True)
class Case:
    """A cube of `coarse` voxels a side, refined to `target` voxels a side, `points` of them a step."""

    coarse: int = 32
    target: int = 256
    classes: int = 3
    steps: int = 1
    points: int = 16384


CASES = {
    "32 to 64": Case(target=64),
    "32 to 128": Case(target=128),
    "32 to 256": Case(),
    "48 to 384": Case(coarse=48, target=384),
    "32 to 256, three steps": Case(steps=3),
    "32 to 256, 65536 points": Case(points=65536),
    "32 to 256, 131072 points": Case(points=131072),
    "32 to 256, 14 classes": Case(classes=14),
}
QUICK_CASES = ("32 to 64", "32 to 128", "32 to 256")


def synthetic_logits(classes: int, size: int) -> Tensor:
    """(1, K, size, size, size) logits like a network's: smooth regions, steep borders, a little noise."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.randn(1, classes, 4, 4, 4, generator=generator) * 8
    smooth = F.interpolate(blobs, size=(size,) * 3, mode="trilinear", align_corners=False)
    return smooth + 0.05 * torch.randn(smooth.shape, generator=generator)


def refine_densely(coarse: Tensor, sizes: list[int], count: int, predict: Predict, *, tuned: bool) -> Tensor:
    """Labels (1, *size) by the paper's loop over dense logits, a step for each of `sizes`."""
    logits = coarse
    for n in sizes:
        size = (n, n, n)
        logits = F.interpolate(logits, size=size, mode="trilinear", align_corners=False)
        if tuned:
            doubt = uncertainty(logits)
        else:
            first, second = logits.topk(2, dim=1).values.unbind(1)
            doubt = second - first
        index = doubt.flatten(1).topk(count, dim=1).indices
        points = voxel_centres(index, size)
        at_points = predict(points, sample_at(coarse, points))
        logits.flatten(2).scatter_(2, index[:, None].expand(-1, logits.shape[1], -1), at_points)
    return best_class(logits) if tuned else logits.argmax(1)


def medians(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each side: the median of `rounds` turns, after one that is not counted. The sides take turns."""
    return {name: statistics.median(values) for name, values in take_turns(sides, rounds).items()}


class _Echo(PointRend):
    """A head that returns the coarse logits: what remains is the search, the labels and the bookkeeping."""

    def predict_points(self, points: Tensor, coarse: Tensor, *_: Any, **__: Any) -> Tensor:
        return coarse


@torch.no_grad()
def measure(name: str, case: Case, rounds: int = 3) -> Row:
    """One row: seconds of the three ways, with the head (3 layers of 256) and without."""
    coarse, target, classes, steps, count = case.coarse, case.target, case.classes, case.steps, case.points
    logits = synthetic_logits(classes, coarse)
    features = {"fine": torch.randn(1, 16, 2 * coarse, 2 * coarse, 2 * coarse)}
    torch.manual_seed(0)
    model = PointRend(classes=classes, features={"fine": 16}, width=256)
    torch.nn.init.normal_(model.head.logits.weight, std=0.1)  # a head that changes labels
    echo = _Echo(classes=classes, features={"fine": 16}, width=256)
    sizes = [target >> halvings for halvings in range(steps - 1, -1, -1)]
    head = partial(model.predict_points, features=features)
    same: Predict = lambda _, at_points: at_points  # noqa: E731
    sides: dict[str, Callable[[], Any]] = {
        "straight": lambda: refine_densely(logits, sizes, count, head, tuned=False),
        "tuned": lambda: refine_densely(logits, sizes, count, head, tuned=True),
        "bounds": lambda: model.refine(logits, features, None, (target,) * 3, num_points=count, steps=steps).labels,
        "straight_rest": lambda: refine_densely(logits, sizes, count, same, tuned=False),
        "tuned_rest": lambda: refine_densely(logits, sizes, count, same, tuned=True),
        "bounds_rest": lambda: echo.refine(logits, features, None, (target,) * 3, num_points=count, steps=steps),
    }
    labels = {name: sides[name]() for name in ("straight", "tuned", "bounds")}
    seconds = medians(sides, rounds)
    return {
        "case": name,
        **asdict(case),
        **{f"{name}_s": round(value, 4) for name, value in seconds.items()},
        "faster_than_straight": round(seconds["straight"] / seconds["bounds"], 2),
        "faster_than_tuned": round(seconds["tuned"] / seconds["bounds"], 2),
        "rest_faster_than_tuned": round(seconds["tuned_rest"] / seconds["bounds_rest"], 2),
        "head_share": round(1 - seconds["bounds_rest"] / seconds["bounds"], 3),
        "differing_voxels": int(torch.ne(labels["bounds"], labels["straight"]).sum()),
    }


def run_subdivision(quick: bool = False, cases: Sequence[str] = ()) -> list[Row]:
    """Rows of the table, one thread; `quick` takes one turn of the main case and of growth with the target's size.

    Raises:
        InputError: no such case.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        names = chosen_names(QUICK_CASES if quick else tuple(CASES), cases)
        return [measure(name, CASES[name], rounds=1 if quick else 3) for name in names]
    finally:
        torch.set_num_threads(threads)


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
            seconds = medians({name: partial(ask, dtype, chunk)}, rounds)[name]
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
