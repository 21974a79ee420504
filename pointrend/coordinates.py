"""Points in the unit cube, voxel indices, torch's sampling grid and interpolation tables: all conversions are here.

The unit cube covers the image from edge to edge: voxel i of an axis of n voxels fills [i/n, (i+1)/n], its centre is
(i + 0.5) / n. Points are in array order, (z, y, x) or (y, x). Image, features and logits of any stride fill the same
cube.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def voxel_centres(index: Tensor, size: Sequence[int]) -> Tensor:
    """Centres of the voxels with these flat (row-major) indices.

    Args:
        index: any shape, int64, in [0, prod(size)); may be empty.
        size: voxels per axis, in array order.

    Returns:
        (*index.shape, len(size)) float32 in (0, 1), on the device of `index`.
    """
    axes = []
    for voxels in reversed(size):
        axes.append(((index % voxels).to(torch.float32) + 0.5) / voxels)
        index = torch.div(index, voxels, rounding_mode="floor")
    return torch.stack(axes[::-1], dim=-1)


def extent_centres(index: Tensor, size: Sequence[int], extent: Sequence[float]) -> Tensor:
    """Centres of voxels of a grid that fills only a share of the cube, from its origin.

    Args:
        index: (...) int64, flat indices into `size`.
        size: voxels per axis of the grid, in array order.
        extent: share of the cube that the grid fills, per axis, in (0, 1].

    Returns:
        (..., len(size)) float32 in the whole cube, between 0 and `extent`.
    """
    points = voxel_centres(index, size)
    return points if all(share == 1 for share in extent) else points * points.new_tensor(extent)


def flat_index(points: Tensor, size: Sequence[int]) -> Tensor:
    """Flat (row-major) index of the voxel that each point lies in; the inverse of `voxel_centres`.

    Args:
        points: (..., len(size)) in the unit cube; points on or beyond its faces belong to the outermost voxel.
        size: voxels per axis, in array order.

    Returns:
        (...) int64.

    Raises:
        ValueError: the last axis of `points` is not len(size).
    """
    if points.shape[-1] != len(size):
        raise ValueError(f"points must be (..., {len(size)}) for a grid of {tuple(size)}, got {tuple(points.shape)}")
    index = torch.zeros(points.shape[:-1], dtype=torch.int64, device=points.device)
    for axis, voxels in enumerate(size):
        along = (points[..., axis] * voxels).floor().to(torch.int64).clamp(0, voxels - 1)
        index = index * voxels + along
    return index


def to_grid(points: Tensor) -> Tensor:
    """Points (..., ndim) of the unit cube as `torch.nn.functional.grid_sample` takes them: (x, y, z) in [-1, 1]."""
    return 2 * points.flip(-1) - 1


def check_extent(extent: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    """The share of the unit cube that a target grid fills, one number per axis; None gives 1 for all.

    Raises:
        ValueError: not one number in (0, 1] per axis.
    """
    if extent is None:
        return (1.0,) * ndim
    if len(extent) != ndim or not all(0 < share <= 1 for share in extent):
        raise ValueError(f"extent must be {ndim} numbers in (0, 1], got {tuple(extent)}")
    return tuple(float(share) for share in extent)


def whole_grid(size: Sequence[int], extent: Sequence[float]) -> tuple[int, ...] | None:
    """The grid over the whole unit cube that a grid over a share of it is the first part of.

    Args:
        size: voxels per axis of the part, which fills `extent` of the cube from its origin.
        extent: per axis in (0, 1].

    Returns:
        Voxels per axis, such as 6 for 5 voxels over 5 / 6 of the cube; None where it is not a whole number.
    """
    lengths = [voxels / share for voxels, share in zip(size, extent, strict=True)]
    whole = tuple(round(length) for length in lengths)
    near = all(abs(length - n) <= 1e-6 for length, n in zip(lengths, whole, strict=True))
    return whole if near else None


def check_size(size: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The size of a target grid as plain integers.

    Raises:
        ValueError: not `ndim` whole numbers of at least 1.
    """
    if len(size) != ndim or not all(isinstance(n, Integral) and n >= 1 for n in size):
        raise ValueError(f"size must be {ndim} whole numbers of at least 1, got {tuple(size)}")
    return tuple(int(n) for n in size)


