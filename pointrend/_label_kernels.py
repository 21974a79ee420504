"""Compiled loops of `render_labels`: the best classes of a plane, and the labels of one slab of cells.

Words: a *cell* lies between neighbouring source voxels, its *corners* (8, in 3D); the target voxels of cell i of an
axis are `starts[i]:starts[i + 1]`. A *slab* is the cells between two source planes. Planes are read from a flat
float32 array: class c of a plane starts at `offset + c * stride`, so one compiled form serves whole volumes and
converted planes. Every function works on a block of rows and releases the interpreter lock.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # voxels whose five running values stay in the first-level cache while the classes pass
LARGEST_FINITE = 0x7F7FFFFF  # bits of the largest float32
ROUNDING = np.float32(4e-6)  # of |logit| + 1: more than float32 interpolation errs

_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def largest_magnitude(bits: NDArray[np.int32]) -> np.int32:
    """The largest bit pattern without its sign: above 0x7F7FFFFF there is a NaN or an infinity."""
    largest = np.int32(0)
    for i in range(len(bits)):
        value = bits[i] & np.int32(0x7FFFFFFF)
        largest = value if value > largest else largest
    return largest


@_compiled
def _place(
    value: float, label: int, first: float, second: float, third: float, winner: int, runner: int
) -> tuple[float, float, float, int, int]:
    # selects without branches, which vectorise; strict comparisons keep the lower class ahead in a tie
    best, good = value > first, value > second
    return (
        value if best else first,
        first if best else (value if good else second),
        second if good else (value if value > third else third),
        label if best else winner,
        winner if best else (label if good else runner),
    )


@_compiled
def _insert(logits: NDArray[np.float32], label: int, best: NDArray[np.float32], rank: NDArray[np.int32]) -> None:
    """Enter one class into the running three best values and two best classes of up to CHUNK voxels."""
    own = np.int32(label)
    for i in range(len(logits)):
        a, b, c, j, k = best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK]
        a, b, c, j, k = _place(logits[i], own, a, b, c, j, k)
        best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK] = a, b, c, j, k


@_compiled
def _insert_four(
    flat: NDArray[np.float32],
    at: int,
    stride: int,
    count: int,
    label: int,
    best: NDArray[np.float32],
    rank: NDArray[np.int32],
) -> None:
    """As `_insert`, four classes for one load and store of the running values: twice as fast."""
    logits0, logits1 = flat[at : at + count], flat[at + stride : at + stride + count]
    logits2 = flat[at + 2 * stride : at + 2 * stride + count]
    logits3 = flat[at + 3 * stride : at + 3 * stride + count]
    label0, label1, label2, label3 = np.int32(label), np.int32(label + 1), np.int32(label + 2), np.int32(label + 3)
    for i in range(count):
        a, b, c, j, k = best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK]
        a, b, c, j, k = _place(logits0[i], label0, a, b, c, j, k)
        a, b, c, j, k = _place(logits1[i], label1, a, b, c, j, k)
        a, b, c, j, k = _place(logits2[i], label2, a, b, c, j, k)
        a, b, c, j, k = _place(logits3[i], label3, a, b, c, j, k)
        best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK] = a, b, c, j, k


@_compiled
def top_three(
    flat: NDArray[np.float32],
    bits: NDArray[np.int32],
    offset: int,
    stride: int,
    classes: int,
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
) -> np.int32:
    """The three largest logits of each voxel into `values` (3, n), the classes of two into `labels` (2, n).

    Returns what `largest_magnitude` says of `bits`, the same memory as `flat`.
    """
    # one array for each kind of running value: with five, the compiler gives up proving that none overlap
    best, rank = np.empty(3 * CHUNK, np.float32), np.empty(2 * CHUNK, np.int32)
    largest, voxels = np.int32(0), values.shape[1]
    for start in range(0, voxels, CHUNK):
        count = min(CHUNK, voxels - start)
        best[:], rank[:] = -np.inf, 0
        label = 0
        while label < classes:
            at = offset + label * stride + start
            together = 4 if label + 4 <= classes else 1
            if together == 4:
                _insert_four(flat, at, stride, count, label, best, rank)
            else:
                _insert(flat[at : at + count], label, best, rank)
            for i in range(together):
                own = at + i * stride
                largest = max(largest, largest_magnitude(bits[own : own + count]))
            label += together
        for i in range(3):
            values[i, start : start + count] = best[i * CHUNK : i * CHUNK + count]
        for i in range(2):
            labels[i, start : start + count] = rank[i * CHUNK : i * CHUNK + count]
    return largest


@_compiled
def _mix(left: np.float32, right: np.float32, weight: np.float32) -> np.floating:
    return (np.float32(1) - weight) * left + weight * right


@_compiled
def _pair_labels(
    lead: NDArray[np.float32],
    lower: int,
    upper: int,
    out: NDArray,
    weight_z: NDArray[np.float32],
    weight_y: NDArray[np.float32],
    weight_x: NDArray[np.float32],
) -> None:
    """Labels of a cell `out` with two candidates from the lead of the `upper` class at the 8 corners."""
    for z in range(out.shape[0]):
        w = weight_z[z]
        a0, a1 = _mix(lead[0], lead[4], w), _mix(lead[1], lead[5], w)
        b0, b1 = _mix(lead[2], lead[6], w), _mix(lead[3], lead[7], w)
        for y in range(out.shape[1]):
            left, right = _mix(a0, b0, weight_y[y]), _mix(a1, b1, weight_y[y])
            for x in range(out.shape[2]):
                out[z, y, x] = upper if _mix(left, right, weight_x[x]) > 0 else lower


@_compiled
def _many_labels(
    corners: NDArray[np.float32],
    candidates: NDArray[np.int32],
    best: NDArray[np.float32],
    out: NDArray,
    weight_z: NDArray[np.float32],
    weight_y: NDArray[np.float32],
    weight_x: NDArray[np.float32],
) -> None:
    """Labels of a cell `out` with any number of candidates (ascending), their values at the `corners` (n, 8)."""
    for z in range(out.shape[0]):
        w = weight_z[z]
        for y in range(out.shape[1]):
            v = weight_y[y]
            for i in range(len(candidates)):
                c = corners[i]
                left = _mix(_mix(c[0], c[4], w), _mix(c[2], c[6], w), v)
                right = _mix(_mix(c[1], c[5], w), _mix(c[3], c[7], w), v)
                for x in range(out.shape[2]):
                    value = _mix(left, right, weight_x[x])
                    if i == 0 or value > best[x]:
                        best[x] = value
                        out[z, y, x] = candidates[i]


class Planes(NamedTuple):
    """Rows of two neighbouring planes: their logits in `flat`, and what `top_three` found, by slot."""

    flat: NDArray[np.float32]
    offsets: NDArray[np.int64]  # (2,) where the rows start, by slot
    stride: int
    classes: int
    values: NDArray[np.float32]  # (2, 3, n)
    labels: NDArray[np.int32]  # (2, 2, n)


class Tables(NamedTuple):
    """Interpolation along z, y and x: the first target of each cell (n + 1,), the upper weight of each target."""

    starts_z: NDArray[np.int32]
    weight_z: NDArray[np.float32]
    starts_y: NDArray[np.int32]
    weight_y: NDArray[np.float32]
    starts_x: NDArray[np.int32]
    weight_x: NDArray[np.float32]


class Cell(NamedTuple):
    """Scratch for one cell: its 8 corners, z slowest."""

    at: NDArray[np.int64]  # (8,) where class 0 of the corner lies in `flat`
    values: NDArray[np.float32]  # (3, 8) best three logits
    labels: NDArray[np.int32]  # (2, 8) best two classes
    candidates: NDArray[np.int32]  # (K + 17,) classes that may win inside
    corners: NDArray[np.float32]  # (K + 17, 8) their logits
    references: NDArray[np.float32]  # (9, 8) corner winners and their mean
    lead: NDArray[np.float32]  # (8,)


@_compiled
def _new_cell(classes: int) -> Cell:
    return Cell(
        np.empty(8, np.int64),
        np.empty((3, 8), np.float32),
        np.empty((2, 8), np.int32),
        np.empty(classes + 17, np.int32),
        np.empty((classes + 17, 8), np.float32),
        np.empty((9, 8), np.float32),
        np.empty(8, np.float32),
    )


@_compiled
def _gather(planes: Planes, slots: tuple[int, int], places: tuple[int, int, int, int], cell: Cell) -> None:
    """Fill a cell from its four places in the rows: above left and right, below left and right."""
    for corner in range(8):
        slot, place = slots[corner >> 2], places[corner & 3]
        cell.at[corner] = planes.offsets[slot] + place
        for rank in range(3):
            cell.values[rank, corner] = planes.values[slot, rank, place]
        for rank in range(2):
            cell.labels[rank, corner] = planes.labels[slot, rank, place]


@_compiled
def _lead_at(
    values: NDArray[np.float32], labels: NDArray[np.int32], place: int, lower: int, upper: int
) -> tuple[np.float32, bool]:
    """Lead of `upper` over `lower` at one corner, and whether these two are its best."""
    winner, runner = labels[0, place], labels[1, place]
    lead = values[0, place] - values[1, place]
    known = ((winner == lower) & (runner == upper)) | ((winner == upper) & (runner == lower))
    return (lead if winner == upper else -lead), known


@_compiled
def _pair_lead(
    low: tuple[NDArray[np.float32], NDArray[np.int32]],
    high: tuple[NDArray[np.float32], NDArray[np.int32]],
    places: tuple[int, int, int, int],
    lower: int,
    upper: int,
    lead: NDArray[np.float32],
) -> bool:
    """Whether the best two classes are these two at all corners, so that no other can win inside; with their lead."""
    values0, labels0 = low
    values1, labels1 = high
    p0, p1, p2, p3 = places
    lead[0], known0 = _lead_at(values0, labels0, p0, lower, upper)
    lead[1], known1 = _lead_at(values0, labels0, p1, lower, upper)
    lead[2], known2 = _lead_at(values0, labels0, p2, lower, upper)
    lead[3], known3 = _lead_at(values0, labels0, p3, lower, upper)
    lead[4], known4 = _lead_at(values1, labels1, p0, lower, upper)
    lead[5], known5 = _lead_at(values1, labels1, p1, lower, upper)
    lead[6], known6 = _lead_at(values1, labels1, p2, lower, upper)
    lead[7], known7 = _lead_at(values1, labels1, p3, lower, upper)
    return known0 & known1 & known2 & known3 & known4 & known5 & known6 & known7


@_compiled
def _out_of_reach(values: NDArray[np.float32], references: NDArray[np.float32], number: int, margin: float) -> bool:
    """Whether `values` (8,) lie below one reference at all corners.

    References are convex mixes of classes: the maximum inside is at least any of them, so such a class wins nowhere.
    """
    for reference in range(number):
        corner = 0
        while corner < 8 and values[corner] + margin < references[reference, corner]:
            corner += 1
        if corner == 8:
            return True
    return False


@_compiled
def _add(candidates: NDArray[np.int32], number: int, label: int) -> int:
    for i in range(number):
        if candidates[i] == label:
            return number
    candidates[number] = label
    return number + 1


@_compiled
def _read(planes: Planes, cell: Cell, index: int, label: int) -> None:
    for corner in range(8):
        cell.corners[index, corner] = planes.flat[cell.at[corner] + label * planes.stride]


@_compiled
def _search(planes: Planes, cell: Cell, number: int, references: int, margin: float) -> int:
    """Add the classes outside the first `number` candidates that may win."""
    known = number
    for label in range(planes.classes):
        _read(planes, cell, number, label)
        if not _out_of_reach(cell.corners[number], cell.references, references, margin):
            listed = False
            for i in range(known):
                listed = listed or cell.candidates[i] == label
            if not listed:
                cell.candidates[number] = label
                number += 1
    return number


@_compiled
def _keep(cell: Cell, winners: int, number: int, margin: float) -> int:
    """Drop candidates that cannot win and sort the others, so that ties go to the lower class."""
    candidates, corners = cell.candidates, cell.corners
    kept = 0
    for i in range(number):
        if i >= winners and _out_of_reach(corners[i], cell.references, winners + 1, margin):
            continue
        label, place = candidates[i], kept
        for corner in range(8):
            cell.lead[corner] = corners[i, corner]
        while place > 0 and candidates[place - 1] > label:
            candidates[place] = candidates[place - 1]
            for corner in range(8):
                corners[place, corner] = corners[place - 1, corner]
            place -= 1
        candidates[place] = label
        for corner in range(8):
            corners[place, corner] = cell.lead[corner]
        kept += 1
    return kept


@_compiled
def _candidates(planes: Planes, cell: Cell) -> tuple[int, bool]:
    """The classes that may win inside a cell into `cell.candidates`, ascending, their logits into `cell.corners`.

    Returns their number, and whether all classes had to be searched.
    """
    number, margin = 0, np.float32(0)
    for corner in range(8):
        number = _add(cell.candidates, number, cell.labels[0, corner])
        margin = max(margin, abs(cell.values[0, corner]))
    margin = ROUNDING * (margin + 1)
    winners = number
    for corner in range(8):
        number = _add(cell.candidates, number, cell.labels[1, corner])
    for i in range(number):
        _read(planes, cell, i, cell.candidates[i])
    share = np.float32(1) / np.float32(winners)
    for corner in range(8):
        mean = np.float32(0)
        for i in range(winners):
            value = cell.corners[i, corner]
            cell.references[i, corner] = value
            mean += value * share
        cell.references[winners, corner] = mean
    # the third best of a corner bounds every class that is not among its best two
    search = number < planes.classes and not _out_of_reach(cell.values[2], cell.references, winners + 1, margin)
    if search:
        number = _search(planes, cell, number, winners + 1, margin)
    return _keep(cell, winners, number, margin), search


@_compiled
def uniform_cells(
    low: NDArray[np.int32], high: NDArray[np.int32], width: int, height: int, out: NDArray[np.int32]
) -> None:
    """The class that wins at all corners of each cell, or -1, for `height` rows of cells of `width`.

    `low` and `high` (n,) are the winners of two planes, with a further row below the last cells except at the end.
    """
    # kept apart from the loops that use it: alone, these three vectorise
    for i in range(len(low)):
        out[i] = low[i] if low[i] == high[i] else np.int32(-1)
    for i in range(min(height * width, len(low) - width)):
        out[i] = out[i] if out[i] == out[i + width] else np.int32(-1)
    for row in range(height):
        for i in range(row * width, (row + 1) * width - 1):
            out[i] = out[i] if out[i] == out[i + 1] else np.int32(-1)


@_compiled
def _fill_row(uniform: NDArray[np.int32], starts: NDArray[np.int32], out: NDArray, mixed: NDArray[np.int32]) -> int:
    """Labels of the uniform cells of a row of cells into `out`, the others into `mixed`; returns their number."""
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


@_compiled
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
    """Labels of one slab: fill the cells whose corners agree, interpolate those with two candidates at sight.

    Args:
        planes: the two planes; `slots` says which of them is the lower and which the upper (the same at the end).
        rows: first and past-the-last row of cells of the block, and the rows of the whole source.
        uniform: (n,) from `uniform_cells`.
        weight_z: of the upper plane, for each target plane of the slab.
        out: (planes of the slab, all target rows, all target columns).
        hard: (n,) receives the cells that are left to `label_hard_cells`.

    Returns:
        Their number.
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
            if _pair_lead(low, high, places, lower, upper, lead):
                inside = out[:, y0:y1, x0:x1]
                _pair_labels(lead, lower, upper, inside, weight_z, weight_y[y0:y1], weight_x[x0:x1])
            else:
                hard[count] = above + x
                count += 1
    return count


