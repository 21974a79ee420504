"""The search for uncertain voxels on the CPU: compiled loops, selection in numpy, two phases of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointrend._kernels.margins import bound_cells, gather, rank_classes

# Below this many voxels in cells without an agreed class a second thread costs more than it brings.
VOXELS_PER_THREAD = 1 << 16
SMALLEST_BUFFER = 1 << 14  # keys, beyond those that are kept
RANK_BLOCK = 4096  # voxels whose running ranking stays in the first-level cache


@dataclass(frozen=True)
class _Grid:
    """Source logits and target grid as the kernels want them."""

    logits: NDArray[np.float32]  # (K, V)
    ranked: NDArray[np.float32]  # (3, V)
    classes: NDArray[np.uint16]  # (2, V)
    shape: NDArray[np.int64]
    size: NDArray[np.int64]
    starts: NDArray[np.int64]
    weights: NDArray[np.float32]
    bounds: NDArray[np.float32]  # (V,)


def search_compiled(
    logits: Tensor,
    size: Sequence[int],
    tables: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    num_points: int | None,
    max_margin: float | None,
    slack: float,
) -> tuple[Tensor, Tensor]:
    """As `pointrend.uncertain.uncertain_voxels`, for finite float32 (K, D, H, W) on the CPU, arguments checked."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        grid = _prepare(logits, size, tables, slack, pool, threads)
        cut = math.inf if max_margin is None else float(np.float32(max_margin))
        undecided = np.flatnonzero(grid.bounds == 0)
        keys, cut = _collect(grid, undecided, np.zeros(0, np.uint64), num_points, cut, pool, threads)
        near = np.flatnonzero((grid.bounds > 0) & (grid.bounds <= cut) & (grid.bounds < math.inf))
        near = near[np.argsort(grid.bounds[near], kind="stable")]
        keys, _ = _collect(grid, near, keys, num_points, cut, pool, threads)
    return _unpack(keys)


def _prepare(
    logits: Tensor,
    size: Sequence[int],
    tables: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    slack: float,
    pool: ThreadPoolExecutor,
    threads: int,
) -> _Grid:
    """Rank the classes of every coarse voxel and bound the margins of every cell."""
    shape = logits.shape[1:]
    voxels = math.prod(shape)
    flat = logits.numpy().reshape(len(logits), voxels)
    ranked, classes = np.empty((3, voxels), np.float32), np.empty((2, voxels), np.uint16)
    starts = np.zeros((3, max(shape) + 1), np.int64)
    weights = np.zeros((3, max(size)), np.float32)
    for axis, (lower, _, weight) in enumerate(tables):
        starts[axis, : shape[axis] + 1] = np.searchsorted(lower, np.arange(shape[axis] + 1))
        weights[axis, : size[axis]] = weight

    def rank(first: int, last: int) -> None:
        for start in range(first, last, RANK_BLOCK):
            rank_classes(flat, start, min(start + RANK_BLOCK, last), ranked, classes)

    bounds = np.empty(voxels, np.float32)

    def bound(first: int, last: int) -> None:
        bound_cells(ranked, classes, starts, *shape, slack, first, last, bounds)

    _divide(rank, voxels, pool, threads)
    _divide(bound, shape[0], pool, threads)
    return _Grid(flat, ranked, classes, np.array(shape), np.array(size), starts, weights, bounds)


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
    """Add the voxels of some cells to the keys found so far; keep the `num_points` lowest and lower the cut to them."""
    if not len(cells) or num_points == 0:
        return keys, cut
    per_cell = int(np.prod((np.diff(grid.starts, axis=1)).clip(0).max(axis=1)))
    parts = max(min(threads, len(cells) * per_cell // VOXELS_PER_THREAD), 1)
    # each part may see the cuts of the others: any of them is at least the final one, so the result is the same
    cuts = np.full(parts, cut)

    def work(part: int) -> NDArray[np.uint64]:
        return _collect_part(grid, cells, part, parts, num_points, cuts, per_cell)

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
    per_cell: int,
) -> NDArray[np.uint64]:
    """Keys of cells[part::parts], the `num_points` lowest at most."""
    spare = SMALLEST_BUFFER if num_points is None else num_points + max(num_points // 2, SMALLEST_BUFFER)
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
    return float(np.uint32(int(key) >> 32).view(np.float32))


def _unpack(keys: NDArray[np.uint64]) -> tuple[Tensor, Tensor]:
    """Flat indices, ascending, and uncertainties."""
    swapped = (keys << np.uint64(32)) | (keys >> np.uint64(32))
    swapped.sort()
    index = torch.from_numpy((swapped >> np.uint64(32)).astype(np.int64))
    margins = torch.from_numpy((swapped & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32))
    return index, -margins