def interpolation_table(
    source: int, target: int, *, align_corners: bool = False, extent: float = 1.0
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Neighbours and weights of linear interpolation along one axis.

    Target i reads (1 - weight[i]) * source[lower[i]] + weight[i] * source[upper[i]]. Its position in the source is
    scale * (i + 0.5) - 0.5, or scale * i with `align_corners`, rounded once: the bits of torch's `interpolate` where
    torch uses fused multiply-adds (2.13 on AVX2 and AVX-512 does, 2.4 to 2.6 round twice).

    Args:
        source: voxels of the source axis, at least 1.
        target: voxels of the target axis, at least 1.
        align_corners: as in `torch.nn.functional.interpolate`.
        extent: the share of the source axis, from its origin, that the target fills, in (0, 1].

    Returns:
        lower (target,), upper (target,), weight (target,) in [0, 1); lower never decreases.

    Raises:
        ValueError: a size below 1, `extent` outside (0, 1], or `align_corners` together with an `extent` below 1.
    """
    if source < 1 or target < 1:
        raise ValueError(f"source and target must be at least 1, got {source} and {target}")
    if not 0 < extent <= 1 or not math.isfinite(extent):
        raise ValueError(f"extent must lie in (0, 1], got {extent}")
    if align_corners and extent != 1:
        raise ValueError(f"align_corners=True cannot be combined with an extent, got {extent}")
    index = np.arange(target, dtype=np.float64)
    # Torch rounds the scale to float32, then the fused multiply-add. The float64 product and sum are exact here, so
    # that rounding once at the end gives the same bits.
    if align_corners:
        scale = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
        position = (np.float64(scale) * index).astype(np.float32)
    else:
        scale = np.float32(source) / np.float32(target) if extent == 1 else np.float32(extent * source / target)
        position = (np.float64(scale) * (index + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    lower = np.minimum(position.astype(np.int32), source - 1)
    upper = np.minimum(lower + 1, source - 1).astype(np.int32)
    weight = np.minimum(position - lower.astype(np.float32), np.float32(1))
    if source == target and extent == 1:  # torch copies
        weight = np.zeros_like(weight)
        upper = lower
    return lower.astype(np.int32), upper, weight.astype(np.float32)


@dataclass(frozen=True)
class CellAxis:
    """Linear interpolation along one axis, with the target voxels grouped by cell.

    Cell i lies between the source voxels i and i + 1; the last one is its own neighbour.

    Attributes:
        lower, upper, weight: (target,) as from `interpolation_table`.
        starts: (source + 1,) int32; the target voxels of cell i are starts[i]:starts[i + 1].
    """

    lower: NDArray[np.int32]
    upper: NDArray[np.int32]
    weight: NDArray[np.float32]
    starts: NDArray[np.int32]

    @classmethod
    def between(cls, source: int, target: int, extent: float = 1.0, *, align_corners: bool = False) -> CellAxis:
        """From `source` to `target` voxels; arguments and errors of `interpolation_table`."""
        lower, upper, weight = interpolation_table(source, target, align_corners=align_corners, extent=extent)
        starts = np.searchsorted(lower, np.arange(source + 1)).astype(np.int32)
        return cls(lower, upper, weight, starts)

    @property
    def source(self) -> int:
        """Voxels of the source axis."""
        return len(self.starts) - 1

    @property
    def target(self) -> int:
        """Voxels of the target axis."""
        return len(self.lower)

    @property
    def longest(self) -> int:
        """Target voxels in the cell that holds most of them."""
        return int(np.diff(self.starts).max())
