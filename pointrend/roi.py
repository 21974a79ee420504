"""PointRend in boxes (regions of interest): coarse logits of a box, features of the whole image. 2D and 3D alike.

Letters and coordinates are those of `pointrend.boxes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.boxes import Boxes, from_box, roi_align, sample_in_boxes, to_box, two_logits
from pointrend.coordinates import check_extent, check_size, extent_centres, voxel_centres
from pointrend.reading import best_class, interpolate_at, uncertainty
from pointrend.sampling import box_training_voxels, voxels_between

if TYPE_CHECKING:
    from pointrend.refine import PointRend

__all__ = [
    "BoxRefinement",
    "Boxes",
    "CoarseMaskHead",
    "box_training_logits",
    "box_training_voxels",
    "refine_boxes",
    "roi_align",
    "sample_in_boxes",
    "two_logits",
]

CHUNK = 65536  # points at once


@dataclass(frozen=True)
class BoxRefinement:
    """Labels of the voxels in boxes, each box in a window of the target grid.

    Attributes:
        first: (R, ndim) int64, the first voxel of each window.
        labels: per box its window's labels, uint8 (uint16 from 257 classes on).
        log_odds: per box its window's float32 logit 1 minus logit 0, where two logits compete; else None.
        index: per box the (n,) int64 flat indices within the window of the voxels that the head was asked about,
            ascending; empty after the paper's subdivision, which asks about voxels of the box's own grid.
    """

    first: Tensor
    labels: tuple[Tensor, ...]
    log_odds: tuple[Tensor, ...] | None
    index: tuple[Tensor, ...]

    def paste(self, size: Sequence[int]) -> Tensor:
        """(R, *size) labels on the whole target grid, 0 outside of the windows."""
        return self._paste(self.labels, size, torch.uint8)

    def probabilities(self, size: Sequence[int]) -> Tensor:
        """(R, *size) float32 probability of class 1 of two on the whole target grid, 0 outside of the windows.

        Raises:
            ValueError: more than two logits competed.
        """
        if self.log_odds is None:
            raise ValueError("probabilities are those of a mask of two logits, got more classes")
        return self._paste([odds.sigmoid() for odds in self.log_odds], size, torch.float32)

    def _paste(self, windows: Sequence[Tensor], size: Sequence[int], kind: torch.dtype) -> Tensor:
        kind = windows[0].dtype if windows else kind
        whole = torch.zeros(len(windows), *size, dtype=kind, device=self.first.device)
        for row, (first, window) in enumerate(zip(self.first.tolist(), windows, strict=True)):
            place = tuple(slice(start, start + n) for start, n in zip(first, window.shape, strict=True))
            whole[row][place] = window
        return whole


def box_training_logits(
    model: PointRend,
    coarse: Tensor,
    features: Mapping[str, Tensor],
    image: Tensor | None,
    labels: Tensor,
    boxes: Boxes,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The head's logits at training points in boxes, drawn by `model.sampling`.

    Args:
        coarse: (R, K, *coarse) logits in the boxes.
        features: (B, C, *spatial) by name, of the images.
        image: (B, C, *spatial), or None.
        labels: (L, *size) integers on the images' own grid: row `boxes.target[r]` is that of box r.
        boxes: R boxes.
        generator: serves all boxes; None draws from torch's global one.

    Returns:
        Points (R, N, ndim) in the images' unit cube, competing logits (R, K or 2, N) with gradient, labels (R, N)
        int64.

    Raises:
        ValueError: shapes that disagree, or a row of `labels` that is not there.
    """
    _check_rows(coarse, boxes)
    size = tuple(labels.shape[1:])
    target = boxes.targets(len(labels))
    competing = boxes.mask_logits(coarse.detach())
    index = box_training_voxels(competing, size, boxes, model.sampling, labels=labels, generator=generator)
    points = voxel_centres(index, size)
    known = interpolate_at(coarse, boxes.to_box(points))
    rows = _Questions(model, features, image, boxes).ask(list(points), list(known), grid=size)
    logits = torch.stack(rows) if rows else known
    return points, boxes.mask_logits(logits), labels.flatten(1)[target[:, None], index].long()


