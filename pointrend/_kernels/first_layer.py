"""The voxels around points, each once, and values that stand by voxel, interpolated at the points.

`pointrend.first_layer` computes a row of values for each of these voxels. CPU, float32; 2D is 3D of depth 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pointrend._kernels.threads import divide

BOX_PER_POINT = 64  # voxels of the box around the points, for each point: beyond it the search costs more than it saves


@dataclass(frozen=True)
class Corners:
    """The voxels that the interpolation at some points reads, each once.

    Attributes:
        index: (M,) int64, flat within the volume with a border of one voxel on every side: beyond the outermost centres
            interpolation lies between a voxel and its copy outside.
        first: (3,) int64, lowest voxel of the box, in the volume with its border.
        rows: (box) int32, place in `index` of each voxel of the box; anything where it is not read.
    """

    index: NDArray[np.int64]
    first: NDArray[np.int64]
    rows: NDArray[np.int32]


def find_corners(points: NDArray[np.float32], shape: NDArray[np.int64]) -> Corners | None:
    """The voxels of a volume of `shape` (3,) around points (N, 3) in its unit cube.

    Returns:
        None where they are not fewer than the points, or scattered.
    """
    low, high = _bounds(points, shape)
    size = high - low + 1
    if size.prod() > BOX_PER_POINT * len(points):
        return None
    marked = np.zeros(size, np.bool_)
    _mark(points, shape, low, marked)
    found = np.flatnonzero(marked)
    if len(found) >= len(points):
        return None
    rows = np.empty(marked.size, np.int32)
    rows[found] = np.arange(len(found), dtype=np.int32)
    index = np.ravel_multi_index(
        [at + start for at, start in zip(np.unravel_index(found, size), low, strict=True)], tuple(shape + 2)
    )
    return Corners(index.astype(np.int64), low, rows.reshape(size))


def interpolate_rows(
    table: Tensor, corners: Corners, points: NDArray[np.float32], shape: NDArray[np.int64], out: Tensor
) -> None:
    """Add rows of a table, interpolated at points, to `out`.

    Args:
        table: (M, C), a row for each voxel of `corners`.
        points: (N, 3) in the unit cube of the volume of `shape` (3,).
        out: (N, C).
    """
    values, into = table.numpy(), out.numpy()

    def work(_: int, start: int, stop: int) -> None:
        _add_rows(values, corners.rows, corners.first, points, shape, start, stop, into)

    divide(work, samples=1, parts=len(points), values=8 * into.size)


@numba.njit(cache=True, nogil=True)
def _place(position: np.float32, size: int) -> tuple[np.int64, np.int64, np.float32]:
    """The two voxels that a coordinate in [0, 1] lies between, counted with the border, and the weight of the upper.

    At the centre of a voxel both are that voxel.
    """
    at = position * np.float32(size) + np.float32(0.5)
    if not at > 0:  # also NaN: no read may leave the volume
        at = np.float32(0)
    at = min(at, np.float32(size + 1))
    whole = np.int64(at)
    part = at - np.float32(whole)
    return whole, whole + (1 if part > 0 else 0), part


@numba.njit(cache=True, nogil=True)
def _bounds(points: NDArray, shape: NDArray) -> tuple[NDArray, NDArray]:
    """Lowest and highest voxel (3,) around points (N, 3), N at least 1."""
    least, most = points[0].copy(), points[0].copy()
    for n in range(len(points)):
        for axis in range(3):
            least[axis] = min(least[axis], points[n, axis])
            most[axis] = max(most[axis], points[n, axis])
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        low[axis], high[axis] = _place(least[axis], shape[axis])[0], _place(most[axis], shape[axis])[1]
    return low, high


@numba.njit(cache=True, nogil=True)
def _mark(points: NDArray, shape: NDArray, first: NDArray, marked: NDArray) -> None:
    """Mark the eight voxels around each point (N, 3) in a box that starts at `first`."""
    for n in range(len(points)):
        z, above_z, _ = _place(points[n, 0], shape[0])
        y, above_y, _ = _place(points[n, 1], shape[1])
        x, above_x, _ = _place(points[n, 2], shape[2])
        for a in range(z - first[0], above_z - first[0] + 1):
            for b in range(y - first[1], above_y - first[1] + 1):
                for c in range(x - first[2], above_x - first[2] + 1):
                    marked[a, b, c] = True


@numba.njit(cache=True, nogil=True)
def _add_rows(
    table: NDArray, rows: NDArray, first: NDArray, points: NDArray, shape: NDArray, start: int, stop: int, out: NDArray
) -> None:
    """Add the rows (M, C) interpolated at points [start, stop) of (N, 3) to out (N, C)."""
    one = np.float32(1)
    for n in range(start, stop):
        z, above_z, part_z = _place(points[n, 0], shape[0])
        y, above_y, part_y = _place(points[n, 1], shape[1])
        x, above_x, part_x = _place(points[n, 2], shape[2])
        low, high = rows[z - first[0]], rows[above_z - first[0]]
        y, above_y, x, above_x = y - first[1], above_y - first[1], x - first[2], above_x - first[2]
        t0, t1, t2, t3 = table[low[y, x]], table[low[y, above_x]], table[low[above_y, x]], table[low[above_y, above_x]]
        t4, t5, t6, t7 = (
            table[high[y, x]],
            table[high[y, above_x]],
            table[high[above_y, x]],
            table[high[above_y, above_x]],
        )
        low_y, low_x = one - part_y, one - part_x
        w0, w1, w2, w3 = low_y * low_x, low_y * part_x, part_y * low_x, part_y * part_x
        row, low_z = out[n], one - part_z
        for c in range(len(row)):  # one loop: four of two rows each take twice the time
            row[c] += low_z * (w0 * t0[c] + w1 * t1[c] + w2 * t2[c] + w3 * t3[c]) + part_z * (
                w0 * t4[c] + w1 * t5[c] + w2 * t6[c] + w3 * t7[c]
            )
