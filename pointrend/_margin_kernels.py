"""Compiled loops of the search for uncertain voxels. Volumes are float32 (K, D, H, W); 2D has D = 1."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def rank_classes(logits: NDArray, start: int, stop: int, ranked: NDArray, classes: NDArray) -> None:
    """The three highest logits of voxels [start, stop) and the classes of the first two; ties to the lower class.

    logits (K, V); ranked (3, V) float32; classes (2, V) uint16.
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
    """Lower bounds of the margins in cells of planes [first, last): infinite where a cell holds no target voxel.

    starts (3, longest axis + 1): the first target voxel of each cell, per axis; bounds (V,) float32.
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
def _contenders(
    logits: NDArray, ranked: NDArray, classes: NDArray, corners: NDArray, members: NDArray, totals: NDArray
) -> int:
    """Write the classes that may be first or second somewhere in a cell to `members`; their number.

    A class is out if at every corner it is at most the lower of two others: so it is then after any convex mix.
    """
    count = logits.shape[0]
    if count <= 3:
        for k in range(count):
            members[k] = k
        return count
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
    if found == 2:  # the same two lead at every corner
        return 2
    for m in range(found):
        totals[m] = 0
        for c in range(8):
            totals[m] += logits[members[m], corners[c]]
    a, b = 0, 1
    if totals[b] > totals[a]:
        a, b = b, a
    for m in range(2, found):
        if totals[m] > totals[a]:
            a, b = m, a
        elif totals[m] > totals[b]:
            b = m
    first, second = members[a], members[b]
    thirds_out = True
    for c in range(8):
        at = corners[c]
        thirds_out = thirds_out and ranked[2, at] <= min(logits[first, at], logits[second, at])
    if thirds_out and found <= 4:
        return found
    kept = 0
    for k in range(count):
        needed = k == first or k == second
        for c in range(8):
            at = corners[c]
            needed = needed or logits[k, at] > min(logits[first, at], logits[second, at])
        if needed:
            members[kept] = k
            kept += 1
    return kept


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
    first: int,
    step: int,
    cut: float,
    keys: NDArray,
    found: int,
) -> tuple[int, int]:
    """Append the keys of voxels with a margin of at most `cut` in cells[first::step] to keys[found:].

    Stops where a bound passes `cut` (cells come in the order of their bounds) or where the next cell might not fit.

    Args:
        logits: (K, V); ranked, classes: as from `rank_classes`; shape, size: (3,) of source and target.
        starts: as in `bound_cells`; weights: (3, longest target axis) float32.
        keys: uint64, margin bits above the flat target index.

    Returns:
        Keys now held, and the position in `cells` to go on from (at least len(cells) when done).
    """
    count = logits.shape[0]
    members = np.empty(max(count, 16), np.int64)
    totals = np.empty(max(count, 16), np.float32)
    corners = np.empty(8, np.int64)
    deep = np.empty((count, 4), np.float32)
    flat = np.empty((count, 2), np.float32)
    longest = np.max(starts[2, 1 : shape[2] + 1] - starts[2, : shape[2]])
    best = np.empty(longest, np.float32)
    second = np.empty(longest, np.float32)
    bits = best.view(np.uint32)
    one = np.float32(1)
    limit = np.float32(cut)
    position = first
    while position < len(cells):
        cell = cells[position]
        if bounds[cell] > limit:
            return found, len(cells)
        z, rest = cell // (shape[1] * shape[2]), cell % (shape[1] * shape[2])
        y, x = rest // shape[2], rest % shape[2]
        x_first, wide = starts[2, x], starts[2, x + 1] - starts[2, x]
        voxels = (starts[0, z + 1] - starts[0, z]) * (starts[1, y + 1] - starts[1, y]) * wide
        if found + voxels > len(keys):
            return found, position
        below = shape[1] * shape[2] if z + 1 < shape[0] else 0
        down = shape[2] if y + 1 < shape[1] else 0
        right = 1 if x + 1 < shape[2] else 0
        for c in range(8):
            corners[c] = cell + (c >> 2) * below + ((c >> 1) & 1) * down + (c & 1) * right
        kept = _contenders(logits, ranked, classes, corners, members, totals)
        for i in range(starts[0, z], starts[0, z + 1]):
            wz = weights[0, i]
            for m in range(kept):
                for c in range(4):
                    deep[m, c] = (
                        logits[members[m], corners[c]] * (one - wz) + logits[members[m], corners[4 + c]] * wz
                    )
            for j in range(starts[1, y], starts[1, y + 1]):
                wy = weights[1, j]
                for m in range(kept):
                    flat[m, 0] = deep[m, 0] * (one - wy) + deep[m, 2] * wy
                    flat[m, 1] = deep[m, 1] * (one - wy) + deep[m, 3] * wy
                for t in range(wide):
                    wx = weights[2, x_first + t]
                    v0 = flat[0, 0] * (one - wx) + flat[0, 1] * wx
                    v1 = flat[1, 0] * (one - wx) + flat[1, 1] * wx
                    best[t] = max(v0, v1)
                    second[t] = min(v0, v1)
                for m in range(2, kept):
                    for t in range(wide):
                        wx = weights[2, x_first + t]
                        v = flat[m, 0] * (one - wx) + flat[m, 1] * wx
                        second[t] = max(second[t], min(best[t], v))
                        best[t] = max(best[t], v)
                start = np.uint64((i * size[1] + j) * size[2] + x_first)
                for t in range(wide):
                    best[t] -= second[t]
                for t in range(wide):
                    # written always, kept only if near: no branch to mispredict
                    keys[found] = (np.uint64(bits[t]) << np.uint64(32)) | (start + np.uint64(t))
                    found += best[t] <= limit
        position += step
    return found, position
