"""Overlapping tiles: their places, mirrored too, the tile that a point is read from, and the blending of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, pairwise, product

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

    def nearest(self, axis: int, places: Tensor) -> Tensor:
        """Along one axis, the tile (index into `starts`) whose centre is nearest: it sees most around a point.

        A voxel of the canvas belongs to the tile that is nearest along each axis.

        Args:
            places: (N,) positions along the axis, in voxels of the canvas.
        """
        return torch.bucketize(places, torch.tensor(self._borders(axis)))

    def owned(self, number: int) -> Box:
        """The part of a tile, in its own voxels, that holds the points nearest to it."""
        parts = []
        for axis, start in enumerate(self.corners()[number]):
            borders = [0.0, *self._borders(axis), float(self.canvas[axis])]
            place = self.starts[axis].index(start)
            parts.append(slice(math.floor(borders[place]) - start, math.ceil(borders[place + 1]) - start))
        return parts[0], parts[1], parts[2]

    def _borders(self, axis: int) -> list[float]:
        """Positions midway between the centres of neighbouring tiles, in voxels of the canvas."""
        return [(a + b + self.tile[axis]) / 2 for a, b in pairwise(self.starts[axis])]

    def to_tile(self, points: Tensor, corner: Axes) -> Tensor:
        """Points (N, 3) of the canvas's unit cube in that of the tile at `corner`."""
        return (points * torch.tensor(self.canvas) - torch.tensor(corner)) / torch.tensor(self.tile)


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


Mirror = tuple[int, ...]  # spatial axes, 0 to 2


def mirror_sets(axes: Sequence[str]) -> list[Mirror]:
    """Every set of the named axes, as numbers: () first, 2^n in all."""
    numbers = ["zyx".index(axis) for axis in axes]
    return [some for n in range(len(numbers) + 1) for some in combinations(numbers, n)]


def mirrored(volume: Tensor, mirror: Mirror) -> Tensor:
    """(C, D, H, W) mirrored along spatial axes."""
    return volume.flip([axis + 1 for axis in mirror]) if mirror else volume


def mirrored_box(box: Box, tile: Axes, mirror: Mirror) -> Box:
    """Where a box of a tile lies in the mirrored tile."""
    z, y, x = (
        slice(n - part.stop, n - part.start) if axis in mirror else part
        for axis, (part, n) in enumerate(zip(box, tile, strict=True))
    )
    return z, y, x
