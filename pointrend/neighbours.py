"""Read a window of voxels around each point: what a convolution sees there, at the chosen points alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pointrend._kernels.threads import divide, traced
from pointrend.coordinates import flat_index
from pointrend.reading import read_at, read_voxels, sample_at


def read_window(volume: Tensor, points: Tensor, window: int, grid: Sequence[int] | None = None) -> Tensor:
    """Values at the points of a cubic window around each point, one voxel of the volume apart.

    A linear layer on them is a convolution of that kernel, evaluated at the points and nowhere else. Beyond the
    border the outermost voxels are repeated.

    Args:
        volume: (B, C, *spatial), floating point.
        points: (B, N, ndim) in the unit cube of the volume; N may be 0.
        window: voxels per axis, odd; 1 reads the point alone.
        grid: size of the grid whose voxel centres all points are; None if they are not. A volume of that very grid
            is read by index: the same values, and quicker.

    Returns:
        (B, C * window^ndim, N): channel by channel, the places of a window in row-major order.

    Raises:
        ValueError: an even window, or shapes that disagree.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    if window == 1:
        return read_at(volume, points, grid)
    size = tuple(volume.shape[2:])
    if points.ndim != 3 or points.shape[-1] != len(size) or len(points) != len(volume):
        raise ValueError(f"points must be ({len(volume)}, N, {len(size)}), got {tuple(points.shape)}")
    if grid is not None and tuple(grid) == size:
        return _at_voxels(volume, flat_index(points, size), window)
    shifted = points[:, :, None] + _offsets(window, points) / points.new_tensor(size)  # (B, N, window^ndim, ndim)
    values = sample_at(volume, shifted.transpose(1, 2).flatten(1, 2))
    return values.unflatten(2, (window ** len(size), points.shape[1])).flatten(1, 2)


def _offsets(window: int, points: Tensor) -> Tensor:
    """(window^ndim, ndim) steps in voxels, row-major."""
    steps = range(-(window // 2), window // 2 + 1)
    return points.new_tensor(list(product(steps, repeat=points.shape[-1])))


def _at_voxels(volume: Tensor, index: Tensor, window: int) -> Tensor:
    """The windows around voxels (B, N); the compiled loop on the CPU, torch's gather elsewhere."""
    if volume.device.type == "cpu" and volume.dtype == torch.float32 and not traced():
        values: Tensor = _Windows.apply(volume, index, window)
        return values
    size = volume.shape[2:]
    flat = torch.zeros_like(index)[:, None]  # (B, 1, N), then (B, window^axes, N)
    for axis, voxels in enumerate(size):
        stride = int(np.prod(size[axis + 1 :]))
        steps = torch.arange(window, device=index.device)[:, None] - window // 2
        along = ((index // stride % voxels)[:, None] + steps).clamp(0, voxels - 1)  # (B, window, N)
        flat = (flat[:, :, None] + along[:, None] * stride).flatten(1, 2)
    values = read_voxels(volume, flat.flatten(1))
    return values.unflatten(2, flat.shape[1:]).flatten(1, 2)


class _Windows(torch.autograd.Function):
    """`_at_voxels` by compiled loops; torch's own scatter takes several times as long."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, index: Tensor, window: int) -> Tensor:
        from pointrend._kernels.neighbours import gather_windows

        ctx.save_for_backward(index)
        ctx.size, ctx.window = tuple(volume.shape[2:]), window
        shape, reach = _as_3d(ctx.size, window)
        values, at = volume.detach().contiguous().flatten(2).numpy(), index.numpy()
        out = torch.empty(*volume.shape[:2], window ** len(ctx.size), index.shape[1])
        into = out.numpy()

        def work(sample: int, start: int, stop: int) -> None:
            gather_windows(values[sample], shape, at[sample], reach, into[sample], start, stop)

        divide(work, samples=len(values), parts=values.shape[1], values=into.size)
        return out.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from pointrend._kernels.neighbours import scatter_windows

        (index,) = ctx.saved_tensors
        shape, reach = _as_3d(ctx.size, ctx.window)
        grad = grads[0].contiguous().unflatten(1, (-1, ctx.window ** len(ctx.size)))
        out = torch.zeros(*grad.shape[:2], *ctx.size)
        values, at, into = grad.numpy(), index.numpy(), out.flatten(2).numpy()

        def work(sample: int, start: int, stop: int) -> None:
            scatter_windows(values[sample], shape, at[sample], reach, into[sample], start, stop)

        divide(work, samples=len(values), parts=values.shape[1], values=values.size)
        return out, None, None


def _as_3d(size: Sequence[int], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Shape and reach of the window per axis; 2D is 3D of depth 1."""
    lifted = 3 - len(size)
    return np.array([1] * lifted + [*size]), np.array([0] * lifted + [window // 2] * len(size))
