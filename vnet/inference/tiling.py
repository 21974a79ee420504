"""Overlapping tiles: where they lie, how their logits are blended, which tile a point is read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, product

import torch
from torch import Tensor

from vnet.core.config import Axes

Box = tuple[slice, slice, slice]  # voxels (z, y, x)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one size over a canvas, a grid of starts per axis (z, y, x), in voxels.

    Starts are multiples of `align` (the output stride), so that a tile's coarse voxels are the canvas's.
    """

    canvas: Axes
    tile: Axes
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def corners(self) -> list[Axes]:
        return list(product(*self.starts))

    def nearest(self, points: Tensor) -> Tensor:
        """Tile (index into `corners`) whose centre is nearest, so that a point is seen with the most context.

        Args:
            points: (N, 3) in the unit cube of the canvas.
        """
        index = torch.zeros(len(points), dtype=torch.int64)
        for axis, starts in enumerate(self.starts):
            middle = self.tile[axis] / 2
            borders = [(a + b) / 2 + middle for a, b in pairwise(starts)]
            place = torch.bucketize(points[:, axis].contiguous() * self.canvas[axis], torch.tensor(borders))
            index = index * len(starts) + place
        return index

    def owned(self, number: int, align: Axes) -> Box:
        """The part of a tile, in its own voxels, that points nearest to it are interpolated from.

        It ends on multiples of `align`, the largest stride of what is read there (a divisor of the tile), and
        reaches one such voxel further than the points, which interpolation between voxel centres may read.
        """
        parts = []
        for axis, start in enumerate(self.corners()[number]):
            starts, length, step = self.starts[axis], self.tile[axis], align[axis]
            place = starts.index(start)
            borders = [0.0, *((a + b) / 2 - start + length / 2 for a, b in pairwise(starts)), float(length)]
            first = int(borders[place] // step - 1) * step if place else 0
            last = int(-(-borders[place + 1] // step) + 1) * step if place + 1 < len(starts) else length
            parts.append(slice(max(first, 0), min(last, length)))
        return parts[0], parts[1], parts[2]

    def to_box(self, points: Tensor, corner: Axes, box: Box) -> Tensor:
        """Points of the canvas's unit cube in that of a box of the tile at `corner`."""
        canvas = torch.tensor(self.canvas)
        first = torch.tensor([start + part.start for start, part in zip(corner, box, strict=True)])
        return (points * canvas - first) / torch.tensor([part.stop - part.start for part in box])


def lay_tiles(size: Sequence[int], tile: Axes, *, overlap: float, align: Axes) -> TileGrid:
    """Tiles that cover a volume of `size` voxels, neighbours sharing at least `overlap` of a tile.

    The canvas is the volume grown at its ends: to a tile where it is smaller, else to a multiple of `align`.
    `tile` must be a multiple of `align`.
    """
    starts, canvas = [], []
    for n, length, step in zip(size, tile, align, strict=True):
        grown = max(length, -(-n // step) * step)
        count = 1 + -(-(grown - length) // max(int(length * (1 - overlap)), 1))
        last = grown - length
        # evenly spread, on multiples of `align`
        starts.append(tuple(sorted({round(i * last / max(count - 1, 1) / step) * step for i in range(count)})))
        canvas.append(grown)
    return TileGrid(canvas=(canvas[0], canvas[1], canvas[2]), tile=tile, starts=(starts[0], starts[1], starts[2]))


def gaussian_window(size: Sequence[int]) -> Tensor:
    """Weights of a tile's voxels, a Gaussian with a standard deviation of an eighth of the tile (as nnU-Net's), 1 at
    the middle and never below 1e-3, so that a voxel seen by one tile's corner only still divides well.

    Returns:
        (d, h, w) float32.
    """
    axes = []
    for n in size:
        offset = (torch.arange(n) + 0.5) / n - 0.5
        axes.append(torch.exp(-0.5 * (offset / 0.125) ** 2))
    window = reduce(lambda a, b: a[..., None] * b, axes)
    return (window / window.max()).clamp_min(1e-3)


class Blend:
    """Weighted mean of tile logits on the coarse grid of the canvas."""

    def __init__(self, *, classes: int, grid: TileGrid, stride: Axes) -> None:
        self.stride = stride
        self.size = self.coarse(grid.canvas)
        self.sum = torch.zeros(classes, *self.size)
        self.weight = torch.zeros(self.size)
        self.window = gaussian_window(self.coarse(grid.tile))

    def coarse(self, size: Axes) -> Axes:
        d, h, w = (n // s for n, s in zip(size, self.stride, strict=True))
        return d, h, w

    def add(self, logits: Tensor, corner: Axes) -> None:
        """`logits` (K, d, h, w) of the tile at `corner`."""
        here = tuple(slice(start, start + n) for start, n in zip(self.coarse(corner), logits.shape[1:], strict=True))
        self.sum[(slice(None), *here)] += logits.cpu() * self.window
        self.weight[here] += self.window

    def result(self) -> Tensor:
        """(K, d, h, w), in the memory of the sum."""
        return self.sum.div_(self.weight)
