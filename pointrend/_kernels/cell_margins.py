"""Margins (best minus second-best logit) of the target voxels inside the cells of a coarse grid, and lower bounds.

The search for uncertain voxels bounds the margins of every cell, then computes those of the cells that are left. A
*cell* is the box between 8 neighbouring coarse voxels, its *corners*. Volumes are float32, spatial axes (D, H, W)
flattened to V; 2D is 3D of depth 1.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def rank_classes(logits: NDArray, start: int, stop: int, ranked: NDArray, classes: NDArray) -> None:
    """Write the three highest logits of voxels [start, stop) and the classes of the first two; ties to the lower class.

    Args:
        logits: (K, V).
        ranked: (3, V) float32, written.
        classes: (2, V) uint16, written.
    """
    for v in range(start, stop):
        ranked[0, v] = logits[0, v]
        ranked[1, v] = -np.inf
        ranked[2, v] = -np.inf
        classes[0, v] = 0
    for k in range(1, logits.shape[0]):
        for v in range(start, stop):
            value = logits[k, v]
            if value > ranked[2, v]:
                if value > ranked[0, v]:
                    ranked[2, v], ranked[1, v], ranked[0, v] = ranked[1, v], ranked[0, v], value
                    classes[1, v], classes[0, v] = classes[0, v], k
                elif value > ranked[1, v]:
                    ranked[2, v], ranked[1, v] = ranked[1, v], value
                    classes[1, v] = k
                else:
                    ranked[2, v] = value


@numba.njit(cache=True, nogil=True)
def bound_cells(
    ranked: NDArray,
    classes: NDArray,
    starts: NDArray,
    depth: int,
    height: int,
    width: int,
    slack: float,
    first: int,
    last: int,
    bounds: NDArray,
) -> None:
    """Write lower bounds of the margins inside the cells of planes [first, last).

    Where the corners agree on the best class, the interpolated margin is at least the smallest of the corners;
    elsewhere the bound is 0. A cell that holds no target voxel has an infinite bound.

    Args:
        ranked, classes: from `rank_classes`.
        starts: (3, longest axis + 1), the first target voxel of each cell, per axis.
        slack: taken off the bounds: what float32 interpolation may err.
        bounds: (V,) float32, written; a cell has the index of its lowest corner.
    """
    for z in range(first, last):
        below = width * height if z + 1 < depth else 0
        for y in range(height):
            down = width if y + 1 < height else 0
            empty_row = starts[0, z] == starts[0, z + 1] or starts[1, y] == starts[1, y + 1]
            for x in range(width):
                cell = (z * height + y) * width + x
                right = 1 if x + 1 < width else 0
                if empty_row or starts[2, x] == starts[2, x + 1]:
                    bounds[cell] = np.inf
                    continue
                lowest = np.float32(np.inf)
                for corner in range(8):
                    at = cell + (corner >> 2) * below + ((corner >> 1) & 1) * down + (corner & 1) * right
                    if classes[0, at] != classes[0, cell]:
                        lowest = np.float32(0)
                        break
                    lowest = min(lowest, ranked[0, at] - ranked[1, at])
                bounds[cell] = max(lowest - np.float32(slack), np.float32(0))


@numba.njit(cache=True, nogil=True)
def _leaders(classes: NDArray, corners: NDArray, members: NDArray) -> int:
    """Write the classes that are first or second at some corner to `members`; their number."""
    found = 0
    for rank in range(2):
        for c in range(8):
            label = classes[rank, corners[c]]
            known = False
            for m in range(found):
                known = known or members[m] == label
            if not known:
                members[found] = label
                found += 1
    return found


@numba.njit(cache=True, nogil=True)
def _leading_pair(logits: NDArray, corners: NDArray, members: NDArray, found: int) -> tuple[int, int]:
    """The two of members[:found] with the highest sums over the corners."""
    first, second = members[0], members[0]
    highest, next_highest = np.float32(-np.inf), np.float32(-np.inf)
    for m in range(found):
        total = np.float32(0)
        for c in range(8):
            total += logits[members[m], corners[c]]
        if total > highest:
            first, second = members[m], first
            highest, next_highest = total, highest
        elif total > next_highest:
            second, next_highest = members[m], total
    return first, second


@numba.njit(cache=True, nogil=True)
def _contenders(logits: NDArray, ranked: NDArray, classes: NDArray, corners: NDArray, members: NDArray) -> int:
    """Write the classes that may be first or second somewhere inside a cell to `members`; their number.

    A class that is at most the lower of two others at every corner is so after any convex mix, hence nowhere second.
    """
    count = logits.shape[0]
    if count <= 3:
        for k in range(count):
            members[k] = k
        return count
    found = _leaders(classes, corners, members)
    if found == 2:  # the same two lead at every corner
        return 2
    first, second = _leading_pair(logits, corners, members, found)
    floor = np.empty(8, np.float32)
    thirds_out = found <= 4
    for c in range(8):
        floor[c] = min(logits[first, corners[c]], logits[second, corners[c]])
        thirds_out = thirds_out and ranked[2, corners[c]] <= floor[c]
    if thirds_out:
        return found
    kept = 0
    for k in range(count):
        needed = k in (first, second)
        for c in range(8):
            needed = needed or logits[k, corners[c]] > floor[c]
        if needed:
            members[kept] = k
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def _row_margins(ends: NDArray, kept: int, weights: NDArray, margins: NDArray, second: NDArray) -> None:
    """Write the margins of classes interpolated between two ends (kept, 2), at each weight; `second` is scratch."""
    one = np.float32(1)
    for t in range(len(weights)):
        v0 = ends[0, 0] * (one - weights[t]) + ends[0, 1] * weights[t]
        v1 = ends[1, 0] * (one - weights[t]) + ends[1, 1] * weights[t]
        margins[t] = max(v0, v1)
        second[t] = min(v0, v1)
    for m in range(2, kept):
        for t in range(len(weights)):
            v = ends[m, 0] * (one - weights[t]) + ends[m, 1] * weights[t]
            second[t] = max(second[t], min(margins[t], v))
            margins[t] = max(margins[t], v)
    for t in range(len(weights)):
        margins[t] -= second[t]


@numba.njit(cache=True, nogil=True)
def _cell_margins(
    values: NDArray, kept: int, wz: NDArray, wy: NDArray, wx: NDArray, face: NDArray, second: NDArray, margins: NDArray
) -> None:
    """Write the margins of a cell's target voxels, interpolating an axis at a time.

    Args:
        values: (kept, 8) corner logits of the classes that may be first or second.
        wz, wy, wx: weights of the upper corner, for the target voxels of the cell.
        face, second: scratch, (kept, 6) and (len(wx),).
        margins: (len(wz) * len(wy) * len(wx),), written.
    """
    one = np.float32(1)
    ends = face[:, 4:]
    row = 0
    for i in range(len(wz)):
        for m in range(kept):
            for c in range(4):
                face[m, c] = values[m, c] * (one - wz[i]) + values[m, 4 + c] * wz[i]
        for j in range(len(wy)):
            for m in range(kept):
                ends[m, 0] = face[m, 0] * (one - wy[j]) + face[m, 2] * wy[j]
                ends[m, 1] = face[m, 1] * (one - wy[j]) + face[m, 3] * wy[j]
            _row_margins(ends, kept, wx, margins[row : row + len(wx)], second)
            row += len(wx)


@numba.njit(cache=True, nogil=True)
def _push_near(
    margins: NDArray, limit: float, first: NDArray, stop: NDArray, size: NDArray, keys: NDArray, found: int
) -> int:
    """Append the keys of a cell's voxels whose margin is at most `limit` to keys[found:]; the new number of keys."""
    bits = margins.view(np.uint32)
    voxel = 0
    for i in range(first[0], stop[0]):
        for j in range(first[1], stop[1]):
            row = (i * size[1] + j) * size[2]
            for t in range(first[2], stop[2]):
                # always written, counted only if near: a branch would be mispredicted
                keys[found] = (np.uint64(bits[voxel]) << np.uint64(32)) | np.uint64(row + t)
                found += margins[voxel] <= limit
                voxel += 1
    return found


