"""Logits at any resolution during subdivision: coarse ones, and what the head changed at refined voxels alone.

A step's *change* is the head's logits minus the logits before it, at the refined voxels of that step's grid and zero
elsewhere. The logits on a finer grid are the interpolated coarse logits plus all interpolated changes: no tensor of
classes x grid is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import extent_centres, interpolation_table
from pointrend.reading import best_class, interpolate_at, uncertainty
from pointrend.uncertain import uncertain_voxels

VOXELS_AT_ONCE = 1 << 18  # whose logits are interpolated at once


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
