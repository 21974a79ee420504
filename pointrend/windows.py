"""Read a window of voxels around each point: what a convolution reads, at the chosen points alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from pointrend._kernels.threads import traced
from pointrend.coordinates import flat_index
from pointrend.reading import check_points, interpolate_at, read_at, read_voxels


def read_window(volume: Tensor, points: Tensor, window: int, grid: Sequence[int] | None = None) -> Tensor:
    """Values of a cubic window around each point, its samples one voxel of the volume apart.

    A linear layer on them is a convolution of that kernel size, evaluated at the points alone. Beyond the border the
    outermost voxels are repeated.

    Args:
        volume: (B, C, *spatial), two or three spatial axes, floating point.
        points: (B, N, ndim) in the unit cube of the volume, axes in array order; N may be 0.
        window: samples per axis, odd; 1 reads the point alone.
        grid: size of the grid whose voxel centres all points are; None if they are not. A volume of that very grid
            is read by index: the same values, and quicker.

    Returns:
        (B, C * window^ndim, N): channel by channel, the samples of a window in row-major order.

    Raises:
        ValueError: an even window, or shapes that disagree.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    if window == 1:
        return read_at(volume, points, grid)
    check_points(volume, points)
    size = tuple(volume.shape[2:])
    if grid is not None and tuple(grid) == size:
        return _around_voxels(volume, flat_index(points, size), window)
    if _compiled_reads(volume, points):
        from pointrend._kernels.interpolated_windows import interpolate_windows

        return interpolate_windows(volume, points, window)
    shifted = points[:, :, None] + _offsets(window, points) / points.new_tensor(size)  # (B, N, window^ndim, ndim)
    values = interpolate_at(volume, shifted.transpose(1, 2).flatten(1, 2))
    return values.unflatten(2, (window ** len(size), points.shape[1])).flatten(1, 2)


def _compiled_reads(volume: Tensor, points: Tensor) -> bool:
    """Whether the compiled loop may read between voxels: float32 on the CPU, no gradient wanted, no tracing."""
    plain = volume.device.type == points.device.type == "cpu" and volume.dtype == points.dtype == torch.float32
    moving = torch.is_grad_enabled() and (volume.requires_grad or points.requires_grad)
    return plain and not moving and not traced()


def _offsets(window: int, points: Tensor) -> Tensor:
    """(window^ndim, ndim) steps in voxels, row-major."""
    steps = range(-(window // 2), window // 2 + 1)
    return points.new_tensor(list(product(steps, repeat=points.shape[-1])))


def _around_voxels(volume: Tensor, index: Tensor, window: int) -> Tensor:
    """The windows around voxels (B, N): the compiled loop for float32 on the CPU, torch's gather elsewhere."""
    if volume.device.type == "cpu" and volume.dtype == torch.float32 and not traced():
        from pointrend._kernels.windows import gather_windows

        return gather_windows(volume, index, window)
    size = volume.shape[2:]
    flat = torch.zeros_like(index)[:, None]  # (B, 1, N), after each axis (B, window times as many, N)
    for axis, voxels in enumerate(size):
        stride = math.prod(size[axis + 1 :])
        steps = torch.arange(window, device=index.device)[:, None] - window // 2
        on_axis = ((index // stride % voxels)[:, None] + steps).clamp(0, voxels - 1)  # (B, window, N)
        flat = (flat[:, :, None] + on_axis[:, None] * stride).flatten(1, 2)
    values = read_voxels(volume, flat.flatten(1))
    return values.unflatten(2, flat.shape[1:]).flatten(1, 2)