@_compiled
def label_hard_cells(
    planes: Planes,
    slots: tuple[int, int],
    rows: tuple[int, int, int],
    hard: NDArray[np.int32],
    tables: Tables,
    weight_z: NDArray[np.float32],
    out: NDArray,
) -> None:
    """Labels of the cells that `surface_slab` left, whose candidates have to be found first."""
    first_row, _, height = rows
    starts_y, weight_y, starts_x, weight_x = tables.starts_y, tables.weight_y, tables.starts_x, tables.weight_x
    width = len(starts_x) - 1
    cell, best = _new_cell(planes.classes), np.empty(out.shape[2], np.float32)
    for i in range(len(hard)):
        above = np.int64(hard[i])
        row, x = first_row + above // width, above % width
        down = width if row + 1 < height else 0
        right = 1 if x + 1 < width else 0
        _gather(planes, slots, (above, above + right, above + down, above + down + right), cell)
        number, _ = _candidates(planes, cell)
        y0, y1, x0, x1 = starts_y[row], starts_y[row + 1], starts_x[x], starts_x[x + 1]
        inside, inside_y, inside_x = out[:, y0:y1, x0:x1], weight_y[y0:y1], weight_x[x0:x1]
        if number == 2:
            for corner in range(8):
                cell.lead[corner] = cell.corners[1, corner] - cell.corners[0, corner]
            _pair_labels(cell.lead, cell.candidates[0], cell.candidates[1], inside, weight_z, inside_y, inside_x)
        else:
            _many_labels(cell.corners, cell.candidates[:number], best, inside, weight_z, inside_y, inside_x)


