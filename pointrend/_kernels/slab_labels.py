"""Labels of slabs of cells, by one of two loops.

By surfaces: cells of one best class are filled, cells that a surface cuts are interpolated. Dense: every class is
interpolated at every voxel, an axis at a time, with a running maximum over classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pointrend._kernels.logit_planes import LARGEST_FINITE, Planes, Tables, compiled, largest_magnitude, mix, top_three
from pointrend._kernels.surface_cells import find_candidates, gather, many_labels, new_cell, pair_labels, pair_lead


@compiled
def uniform_cells(
    low: NDArray[np.int32], high: NDArray[np.int32], width: int, height: int, out: NDArray[np.int32]
) -> None:
    """Write the class that is best at all 8 corners of each cell, or -1, to `out`: `height` rows of `width` cells.

    `low` and `high` (n,) are the best classes of the two planes; they hold one row more than there are cells, except
    at the last row of the source.
    """
    # a function of its own: inlined into the loops that use it, these three do not vectorise
    for i in range(len(low)):
        out[i] = low[i] if low[i] == high[i] else np.int32(-1)
    for i in range(min(height * width, len(low) - width)):
        out[i] = out[i] if out[i] == out[i + width] else np.int32(-1)
    for row in range(height):
        for i in range(row * width, (row + 1) * width - 1):
            out[i] = out[i] if out[i] == out[i + 1] else np.int32(-1)


@compiled
def _fill_row(uniform: NDArray[np.int32], starts: NDArray[np.int32], out: NDArray, mixed: NDArray[np.int32]) -> int:
    """Write the labels of a row's uniform cells to `out`, the positions of its other cells to `mixed`; their number."""
    count, x, width = 0, 0, len(uniform)
    while x < width:
        label = uniform[x]
        if label < 0:
            mixed[count] = x
            count += 1
            x += 1
            continue
        run = x + 1
        while run < width and uniform[run] == label:
            run += 1
        out[starts[x] : starts[run]] = label
        x = run
    return count


@compiled
def surface_slab(
    planes: Planes,
    slots: tuple[int, int],
    rows: tuple[int, int, int],
    uniform: NDArray[np.int32],
    tables: Tables,
    weight_z: NDArray[np.float32],
    out: NDArray,
    hard: NDArray[np.int32],
) -> int:
    """Write the labels of a slab's easy cells: uniform ones, and those with the same best two classes at all corners.

    Args:
        planes: the ranked planes.
        slots: slot of the lower and of the upper plane; the same slot behind the last plane.
        rows: first row of cells of the block, the row after its last, and the number of rows of the source.
        uniform: (n,) from `uniform_cells`.
        weight_z: weight of the upper plane for each target plane of the slab.
        out: (target planes of the slab, all target rows, all target columns).
        hard: (n,) receives the cells that are left to `label_hard_cells`.

    Returns:
        The number of hard cells.
    """
    first_row, last_row, height = rows
    starts_y, weight_y, starts_x, weight_x = tables.starts_y, tables.weight_y, tables.starts_x, tables.weight_x
    width, count = len(starts_x) - 1, 0
    template, mixed = np.empty(out.shape[2], out.dtype), np.empty(width, np.int32)
    lead = np.empty(8, np.float32)
    low = planes.values[slots[0]], planes.labels[slots[0]]
    high = planes.values[slots[1]], planes.labels[slots[1]]
    for row in range(first_row, last_row):
        y0, y1 = starts_y[row], starts_y[row + 1]
        if y0 == y1:
            continue
        above = (row - first_row) * width
        below = (min(row + 1, height - 1) - first_row) * width
        number = _fill_row(uniform[above : above + width], starts_x, template, mixed)
        for z in range(out.shape[0]):
            for y in range(y0, y1):
                out[z, y, :] = template
        for i in range(number):
            x = mixed[i]
            x0, x1, right = starts_x[x], starts_x[x + 1], min(x + 1, width - 1)
            if x0 == x1:
                continue
            places = (above + x, above + right, below + x, below + right)
            a, b = low[1][0, above + x], low[1][1, above + x]
            lower, upper = min(a, b), max(a, b)
            if pair_lead(low, high, places, lower, upper, lead):
                inside = out[:, y0:y1, x0:x1]
                pair_labels(lead, lower, upper, inside, weight_z, weight_y[y0:y1], weight_x[x0:x1])
            else:
                hard[count] = above + x
                count += 1
    return count


