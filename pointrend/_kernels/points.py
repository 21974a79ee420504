"""Compiled linear interpolation at points, and its transpose: the gradient of the volume that was read."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # points whose corners and weights stay in the first-level cache while the channels go by


@numba.njit(cache=True, nogil=True)
def _place(
    points: NDArray, shape: NDArray, first: int, last: int, corners: NDArray, weights: NDArray, stride: NDArray
) -> None:
    """Flat indices and weights (BLOCK, 8) of the voxels around points [first, last); border padding."""
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    part = np.empty(3, np.float32)
    for n in range(first, last):
        for axis in range(3):
            top = np.float32(shape[axis] - 1)
            position = points[n, axis] * np.float32(shape[axis]) - np.float32(0.5)
            if not position > 0:  # also where it is not a number: no read may leave the volume
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
def interpolate_points(volume: NDArray, shape: NDArray, points: NDArray, start: int, stop: int, out: NDArray) -> None:
    """Write a volume (C, V) of shape (3,) at points [start, stop) of (N, 3), in the unit cube, to out (C, N)."""
    corners, weights = np.empty((BLOCK, 8), np.int64), np.empty((BLOCK, 8), np.float32)
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        _place(points, shape, first, last, corners, weights, stride)
        for channel in range(volume.shape[0]):
            for n in range(last - first):
                total = np.float32(0)
                for c in range(8):
                    total += weights[n, c] * volume[channel, corners[n, c]]
                out[channel, first + n] = total


@numba.njit(cache=True, nogil=True)
def spread_points(gradient: NDArray, shape: NDArray, points: NDArray, first: int, last: int, out: NDArray) -> None:
    """Add channels [first, last) of a gradient (C, N) at points (N, 3) to a volume (C, V) of shape (3,).

    The transpose of `interpolate_points`. A channel is one thread's: the order of the sums does not depend on how
    many there are.
    """
    corners, weights = np.empty((BLOCK, 8), np.int64), np.empty((BLOCK, 8), np.float32)
    stride = np.array([shape[1] * shape[2], shape[2], 1])
    for start in range(0, len(points), BLOCK):
        stop = min(start + BLOCK, len(points))
        _place(points, shape, start, stop, corners, weights, stride)
        for channel in range(first, last):
            for n in range(stop - start):
                value = gradient[channel, start + n]
                for c in range(8):
                    out[channel, corners[n, c]] += weights[n, c] * value
