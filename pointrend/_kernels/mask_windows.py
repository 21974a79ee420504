"""Which points have more than one mask value in the window around them: the compiled loops of `getpoint`.

Masks are flat, row-major, of any number of axes, with values as unsigned integers that are equal where the mask's are.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def _window_is_mixed(
    values: NDArray, shape: NDArray[np.int64], radius: int, element: NDArray[np.int64], at: NDArray[np.int64]
) -> bool:
    """Whether the window around `element` holds two values; `at` is scratch for the position of a row."""
    last = len(shape) - 1
    for axis in range(last):
        at[axis] = max(element[axis] - radius, 0)
    first_column = max(element[last] - radius, 0)
    columns = min(element[last] + radius + 1, shape[last]) - first_column
    start = np.int64(0)
    for axis in range(last):
        start = start * shape[axis] + at[axis]
    seen = values[start * shape[last] + first_column]
    while True:
        start = np.int64(0)
        for axis in range(last):
            start = start * shape[axis] + at[axis]
        start = start * shape[last] + first_column
        for column in range(start, start + columns):
            if values[column] != seen:
                return True
        axis = last - 1
        while axis >= 0 and at[axis] == min(element[axis] + radius, shape[axis] - 1):
            at[axis] = max(element[axis] - radius, 0)
            axis -= 1
        if axis < 0:
            return False
        at[axis] += 1


@numba.njit(cache=True, nogil=True)
def _blocks_differ(
    smallest: NDArray,
    largest: NDArray,
    blocks: NDArray[np.int64],
    bits: int,
    radius: int,
    shape: NDArray[np.int64],
    element: NDArray[np.int64],
) -> bool:
    """Whether the blocks of 2**bits elements per axis that the window touches, at most two an axis, hold two values."""
    ndim = len(shape)
    lowest, highest = largest[0], smallest[0]
    for corner in range(1 << ndim):
        index = np.int64(0)
        for axis in range(ndim):
            side = radius if corner >> axis & 1 else -radius
            at = min(max(element[axis] + side, 0), shape[axis] - 1)
            index = index * blocks[axis] + (at >> bits)
        if corner == 0:
            lowest, highest = smallest[index], largest[index]
        else:
            lowest, highest = min(lowest, smallest[index]), max(highest, largest[index])
    return lowest != highest


@numba.njit(cache=True, nogil=True)
def keep_by_window(values: NDArray, shape: NDArray[np.int64], radius: int, points: NDArray[np.float64]) -> int:
    """Move the points whose window holds two values to the front, scaled from the unit cube to elements; their number.

    Fast for few points or a large radius: only windows that touch a mixed block are scanned.
    """
    ndim = len(shape)
    bits = 3
    while 1 << bits < 2 * radius + 1:
        bits += 1
    blocks = ((shape - 1) >> bits) + 1
    smallest, largest = block_extremes(values, shape, bits)
    element, at = np.empty(ndim, np.int64), np.empty(ndim, np.int64)
    kept = 0
    for row in range(len(points)):
        for axis in range(ndim):
            element[axis] = int(points[row, axis] * shape[axis])
        # most windows lie in blocks of one value; only the others are scanned
        near = _blocks_differ(smallest, largest, blocks, bits, radius, shape, element)
        if near and _window_is_mixed(values, shape, radius, element, at):
            for axis in range(ndim):
                points[kept, axis] = points[row, axis] * shape[axis]
            kept += 1
    return kept


@numba.njit(cache=True, nogil=True)
def keep_by_table(table: NDArray[np.bool_], shape: NDArray[np.int64], points: NDArray[np.float64]) -> int:
    """As `keep_by_window`, with a flat table that says for every element whether its window holds two values."""
    ndim = len(shape)
    kept = 0
    for row in range(len(points)):
        index = np.int64(0)
        for axis in range(ndim):
            index = index * shape[axis] + int(points[row, axis] * shape[axis])
        # always written, counted only if mixed: a branch would be mispredicted near every boundary
        for axis in range(ndim):
            points[kept, axis] = points[row, axis] * shape[axis]
        kept += table[index]
    return kept


@numba.njit(cache=True, nogil=True)
def _fold(smallest: NDArray, largest: NDArray, low: NDArray, high: NDArray) -> None:
    """Update running minima by `low` and running maxima by `high`."""
    # slices of one length and no branch: the form that the compiler vectorises
    for i in range(len(smallest)):
        smallest[i] = low[i] if low[i] < smallest[i] else smallest[i]
    for i in range(len(largest)):
        largest[i] = high[i] if high[i] > largest[i] else largest[i]


@numba.njit(cache=True, nogil=True)
def window_extremes(low: NDArray, high: NDArray, length: int, inner: int, radius: int) -> tuple[NDArray, NDArray]:
    """Minimum of `low` and maximum of `high` within `radius` along one axis.

    The axis has `length` elements, `inner` flat elements apart.
    """
    smallest, largest = np.empty_like(low), np.empty_like(high)
    line = length * inner
    for start in range(0, len(low), line):
        end = start + line
        # runs of 4096 stay in the first-level cache while the runs up to `radius` steps away are folded in
        for first in range(start, end, 4096):
            last = min(first + 4096, end)
            smallest[first:last] = low[first:last]
            largest[first:last] = high[first:last]
            for shift in range(-radius, radius + 1):
                offset = shift * inner
                a, b = max(first, start - offset), min(last, end - offset)
                if a < b and shift != 0:
                    _fold(smallest[a:b], largest[a:b], low[a + offset : b + offset], high[a + offset : b + offset])
    return smallest, largest


@numba.njit(cache=True, nogil=True)
def block_extremes(values: NDArray, shape: NDArray[np.int64], bits: int) -> tuple[NDArray, NDArray]:
    """Minimum and maximum of every block of 2**bits elements per axis, flat."""
    ndim = len(shape)
    blocks = ((shape - 1) >> bits) + 1
    number = 1
    for axis in range(ndim):
        number *= blocks[axis]
    smallest = np.empty(number, values.dtype)
    largest = np.empty(number, values.dtype)
    width, columns = 1 << bits, shape[ndim - 1]
    for row in range(len(values) // columns):
        # the row's position on the leading axes: its blocks, and whether it is the first row to reach them
        rest, base, scale, first = row, np.int64(0), blocks[ndim - 1], True
        for axis in range(ndim - 2, -1, -1):
            at = rest % shape[axis]
            rest //= shape[axis]
            base += (at >> bits) * scale
            scale *= blocks[axis]
            first = first and at % width == 0
        for block in range(blocks[ndim - 1]):
            start = row * columns + block * width
            lowest = values[start]
            highest = lowest
            for i in range(start, min(start + width, (row + 1) * columns)):
                lowest, highest = min(lowest, values[i]), max(highest, values[i])
            if first:
                smallest[base + block], largest[base + block] = lowest, highest
            else:
                smallest[base + block] = min(smallest[base + block], lowest)
                largest[base + block] = max(largest[base + block], highest)
    return smallest, largest
