"""Labels of whole volumes on the CPU: choose the loop, cut the volume into tasks, run them over threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pointrend._kernels.logit_planes import (
    LARGEST_FINITE,
    LogitBlock,
    LogitVolume,
    Planes,
    Tables,
    read_only,
    top_three,
)
from pointrend._kernels.slab_labels import dense_slabs, surface_slabs, survey
from pointrend._kernels.threads import run_tasks
from pointrend.coordinates import CellAxis

BLOCK_BYTES = 1_500_000  # of running values that a block of rows may hold: they stay in the second-level cache
BLOCKS_PER_THREAD = 3  # so that a thread with little surface takes work over from one with much
SAMPLED_ROWS = 32  # rows of cells looked at before the loop is chosen


class Task(NamedTuple):
    """Rows first:last of cells of some slabs of one batch item."""

    item: int
    slabs: range
    first: int
    last: int


def render(array: NDArray[Any], axes: Sequence[CellAxis], threads: int) -> NDArray[Any]:
    """Labels (B, *targets) of (B, K, D, H, W) logits; see `pointrend.render_labels`.

    Args:
        array: as for `LogitVolume`.
        axes: interpolation along z, y and x.
        threads: at least 1.

    Raises:
        ValueError: NaN or infinite logits.
    """
    volume = LogitVolume(array)
    dtype = np.uint8 if volume.classes <= 256 else np.uint16
    labels = np.empty((volume.batch, *(axis.target for axis in axes)), dtype)
    by_surface = volume.batch > 0 and pays_by_surface(volume, axes)

    def work(task: Task) -> None:
        block = LogitBlock(volume, task.item, task.slabs, task.first, min(task.last + 1, volume.height))
        _render_block(block, (task.first, task.last, volume.height), axes, by_surface, labels[task.item])

    run_tasks(work, _tasks(volume, threads), threads)
    return labels


def _tasks(volume: LogitVolume, threads: int) -> list[Task]:
    """Blocks whose running values stay in cache, several for each thread.

    Threads divide the planes first. Blocks of rows would write to the same memory pages of the labels, and a page is
    zeroed at its first use while the other thread waits. A plane between two tasks is ranked twice.
    """
    rows = max(4, min(volume.height, BLOCK_BYTES // (40 * volume.width)))
    wanted = threads * BLOCKS_PER_THREAD if threads > 1 else 1
    by_rows = volume.batch * math.ceil(volume.height / rows)
    parts = max(1, min(volume.depth, math.ceil(wanted / max(by_rows, 1))))
    if parts * by_rows < wanted:
        rows = max(4, min(rows, math.ceil(volume.batch * parts * volume.height / wanted)))
    edges = [volume.depth * part // parts for part in range(parts + 1)]
    return [
        Task(item, range(start, stop), first, min(first + rows, volume.height))
        for item in range(volume.batch)
        for start, stop in pairwise(edges)
        for first in range(0, volume.height, rows)
    ]


def _render_block(
    block: LogitBlock, rows: tuple[int, int, int], axes: Sequence[CellAxis], by_surface: bool, out: NDArray[Any]
) -> None:
    ranked = block.count if by_surface else 0
    planes = _planes(block.flat, block.stride, block.volume.classes, ranked)
    z, y, x = axes
    tables = Tables(z.starts, z.weight, y.starts, y.weight, x.starts, x.weight)
    loop = surface_slabs if by_surface else dense_slabs
    for slabs in block.readable():
        if int(loop(planes, block.bits, block.starts, slabs, rows, tables, out)) > LARGEST_FINITE:
            raise ValueError("logits must be finite (in float32), got NaN or infinity")


def _planes(flat: NDArray[np.float32], stride: int, classes: int, voxels: int) -> Planes:
    """Logits with room to rank `voxels` of two planes."""
    values, labels = np.empty((2, 3, voxels), np.float32), np.empty((2, 2, voxels), np.int32)
    return Planes(flat, np.empty(2, np.int64), stride, classes, values, labels)


def pays_by_surface(volume: LogitVolume, axes: Sequence[CellAxis]) -> bool:
    """Whether looking for surfaces is cheaper than the dense loop, judged by a sample of the cells.

    The costs are nanoseconds of one core (2.5 GHz, AVX-512); only their proportions matter.
    """
    voxels = math.prod(axis.target for axis in axes) / (volume.depth * volume.height * volume.width)
    if voxels <= 1:  # fewer target voxels than corners to rank
        return False
    pairs, others, candidates, searches = sample_cells(volume)
    surface = 0.4 * volume.classes + 0.2 * voxels + pairs * (100 + 2 * voxels)
    surface += others * 250 + candidates * (40 + 2 * voxels) + searches * 15 * volume.classes
    return bool(surface < voxels * (0.6 * volume.classes + 1.5))


def sample_cells(volume: LogitVolume) -> NDArray[np.float64]:
    """(4,) the counts of `slab_labels.survey` per cell, from rows of cells spread over the logits."""
    depths, heights, width = max(volume.depth - 1, 1), max(volume.height - 1, 1), volume.width
    count = max(1, min(SAMPLED_ROWS, depths * heights // 50))
    rows = np.zeros((2, volume.classes, 2, width), np.float32)
    planes = _planes(read_only(rows.reshape(-1)), 2 * width, volume.classes, 2 * width)
    planes.offsets[:] = 0, rows[0].size
    bits = planes.flat.view(np.int32)
    total = np.zeros(4)
    for sample in range(count):
        # golden-ratio steps reach all depths and heights without a random number
        z, y = int((sample + 0.5) / count * depths), int((sample * 0.6180339887 + 0.5) % 1 * heights)
        last = min(y + 1, volume.height - 1)
        for slot, plane in enumerate((z, min(z + 1, volume.depth - 1))):
            volume.copy(sample % volume.batch, plane, slice(y, y + 1), rows[slot, :, :1])
            volume.copy(sample % volume.batch, plane, slice(last, last + 1), rows[slot, :, 1:])
            ranking = planes.values[slot], planes.labels[slot]
            top_three(planes.flat, bits, planes.offsets[slot], planes.stride, volume.classes, *ranking)
        total += survey(planes, width)
    return total / (count * max(width - 1, 1))