@torch.no_grad()
def refine_boxes(
    model: PointRend,
    coarse: Tensor,
    features: Mapping[str, Tensor],
    image: Tensor | None,
    size: Sequence[int],
    boxes: Boxes,
    *,
    num_points: int | None = None,
    max_margin: float | None = None,
    extent: Sequence[float] | None = None,
    steps: int = 1,
    chunk: int = CHUNK,
) -> BoxRefinement:
    """Labels of the image's own voxels in boxes: the head's where the coarse logits are unsure, theirs elsewhere.

    Every voxel of a box is read from its coarse logits, `chunk` voxels at a time.

    Args:
        coarse: (R, K, *coarse) logits in the boxes.
        features: (B, C, *spatial) by name, of the images.
        image: (B, C, *spatial), or None.
        size: voxels per axis of the target grid, the image's own or any other.
        boxes: R boxes.
        num_points: ask the head about at most this many voxels per box and step, the most uncertain.
        max_margin: ask only where best minus second-best logit is at most this. At least one of the two.
        extent: share of the image's unit cube that the target grid spans, per axis, from the origin.
        steps: 1 asks about voxels of the target grid. More take the paper's subdivision instead: the box's own grid is
            doubled steps - 1 times (28 -> 56 -> 112 -> 224 with 4), the head is asked after each doubling, and the
            target's voxels are interpolated from the finest.
        chunk: points at once.

    Raises:
        ValueError: shapes that disagree, or numbers out of range.
    """
    _check_rows(coarse, boxes)
    _check_numbers(num_points, max_margin, steps, chunk)
    shares, size = check_extent(extent, boxes.ndim), check_size(size, boxes.ndim)
    questions = _Questions(model, features, image, boxes, chunk)
    fields = coarse
    for _ in range(steps - 1):
        fields = _subdivide(questions, fields, coarse, num_points, max_margin)
    first, stop = boxes.windows(size, extent)
    windows = [
        _Window.read(box, fields[row, None], voxels_between(first[row], stop[row], size), size, shares, chunk)
        for row, box in enumerate(boxes.rows())
    ]
    asked = [_most_uncertain(window.doubt, num_points if steps == 1 else 0, max_margin) for window in windows]
    points = [window.points[index] for window, index in zip(windows, asked, strict=True)]
    known = _read_rows(coarse, points, boxes)
    grid = size if all(share == 1 for share in shares) else None
    for box, window, index, logits in zip(
        boxes.rows(), windows, asked, questions.ask(points, known, grid=grid), strict=True
    ):
        window.write(index, box.mask_logits(logits[None]))
    sides = [tuple(side) for side in (stop - first).tolist()]
    two = boxes.category is not None or coarse.shape[1] == 2
    return BoxRefinement(
        first,
        tuple(window.labels.view(side) for window, side in zip(windows, sides, strict=True)),
        tuple(window.odds.view(side) for window, side in zip(windows, sides, strict=True)) if two else None,
        tuple(asked),
    )


@dataclass(frozen=True)
class _Questions:
    """The head, and the images that it reads."""

    model: PointRend
    features: Mapping[str, Tensor]
    image: Tensor | None
    boxes: Boxes
    chunk: int = CHUNK

    def ask(
        self, points: Sequence[Tensor], known: Sequence[Tensor], *, grid: Sequence[int] | None = None
    ) -> list[Tensor]:
        """The head's logits at points of boxes, all boxes of an image together.

        Args:
            points: per box (n, ndim) in the image's unit cube.
            known: per box (K, n), the coarse logits there.
            grid: size of the grid whose voxel centres all points are, if they are.

        Returns:
            Per box (K, n).
        """
        images = [*self.features.values(), *([] if self.image is None else [self.image])]
        logits = list(known)
        for sample, rows in self.boxes.groups(len(images[0]) if images else None):
            maps = {
                name: self.features[name][sample, None] for name in self.model.feature_names if name in self.features
            }
            picture = None if self.image is None else self.image[sample, None]
            where, coarse = torch.cat([points[row] for row in rows]), torch.cat([known[row] for row in rows], dim=1)
            parts = zip(where.split(self.chunk), coarse.split(self.chunk, dim=1), strict=True)
            joined = [self.model.predict_points(p[None], c[None], maps, picture, grid=grid)[0] for p, c in parts]
            lengths = [len(points[row]) for row in rows]
            for row, own in zip(rows, torch.cat(joined, dim=1).split(lengths, dim=1), strict=True):
                logits[row] = own
        return logits


