"""Planes of logits as flat float32, and the best three classes of their voxels, for the loops of `render_labels`.

Logits are read in place, or converted a few rows at a time, so that logits of another dtype or layout are never copied
whole. Class c of a plane starts at `offset + c * stride` of a flat float32 array, so that one compiled form serves
both. Each call works on a block of rows of a plane.

Words of the loops: a *cell* is the box between 8 neighbouring source voxels, its *corners*; the target voxels in cell
i of an axis are `starts[i]:starts[i + 1]`. A *slab* is all cells between two neighbouring source planes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # voxels whose five running values stay in the first-level cache while the classes go by
LARGEST_FINITE = 0x7F7FFFFF  # bits of the largest finite float32

compiled = numba.njit(cache=True, nogil=True)


class LogitVolume:
    """(B, K, D, H, W) logits: read in place where they are aligned, contiguous float32, else converted when read.

    Args:
        array: floating point, any strides; uint16 holds the bits of bfloat16, which numpy lacks.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.batch, self.classes, self.depth, self.height, self.width = array.shape
        in_place = array.dtype == np.dtype("=f4") and array.flags.c_contiguous and array.flags.aligned
        self.flat = read_only(array.reshape(-1)) if in_place else None

    def copy(self, item: int, plane: int, rows: slice, out: NDArray[np.float32]) -> None:
        """Convert rows of one plane of one batch item into `out` (K, rows, W)."""
        values = self.array[item, :, plane, rows]
        if values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
            bits = out.view(np.uint32)
            np.copyto(bits, values)
            np.left_shift(bits, 16, out=bits)
        else:
            # a float64 beyond float32 becomes infinite, which the caller refuses with the reason
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(out, values, casting="same_kind")


