"""Compiled loops of `render_labels`: the best classes of a plane, and the labels of one slab of cells.

Words: a *cell* lies between neighbouring source voxels, its *corners* (8, in 3D); the target voxels of cell i of an
axis are `starts[i]:starts[i + 1]`. A *slab* is the cells between two source planes. Planes are read from a flat
float32 array: class c of a plane starts at `offset + c * stride`, so one compiled form serves whole volumes and
converted planes. Every function works on a block of rows and releases the interpreter lock.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # voxels whose five running values stay in the first-level cache while the classes pass
ROUNDING = np.float32(4e-6)  # of |logit| + 1: more than float32 interpolation errs

_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def largest_magnitude(bits: NDArray[np.int32]) -> int:
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
) -> int:
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
def count_mixed(labels: NDArray[np.int32], width: int) -> int:
    """Cells whose corners differ, of one row of cells: `labels` (4, width), the rows at its four long edges."""
    mixed = 0
    for x in range(width - 1):
        for edge in range(4):
            if labels[edge, x] != labels[0, x] or labels[edge, x + 1] != labels[0, x]:
                mixed += 1
                break
    return mixed


@_compiled
def _mix(left: float, right: float, weight: float) -> float:
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
            if (left > 0) == (right > 0):
                label = upper if left > 0 else lower
                for x in range(out.shape[2]):
                    out[z, y, x] = label
            else:
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
            best[: out.shape[2]] = -np.inf
            for i in range(len(candidates)):
                c = corners[i]
                left = _mix(_mix(c[0], c[4], w), _mix(c[2], c[6], w), v)
                right = _mix(_mix(c[1], c[5], w), _mix(c[3], c[7], w), v)
                for x in range(out.shape[2]):
                    value = _mix(left, right, weight_x[x])
                    if value > best[x]:
                        best[x] = value
                        out[z, y, x] = candidates[i]


@_compiled
def _below(values: NDArray[np.float32], reference: NDArray[np.float32], margin: float) -> bool:
    for corner in range(8):
        if values[corner] + margin >= reference[corner]:
            return False
    return True


@_compiled
def _out_of_reach(values: NDArray[np.float32], references: NDArray[np.float32], number: int, margin: float) -> bool:
    # any convex mix of classes is at most the maximum: a class below one mix at all corners wins nowhere inside
    for reference in range(number):
        if _below(values, references[reference], margin):
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
def _candidates(
    flat: NDArray[np.float32],
    at: NDArray[np.int64],
    stride: int,
    classes: int,
    top_values: NDArray[np.float32],
    top_labels: NDArray[np.int32],
    candidates: NDArray[np.int32],
    corners: NDArray[np.float32],
    references: NDArray[np.float32],
) -> int:
    """The classes that may win inside a cell, ascending in `candidates`, with their logits in `corners` (n, 8).

    `top_values` (3, 8) and `top_labels` (2, 8) are the best three of each corner, `at` the place of the corners.
    """
    number = 0
    for corner in range(8):
        number = _add(candidates, number, top_labels[0, corner])
    winners = number
    for corner in range(8):
        number = _add(candidates, number, top_labels[1, corner])
    margin = np.float32(0)
    for corner in range(8):
        margin = max(margin, abs(top_values[0, corner]))
    margin = ROUNDING * (margin + 1)
    references[winners] = 0
    for i in range(number):
        for corner in range(8):
            corners[i, corner] = flat[at[corner] + candidates[i] * stride]
    for i in range(winners):
        references[i] = corners[i]
        references[winners] += corners[i] / np.float32(winners)

    # the third best bounds every class that is not among the best two of a corner
    if number < classes and not _out_of_reach(top_values[2], references, winners + 1, margin):
        known = number
        for label in range(classes):
            for corner in range(8):
                corners[number, corner] = flat[at[corner] + label * stride]
            if not _out_of_reach(corners[number], references, winners + 1, margin):
                listed = False
                for i in range(known):
                    listed = listed or candidates[i] == label
                if not listed:
                    candidates[number] = label
                    number += 1
    kept = winners
    for i in range(winners, number):
        if not _out_of_reach(corners[i], references, winners + 1, margin):
            candidates[kept] = candidates[i]
            corners[kept] = corners[i]
            kept += 1
    for i in range(1, kept):
        j = i
        while j > 0 and candidates[j - 1] > candidates[j]:
            candidates[j - 1], candidates[j] = candidates[j], candidates[j - 1]
            for corner in range(8):
                swap = corners[j, corner]
                corners[j, corner] = corners[j - 1, corner]
                corners[j - 1, corner] = swap
            j -= 1
    return kept


@_compiled
def _same_pair(top_labels: NDArray[np.int32]) -> bool:
    """Whether the best two classes are the same two at all corners."""
    a, b = top_labels[0, 0], top_labels[1, 0]
    for corner in range(1, 8):
        c, d = top_labels[0, corner], top_labels[1, corner]
        if not ((c == a and d == b) or (c == b and d == a)):
            return False
    return True


@_compiled
def surface_slab(
    flat: NDArray[np.float32],
    offsets: NDArray[np.int64],
    stride: int,
    classes: int,
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
    planes: tuple[int, int],
    cells_y: tuple[int, int, int],
    starts_y: NDArray[np.int32],
    weight_y: NDArray[np.float32],
    starts_x: NDArray[np.int32],
    weight_x: NDArray[np.float32],
    weight_z: NDArray[np.float32],
    out: NDArray,
) -> None:
    """Labels of one slab: fill the cells whose corners agree, interpolate the others.

    `offsets` (2,): where the block of rows starts in the lower and upper plane; `values` (2, 3, n) and `labels`
    (2, 2, n) from `top_three` for the two slots `planes`; `cells_y`: first and past-the-last row of cells and the
    number of source rows; `out` (planes of the slab, all rows, all columns).
    """
    first_row, last_row, height = cells_y
    width = len(starts_x) - 1
    template = np.empty(out.shape[2], out.dtype)
    edges = np.empty(width, np.int32)
    mixed = np.empty(width, np.int32)
    at = np.empty(8, np.int64)
    top_values, top_labels = np.empty((3, 8), np.float32), np.empty((2, 8), np.int32)
    candidates = np.empty(classes + 17, np.int32)
    corners = np.empty((classes + 17, 8), np.float32)
    references = np.empty((9, 8), np.float32)
    lead = np.empty(8, np.float32)
    best = np.empty(out.shape[2], np.float32)
    for row in range(first_row, last_row):
        y0, y1 = starts_y[row], starts_y[row + 1]
        if y0 == y1:
            continue
        here = (row - first_row) * width
        below = (min(row + 1, height - 1) - first_row) * width
        for x in range(width):
            label = labels[planes[0], 0, here + x]
            same = (
                (label == labels[planes[1], 0, here + x])
                & (label == labels[planes[0], 0, below + x])
                & (label == labels[planes[1], 0, below + x])
            )
            edges[x] = label if same else -1
        count, x = 0, 0
        while x < width:
            right = min(x + 1, width - 1)
            if edges[x] < 0 or edges[x] != edges[right]:
                mixed[count] = x
                count += 1
                x += 1
                continue
            run = x + 1
            while run < width and edges[run] == edges[x] and edges[min(run + 1, width - 1)] == edges[x]:
                run += 1
            template[starts_x[x] : starts_x[run]] = edges[x]
            x = run
        for z in range(out.shape[0]):
            for y in range(y0, y1):
                out[z, y, :] = template
        for i in range(count):
            x = mixed[i]
            x0, x1 = starts_x[x], starts_x[x + 1]
            if x0 == x1:
                continue
            right = min(x + 1, width - 1)
            for corner in range(8):
                slot = planes[corner >> 2]
                place = (below if corner & 2 else here) + (right if corner & 1 else x)
                at[corner] = offsets[corner >> 2] + place
                for rank in range(3):
                    top_values[rank, corner] = values[slot, rank, place]
                top_labels[0, corner] = labels[slot, 0, place]
                top_labels[1, corner] = labels[slot, 1, place]
            cell = out[:, y0:y1, x0:x1]
            if _same_pair(top_labels):
                lower, upper = top_labels[0, 0], top_labels[1, 0]
                if lower > upper:
                    lower, upper = upper, lower
                for corner in range(8):
                    difference = top_values[0, corner] - top_values[1, corner]
                    lead[corner] = difference if top_labels[0, corner] == upper else -difference
                _pair_labels(lead, lower, upper, cell, weight_z, weight_y[y0:y1], weight_x[x0:x1])
                continue
            number = _candidates(flat, at, stride, classes, top_values, top_labels, candidates, corners, references)
            if number == 2:
                for corner in range(8):
                    lead[corner] = corners[1, corner] - corners[0, corner]
                _pair_labels(lead, candidates[0], candidates[1], cell, weight_z, weight_y[y0:y1], weight_x[x0:x1])
            else:
                _many_labels(corners, candidates[:number], best, cell, weight_z, weight_y[y0:y1], weight_x[x0:x1])


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
def dense_slab(
    flat: NDArray[np.float32],
    offsets: NDArray[np.int64],
    stride: int,
    classes: int,
    cells_y: tuple[int, int, int],
    starts_y: NDArray[np.int32],
    weight_y: NDArray[np.float32],
    starts_x: NDArray[np.int32],
    weight_x: NDArray[np.float32],
    weight_z: NDArray[np.float32],
    stretched: NDArray[np.float32],
    out: NDArray,
) -> None:
    """Labels of one slab by interpolating every class at every voxel, axis after axis, with a running maximum.

    As `surface_slab`; `stretched` (K, 2, 2, columns) holds two rows of two planes at the target columns.
    """
    first_row, last_row, height = cells_y
    width, columns = len(starts_x) - 1, out.shape[2]
    best = np.empty((8, columns), np.float32)
    above, below = np.empty(columns, np.float32), np.empty(columns, np.float32)
    held = np.full(2, -1, np.int64)
    for row in range(first_row, last_row):
        y0, y1 = starts_y[row], starts_y[row + 1]
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
                    _stretch(flat[at : at + width], starts_x, weight_x, stretched[label, plane, source & 1])
        for z in range(out.shape[0]):
            for top in range(y0, y1, 8):
                bottom = min(top + 8, y1)
                best[:] = -np.inf
                for label in range(classes):
                    rows = stretched[label]
                    _blend(rows[0, row & 1], rows[1, row & 1], weight_z[z], above)
                    _blend(rows[0, next_row & 1], rows[1, next_row & 1], weight_z[z], below)
                    for y in range(top, bottom):
                        _challenge(above, below, weight_y[y], label, best[y - top], out[z, y])