@dataclass(frozen=True)
class _Window:
    """The voxels of one box on the target grid, flat: their points in the image, and what the logits say there.

    Attributes:
        points: (n, ndim).
        labels: (n,).
        doubt: (n,) float32, uncertainty of the coarse logits.
        odds: (n,) float32, logit 1 minus logit 0 of those that compete.
    """

    points: Tensor
    labels: Tensor
    doubt: Tensor
    odds: Tensor

    @classmethod
    def read(
        cls, box: Boxes, field: Tensor, index: Tensor, size: Sequence[int], shares: Sequence[float], chunk: int
    ) -> _Window:
        """The voxels with these flat indices of a grid, of one box and its field of logits (1, K, *grid)."""
        points = extent_centres(index, size, shares)
        labels, doubt, odds = [], [], []
        for some in points.split(chunk):
            logits = box.mask_logits(interpolate_at(field, box.to_box(some[None])).float())
            labels.append(best_class(logits)[0])
            doubt.append(uncertainty(logits)[0])
            odds.append(logits[0, 1] - logits[0, 0])
        kind = torch.uint8 if field.shape[1] <= 256 else torch.uint16
        return cls(points, torch.cat(labels).to(kind), torch.cat(doubt), torch.cat(odds))

    def write(self, index: Tensor, logits: Tensor) -> None:
        """Put the head's competing logits (1, K, n) in the place of the coarse ones."""
        self.labels[index] = best_class(logits)[0].to(self.labels.dtype)
        self.odds[index] = (logits[0, 1] - logits[0, 0]).float()


def _subdivide(
    questions: _Questions, fields: Tensor, coarse: Tensor, num_points: int | None, max_margin: float | None
) -> Tensor:
    """The boxes' logits (R, K, *grid) on a grid twice as fine, the head's at its most uncertain voxels."""
    boxes = questions.boxes
    mode = "bilinear" if boxes.ndim == 2 else "trilinear"
    fine = F.interpolate(fields.float(), scale_factor=2, mode=mode, align_corners=False)
    doubt = uncertainty(boxes.mask_logits(fine)).flatten(1)
    asked = [_most_uncertain(row, num_points, max_margin) for row in doubt]
    points = [
        from_box(voxel_centres(index, fine.shape[2:]), corners)
        for index, corners in zip(asked, boxes.corners, strict=True)
    ]
    flat = fine.flatten(2)
    for row, logits in enumerate(questions.ask(points, _read_rows(coarse, points, boxes))):
        flat[row, :, asked[row]] = logits.float()
    return flat.view_as(fine)


def _read_rows(coarse: Tensor, points: Sequence[Tensor], boxes: Boxes) -> list[Tensor]:
    """Per box its coarse logits (K, n) at points (n, ndim) of the image."""
    rows = zip(coarse, points, boxes.corners, strict=True)
    return [interpolate_at(logits[None], to_box(own, corners)[None])[0] for logits, own, corners in rows]


def _most_uncertain(doubt: Tensor, num_points: int | None, max_margin: float | None) -> Tensor:
    """Ascending indices of the most uncertain values (n,); ties go to the lower index."""
    near = torch.ones_like(doubt, dtype=torch.bool) if max_margin is None else doubt >= -max_margin
    index = near.nonzero()[:, 0]
    if num_points is None or len(index) <= num_points:
        return index
    return index[doubt[index].sort(descending=True, stable=True).indices[:num_points]].sort().values


def _check_rows(coarse: Tensor, boxes: Boxes) -> None:
    if coarse.ndim != boxes.ndim + 2 or len(coarse) != len(boxes) or coarse.shape[1] < 2:
        wanted = f"({len(boxes)}, K, ...) with K >= 2 and {boxes.ndim} spatial axes"
        raise ValueError(f"coarse must be {wanted}, got {tuple(coarse.shape)}")


def _check_numbers(num_points: int | None, max_margin: float | None, steps: int, chunk: int) -> None:
    if num_points is None and max_margin is None:
        raise ValueError("num_points or max_margin must be given, got neither")
    if num_points is not None and num_points < 0:
        raise ValueError(f"num_points must be at least 0, got {num_points}")
    if max_margin is not None and not 0 <= max_margin < math.inf:
        raise ValueError(f"max_margin must be at least 0, got {max_margin}")
    if steps < 1 or chunk < 1:
        raise ValueError(f"steps and chunk must be at least 1, got {steps} and {chunk}")


class CoarseMaskHead(nn.Module):
    """Logits of 7 x 7 bins from 14 x 14 features, by two hidden layers (PointRend, arXiv 1912.08193, section 4.1).

    Args:
        channels: of the features.
        classes: K, background included, as torchvision counts them.
        size: bins per axis; the features have twice as many.
        width: channels of the hidden layers, 1024 in the paper.
    """

    def __init__(self, *, channels: int, classes: int, size: int = 7, width: int = 1024) -> None:
        super().__init__()
        self.classes, self.size = classes, size
        self.reduce = nn.Conv2d(channels, channels, kernel_size=2, stride=2)
        self.hidden = nn.Sequential(nn.Linear(channels * size**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.logits = nn.Linear(width, classes * size**2)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(R, K, size, size) from (R, C, 2 size, 2 size)."""
        hidden = self.hidden(F.relu(self.reduce(features)).flatten(1))
        logits: Tensor = self.logits(hidden)
        return logits.view(len(features), self.classes, self.size, self.size)