class LogitBlock:
    """A block of rows of one batch item, all its planes: what a task of the compiled loops reads.

    Args:
        slabs: the slabs (pairs of neighbouring planes, by their lower one) that the task renders.
        first, last: the rows first:last of every plane.

    Attributes:
        flat: float32 memory that holds the logits.
        bits: the same memory as int32.
        starts: (D,) where class 0 of the rows starts in `flat`, for each plane.
        stride: from a class to the next in `flat`.
        count: voxels of the rows.
    """

    def __init__(self, volume: LogitVolume, item: int, slabs: range, first: int, last: int) -> None:
        self.volume, self.item, self.slabs, self.rows = volume, item, slabs, slice(first, last)
        self.count = (last - first) * volume.width
        if volume.flat is not None:
            self.flat = volume.flat
            plane = volume.height * volume.width
            self.stride = volume.depth * plane
            start = item * volume.classes * self.stride + first * volume.width
            self.starts = start + plane * np.arange(volume.depth)
        else:
            # two planes at a time, by plane modulo 2
            self.planes = np.empty((2, volume.classes, last - first, volume.width), np.float32)
            self.flat = read_only(self.planes.reshape(-1))
            self.stride = self.count
            self.starts = np.arange(volume.depth) % 2 * volume.classes * self.count
        self.bits = read_only(self.flat.view(np.int32))

    def readable(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first slab, slab after the last, slab that the block begins with) of slabs readable at once.

        All of them in place; else one after the other, each converted before it is yielded.
        """
        first, last, depth = self.slabs.start, self.slabs.stop, self.volume.depth
        if self.volume.flat is not None:
            yield first, last, first
            return
        self.volume.copy(self.item, first, self.rows, self.planes[first % 2])
        for lower in self.slabs:
            if lower + 1 < depth:
                self.volume.copy(self.item, lower + 1, self.rows, self.planes[(lower + 1) % 2])
            yield lower, lower + 1, first


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view: the loops compile once per kind of array, and memory-mapped logits are read-only anyway."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


class Planes(NamedTuple):
    """A block of rows of two neighbouring planes: their logits, and the ranking that `top_three` wrote.

    Plane p uses slot p % 2, so that the upper plane of a slab is kept as the lower plane of the next.
    """

    flat: NDArray[np.float32]  # the logits
    offsets: NDArray[np.int64]  # (2,) by slot, where class 0 of the rows starts in `flat`
    stride: int  # from a class to the next, in `flat`
    classes: int
    values: NDArray[np.float32]  # (2, 3, n) by slot, the best three logits of the n voxels of the rows
    labels: NDArray[np.int32]  # (2, 2, n) by slot, the best two classes


class Tables(NamedTuple):
    """Linear interpolation along z, y and x.

    `starts` (cells + 1,) is the first target voxel of each cell; `weight` (targets,) is the upper corner's weight.
    """

    starts_z: NDArray[np.int32]
    weight_z: NDArray[np.float32]
    starts_y: NDArray[np.int32]
    weight_y: NDArray[np.float32]
    starts_x: NDArray[np.int32]
    weight_x: NDArray[np.float32]


@compiled
def largest_magnitude(bits: NDArray[np.int32]) -> np.int32:
    """The largest bit pattern, signs dropped; above LARGEST_FINITE there is a NaN or an infinity."""
    largest = np.int32(0)
    for i in range(len(bits)):
        value = bits[i] & np.int32(0x7FFFFFFF)
        largest = value if value > largest else largest
    return largest


@compiled
def _insert_one(
    value: float, label: int, first: float, second: float, third: float, winner: int, runner: int
) -> tuple[float, float, float, int, int]:
    # selections without branches vectorise; strict comparisons keep the lower class ahead in a tie
    best, good = value > first, value > second
    return (
        value if best else first,
        first if best else (value if good else second),
        second if good else (value if value > third else third),
        label if best else winner,
        winner if best else (label if good else runner),
    )


@compiled
def _insert(logits: NDArray[np.float32], label: int, best: NDArray[np.float32], rank: NDArray[np.int32]) -> None:
    """Rank one class among the running best three values and best two classes of up to CHUNK voxels."""
    own = np.int32(label)
    for i in range(len(logits)):
        a, b, c, j, k = best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK]
        a, b, c, j, k = _insert_one(logits[i], own, a, b, c, j, k)
        best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK] = a, b, c, j, k


@compiled
def _insert_four(
    flat: NDArray[np.float32],
    at: int,
    stride: int,
    count: int,
    label: int,
    best: NDArray[np.float32],
    rank: NDArray[np.int32],
) -> None:
    """As `_insert` for four classes, with one load and store of the running values: twice as fast."""
    logits0, logits1 = flat[at : at + count], flat[at + stride : at + stride + count]
    logits2 = flat[at + 2 * stride : at + 2 * stride + count]
    logits3 = flat[at + 3 * stride : at + 3 * stride + count]
    label0, label1, label2, label3 = np.int32(label), np.int32(label + 1), np.int32(label + 2), np.int32(label + 3)
    for i in range(count):
        a, b, c, j, k = best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK]
        a, b, c, j, k = _insert_one(logits0[i], label0, a, b, c, j, k)
        a, b, c, j, k = _insert_one(logits1[i], label1, a, b, c, j, k)
        a, b, c, j, k = _insert_one(logits2[i], label2, a, b, c, j, k)
        a, b, c, j, k = _insert_one(logits3[i], label3, a, b, c, j, k)
        best[i], best[i + CHUNK], best[i + 2 * CHUNK], rank[i], rank[i + CHUNK] = a, b, c, j, k


@compiled
def top_three(
    flat: NDArray[np.float32],
    bits: NDArray[np.int32],
    offset: int,
    stride: int,
    classes: int,
    values: NDArray[np.float32],
    labels: NDArray[np.int32],
) -> np.int32:
    """Write the three largest logits of each voxel to `values` (3, n) and the classes of the first two to `labels`.

    `bits` is the memory of `flat` as integers.

    Returns:
        `largest_magnitude` of the logits read.
    """
    # one array a dtype holds all running values: with five, the compiler gives up proving that none overlap
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


@compiled
def mix(left: np.float32, right: np.float32, weight: np.float32) -> np.floating:
    """Linear interpolation, rounded as torch's `interpolate` rounds it."""
    return (np.float32(1) - weight) * left + weight * right
