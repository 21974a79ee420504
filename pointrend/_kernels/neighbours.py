"""Compiled reading of windows of voxels and its backward pass, a range of channels at a time."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # points whose places stay in the cache while the channels go by


@numba.njit(cache=True, nogil=True)
def _window_places(
    index: NDArray, shape: NDArray, reach: NDArray, first: int, last: int, scratch: NDArray, places: NDArray
) -> None:
    """Flat indices (window, BLOCK) of the voxels around voxels [first, last); beyond the border the outermost."""
    for n in range(first, last):
        flat = index[n]
        for axis in range(2, -1, -1):
            middle = flat % shape[axis]
            flat //= shape[axis]
            stride = 1
            for later in range(axis + 1, 3):
                stride *= shape[later]
            for o in range(2 * reach[axis] + 1):
                scratch[axis, o] = min(max(middle + o - reach[axis], 0), shape[axis] - 1) * stride
        k = 0
        for z in range(2 * reach[0] + 1):
            for y in range(2 * reach[1] + 1):
                for x in range(2 * reach[2] + 1):
                    places[k, n - first] = scratch[0, z] + scratch[1, y] + scratch[2, x]
                    k += 1


@numba.njit(cache=True, nogil=True)
def gather_windows(
    volume: NDArray, shape: NDArray, index: NDArray, reach: NDArray, out: NDArray, start: int, stop: int
) -> None:
    """Write channels [start, stop) of a volume (C, V) of shape (3,) around voxels (N,) to out (C, window, N)."""
    scratch = np.empty((3, 2 * reach.max() + 1), np.int64)
    places = np.empty((out.shape[1], BLOCK), np.uint64)  # unsigned: no test for negative places
    for first in range(0, len(index), BLOCK):
        last = min(first + BLOCK, len(index))
        _window_places(index, shape, reach, first, last, scratch, places)
        for channel in range(start, stop):
            values = volume[channel]
            for k in range(out.shape[1]):
                at, into = places[k], out[channel, k, first:last]
                for n in range(len(into)):
                    into[n] = values[at[n]]


@numba.njit(cache=True, nogil=True)
def scatter_windows(
    grad: NDArray, shape: NDArray, index: NDArray, reach: NDArray, volume: NDArray, start: int, stop: int
) -> None:
    """Add channels [start, stop) of grad (C, window, N) to where `gather_windows` read them in a volume (C, V)."""
    scratch = np.empty((3, 2 * reach.max() + 1), np.int64)
    places = np.empty((grad.shape[1], BLOCK), np.int64)
    for first in range(0, len(index), BLOCK):
        last = min(first + BLOCK, len(index))
        _window_places(index, shape, reach, first, last, scratch, places)
        for channel in range(start, stop):
            values = volume[channel]
            for k in range(grad.shape[1]):
                at, given = places[k], grad[channel, k, first:last]
                for n in range(len(given)):
                    values[at[n]] += given[n]
