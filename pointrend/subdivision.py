"""Refinement in more than one step: what the head changed on one grid, carried sparsely to the next.

A step's change is the head's logits minus those it found, at the refined voxels of that step's grid; between them it is
interpolated linearly, from zeros elsewhere. The field on a finer grid is the coarse logits plus all changes, so no
tensor of classes x grid is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from pointrend.coordinates import extent_centres, interpolation_table
from pointrend.sampling import sample_at, uncertainty
from pointrend.uncertain import uncertain_voxels


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
        """Flat indices, ascending, of the voxels of another grid over the same box that the change reaches."""
        here = self.index
        reached = torch.zeros(len(here), 1, dtype=torch.int64, device=here.device)
        inside = torch.ones_like(reached, dtype=torch.bool)
        stride = 1
        for source, target in zip(reversed(self.size), reversed(size), strict=True):
            at, here = here % source, torch.div(here, source, rounding_mode="floor")
            lower, upper, _ = interpolation_table(source, target)
            first = torch.as_tensor(np.searchsorted(upper, np.arange(source)), device=here.device)
            stop = torch.as_tensor(np.searchsorted(lower, np.arange(source), side="right"), device=here.device)
            along = torch.arange(int((stop - first).max()), device=here.device) + first[at][:, None]
            reached = (reached[:, None] + (along * stride)[:, :, None]).flatten(1)
            inside = (inside[:, None] & (along < stop[at][:, None])[:, :, None]).flatten(1)
            stride *= target
        return reached[inside].unique()

    def at(self, index: Tensor, size: Sequence[int]) -> Tensor:
        """(K, N) change interpolated at voxels of another grid over the same box."""
        corners = []
        for source, target in zip(reversed(self.size), reversed(size), strict=True):
            on_axis, index = index % target, torch.div(index, target, rounding_mode="floor")
            lower, upper, weight = (
                torch.as_tensor(t, device=index.device) for t in interpolation_table(source, target)
            )
            corners.append(((lower[on_axis], 1 - weight[on_axis]), (upper[on_axis], weight[on_axis])))
        total = self.delta.new_zeros(len(self.delta), len(index))
        if not len(self.index):
            return total
        for corner in product(*corners[::-1]):
            flat, share = torch.zeros_like(index), self.delta.new_ones(len(index))
            for source, (at, part) in zip(self.size, corner, strict=True):
                flat, share = flat * source + at, share * part
            place = torch.searchsorted(self.index, flat).clamp_max(len(self.index) - 1)
            total += self.delta[:, place] * (share * (self.index[place] == flat))
        return total


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

    def changed(self, size: Sequence[int]) -> Tensor:
        """Flat indices, ascending, of the voxels of a grid where the field is not the coarse logits alone."""
        none = torch.zeros(0, dtype=torch.int64, device=self.coarse.device)
        return torch.cat([none, *(change.reach(size) for change in self.changes if len(change.index))]).unique()

    def uncertain(self, size: Sequence[int], *, count: int | None, margin: float | None) -> tuple[Tensor, Tensor]:
        """As `uncertain_voxels`, of the field."""
        changed = self.changed(size)
        wanted = None if count is None else count + len(changed)  # at least `count` of these are not changed
        index, doubt = uncertain_voxels(self.coarse, size, count=wanted, margin=margin, extent=self.extent)
        if not len(changed):
            return index, doubt
        plain = ~torch.isin(index, changed, assume_unique=True)
        own = uncertainty(self.at(changed, size)[None])[0]
        index, doubt = torch.cat([index[plain], changed]), torch.cat([doubt[plain], own])
        kept = doubt >= (-math.inf if margin is None else -margin)
        index, doubt = index[kept], doubt[kept]
        index, order = index.sort()
        doubt = doubt[order]
        if count is not None and len(index) > count:
            # stable: ties go to the lower index, as everywhere
            best = doubt.sort(descending=True, stable=True).indices[:count].sort().values
            index, doubt = index[best], doubt[best]
        return index, doubt


def step_sizes(coarse: Sequence[int], size: Sequence[int], steps: int, count: int | None) -> list[tuple[int, ...]]:
    """Grids of the steps: the target's, before it half of that, and so on, but none below the coarse one's.

    Grids of which `count` would be every voxel are left out: the next step asks about them again. So are repeated ones.
    The target grid itself always comes last.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    sizes: list[tuple[int, ...]] = []
    for halvings in range(steps - 1, 0, -1):
        grid = tuple(max(-(-n // 2**halvings), min(c, n)) for n, c in zip(size, coarse, strict=True))
        if (count is None or count < math.prod(grid)) and grid not in (*sizes, tuple(size), tuple(coarse)):
            sizes.append(grid)
    return [*sizes, tuple(size)]
