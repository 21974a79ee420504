"""The search for uncertain voxels on the CPU: compiled loops over cells, selection by numpy's partition.

Cells whose bound is 0 come first, the others in the order of their bounds: the search ends where the bound passes the
largest margin that is still wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointrend._kernels.cell_margins import bound_cells, gather, rank_classes
from pointrend.coordinates import CellAxis

VOXELS_PER_THREAD = 1 << 16  # below this many target voxels a second thread costs more than it brings
SMALLEST_BUFFER = 1 << 14  # keys of room beyond those that are kept, so that the buffer is rarely thinned
RANK_BLOCK = 4096  # voxels whose running ranking stays in the first-level cache


@dataclass(frozen=True)
class _Grid:
    """Coarse logits and target grid as the compiled loops take them; see `cell_margins.gather`."""

    logits: NDArray[np.float32]  # (K, V)
    ranked: NDArray[np.float32]  # (3, V)
    classes: NDArray[np.uint16]  # (2, V)
    shape: NDArray[np.int64]  # (3,)
    size: NDArray[np.int64]  # (3,)
    starts: NDArray[np.int64]  # (3, longest coarse axis + 1)
    weights: NDArray[np.float32]  # (3, longest target axis)
    bounds: NDArray[np.float32]  # (V,)
    longest: int  # target voxels in the largest cell


def search_compiled(
    logits: Tensor,
    axes: Sequence[CellAxis],
    num_points: int | None,
    max_margin: float | None,
    slack: float,
) -> tuple[Tensor, Tensor]:
    """As `pointrend.uncertain.uncertain_voxels`, for finite float32 (K, D, H, W) on the CPU, arguments checked."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        grid = _prepare(logits, axes, slack, pool, threads)
        cut = math.inf if max_margin is None else float(np.float32(max_margin))
        undecided = np.flatnonzero(grid.bounds == 0)  # corners that disagree: most uncertain voxels lie here
        keys, cut = _collect(grid, undecided, np.zeros(0, np.uint64), num_points, cut, pool, threads)
        near = np.flatnonzero((grid.bounds > 0) & (grid.bounds <= cut) & (grid.bounds < math.inf))
        near = near[np.argsort(grid.bounds[near], kind="stable")]
        keys, _ = _collect(grid, near, keys, num_points, cut, pool, threads)
    return _unpack(keys)


def _prepare(
    logits: Tensor,
    axes: Sequence[CellAxis],
    slack: float,
    pool: ThreadPoolExecutor,
    threads: int,
) -> _Grid:
    """Rank the classes of every coarse voxel and bound the margins of every cell."""
    shape = logits.shape[1:]
    voxels = math.prod(shape)
    flat = logits.numpy().reshape(len(logits), voxels)
    ranked, classes = np.empty((3, voxels), np.float32), np.empty((2, voxels), np.uint16)
    size = [axis.target for axis in axes]
    starts = np.zeros((3, max(shape) + 1), np.int64)
    weights = np.zeros((3, max(size)), np.float32)
    for number, axis in enumerate(axes):
        starts[number, : axis.source + 1] = axis.starts
        weights[number, : axis.target] = axis.weight

    def rank(first: int, last: int) -> None:
        for start in range(first, last, RANK_BLOCK):
            rank_classes(flat, start, min(start + RANK_BLOCK, last), ranked, classes)

    bounds = np.empty(voxels, np.float32)

    def bound(first: int, last: int) -> None:
        bound_cells(ranked, classes, starts, *shape, slack, first, last, bounds)

    _divide(rank, voxels, pool, threads)
    _divide(bound, shape[0], pool, threads)
    longest = math.prod(axis.longest for axis in axes)
    return _Grid(flat, ranked, classes, np.array(shape), np.array(size), starts, weights, bounds, longest)


def _divide(work: Callable[[int, int], None], length: int, pool: ThreadPoolExecutor, threads: int) -> None:
    """Run work(first, last) over equal parts of range(length)."""
    edges = [length * part // threads for part in range(threads + 1)]
    list(pool.map(work, edges[:-1], edges[1:]))


def _collect(
    grid: _Grid,
    cells: NDArray[np.int64],
    keys: NDArray[np.uint64],
    num_points: int | None,
    cut: float,
    pool: ThreadPoolExecutor,
    threads: int,
) -> tuple[NDArray[np.uint64], float]:
    """Add the voxels of some cells to the keys; keep the `num_points` lowest, and lower the cut to their margins."""
    if not len(cells) or num_points == 0:
        return keys, cut
    parts = max(min(threads, len(cells) * grid.longest // VOXELS_PER_THREAD), 1)
    # a part may see the cuts of the others at any time: each is at least the final cut, so the result is the same
    cuts = np.full(parts, cut)

    def work(part: int) -> NDArray[np.uint64]:
        return _collect_part(grid, cells, part, parts, num_points, cuts)

    found = np.concatenate([keys, *pool.map(work, range(parts))])
    if num_points is None or len(found) < num_points:
        return found, cut
    found.partition(num_points - 1)
    return found[:num_points], min(cut, _margin_of(found[num_points - 1]))


def _collect_part(
    grid: _Grid,
    cells: NDArray[np.int64],
    part: int,
    parts: int,
    num_points: int | None,
    cuts: NDArray[np.float64],
) -> NDArray[np.uint64]:
    """Keys of the voxels in cells[part::parts] within the cut; beyond the `num_points` lowest some are dropped."""
    spare = SMALLEST_BUFFER if num_points is None else num_points + max(num_points // 2, SMALLEST_BUFFER)
    per_cell = grid.longest
    room = per_cell + 1 + min(spare, len(cells) * per_cell)
    keys = np.empty(room, np.uint64)
    found, position = 0, part
    while position < len(cells):
        found, position = gather(
            grid.logits,
            grid.ranked,
            grid.classes,
            grid.shape,
            grid.size,
            grid.starts,
            grid.weights,
            cells,
            grid.bounds,
            position,
            parts,
            cuts.min(),
            keys,
            found,
        )
        if position >= len(cells):
            break
        if num_points is not None and found > num_points:
            keys[:found].partition(num_points - 1)
            found = num_points
            cuts[part] = min(cuts[part], _margin_of(keys[num_points - 1]))
        if len(keys) - found <= per_cell:
            keys = np.concatenate([keys[:found], np.empty(max(found, per_cell + 1), np.uint64)])
    return keys[:found]


def _margin_of(key: np.uint64) -> float:
    """The margin in the upper half of a key."""
    return float(np.uint32(int(key) >> 32).view(np.float32))


def _unpack(keys: NDArray[np.uint64]) -> tuple[Tensor, Tensor]:
    """Flat indices (n,), ascending, and uncertainties (n,), from keys."""
    swapped = (keys << np.uint64(32)) | (keys >> np.uint64(32))
    swapped.sort()
    index = torch.from_numpy((swapped >> np.uint64(32)).astype(np.int64))
    margins = torch.from_numpy((swapped & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32))
    return index, -margins
