"""Refinement of labels in one step or several: the subdivision of PointRend (arXiv 1912.08193, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pointrend.coordinates import check_extent, check_size
from pointrend.field import Change, Chosen, Field
from pointrend.reading import best_class
from pointrend.render import render_labels

# (K, n) logits of the head for: a sample of the batch, flat voxels (n,) of a grid, the size of that grid
LogitsAt = Callable[[int, Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Refinement:
    """Labels of a batch on a target grid, and which voxels were refined.

    Attributes:
        labels: (B, *size) uint8 (uint16 above 256 classes), refined.
        unrefined: (B, *size), the argmax of the up-sampled coarse logits.
        index: per sample the (n,) int64 flat indices of the voxels that the head was asked about, ascending.
        uncertainty: per sample the (n,) float32 second best minus best coarse logit there.
        differs: share of voxels where `labels` differs from asking the head about every voxel; None if not checked.
    """

    labels: Tensor
    unrefined: Tensor
    index: tuple[Tensor, ...]
    uncertainty: tuple[Tensor, ...]
    differs: float | None = None


@torch.no_grad()
def subdivide(
    coarse: Tensor,
    size: Sequence[int],
    logits_at: LogitsAt,
    *,
    num_points: int | None,
    max_margin: float | None,
    extent: Sequence[float] | None,
    steps: int,
    chunk: int,
    check: bool,
) -> Refinement:
    """Labels on a grid: the head's at uncertain voxels, elsewhere those of the up-sampled coarse logits.

    Args:
        coarse: (B, K, *coarse) logits.
        logits_at: the head.
        size, num_points, max_margin, extent, steps, chunk, check: as in `PointRend.refine`.

    Raises:
        ValueError: numbers out of range.
    """
    shares = check_extent(extent, coarse.ndim - 2)
    size = check_size(size, coarse.ndim - 2)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    grids = step_sizes(coarse.shape[2:], size, steps, num_points)
    unrefined = torch.as_tensor(render_labels(coarse, size, extent=extent))
    labels = unrefined.clone()
    chosen: list[Chosen] = []
    differing = 0
    for sample in range(len(coarse)):
        field, flat = Field(coarse[sample], shares), labels[sample].view(-1)
        for grid in grids[:-1]:
            index = field.choose(grid, num_points=num_points, max_margin=max_margin).index
            delta = [logits_at(sample, some, grid) - field.at(some, grid) for some in index.split(chunk)]
            field = field.with_change(Change(grid, index, torch.cat(delta, dim=1)))
        last = field.choose(size, num_points=num_points, max_margin=max_margin)
        flat[last.changed] = last.best.to(flat.dtype)
        ask = partial(logits_at, sample)
        _write_labels(flat, last.index, ask, size, chunk)
        chosen.append(last)
        if check:
            everywhere = flat.clone()
            _write_labels(everywhere, torch.arange(len(flat), device=flat.device), ask, size, chunk)
            differing += int((everywhere != flat).sum())
    return Refinement(
        labels,
        unrefined,
        tuple(last.index for last in chosen),
        tuple(last.uncertainty for last in chosen),
        differing / labels.numel() if check else None,
    )


def _write_labels(
    labels: Tensor,
    index: Tensor,
    logits_at: Callable[[Tensor, tuple[int, ...]], Tensor],
    size: tuple[int, ...],
    chunk: int,
) -> None:
    """Write the head's best class at voxels (n,) into flat labels, `chunk` voxels at a time."""
    for some in index.split(chunk):
        labels[some] = best_class(logits_at(some, size)[None])[0].to(labels.dtype)


def step_sizes(coarse: Sequence[int], size: Sequence[int], steps: int, num_points: int | None) -> list[tuple[int, ...]]:
    """Sizes of the grids to refine in turn: each twice as fine as the one before, the target grid last.

    No axis has fewer voxels than the coarse logits. Left out are the coarse grid itself, repeated grids, and grids of
    at most `num_points` voxels, whose every voxel would be refined twice.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    sizes: list[tuple[int, ...]] = []
    for halvings in range(steps - 1, 0, -1):
        grid = tuple(max(-(-n // 2**halvings), min(c, n)) for n, c in zip(size, coarse, strict=True))
        if (num_points is None or num_points < math.prod(grid)) and grid not in (*sizes, tuple(size), tuple(coarse)):
            sizes.append(grid)
    return [*sizes, tuple(size)]
