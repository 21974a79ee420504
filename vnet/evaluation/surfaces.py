"""Distances between the surfaces of two masks in mm, and the metrics that read them.

A *surface voxel* belongs to the mask and has at least one of its six face neighbours outside of it; a mask that touches
the border of the image ends there. Distances run between centres of surface voxels. This is MONAI's definition without
sub-voxels; DeepMind's surface elements ("surfels") weigh each voxel by the area of the surface in it instead.

- HD95 is the larger of the two directed 95th percentiles, never the percentile of both directions pooled.
- ASSD (average symmetric surface distance) pools both directions.
- Surface Dice at a tolerance is the share of the surface voxels of both masks that lie within the tolerance of the
  other surface.

Distances come from a k-d tree of the surface voxels (scipy): memory follows the surface, not the volume. MONAI's
metrics hold three distance maps of the volume, and give NaN or infinity for a missed structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest of the other, in mm; both arrays are non-empty."""

    to_truth_mm: NDArray[np.float64]  # (surface voxels of the prediction,)
    to_prediction_mm: NDArray[np.float64]  # (surface voxels of the truth,)


def surface_voxels(mask: Mask) -> Mask:
    """The voxels of `mask` (any number of axes) with a face neighbour outside of it or beyond the border."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    centre = [slice(1, -1)] * mask.ndim
    for axis in range(mask.ndim):
        for shifted in (slice(0, -2), slice(2, None)):
            inner &= padded[(*centre[:axis], shifted, *centre[axis + 1 :])]
    return mask & ~inner


def surface_distances(predicted_surface: Mask, true_surface: Mask, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distances in mm between the centres of surface voxels, in both directions.

    Args:
        predicted_surface, true_surface: of the same shape, from `surface_voxels`.
        spacing_mm: one number an axis, in the order of the arrays.

    Raises:
        ValueError: a surface is empty; the distance to nothing has no value.
    """
    points = [np.argwhere(surface) * np.asarray(spacing_mm, float) for surface in (predicted_surface, true_surface)]
    if not all(len(group) for group in points):
        raise ValueError(f"both surfaces must hold a voxel, got {len(points[0])} predicted and {len(points[1])} true")
    # unbalanced trees build several times faster, and a grid has no clusters to punish it
    trees = [cKDTree(group, balanced_tree=False, compact_nodes=False) for group in points]
    return SurfaceDistances(trees[1].query(points[0])[0], trees[0].query(points[1])[0])


def hausdorff95_mm(distances: SurfaceDistances) -> float:
    """The larger of both directed 95th percentiles (linear interpolation between order statistics)."""
    return float(max(np.percentile(distances.to_truth_mm, 95), np.percentile(distances.to_prediction_mm, 95)))


def average_distance_mm(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance: the mean over the surface voxels of both masks."""
    total = distances.to_truth_mm.sum() + distances.to_prediction_mm.sum()
    return float(total / (len(distances.to_truth_mm) + len(distances.to_prediction_mm)))


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of the surface voxels of both masks within `tolerance_mm` of the other surface, in [0, 1]."""
    # a distance of exactly the tolerance counts; spacings such as 0.7 mm do not multiply exactly
    within = [d <= tolerance_mm * (1 + 1e-9) for d in (distances.to_truth_mm, distances.to_prediction_mm)]
    return float((within[0].sum() + within[1].sum()) / (len(within[0]) + len(within[1])))


def band_dice(prediction: Mask, truth: Mask, true_surface: Mask, spacing_mm: Sequence[float], band_mm: float) -> float:
    """Dice of the voxels whose centre lies within `band_mm` of a centre of `true_surface` (not empty).

    It sees what happens at the surface only; voxels outside the array count as background in both masks.
    """
    offsets = _ball(spacing_mm, band_mm)
    reach = np.abs(offsets).max(0)
    shape = np.add(truth.shape, 2 * reach)
    steps = np.cumprod(np.append(1, shape[:0:-1]))[::-1]  # flat index of one step along each axis
    flat = (np.argwhere(true_surface) + reach) @ steps
    band = np.zeros(int(np.prod(shape)), bool)
    for offset in offsets @ steps:
        band[flat + offset] = True
    inside = band.reshape(shape)[tuple(slice(r, r + n) for r, n in zip(reach, truth.shape, strict=True))]
    both = np.count_nonzero(prediction & truth & inside)
    return 2 * both / (np.count_nonzero(prediction & inside) + np.count_nonzero(truth & inside))


def _ball(spacing_mm: Sequence[float], radius_mm: float) -> NDArray[np.int64]:
    """The voxel offsets of at most `radius_mm`: (n, axes)."""
    spacing = np.asarray(spacing_mm, float)
    reach = np.floor(radius_mm / spacing + 1e-9).astype(int)
    offsets = np.indices(tuple(2 * reach + 1)).reshape(len(reach), -1).T - reach
    kept: NDArray[np.int64] = offsets[np.linalg.norm(offsets * spacing, axis=1) <= radius_mm * (1 + 1e-9)]
    return kept
