"""Linear interpolation at points on the CPU, and its gradient; 2D is 3D of depth 1.

Torch's `grid_sample` divides a batch over threads, never the points of one volume, and takes twice as long forward
and four times as long backward.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pointrend._kernels.threads import divide

BLOCK = 256  # points whose corners and weights stay in the first-level cache while the channels go by


def interpolate(volume: Tensor, points: Tensor) -> Tensor:
    """As `pointrend.sample_at`, for checked CPU tensors: (B, C, *spatial) at (B, N, ndim) gives (B, C, N).

    The volume may want a gradient (once: there is none of the gradient), the points may not.
    """
    if volume.ndim == 4:
        volume, points = volume[:, :, None], F.pad(points, (1, 0), value=0.5)
    values: Tensor = _Interpolate.apply(volume, points)
    return values


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(volume: Tensor, points: Tensor) -> Tensor:
        shape = np.array(volume.shape[2:])
        values, places = _array(volume).reshape(*volume.shape[:2], -1), _array(points)
        out = torch.empty(*values.shape[:2], places.shape[1])
        into = out.numpy()

        def work(sample: int, start: int, stop: int) -> None:
            _interpolate_points(values[sample], shape, places[sample], start, stop, into[sample])

        divide(work, samples=len(values), parts=places.shape[1], values=out.numel())
        return out.to(volume.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        volume, points = inputs
        ctx.save_for_backward(points)
        ctx.shape, ctx.dtype = volume.shape, volume.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (points,) = ctx.saved_tensors
        out = torch.zeros(ctx.shape)
        shape = np.array(ctx.shape[2:])
        values, places, into = _array(gradient), _array(points), out.flatten(2).numpy()

        def work(sample: int, start: int, stop: int) -> None:
            _spread_points(values[sample], shape, places[sample], start, stop, into[sample])

        divide(work, samples=len(values), parts=values.shape[1], values=values.size)
        return out.to(ctx.dtype), None


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return array


@numba.njit(cache=True, nogil=True)
def _locate(
    points: NDArray, shape: NDArray, first: int, last: int, corners: NDArray, weights: NDArray, stride: NDArray
) -> None:
    """Flat indices and weights (BLOCK, 8) of the 8 voxels around each of points [first, last); border padding."""
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    part = np.empty(3, np.float32)
    for n in range(first, last):
        for axis in range(3):
            top = np.float32(shape[axis] - 1)
            position = points[n, axis] * np.float32(shape[axis]) - np.float32(0.5)
            if not position > 0:  # also NaN: no read may leave the volume
                position = np.float32(0)
            position = min(position, top)
            whole = np.int64(position)
            part[axis] = position - np.float32(whole)
            low[axis], high[axis] = whole * stride[axis], min(whole + 1, shape[axis] - 1) * stride[axis]
        for c in range(8):
            z, y, x = c >> 2, (c >> 1) & 1, c & 1
            wz = part[0] if z else np.float32(1) - part[0]
            wy = part[1] if y else np.float32(1) - part[1]
            wx = part[2] if x else np.float32(1) - part[2]
            corners[n - first, c] = (high[0] if z else low[0]) + (high[1] if y else low[1]) + (high[2] if x else low[2])
            weights[n - first, c] = wz * wy * wx


@numba.njit(cache=True, nogil=True)
def _interpolate_points(volume: NDArray, shape: NDArray, points: NDArray, start: int, stop: int, out: NDArray) -> None:
    """Write a volume (C, V) of shape (3,), read at points [start, stop) of (N, 3) in the unit cube, to out (C, N)."""
    corners, weights = np.empty((BLOCK, 8), np.int64), np.empty((BLOCK, 8), np.float32)
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        _locate(points, shape, first, last, corners, weights, stride)
        for channel in range(volume.shape[0]):
            for n in range(last - first):
                total = np.float32(0)
                for c in range(8):
                    total += weights[n, c] * volume[channel, corners[n, c]]
                out[channel, first + n] = total


@numba.njit(cache=True, nogil=True)
def _spread_points(gradient: NDArray, shape: NDArray, points: NDArray, start: int, stop: int, out: NDArray) -> None:
    """Add channels [start, stop) of a gradient (C, N) at points (N, 3) to a volume (C, V): `_interpolate_points`
    transposed.

    A channel belongs to one thread, so the order of its sums does not depend on the number of threads.
    """
    corners, weights = np.empty((BLOCK, 8), np.int64), np.empty((BLOCK, 8), np.float32)
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    for first in range(0, len(points), BLOCK):
        last = min(first + BLOCK, len(points))
        _locate(points, shape, first, last, corners, weights, stride)
        for channel in range(start, stop):
            for n in range(last - first):
                value = gradient[channel, first + n]
                for c in range(8):
                    out[channel, corners[n, c]] += weights[n, c] * value
