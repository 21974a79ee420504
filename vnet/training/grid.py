"""The working grid of a plan: its spacing, the patch that fits the memory, and how often each axis is halved.

The rules are those of nnU-Net's experiment planning (Isensee et al., Nature Methods 2021, doi
10.1038/s41592-020-01008-z): median spacing, halvings by axis until sizes and spacings are balanced, the largest patch
that fits. In place of its second network on a coarser grid, the one grid is made coarser where a patch sees too little:
labels are rendered on the grid of each image all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vnet.core.config import Axes, cumulative_strides
from vnet.data.dataset_report import Spacing, Survey

Fits = Callable[[Axes, Sequence[Axes]], bool]  # whether a patch with these halvings fits the memory

SMALLEST_EDGE = 4  # voxels of an axis at the deepest stage
MOST_HALVINGS = 4  # the small body was studied with five stages
THICK = 3.0  # slices are thick that measure this many times as much as the pixels
UNEQUAL = 2.0  # an axis that is this many times as coarse as another waits for it
LEAST_SEEN = 1 / 16  # of a volume in a patch; with less the network does not see where in the body it is
COARSER = (1.0, 1.25, 1.5, 1.75, 2.0)  # times the median spacing


@dataclass(frozen=True)
class Grid:
    """Working spacing (z, y, x) in mm, the median size of the volumes there, and the patch with its halvings."""

    spacing_mm: Spacing
    size: Axes
    patch: Axes
    strides: tuple[Axes, ...]

    @property
    def seen(self) -> float:
        """Share of the median volume in a patch."""
        return math.prod(min(p / n, 1.0) for p, n in zip(self.patch, self.size, strict=True))


def choose_grid(survey: Survey, fits: Fits) -> tuple[Grid, Spacing]:
    """The working grid with its patch, and the spacing before it was made coarser for the patch to see enough."""
    median_mm = native_spacing(survey)
    for factor in COARSER:
        spacing_mm = coarsen(median_mm, factor)
        size = survey.median_size(spacing_mm)
        patch, strides = fit_patch(size, spacing_mm, fits)
        grid = Grid(spacing_mm, size, patch, strides)
        if grid.seen >= LEAST_SEEN:
            break
    return grid, median_mm


def native_spacing(survey: Survey) -> Spacing:
    """Median spacing by axis; of thick slices the 10th percentile, but no finer than the pixels (nnU-Net's rule)."""
    spacing = np.median(survey.spacings_mm, 0)
    size = np.array(survey.median_size((float(spacing[0]), float(spacing[1]), float(spacing[2]))))
    axis = int(spacing.argmax())
    others = [other for other in range(3) if other != axis]
    if spacing[axis] > THICK * spacing[others].max() and THICK * size[axis] < size[others].min():
        thin = float(np.percentile([one[axis] for one in survey.spacings_mm], 10))
        spacing[axis] = max(thin, spacing[others].max())
    z, y, x = (round(float(value), 6) for value in spacing)
    return z, y, x


def coarsen(spacing_mm: Spacing, factor: float) -> Spacing:
    """The spacing times `factor`, but of axes that are twice as coarse as the finest; to three digits."""
    if factor == 1:
        return spacing_mm
    finest = min(spacing_mm)
    z, y, x = (mm if mm >= UNEQUAL * finest else float(f"{mm * factor:.3g}") for mm in spacing_mm)
    return z, y, x


def fit_patch(size: Axes, spacing_mm: Spacing, fits: Fits) -> tuple[Axes, tuple[Axes, ...]]:
    """(patch, halvings): the whole volume where that fits, else less along the axis where the patch is longest in mm.

    Sizes are multiples of the total stride, so that the network pads nothing more.
    """
    patch, strides = padded(size, spacing_mm)
    while not fits(patch, strides):
        for axis in sorted(range(3), key=lambda a: -patch[a] * spacing_mm[a]):
            smaller = shrink(patch, axis, spacing_mm)
            if smaller is not None:
                patch, strides = smaller
                break
        else:
            break  # the smallest patch there is
    return patch, strides


def padded(size: Sequence[int], spacing_mm: Spacing) -> tuple[Axes, tuple[Axes, ...]]:
    """A size rounded up to multiples of the total stride of its halvings, and these."""
    strides = halvings(size, spacing_mm)
    total = cumulative_strides(strides)[-1]
    d, h, w = (-(-n // s) * s for n, s in zip(size, total, strict=True))
    if (d, h, w) == total:  # a single voxel at the deepest stage has no variance to normalise by
        d, h, w = (2 * n if n > 1 else n for n in total)
    return (d, h, w), strides


def shrink(patch: Axes, axis: int, spacing_mm: Spacing) -> tuple[Axes, tuple[Axes, ...]] | None:
    """The next smaller patch along an axis, with its halvings; None where it would fall below two smallest edges."""
    for length in range(patch[axis] - 1, 2 * SMALLEST_EDGE - 1, -1):
        smaller, strides = padded([length if a == axis else n for a, n in enumerate(patch)], spacing_mm)
        if smaller[axis] < patch[axis] and math.prod(smaller) < math.prod(patch):
            return smaller, strides
    return None


def halvings(size: Sequence[int], spacing_mm: Spacing) -> tuple[Axes, ...]:
    """Strides (z, y, x) between stages.

    An axis is halved while it keeps `SMALLEST_EDGE` voxels, and waits while it is `UNEQUAL` times as coarse as another
    that can be halved; after at most `MOST_HALVINGS` the volume stays as it is. There is always one halving, because a
    V-Net has two stages.
    """
    left, spacing = list(size), list(spacing_mm)
    strides: list[Axes] = []
    while len(strides) < MOST_HALVINGS:
        able = [axis for axis in range(3) if left[axis] >= 2 * SMALLEST_EDGE]
        if not able and strides:
            break
        able = able or [axis for axis in range(3) if left[axis] == max(left)]
        finest = min(spacing[axis] for axis in able)
        halved = [axis for axis in able if spacing[axis] < UNEQUAL * finest]
        z, y, x = (2 if axis in halved else 1 for axis in range(3))
        strides.append((z, y, x))
        left = [-(-n // s) for n, s in zip(left, strides[-1], strict=True)]
        spacing = [mm * s for mm, s in zip(spacing, strides[-1], strict=True)]
    return tuple(strides)