@_compiled
def surface_slabs(
    planes: Planes,
    bits: NDArray[np.int32],
    starts: NDArray[np.int64],
    slabs: tuple[int, int],
    rows: tuple[int, int, int],
    tables: Tables,
    out: NDArray,
) -> np.int32:
    """Labels of the slabs `slabs[0]:slabs[1]` of a block of rows; in order, as the lower plane is kept from the last.

    Args:
        planes: scratch, and the logits; `starts` (D,) says where the block of each plane starts, `bits` is the same
            memory as `planes.flat`. Only the planes of these slabs are read.
        rows: as for `surface_slab`.
        out: (all target planes, rows, columns).

    Returns:
        What `largest_magnitude` says of the planes read; the labels are worthless if that is not a finite number's.
    """
    depth, width = len(starts), len(tables.starts_x) - 1
    uniform, hard = np.empty(planes.labels.shape[2], np.int32), np.empty(planes.labels.shape[2], np.int32)
    largest = np.int32(0)
    for lower in range(slabs[0], slabs[1]):
        upper = min(lower + 1, depth - 1)
        for plane in range(lower if lower == 0 else lower + 1, upper + 1):
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


@_compiled
def survey(planes: Planes, width: int) -> tuple[int, int, int, int]:
    """Of the cells between two rows of two planes: how many have two candidates at sight, how many are mixed
    otherwise, the candidates of those, and how many needed a search of all classes."""
    pairs, others, candidates, searches = 0, 0, 0, 0
    cell = _new_cell(planes.classes)
    low, high = (planes.values[0], planes.labels[0]), (planes.values[1], planes.labels[1])
    for x in range(width - 1):
        places = (x, x + 1, width + x, width + x + 1)
        _gather(planes, (0, 1), places, cell)
        if (cell.labels[0] == cell.labels[0, 0]).all():
            continue
        a, b = cell.labels[0, 0], cell.labels[1, 0]
        if _pair_lead(low, high, places, min(a, b), max(a, b), cell.lead):
            pairs += 1
            continue
        number, search = _candidates(planes, cell)
        others, candidates, searches = others + 1, candidates + number, searches + search
    return pairs, others, candidates, searches


