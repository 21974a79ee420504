"""Refinement of 3D logits: candidates from cell bounds against loops over the dense fine grid.

`straight` is a direct port of the paper's loop: up-sample, top-2 over the classes, top-k over the grid,
sample, predict, write back. `tuned` has running maxima in the place of torch's `topk` and `argmax` over the class
axis. `bounds` is `PointRend.refine`. All refine the same voxels with the same head, and their labels are
compared. Columns `_rest` time everything but sampling and MLP: the head returns the coarse logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, sample_at, uncertainty
from pointrend.refine import PointRend
from scripts.benchmarks.rows import Row, chosen_names, take_turns

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


def fastest(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each side: the fastest of `rounds` turns, after one that is not counted. The sides take turns."""
    return {name: min(values) for name, values in take_turns(sides, rounds).items()}


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
    seconds = fastest(sides, rounds)
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


def run(quick: bool = False, cases: Sequence[str] = ()) -> list[Row]:
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
