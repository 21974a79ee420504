"""Refinement of labels in one step or several: the subdivision of PointRend (arXiv 1912.08193, section 3.1).

A step's *change* is the head's logits minus the logits before it, at the refined voxels of that step's grid and zero
elsewhere. The logits on a finer grid (`Field`) are the interpolated coarse logits plus all interpolated changes: no
tensor of classes x grid is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import check_extent, check_size, extent_centres, interpolation_table
from pointrend.reading import best_class, interpolate_at, uncertainty
from pointrend.render import render_labels
from pointrend.uncertain import uncertain_voxels

VOXELS_AT_ONCE = 1 << 18  # whose logits are interpolated at once
# (K, n) logits of the head for: a sample of the batch, flat voxels (n,) of a grid, the size of that grid
LogitsAt = Callable[[int, Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Change:
    """Differences of logits at some voxels of a grid; zero at the others.

    Attributes:
        size: voxels per axis of the grid.
        index: (n,) int64 flat indices into `size`, ascending.
        delta: (K, n), the differences there.
    """

    size: tuple[int, ...]
    index: Tensor
    delta: Tensor

    def reach(self, size: Sequence[int]) -> Tensor:
        """(*size) bool, where the change, interpolated at another grid over the same box, may differ from zero."""
        mask = torch.zeros(math.prod(self.size), dtype=torch.bool, device=self.index.device)
        mask[self.index] = True
        mask = mask.view(self.size)
        for axis, (source, target) in enumerate(zip(self.size, size, strict=True)):
            lower, upper, _ = (
                torch.as_tensor(part, device=mask.device) for part in interpolation_table(source, target)
            )
            mask = mask.index_select(axis, lower) | mask.index_select(axis, upper)
        return mask

    @cached_property
    def slots(self) -> Tensor:
        """(V,) int32, the position of each voxel in `index`, counted from 1; 0 where there is no change."""
        slots = torch.zeros(math.prod(self.size), dtype=torch.int32, device=self.index.device)
        slots[self.index] = torch.arange(1, len(self.index) + 1, dtype=torch.int32, device=self.index.device)
        return slots

    def at(self, index: Tensor, size: Sequence[int]) -> Tensor:
        """(K, N) the change interpolated at voxels (N,) of another grid over the same box."""
        corners = []
        for source, target in zip(reversed(self.size), reversed(size), strict=True):
            on_axis, index = index % target, torch.div(index, target, rounding_mode="floor")
            table = interpolation_table(source, target)
            lower, upper, weight = (torch.as_tensor(part, device=index.device)[on_axis] for part in table)
            corners.append(((lower, 1 - weight), (upper, weight)))
        delta = F.pad(self.delta, (1, 0))  # slot 0: no change
        total = delta.new_zeros(len(delta), len(index))
        for corner in product(*corners[::-1]):
            flat, share = torch.zeros_like(index), delta.new_ones(len(index))
            for source, (at, part) in zip(self.size, corner, strict=True):
                flat, share = flat * source + at, share * part
            total += delta.index_select(1, self.slots[flat]) * share
        return total


@dataclass(frozen=True)
class Chosen:
    """The voxels that a step refines, and the voxels whose label earlier steps may have changed.

    Attributes:
        index: (n,) int64 flat indices, ascending, of the most uncertain voxels.
        uncertainty: (n,) float32, second best minus best logit there.
        changed: (m,) int64 flat indices, ascending, of the voxels that earlier changes reach.
        best: (m,) int32, the best class there.
    """

    index: Tensor
    uncertainty: Tensor
    changed: Tensor
    best: Tensor


@dataclass(frozen=True)
class Field:
    """Logits of one volume at any resolution: the coarse ones and the changes of the steps so far.

    Attributes:
        coarse: (K, *coarse).
        extent: share of the unit cube that every target grid fills, per axis.
        changes: of the steps so far, on grids over that extent.
    """

    coarse: Tensor
    extent: tuple[float, ...]
    changes: tuple[Change, ...] = ()

    def with_change(self, change: Change) -> Field:
        """This field with one more change."""
        return replace(self, changes=(*self.changes, change))

    def at(self, index: Tensor, size: Sequence[int]) -> Tensor:
        """(K, N) float32 logits at voxels (N,) of a grid over the extent."""
        logits = interpolate_at(self.coarse[None], extent_centres(index, size, self.extent)[None])[0].float()
        for change in self.changes:
            logits = logits + change.at(index, size)
        return logits

    def choose(self, size: Sequence[int], *, num_points: int | None, max_margin: float | None) -> Chosen:
        """The most uncertain voxels of a grid, chosen by the rules of `uncertain_voxels`."""
        if not self.changes:
            index, doubt = uncertain_voxels(
                self.coarse, size, num_points=num_points, max_margin=max_margin, extent=self.extent
            )
            return Chosen(index, doubt, index[:0], index[:0].int())
        reached = self._reached(size)
        changed = reached.nonzero()[:, 0]
        best, own = self._judge(changed, size)
        if num_points is not None and 0 < num_points <= len(own):
            # the n-th most uncertain of the changed voxels bounds the margin of every voxel that can be chosen
            enough = -float(own.kthvalue(len(own) - num_points + 1).values)
            max_margin = enough if max_margin is None else min(max_margin, enough)
        # this many, so that at least `num_points` of them are unchanged voxels
        wanted = None if num_points is None else num_points + len(changed)
        index, doubt = uncertain_voxels(self.coarse, size, num_points=wanted, max_margin=max_margin, extent=self.extent)
        plain = ~reached[index]
        near = own >= (-math.inf if max_margin is None else -max_margin)
        index, doubt = torch.cat([index[plain], changed[near]]), torch.cat([doubt[plain], own[near]])
        index, order = index.sort()
        doubt = doubt[order]
        if num_points is not None and len(index) > num_points:
            # stable: ties go to the lower index, as everywhere
            first = doubt.sort(descending=True, stable=True).indices[:num_points].sort().values
            index, doubt = index[first], doubt[first]
        return Chosen(index, doubt, changed, best)

    def _reached(self, size: Sequence[int]) -> Tensor:
        """(V,) bool, the voxels of a grid that the changes reach."""
        reached = self.changes[0].reach(size)
        for change in self.changes[1:]:
            reached |= change.reach(size)
        return reached.flatten()

    def _judge(self, index: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Best class (N,) int32 and uncertainty (N,) at voxels of a grid."""
        best, doubt = [], []
        for some in index.split(VOXELS_AT_ONCE):
            logits = self.at(some, size)[None]
            best.append(best_class(logits)[0])
            doubt.append(uncertainty(logits)[0])
        return torch.cat(best), torch.cat(doubt)


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
