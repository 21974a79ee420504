"""Planes of logits as flat float32, for the compiled loops of `render_labels`: in place, or converted a few rows at a
time, so that logits of another dtype or layout are never copied whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
