"""Voxel-to-mm affines: spacing, orientation, shear, distances between corners.

A *file affine* maps a file's own voxel indices (i, j, k) to mm in RAS: x to the right, y to the front, z to the head.
The *canonical* order of an array turns the file's axes to the nearest of RAS and transposes them to (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

# Cosines between axes up to this are rounding: affines are stored as float32.
ROUNDED_COSINE = 1e-6


def affine_fault(affine: np.ndarray) -> str | None:
    """Why an affine cannot be used, None where it can."""
    if affine.shape != (4, 4):
        return f"of shape {affine.shape}"
    if not np.isfinite(affine).all():
        return "not finite"
    if np.abs(affine).max() > 1e9:  # mm: its squares may overflow, and no scanner is that large
        return f"of entries up to {np.abs(affine).max():.3g} mm"
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not (sizes > 0).all():
        return f"singular (spacing {tuple(float(f'{s:.3g}') for s in sizes)} mm)"
    # determinant of the unit axes: 1 where they are orthogonal, 0 where they lie in a plane
    volume = abs(np.linalg.det(affine[:3, :3] / sizes))
    return None if volume > 1e-3 else "singular (two axes point the same way)"


def canonical(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view of (X, Y, Z) voxels, in any orientation, as canonical (D, H, W)."""
    turned: np.ndarray = apply_orientation(voxels, io_orientation(affine))
    return turned.transpose()


def canonical_affine(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(4, 4) from canonical (x, y, z) voxel indices to mm, of a file of `shape` voxels along its own axes."""
    turned: np.ndarray = affine @ inv_ornt_aff(io_orientation(affine), tuple(shape))
    return turned


def axis_codes(affine: np.ndarray) -> str:
    """Where the file's axes point, as RAS or LPS."""
    return "".join(aff2axcodes(affine))


def spacing_zyx(affine: np.ndarray) -> tuple[float, float, float]:
    """Lengths in mm of the steps along the canonical axes (z, y, x)."""
    sizes = voxel_sizes(affine)
    order = io_orientation(affine)[:, 0].astype(int)
    x, y, z = (float(sizes[np.flatnonzero(order == axis)[0]]) for axis in range(3))
    return z, y, x


def canonical_steps(affine: np.ndarray) -> np.ndarray:
    """(3, 3): the columns are the steps in mm (RAS) along the canonical axes z, y, x."""
    steps: np.ndarray = canonical_affine(affine, (1, 1, 1))[:3, 2::-1]
    return steps


def voxel_to_mm(affine: np.ndarray) -> np.ndarray:
    """(3, 3) matrix M: an offset of v = (z, y, x) canonical voxels has the length |M v| in mm.

    M is the affine without its rotation: the diagonal matrix of the spacing where the axes are at right angles,
    upper triangular (the R of a QR decomposition) where they are not. |det M| is a voxel's volume in mm3.
    """
    steps = canonical_steps(affine)
    spacing = np.array(spacing_zyx(affine))
    if axis_cosine(affine) <= ROUNDED_COSINE:
        return np.diag(spacing)
    upper = np.linalg.qr(steps)[1]
    triangular: np.ndarray = upper * np.sign(np.diag(upper))[:, None]
    return triangular


def axis_cosine(affine: np.ndarray) -> float:
    """The largest cosine between two axes, 0 where all are at right angles."""
    unit = affine[:3, :3] / voxel_sizes(affine)
    return float(np.abs(np.triu(unit.T @ unit, 1)).max())


def relative_orientation(affine: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """nibabel's orientation of the axes of `affine` in terms of those of `reference`: (3, 2) of axis and direction.

    Compared with each other two grids have an orientation even where both lie half-way between RAS and another.
    """
    turned = np.eye(4)
    # unit axes: with steps of unequal length a small rotation would look like an exchange of axes
    unit, other = (one[:3, :3] / voxel_sizes(one) for one in (affine, reference))
    turned[:3, :3] = np.linalg.solve(other, unit)
    orientation: np.ndarray = io_orientation(turned)
    return orientation


def is_turned(orientation: np.ndarray) -> bool:
    """Whether a relative orientation flips or exchanges axes."""
    return bool((orientation != [[0, 1], [1, 1], [2, 1]]).any())


def corner_distance_mm(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance along an axis between the corners that two affines give a grid of `shape` voxels."""
    ends = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*shape, 1]
    return float(np.abs((one - other) @ ends.T).max())


def orthogonal_affine(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The nearest affine of the same spacing and middle whose axes are at right angles (polar decomposition)."""
    sizes = voxel_sizes(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    near = affine.copy()
    near[:3, :3] = left @ right * sizes
    middle = (np.asarray(shape, float) - 1) / 2
    near[:3, 3] += (affine[:3, :3] - near[:3, :3]) @ middle
    return near


def file_affine(size: Sequence[int], spacing_mm: Sequence[float], axes: str, oblique_degrees: float) -> np.ndarray:
    """(4, 4) of a file whose axes run along `axes`, its volume's middle at the origin."""
    angle = np.deg2rad(oblique_degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(spacing_mm)[::-1]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(size)[::-1] - 1) / 2)
    turned = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    back: np.ndarray = affine @ inv_ornt_aff(turned, tuple(size)[::-1])
    return back


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