@_compiled
def _stretch(
    row: NDArray[np.float32], starts: NDArray[np.int32], weight: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Interpolate a source row at the target columns."""
    for x in range(len(row)):
        left, right = row[x], row[min(x + 1, len(row) - 1)]
        for i in range(starts[x], starts[x + 1]):
            out[i] = _mix(left, right, weight[i])


@_compiled
def _blend(left: NDArray[np.float32], right: NDArray[np.float32], weight: float, out: NDArray[np.float32]) -> None:
    for i in range(len(out)):
        out[i] = _mix(left[i], right[i], weight)


@_compiled
def _challenge(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    weight: float,
    label: int,
    best: NDArray[np.float32],
    out: NDArray,
) -> None:
    for i in range(len(out)):
        value = _mix(left[i], right[i], weight)
        out[i] = label if value > best[i] else out[i]
        best[i] = value if value > best[i] else best[i]


@_compiled
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
    """Labels of one slab, axis after axis; `stretched` (K, 2, 2, columns) holds two rows of two planes."""
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
                    _blend(pair[0, row & 1], pair[1, row & 1], weight_z[z], above)
                    _blend(pair[0, next_row & 1], pair[1, next_row & 1], weight_z[z], below)
                    for y in range(top, bottom):
                        _challenge(above, below, tables.weight_y[y], label, best[y - top], out[z, y])


@_compiled
def dense_slabs(
    planes: Planes,
    bits: NDArray[np.int32],
    starts: NDArray[np.int64],
    slabs: tuple[int, int],
    rows: tuple[int, int, int],
    tables: Tables,
    out: NDArray,
) -> np.int32:
    """As `surface_slabs`, interpolating every class at every voxel with a running maximum."""
    depth, voxels = len(starts), (min(rows[1] + 1, rows[2]) - rows[0]) * (len(tables.starts_x) - 1)
    stretched = np.empty((planes.classes, 2, 2, out.shape[2]), np.float32)
    largest = np.int32(0)
    for lower in range(slabs[0], slabs[1]):
        upper = min(lower + 1, depth - 1)
        for plane in range(lower if lower == 0 else lower + 1, upper + 1):
            for label in range(planes.classes):
                at = starts[plane] + label * planes.stride
                largest = max(largest, largest_magnitude(bits[at : at + voxels]))
        z0, z1 = tables.starts_z[lower], tables.starts_z[lower + 1]
        if largest > LARGEST_FINITE or z0 == z1:
            continue
        offsets, weight_z = (starts[lower], starts[upper]), tables.weight_z[z0:z1]
        _dense_slab(planes.flat, offsets, planes.stride, planes.classes, rows, tables, weight_z, stretched, out[z0:z1])
    return largest
