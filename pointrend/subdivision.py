"""Refinement in more than one step: what the head changed on one grid, carried sparsely to the next.

A step's change is the head's logits minus those it found, at the refined voxels of that step's grid; between them it is
interpolated linearly, from zeros elsewhere. The field on a finer grid is the coarse logits plus all changes, so no
tensor of classes x grid is needed.
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
from pointrend.reading import best_class, sample_at, uncertainty
from pointrend.uncertain import uncertain_voxels

VOXELS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Change:
    """Differences of logits at some voxels of a grid.

    Attributes:
        size: the grid.
        index: (n,) int64 flat indices into `size`, ascending.
        delta: (K, n).
    """

    size: tuple[int, ...]
    index: Tensor
    delta: Tensor

    def reach(self, size: Sequence[int]) -> Tensor:
        """(*size) bool, the voxels of another grid over the same box that the change reaches."""
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
        """(V,) int32, the place of each voxel in `index`, counted from 1; 0 where there is no change."""
        slots = torch.zeros(math.prod(self.size), dtype=torch.int32, device=self.index.device)
        slots[self.index] = torch.arange(1, len(self.index) + 1, dtype=torch.int32, device=self.index.device)
        return slots

    def at(self, index: Tensor, size: Sequence[int]) -> Tensor:
        """(K, N) change interpolated at voxels of another grid over the same box."""
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
    """What a step asks the head about, and what earlier steps have changed on its grid.

    Attributes:
        index: (n,) int64 flat indices, ascending, of the most uncertain voxels.
        uncertainty: (n,) float32.
        changed: (m,) int64 flat indices, ascending, of voxels that earlier changes reach.
        best: (m,) int32, their best class.
    """

    index: Tensor
    uncertainty: Tensor
    changed: Tensor
    best: Tensor


@dataclass(frozen=True)
class Field:
    """Logits of one volume: coarse ones and the changes of the steps so far.

    Attributes:
        coarse: (K, *coarse).
        extent: share of the coarse logits' cube that every grid spans, per axis.
        changes: of earlier steps, on grids over that extent.
    """

    coarse: Tensor
    extent: tuple[float, ...]
    changes: tuple[Change, ...] = ()

    def with_change(self, change: Change) -> Field:
        return replace(self, changes=(*self.changes, change))

    def at(self, index: Tensor, size: Sequence[int]) -> Tensor:
        """(K, N) logits at voxels of a grid."""
        logits = sample_at(self.coarse[None], extent_centres(index, size, self.extent)[None])[0].float()
        for change in self.changes:
            logits = logits + change.at(index, size)
        return logits

    def choose(self, size: Sequence[int], *, num_points: int | None, max_margin: float | None) -> Chosen:
        """As `uncertain_voxels`, of the field."""
        if not self.changes:
            index, doubt = uncertain_voxels(
                self.coarse, size, num_points=num_points, max_margin=max_margin, extent=self.extent
            )
            return Chosen(index, doubt, index[:0], index[:0].int())
        reached = self._reached(size)
        changed = reached.nonzero()[:, 0]
        best, own = self._judge(changed, size)
        if num_points is not None and 0 < num_points <= len(own):
            # the n-th most uncertain of the changed voxels bounds what the others need to have
            enough = -float(own.kthvalue(len(own) - num_points + 1).values)
            max_margin = enough if max_margin is None else min(max_margin, enough)
        # else at least `num_points` of these are unchanged
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
        """(V,) bool, the voxels of a grid that changes reach."""
        reached = self.changes[0].reach(size)
        for change in self.changes[1:]:
            reached |= change.reach(size)
        return reached.flatten()

    def _judge(self, index: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Best class (int32) and uncertainty at voxels of a grid."""
        best, doubt = [], []
        for some in index.split(VOXELS_AT_ONCE):
            logits = self.at(some, size)[None]
            best.append(best_class(logits)[0])
            doubt.append(uncertainty(logits)[0])
        return torch.cat(best), torch.cat(doubt)


def step_sizes(coarse: Sequence[int], size: Sequence[int], steps: int, num_points: int | None) -> list[tuple[int, ...]]:
    """Grids of the steps: the target's, before it half of that, and so on, but none below the coarse one's.

    Grids of which `num_points` would be every voxel are left out: the next step asks about them again. So are
    repeated ones. The target grid itself always comes last.

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
