"""Values of volumes at points and in windows around them, on the CPU, and the gradients; 2D is 3D of depth 1.

`interpolate` reads at points. Torch's `grid_sample` divides a batch over threads, never the points of one volume, and
takes twice as long forward and four times as long backward.

`gather_windows` reads windows of voxels around voxels. Torch's own gather needs one index per value, and its scatter
takes several times as long.

`interpolate_windows` reads windows around points between voxels. All samples of a window lie at the same fraction
between their voxels. So the (window + 1)^3 voxels around a point are read once and interpolated an axis at a time: 64
reads for 27 samples, where interpolating each sample reads 216 values. That takes a third of the time.
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
from torch.nn import functional as F

from pointrend._kernels.threads import divide

BLOCK = 256  # points whose corners, weights or window positions stay in the cache while the channels go by
WINDOW_BLOCK = 128  # points whose values stay in the second-level cache while they are interpolated


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


def read_windows(volume: Tensor, index: Tensor, window: int, border: int = 0) -> Tensor:
    """`gather_windows` without a gradient. Indices count a border of so many voxels on every side of the volume."""
    size = tuple(volume.shape[2:])
    shape, radius = as_3d(size, window)
    values, voxels = volume.detach().contiguous().flatten(2).numpy(), index.numpy()
    out = torch.empty(*volume.shape[:2], window ** len(size), index.shape[1])
    into = out.numpy()

    def work(sample: int, start: int, stop: int) -> None:
        _gather(values[sample], shape, voxels[sample], border, radius, into[sample], start, stop)

    divide(work, samples=len(values), parts=values.shape[1], values=into.size)
    return out.flatten(1, 2)


class _GatherWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, index: Tensor, window: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size, ctx.window = tuple(volume.shape[2:]), window
        return read_windows(volume, index, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        shape, radius = as_3d(ctx.size, ctx.window)
        gradient = gradients[0].contiguous().unflatten(1, (-1, ctx.window ** len(ctx.size)))
        out = torch.zeros(*gradient.shape[:2], *ctx.size)
        values, voxels, into = gradient.numpy(), index.numpy(), out.flatten(2).numpy()

        def work(sample: int, start: int, stop: int) -> None:
            _scatter(values[sample], shape, voxels[sample], radius, into[sample], start, stop)

        divide(work, samples=len(values), parts=values.shape[1], values=values.size)
        return out, None, None


def as_3d(size: Sequence[int], window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shape of the volume and radius of the window per axis, (3,) each."""
    lifted = 3 - len(size)
    return np.array([1] * lifted + [*size]), np.array([0] * lifted + [window // 2] * len(size))


@numba.njit(cache=True, nogil=True)
def _window_positions(
    index: NDArray,
    shape: NDArray,
    border: int,
    radius: NDArray,
    first: int,
    last: int,
    scratch: NDArray,
    positions: NDArray,
) -> None:
    """Write the flat indices (window^ndim, BLOCK) of the windows of points [first, last) to `positions`.

    Indices count a border of so many voxels around the volume. Beyond it the outermost voxels are repeated. `scratch`
    is (3, longest window axis).
    """
    for n in range(first, last):
        flat = index[n]
        for axis in range(2, -1, -1):
            wide = shape[axis] + 2 * border
            middle = flat % wide - border
            flat //= wide
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
    volume: NDArray, shape: NDArray, index: NDArray, border: int, radius: NDArray, out: NDArray, start: int, stop: int
) -> None:
    """Write channels [start, stop) of a volume (C, V) around voxels (N,) to out (C, window^ndim, N)."""
    scratch = np.empty((3, 2 * radius.max() + 1), np.int64)
    positions = np.empty((out.shape[1], BLOCK), np.uint64)  # unsigned: spares numba's test for negative indices
    for first in range(0, len(index), BLOCK):
        last = min(first + BLOCK, len(index))
        _window_positions(index, shape, border, radius, first, last, scratch, positions)
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
        _window_positions(index, shape, 0, radius, first, last, scratch, positions)
        for channel in range(start, stop):
            values = volume[channel]
            for k in range(gradient.shape[1]):
                written, given = positions[k], gradient[channel, k, first:last]
                for n in range(len(given)):
                    values[written[n]] += given[n]


def interpolate_windows(volume: Tensor, points: Tensor, window: int) -> Tensor:
    """The windows around points, for checked float32 CPU tensors that want no gradient.

    Args:
        volume: (B, C, *spatial), two or three spatial axes.
        points: (B, N, ndim) in the unit cube.
        window: samples per axis, odd.

    Returns:
        (B, C * window^ndim, N): channel by channel, the samples of a window in row-major order.
    """
    ndim = volume.ndim - 2
    radius = np.array([0] * (3 - ndim) + [window // 2] * ndim)
    if ndim == 2:
        volume, points = volume[:, :, None], F.pad(points, (1, 0), value=0.5)
    shape = np.array(volume.shape[2:])
    values, places = volume.detach().contiguous().flatten(2).numpy(), points.detach().contiguous().numpy()
    out = torch.empty(*volume.shape[:2], window**ndim, points.shape[1])
    into = out.numpy()

    def work(sample: int, start: int, stop: int) -> None:
        _interpolate_windows(values[sample], shape, places[sample], radius, into[sample], start, stop)

    divide(work, samples=len(values), parts=values.shape[1], values=into.size)
    return out.flatten(1, 2)


@numba.njit(cache=True, nogil=True)
def _locate_windows(
    points: NDArray,
    shape: NDArray,
    radius: NDArray,
    first: int,
    last: int,
    scratch: NDArray,
    positions: NDArray,
    fractions: NDArray,
) -> None:
    """Write which voxels the windows of points [first, last) lie between, and where.

    Args:
        scratch: (3, longest side), scratch.
        positions: (voxels, WINDOW_BLOCK), written: flat indices of the voxels, by y, x, then z; beyond the border the
            outermost ones.
        fractions: (3, WINDOW_BLOCK), written: weight of the upper voxel along each axis.
    """
    for n in range(first, last):
        for axis in range(3):
            size, reach = shape[axis], radius[axis]
            position = points[n, axis] * np.float32(size) - np.float32(0.5)
            # further out the window reads the same; also where it is NaN: no read may leave the volume
            if not position > -reach - 1:
                position = np.float32(-reach - 1)
            position = min(position, np.float32(size + reach))
            low = np.int64(np.floor(position))
            fractions[axis, n - first] = position - np.float32(low)
            stride = 1
            for later in range(axis + 1, 3):
                stride *= shape[later]
            for step in range(2 * reach + 2):
                scratch[axis, step] = min(max(low + step - reach, 0), size - 1) * stride
        k = 0
        for y in range(2 * radius[1] + 2):
            for x in range(2 * radius[2] + 2):
                for z in range(2 * radius[0] + 2):
                    positions[k, n - first] = scratch[0, z] + scratch[1, y] + scratch[2, x]
                    k += 1


@numba.njit(cache=True, nogil=True)
def _mix(low: NDArray, high: NDArray, fraction: NDArray, out: NDArray) -> None:
    for n in range(len(out)):
        out[n] = low[n] * (np.float32(1) - fraction[n]) + high[n] * fraction[n]


@numba.njit(cache=True, nogil=True)
def _interpolate_windows(
    volume: NDArray, shape: NDArray, points: NDArray, radius: NDArray, out: NDArray, start: int, stop: int
) -> None:
    """Write channels [start, stop) of a volume (C, V), read around points (N, 3), to out (C, window^ndim, N)."""
    depth, height, width = 2 * radius[0] + 2, 2 * radius[1] + 2, 2 * radius[2] + 2
    scratch = np.empty((3, max(depth, height, width)), np.int64)
    positions = np.empty((depth * height * width, WINDOW_BLOCK), np.uint64)  # unsigned: no test for negative indices
    fractions = np.empty((3, WINDOW_BLOCK), np.float32)
    column = np.empty((depth, WINDOW_BLOCK), np.float32)
    along_z = np.empty((depth - 1, height, width, WINDOW_BLOCK), np.float32)
    along_y = np.empty((width, WINDOW_BLOCK), np.float32)
    for first in range(0, len(points), WINDOW_BLOCK):
        last = min(first + WINDOW_BLOCK, len(points))
        count = last - first
        _locate_windows(points, shape, radius, first, last, scratch, positions, fractions)
        part_z, part_y, part_x = fractions[0, :count], fractions[1, :count], fractions[2, :count]
        for channel in range(start, stop):
            values, k = volume[channel], 0
            for y in range(height):
                for x in range(width):
                    for z in range(depth):
                        read, into = positions[k], column[z]
                        for n in range(count):
                            into[n] = values[read[n]]
                        k += 1
                    for z in range(depth - 1):
                        _mix(column[z], column[z + 1], part_z, along_z[z, y, x, :count])
            k = 0
            for z in range(depth - 1):
                for y in range(height - 1):
                    for x in range(width):
                        _mix(along_z[z, y, x], along_z[z, y + 1, x], part_y, along_y[x, :count])
                    for x in range(width - 1):
                        _mix(along_y[x], along_y[x + 1], part_x, out[channel, k, first:last])
                        k += 1
