"""Labels by interpolating every class at every voxel, an axis at a time, with a running maximum over classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointrend._kernels.class_ranking import LARGEST_FINITE, Planes, Tables, compiled, largest_magnitude, mix


@compiled
def _stretch(
    row: NDArray[np.float32], starts: NDArray[np.int32], weight: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Interpolate a source row at the target columns into `out`."""
    for x in range(len(row)):
        left, right = row[x], row[min(x + 1, len(row) - 1)]
        for i in range(starts[x], starts[x + 1]):
            out[i] = mix(left, right, weight[i])


@compiled
def _mix_rows(left: NDArray[np.float32], right: NDArray[np.float32], weight: float, out: NDArray[np.float32]) -> None:
    for i in range(len(out)):
        out[i] = mix(left[i], right[i], weight)


@compiled
def _update_best(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    weight: float,
    label: int,
    best: NDArray[np.float32],
    out: NDArray,
) -> None:
    """Interpolate a class between two rows; where it exceeds `best`, write it there and its label to `out`."""
    for i in range(len(out)):
        value = mix(left[i], right[i], weight)
        out[i] = label if value > best[i] else out[i]
        best[i] = value if value > best[i] else best[i]


@compiled
def _dense_slab(
    flat: NDArray[np.float32],
    offsets: tuple[int, int],
    stride: int,
    classes: int,
    rows: tuple[int, int, int],
    tables: Tables,
    weight_z: NDArray[np.float32],
    stretched: NDArray[np.float32],
    out: NDArray,
) -> None:
    """Write the labels of one slab to `out`.

    `stretched` (K, 2, 2, columns) is scratch: two rows of two planes, interpolated along x, by row modulo 2.
    """
    first_row, last_row, height = rows
    width, columns = len(tables.starts_x) - 1, out.shape[2]
    best = np.empty((8, columns), np.float32)
    above, below = np.empty(columns, np.float32), np.empty(columns, np.float32)
    held = np.full(2, -1, np.int64)
    for row in range(first_row, last_row):
        y0, y1 = tables.starts_y[row], tables.starts_y[row + 1]
        if y0 == y1:
            continue
        next_row = min(row + 1, height - 1)
        for source in (row, next_row):
            if held[source & 1] == source:
                continue
            held[source & 1] = source
            for label in range(classes):
                for plane in range(2):
                    at = offsets[plane] + label * stride + (source - first_row) * width
                    into = stretched[label, plane, source & 1]
                    _stretch(flat[at : at + width], tables.starts_x, tables.weight_x, into)
        for z in range(out.shape[0]):
            for top in range(y0, y1, 8):
                bottom = min(top + 8, y1)
                best[:] = -np.inf
                for label in range(classes):
                    pair = stretched[label]
                    _mix_rows(pair[0, row & 1], pair[1, row & 1], weight_z[z], above)
                    _mix_rows(pair[0, next_row & 1], pair[1, next_row & 1], weight_z[z], below)
                    for y in range(top, bottom):
                        _update_best(above, below, tables.weight_y[y], label, best[y - top], out[z, y])


@compiled
def dense_slabs(
    planes: Planes,
    bits: NDArray[np.int32],
    starts: NDArray[np.int64],
    slabs: tuple[int, int, int],
    rows: tuple[int, int, int],
    tables: Tables,
    out: NDArray,
) -> np.int32:
    """As `surface_labels.surface_slabs`, by interpolating every class at every voxel."""
    depth, voxels = len(starts), (min(rows[1] + 1, rows[2]) - rows[0]) * (len(tables.starts_x) - 1)
    stretched = np.empty((planes.classes, 2, 2, out.shape[2]), np.float32)
    largest = np.int32(0)
    for lower in range(slabs[0], slabs[1]):
        upper = min(lower + 1, depth - 1)
        for plane in range(lower if lower == slabs[2] else lower + 1, upper + 1):
            for label in range(planes.classes):
                at = starts[plane] + label * planes.stride
                largest = max(largest, largest_magnitude(bits[at : at + voxels]))
        z0, z1 = tables.starts_z[lower], tables.starts_z[lower + 1]
        if largest > LARGEST_FINITE or z0 == z1:
            continue
        offsets, weight_z = (starts[lower], starts[upper]), tables.weight_z[z0:z1]
        _dense_slab(planes.flat, offsets, planes.stride, planes.classes, rows, tables, weight_z, stretched, out[z0:z1])
    return largest
