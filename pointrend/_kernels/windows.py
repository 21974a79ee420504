"""Windows of voxels around voxels, gathered on the CPU, and the gradient; 2D is 3D of depth 1.

Torch's own gather needs one index per value, and its scatter takes several times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from pointrend._kernels.threads import divide

BLOCK = 256  # points whose window positions stay in the cache while the channels go by


def gather_windows(volume: Tensor, index: Tensor, window: int) -> Tensor:
    """The windows around voxels, for checked float32 CPU tensors.

    Args:
        volume: (B, C, *spatial), two or three spatial axes; it may want a gradient (once, not of the gradient).
        index: (B, N) int64, flat within the spatial axes.
        window: voxels per axis, odd.

    Returns:
        (B, C * window^ndim, N): channel by channel, the voxels of a window in row-major order.
    """
    values: Tensor = _GatherWindows.apply(volume, index, window)
    return values


class _GatherWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, index: Tensor, window: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size, ctx.window = tuple(volume.shape[2:]), window
        shape, radius = _as_3d(ctx.size, window)
        values, voxels = volume.detach().contiguous().flatten(2).numpy(), index.numpy()
        out = torch.empty(*volume.shape[:2], window ** len(ctx.size), index.shape[1])
        into = out.numpy()

        def work(sample: int, start: int, stop: int) -> None:
            _gather(values[sample], shape, voxels[sample], radius, into[sample], start, stop)

        divide(work, samples=len(values), parts=values.shape[1], values=into.size)
        return out.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        shape, radius = _as_3d(ctx.size, ctx.window)
        gradient = gradients[0].contiguous().unflatten(1, (-1, ctx.window ** len(ctx.size)))
        out = torch.zeros(*gradient.shape[:2], *ctx.size)
        values, voxels, into = gradient.numpy(), index.numpy(), out.flatten(2).numpy()

        def work(sample: int, start: int, stop: int) -> None:
            _scatter(values[sample], shape, voxels[sample], radius, into[sample], start, stop)

        divide(work, samples=len(values), parts=values.shape[1], values=values.size)
        return out, None, None


def _as_3d(size: Sequence[int], window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shape of the volume and radius of the window per axis, (3,) each."""
    lifted = 3 - len(size)
    return np.array([1] * lifted + [*size]), np.array([0] * lifted + [window // 2] * len(size))


@numba.njit(cache=True, nogil=True)
def _window_positions(
    index: NDArray, shape: NDArray, radius: NDArray, first: int, last: int, scratch: NDArray, positions: NDArray
) -> None:
    """Write the flat indices (window^ndim, BLOCK) of the windows of points [first, last) to `positions`.

    Beyond the border the outermost voxels are repeated. `scratch` is (3, longest window axis).
    """
    for n in range(first, last):
        flat = index[n]
        for axis in range(2, -1, -1):
            middle = flat % shape[axis]
            flat //= shape[axis]
            stride = 1
            for later in range(axis + 1, 3):
                stride *= shape[later]
            for step in range(2 * radius[axis] + 1):
                scratch[axis, step] = min(max(middle + step - radius[axis], 0), shape[axis] - 1) * stride
        k = 0
        for z in range(2 * radius[0] + 1):
            for y in range(2 * radius[1] + 1):
                for x in range(2 * radius[2] + 1):
                    positions[k, n - first] = scratch[0, z] + scratch[1, y] + scratch[2, x]
                    k += 1


@numba.njit(cache=True, nogil=True)
def _gather(
    volume: NDArray, shape: NDArray, index: NDArray, radius: NDArray, out: NDArray, start: int, stop: int
) -> None:
    """Write channels [start, stop) of a volume (C, V) around voxels (N,) to out (C, window^ndim, N)."""
    scratch = np.empty((3, 2 * radius.max() + 1), np.int64)
    positions = np.empty((out.shape[1], BLOCK), np.uint64)  # unsigned: spares numba's test for negative indices
    for first in range(0, len(index), BLOCK):
        last = min(first + BLOCK, len(index))
        _window_positions(index, shape, radius, first, last, scratch, positions)
        for channel in range(start, stop):
            values = volume[channel]
            for k in range(out.shape[1]):
                read, into = positions[k], out[channel, k, first:last]
                for n in range(len(into)):
                    into[n] = values[read[n]]


@numba.njit(cache=True, nogil=True)
def _scatter(
    gradient: NDArray, shape: NDArray, index: NDArray, radius: NDArray, volume: NDArray, start: int, stop: int
) -> None:
    """Add channels [start, stop) of a gradient (C, window^ndim, N) to the voxels of a volume (C, V) they came from."""
    scratch = np.empty((3, 2 * radius.max() + 1), np.int64)
    positions = np.empty((gradient.shape[1], BLOCK), np.int64)
    for first in range(0, len(index), BLOCK):
        last = min(first + BLOCK, len(index))
        _window_positions(index, shape, radius, first, last, scratch, positions)
        for channel in range(start, stop):
            values = volume[channel]
            for k in range(gradient.shape[1]):
                written, given = positions[k], gradient[channel, k, first:last]
                for n in range(len(given)):
                    values[written[n]] += given[n]