@compiled
def label_hard_cells(
    planes: Planes,
    slots: tuple[int, int],
    rows: tuple[int, int, int],
    hard: NDArray[np.int32],
    tables: Tables,
    weight_z: NDArray[np.float32],
    out: NDArray,
) -> None:
    """Write the labels of the cells that `surface_slab` left: their candidate classes have to be found first."""
    first_row, _, height = rows
    starts_y, weight_y, starts_x, weight_x = tables.starts_y, tables.weight_y, tables.starts_x, tables.weight_x
    width = len(starts_x) - 1
    cell, best = new_cell(planes.classes), np.empty(out.shape[2], np.float32)
    for i in range(len(hard)):
        above = np.int64(hard[i])
        row, x = first_row + above // width, above % width
        down = width if row + 1 < height else 0
        right = 1 if x + 1 < width else 0
        gather(planes, slots, (above, above + right, above + down, above + down + right), cell)
        number, _ = find_candidates(planes, cell)
        y0, y1, x0, x1 = starts_y[row], starts_y[row + 1], starts_x[x], starts_x[x + 1]
        inside, inside_y, inside_x = out[:, y0:y1, x0:x1], weight_y[y0:y1], weight_x[x0:x1]
        if number == 2:
            for corner in range(8):
                cell.lead[corner] = cell.corners[1, corner] - cell.corners[0, corner]
            pair_labels(cell.lead, cell.candidates[0], cell.candidates[1], inside, weight_z, inside_y, inside_x)
        else:
            many_labels(cell.corners, cell.candidates[:number], best, inside, weight_z, inside_y, inside_x)


@compiled
def surface_slabs(
    planes: Planes,
    bits: NDArray[np.int32],
    starts: NDArray[np.int64],
    slabs: tuple[int, int, int],
    rows: tuple[int, int, int],
    tables: Tables,
    out: NDArray,
) -> np.int32:
    """Write the labels of some slabs of a block of rows, in order: the lower plane is kept from the slab before.

    Args:
        planes: the logits, and room for their ranking; only the planes of these slabs are read.
        bits: the memory of `planes.flat` as integers.
        starts: (D,) where class 0 of the block's rows starts in `planes.flat`, for each source plane.
        slabs: the first slab, the slab after the last, and the slab that the block begins with (its lower plane is
            not ranked yet).
        rows: as for `surface_slab`.
        out: (all target planes, rows, columns).

    Returns:
        `largest_magnitude` of the planes read; above LARGEST_FINITE the labels are worthless.
    """
    depth, width = len(starts), len(tables.starts_x) - 1
    uniform, hard = np.empty(planes.labels.shape[2], np.int32), np.empty(planes.labels.shape[2], np.int32)
    largest = np.int32(0)
    for lower in range(slabs[0], slabs[1]):
        upper = min(lower + 1, depth - 1)
        for plane in range(lower if lower == slabs[2] else lower + 1, upper + 1):
            slot = plane % 2
            planes.offsets[slot] = starts[plane]
            top = planes.values[slot], planes.labels[slot]
            found = top_three(planes.flat, bits, starts[plane], planes.stride, planes.classes, top[0], top[1])
            largest = max(largest, found)
        z0, z1 = tables.starts_z[lower], tables.starts_z[lower + 1]
        if largest > LARGEST_FINITE or z0 == z1:
            continue
        slots, weight_z = (lower % 2, upper % 2), tables.weight_z[z0:z1]
        uniform_cells(planes.labels[slots[0], 0], planes.labels[slots[1], 0], width, rows[1] - rows[0], uniform)
        count = surface_slab(planes, slots, rows, uniform, tables, weight_z, out[z0:z1], hard)
        label_hard_cells(planes, slots, rows, hard[:count], tables, weight_z, out[z0:z1])
    return largest


@compiled
def survey(planes: Planes, width: int) -> tuple[int, int, int, int]:
    """Count the kinds of cells between two rows of two planes, for the choice of the loop.

    Returns:
        Cells with the same best two classes at all corners, other cells with a surface, the candidate classes of
        these in all, and how many of them needed a search of all classes.
    """
    pairs, others, candidates, searches = 0, 0, 0, 0
    cell = new_cell(planes.classes)
    low, high = (planes.values[0], planes.labels[0]), (planes.values[1], planes.labels[1])
    for x in range(width - 1):
        places = (x, x + 1, width + x, width + x + 1)
        gather(planes, (0, 1), places, cell)
        if (cell.labels[0] == cell.labels[0, 0]).all():
            continue
        a, b = cell.labels[0, 0], cell.labels[1, 0]
        if pair_lead(low, high, places, min(a, b), max(a, b), cell.lead):
            pairs += 1
            continue
        number, search = find_candidates(planes, cell)
        others, candidates, searches = others + 1, candidates + number, searches + search
    return pairs, others, candidates, searches


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
