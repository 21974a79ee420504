"""The most uncertain voxels of a finer grid, exactly, without the fine logits.

The margin is best minus second-best logit. In a coarse cell whose corners agree on the best class, the interpolated
margin is at least the smallest margin of the corners: interpolation is a convex mix, and "best class minus the maximum
of the others" is concave. Cells are visited in the order of that bound (0 where corners disagree), and the search
stops where the bound passes the margin of the n-th voxel found. A voxel's key is one integer, the bits of its margin
above its flat index, so that ties go to the lower index on every path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from pointrend.coordinates import CellAxis, check_extent, check_size

ROUNDING = 4e-6  # float32 interpolation moves a margin by less than this share of the largest logit
VALUES_AT_ONCE = 1 << 24  # voxels that the torch path interpolates at once, times classes


def uncertain_voxels(
    logits: Tensor,
    size: Sequence[int],
    *,
    num_points: int | None = None,
    max_margin: float | None = None,
    extent: Sequence[float] | None = None,
    compiled: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The most uncertain voxels of a target grid over the same unit cube.

    Uncertainty is second best minus best of the (tri)linearly interpolated logits (float32, `align_corners=False`).

    Args:
        logits: (K, *coarse) of one volume, two or three spatial axes, K >= 2, finite.
        size: voxels per axis of the target grid.
        num_points: at most this many, the most uncertain; ties go to the lower index. None sets no limit.
        max_margin: only voxels whose best minus second-best logit is at most this. None sets no limit; at least one
            of the two must be given.
        extent: share of the unit cube that the target grid fills, per axis, from the origin; None is all of it.
        compiled: True takes the numba loops (CPU), False torch operations on the device of `logits`, None the faster.

    Returns:
        Flat row-major indices into `size` (n,) int64, ascending, and their uncertainty (n,) float32, at most 0; both
        on the device of `logits`.

    Raises:
        ValueError: shapes or numbers out of range, or logits that are not finite.
        TypeError: logits that are not floating point.
    """
    _check(logits, num_points, max_margin)
    size = check_size(size, logits.ndim - 1)
    shares = check_extent(extent, logits.ndim - 1)
    if math.prod(size) >= 2**32:
        raise ValueError(f"size must hold fewer than 2^32 voxels, got {tuple(size)}")
    fine = logits.detach().float().contiguous()
    if logits.ndim == 3:  # 2D is 3D of depth 1
        fine, size, shares = fine[:, None], (1, *size), (1.0, *shares)
    low, high = (float(value) for value in fine.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("logits must be finite, got NaN or infinite values")
    axes = [CellAxis.between(*lengths) for lengths in zip(fine.shape[1:], size, shares, strict=True)]
    slack = ROUNDING * (max(-low, high) + 1)
    num_points = None if num_points is None else min(int(num_points), math.prod(size))
    if compiled is None:
        compiled = logits.device.type == "cpu"
    if compiled:
        from pointrend._kernels.margin_search import search_compiled

        return search_compiled(fine, axes, num_points, max_margin, slack)
    keys = _search(fine, axes, num_points, max_margin, slack)
    index, order = (keys & 0xFFFFFFFF).sort()
    return index, -(keys[order] >> 32).to(torch.int32).view(torch.float32)


def _search(
    logits: Tensor,
    axes: Sequence[CellAxis],
    num_points: int | None,
    max_margin: float | None,
    slack: float,
) -> Tensor:
    """Keys of the voxels sought, by torch operations: cells in the order of their bounds, some at a time."""
    device = logits.device
    starts = [torch.as_tensor(axis.starts, device=device).long() for axis in axes]
    weights = [torch.as_tensor(axis.weight, device=device) for axis in axes]
    size, longest = [axis.target for axis in axes], [axis.longest for axis in axes]
    bounds = _cell_bounds(logits, starts, slack).flatten()
    bounds, cells = bounds.sort(stable=True)
    cut = math.inf if max_margin is None else float(max_margin)
    step = max(VALUES_AT_ONCE // (math.prod(longest) * len(logits)), 1)
    keys = torch.zeros(0, dtype=torch.int64, device=device)
    for first in range(0, len(cells), step):
        least = float(bounds[first])
        if least > cut or least == math.inf or num_points == 0:
            break
        margins, index = _cell_margins(logits, cells[first : first + step], starts, weights, longest, size)
        near = margins <= cut
        bits = margins[near].view(torch.int32).long()
        keys = torch.cat([keys, bits << 32 | index[near]])
        if num_points is not None and len(keys) >= num_points:
            keys = keys.topk(num_points, largest=False, sorted=False).values
            cut = min(cut, float((keys.max() >> 32).to(torch.int32).view(torch.float32)))
    return keys


def _cell_bounds(logits: Tensor, starts: Sequence[Tensor], slack: float) -> Tensor:
    """(D, H, W) lower bounds of the margins in the cell above each voxel; infinite where it holds no target voxel."""
    best, second = logits[0], torch.full_like(logits[0], -math.inf)
    winner = torch.zeros_like(best, dtype=torch.int32)
    for label, one in enumerate(logits[1:], start=1):
        second = torch.maximum(second, torch.minimum(best, one))
        winner = winner.masked_fill(one > best, label)
        best = torch.maximum(best, one)
    lowest, first, last = best - second, winner, winner
    for axis in range(3):
        above = [_shifted(corner, axis) for corner in (lowest, first, last)]
        lowest, first = torch.minimum(lowest, above[0]), torch.minimum(first, above[1])
        last = torch.maximum(last, above[2])
    bounds = (lowest - slack).clamp_min(0).masked_fill(first != last, 0)
    for axis, start in enumerate(starts):
        shape = [-1 if a == axis else 1 for a in range(3)]
        bounds = bounds.masked_fill((start.diff() == 0).view(shape), math.inf)
    return bounds


def _shifted(volume: Tensor, axis: int) -> Tensor:
    """The next voxel along an axis; the last one is its own next."""
    rest = volume.narrow(axis, 1, volume.shape[axis] - 1)
    return torch.cat([rest, volume.narrow(axis, volume.shape[axis] - 1, 1)], dim=axis)


def _cell_margins(
    logits: Tensor,
    cells: Tensor,
    starts: Sequence[Tensor],
    weights: Sequence[Tensor],
    longest: Sequence[int],
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Margins and flat target indices of all target voxels in some cells (M,), (n,) each."""
    shape = logits.shape[1:]
    corners, voxel = [], []
    for axis in (2, 1, 0):
        corner = cells % shape[axis]
        cells = torch.div(cells, shape[axis], rounding_mode="floor")
        corners.append((corner, (corner + 1).clamp_max(shape[axis] - 1)))
        at = starts[axis][corner][:, None] + torch.arange(longest[axis], device=logits.device)
        voxel.append(at.masked_fill(at >= starts[axis][corner + 1][:, None], -1))  # (M, longest)
    (x, y, z), (at_x, at_y, at_z) = corners, voxel
    index = at_z[:, :, None, None] * size[1] + at_y[:, None, :, None]
    index = index * size[2] + at_x[:, None, None, :]
    inside = (at_z >= 0)[:, :, None, None] & (at_y >= 0)[:, None, :, None] & (at_x >= 0)[:, None, None, :]
    values = torch.stack([logits[:, a, b, c] for a in z for b in y for c in x])
    values = values.view(2, 2, 2, *values.shape[1:])  # (2, 2, 2, K, M)
    wz, wy, wx = (w[at.clamp_min(0)] for w, at in zip(weights, (at_z, at_y, at_x), strict=True))
    # an axis at a time, rounded as the compiled loops round: both paths choose the same voxels
    values = values[0][..., None] * (1 - wz) + values[1][..., None] * wz  # (2, 2, K, M, z)
    values = values[0][..., None] * (1 - wy[:, None]) + values[1][..., None] * wy[:, None]
    values = values[0][..., None] * (1 - wx[:, None, None]) + values[1][..., None] * wx[:, None, None]
    best, second = values[0], torch.full_like(values[0], -math.inf)
    for one in values[1:]:
        second = torch.maximum(second, torch.minimum(best, one))
        best = torch.maximum(best, one)
    return (best - second)[inside], index[inside]


def _check(logits: Tensor, num_points: int | None, max_margin: float | None) -> None:
    if logits.ndim not in (3, 4) or logits.shape[0] < 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (K, H, W) or (K, D, H, W) with K >= 2, got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if num_points is None and max_margin is None:
        raise ValueError("num_points or max_margin must be given, got neither")
    if num_points is not None and (not isinstance(num_points, Integral) or num_points < 0):
        raise ValueError(f"num_points must be a whole number of at least 0, got {num_points}")
    if max_margin is not None and not max_margin >= 0:
        raise ValueError(f"max_margin must be at least 0, got {max_margin}")
