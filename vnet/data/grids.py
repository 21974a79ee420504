"""Whether the voxels of two files are the same places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import inv_ornt_aff

from vnet.data.affines import corner_distance_mm, relative_orientation, spacing_zyx

# Corners of two grids may lie this share of the smallest voxel apart and still count as the same grid: headers
# round to float32 and tools round again.
GRID_TOLERANCE = 0.05


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        affine: (4, 4), voxel indices to mm.
        shape: the file's three axes.
        coded: False where the header has no orientation codes, so that the affine is an assumption.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    coded: bool = True


@dataclass(frozen=True)
class GridFault:
    """How two grids differ, and the advice where it is another than to resample."""

    what: str
    mend: str = ""


def grid_fault(grid: Grid, reference: Grid, whose: str = "the other") -> GridFault | None:
    """How the voxels of `grid` lie apart from those of `reference`, None where they are the same places.

    Axes may be stored in another order or direction.
    """
    turn = relative_orientation(grid.affine, reference.affine)
    shape = tuple(grid.shape[axis] for axis in np.argsort(turn[:, 0]))
    apart = np.inf
    if shape == reference.shape:
        turned = grid.affine @ inv_ornt_aff(turn, grid.shape)
        apart = corner_distance_mm(turned, reference.affine, shape)
    if apart <= GRID_TOLERANCE * min(spacing_zyx(reference.affine)):
        return None
    if grid.coded != reference.coded:
        one, other = ("an", "has none") if grid.coded else ("no", "has one")
        return GridFault(
            f"has {one} orientation in its header (qform_code, sform_code) where {whose} {other}",
            "copy the header of the file that has one, if both hold the same places",
        )
    if shape != reference.shape:
        return GridFault(f"shape {shape} differs from {reference.shape} of {whose}")
    return GridFault(f"affine differs from that of {whose}, corners lie {apart:.3g} mm apart")