@numba.njit(cache=True, nogil=True)
def gather(
    logits: NDArray,
    ranked: NDArray,
    classes: NDArray,
    shape: NDArray,
    size: NDArray,
    starts: NDArray,
    weights: NDArray,
    cells: NDArray,
    bounds: NDArray,
    position: int,
    step: int,
    cut: float,
    keys: NDArray,
    found: int,
) -> tuple[int, int]:
    """Append the keys of the voxels in cells[position::step] whose margin is at most `cut` to keys[found:].

    Stops at a cell whose bound exceeds `cut` (cells come in the order of their bounds), and where the next cell might
    not fit into `keys`.

    Args:
        logits: (K, V).
        ranked, classes: from `rank_classes`.
        shape, size: (3,) voxels per axis of the coarse and of the target grid.
        starts, bounds: as in `bound_cells`.
        weights: (3, longest target axis) float32, weight of the upper corner.
        keys: uint64, the bits of the margin above the flat target index, so that keys sort by margin, then index;
            longer than the voxels of a cell.

    Returns:
        The new number of keys, and the position in `cells` to go on from (at least len(cells) when done).
    """
    count, limit = logits.shape[0], np.float32(cut)
    members, corners = np.empty(max(count, 16), np.int64), np.empty(8, np.int64)
    values, face = np.empty((count, 8), np.float32), np.empty((count, 6), np.float32)
    longest = [np.max(starts[a, 1 : shape[a] + 1] - starts[a, : shape[a]]) for a in range(3)]
    margins, second = np.empty(longest[0] * longest[1] * longest[2], np.float32), np.empty(longest[2], np.float32)
    at, first, stop = np.empty(3, np.int64), np.empty(3, np.int64), np.empty(3, np.int64)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    while position < len(cells):
        cell = cells[position]
        if bounds[cell] > limit:
            return found, len(cells)
        for axis in range(3):
            at[axis] = cell // strides[axis] % shape[axis]
            first[axis], stop[axis] = starts[axis, at[axis]], starts[axis, at[axis] + 1]
        if found + (stop[0] - first[0]) * (stop[1] - first[1]) * (stop[2] - first[2]) >= len(keys):
            return found, position
        for c in range(8):
            corners[c] = cell
            for axis in range(3):
                if (c >> (2 - axis)) & 1 and at[axis] + 1 < shape[axis]:
                    corners[c] += strides[axis]
        kept = _contenders(logits, ranked, classes, corners, members)
        for m in range(kept):
            for c in range(8):
                values[m, c] = logits[members[m], corners[c]]
        wz, wy = weights[0, first[0] : stop[0]], weights[1, first[1] : stop[1]]
        _cell_margins(values, kept, wz, wy, weights[2, first[2] : stop[2]], face, second, margins)
        found = _push_near(margins, limit, first, stop, size, keys, found)
        position += step
    return found, position
