"""Boxes (regions of interest) in a batch of images: coordinates, voxels inside, RoIAlign. 2D and 3D alike.

Letters: R boxes; others as in the package. A box is given by its corners in the unit cube of the image, axes in array
order: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1). Its own unit cube spans it from corner to corner; the coarse logits
of the box fill that cube. So boxes fit features of any stride, and no corner is ever rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import check_extent, check_size, voxel_centres
from pointrend.reading import sample_at


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Regions of interest in a batch of images.

    Attributes:
        corners: (R, 2 ndim) floating point, low corner then high corner, in the unit cube of the image; a box may
            reach beyond the image, but not lie outside of it.
        sample: (R,) int64, the image of the batch that each box lies in.
        target: (R,) int64, the row of the labels that each box is trained on, so that boxes of one instance share its
            mask; None takes row r for box r.
        category: (R,) int64, the channel that is the mask of each box, for class-specific masks: one logit per class,
            each against 0. None: the K logits compete by softmax. A class-agnostic mask of one logit l is given as
            `two_logits(l)` without a category.

    Raises:
        ValueError: shapes that disagree, corners that are not finite or in the wrong order, or a box outside the image.
    """

    corners: Tensor
    sample: Tensor
    target: Tensor | None = None
    category: Tensor | None = None

    def __post_init__(self) -> None:
        if self.corners.ndim != 2 or self.corners.shape[1] not in (4, 6) or not self.corners.is_floating_point():
            raise ValueError(
                f"corners must be floating point (R, 4) or (R, 6), got {self.corners.dtype} {tuple(self.corners.shape)}"
            )
        for name in ("sample", "target", "category"):
            rows = getattr(self, name)
            if rows is not None and (rows.shape != self.corners.shape[:1] or rows.dtype != torch.int64):
                raise ValueError(
                    f"{name} must be int64 ({len(self.corners)},), one per box, got {rows.dtype} {tuple(rows.shape)}"
                )
        low, high = self.corners.chunk(2, dim=1)
        bad = ~(torch.isfinite(self.corners).all(1) & (low < high).all(1))
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"corners must be finite, low below high, got {self.corners[row].tolist()} for box {row}")
        outside = ((high <= 0) | (low >= 1)).any(1)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(f"boxes must overlap the unit cube, got {self.corners[row].tolist()} for box {row}")

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def ndim(self) -> int:
        """Spatial axes."""
        return self.corners.shape[1] // 2

    def to_image(self, points: Tensor) -> Tensor:
        """Points (R, N, ndim) of each box's own unit cube, in the image's unit cube."""
        return from_box(points, self.corners[:, None])

    def to_box(self, points: Tensor) -> Tensor:
        """Points (R, N, ndim) of the image's unit cube, in each box's own."""
        return to_box(points, self.corners[:, None])

    def windows(self, size: Sequence[int], extent: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
        """The voxels of a grid whose centres lie in each box; at least the one that holds the middle of the box.

        Args:
            size: voxels per axis of the grid.
            extent: share of the image's unit cube that the grid spans, per axis, from the origin; None is all.

        Returns:
            First voxel and the one past the last, both (R, ndim) int64.
        """
        shares = check_extent(extent, self.ndim)
        scale = self.corners.new_tensor(
            [n / share for n, share in zip(check_size(size, self.ndim), shares, strict=True)]
        )
        limit = torch.tensor(size, device=self.corners.device)
        low, high = (corner * scale for corner in self.corners.chunk(2, dim=1))
        first, stop = ((edge - 0.5).ceil().long().clamp_min(0).minimum(limit) for edge in (low, high))
        middle = ((low + high) / 2).floor().long().clamp_min(0).minimum(limit - 1)
        return torch.where(stop > first, first, middle), torch.where(stop > first, stop, middle + 1)

    def mask_logits(self, logits: Tensor) -> Tensor:
        """The logits that compete: (R, K, ...) as they are, or with categories (R, 2, ...), 0 and the category's."""
        return logits if self.category is None else two_logits(channel_of(logits, self.category))

    def targets(self, rows: int) -> Tensor:
        """(R,) int64, the row of the labels of each box.

        Args:
            rows: of the labels.

        Raises:
            ValueError: a box names a row that is not there.
        """
        target = torch.arange(len(self), device=self.corners.device) if self.target is None else self.target
        _check_range("target", target, rows)
        return target

    def groups(self, samples: int | None) -> Iterator[tuple[int, list[int]]]:
        """Each image that holds boxes, and the rows of its boxes.

        Args:
            samples: images in the batch; None does not check.

        Raises:
            ValueError: a box names an image that is not in the batch.
        """
        if samples is not None:
            _check_range("sample", self.sample, samples)
        for sample in self.sample.unique().tolist():
            yield sample, (self.sample == sample).nonzero()[:, 0].tolist()

    def rows(self) -> list[Boxes]:
        """Each box by itself."""
        return [self.select(torch.tensor([row])) for row in range(len(self))]

    def select(self, rows: Tensor) -> Boxes:
        """Some of the boxes, by their rows (n,) int64."""
        rows = rows.to(self.corners.device)
        some = {name: part[rows] for name, part in vars(self).items() if part is not None}
        chosen = object.__new__(Boxes)  # these are checked already, and a check waits for the accelerator
        for name in ("corners", "sample", "target", "category"):
            object.__setattr__(chosen, name, some.get(name))
        return chosen


def _check_range(name: str, rows: Tensor, stop: int) -> None:
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < stop:
        raise ValueError(f"{name} must lie in [0, {stop}), got {int(rows.min())} to {int(rows.max())}")


def from_box(points: Tensor, corners: Tensor) -> Tensor:
    """Points (..., ndim) of the unit cube of boxes with these corners (..., 2 ndim), in the image's unit cube."""
    low, high = corners.chunk(2, dim=-1)
    return low + points * (high - low)


def to_box(points: Tensor, corners: Tensor) -> Tensor:
    """Points (..., ndim) of the image's unit cube, in that of boxes with these corners (..., 2 ndim)."""
    low, high = corners.chunk(2, dim=-1)
    return (points - low) / (high - low)


def two_logits(logit: Tensor) -> Tensor:
    """(R, 2, ...) logits 0 and l from one logit l (R, 1, ...): softmax is the sigmoid of l, uncertainty is -|l|."""
    return torch.cat([torch.zeros_like(logit), logit], dim=1)


def channel_of(logits: Tensor, category: Tensor) -> Tensor:
    """(R, 1, ...), the channel of each box's category."""
    return logits[torch.arange(len(logits), device=logits.device), category][:, None]


def sample_in_boxes(volume: Tensor, points: Tensor, boxes: Boxes) -> Tensor:
    """Read images at points of boxes.

    Args:
        volume: (B, C, *spatial), as in `sample_at`.
        points: (R, N, ndim) in the unit cube of the image.
        boxes: R boxes; their `sample` says which image is read.

    Returns:
        (R, C, N).
    """
    read = list(points.new_empty(len(boxes), 0))
    for sample, rows in boxes.groups(len(volume)):
        values = sample_at(volume[sample, None], torch.cat([points[row] for row in rows])[None])[0]
        for row, own in zip(rows, values.split(points.shape[1], dim=1), strict=True):
            read[row] = own
    return torch.stack(read) if read else volume.new_empty(0, volume.shape[1], points.shape[1])


def roi_align(volume: Tensor, boxes: Boxes, size: Sequence[int], samples: int = 2) -> Tensor:
    """RoIAlign (Mask R-CNN, arXiv 1703.06870): each bin of a box is the mean of the volume at points in it.

    Inside the image it equals torchvision's `roi_align(aligned=True)`; at the image's edge the border value counts on,
    where torchvision's fades to 0 beyond one voxel.

    Args:
        volume: (B, C, *spatial).
        boxes: R boxes.
        size: bins per axis.
        samples: points per bin and axis, evenly spaced; 1 reads the bin's centre.

    Returns:
        (R, C, *size).
    """
    size = check_size(size, boxes.ndim)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    fine = [n * samples for n in size]
    points = voxel_centres(torch.arange(math.prod(fine), device=boxes.corners.device), fine)
    read = sample_in_boxes(volume, boxes.to_image(points.expand(len(boxes), -1, -1)), boxes)
    pool = F.avg_pool2d if boxes.ndim == 2 else F.avg_pool3d
    pooled: Tensor = pool(read.unflatten(2, fine), samples) if len(boxes) else read.new_empty(0, read.shape[1], *size)
    return pooled
