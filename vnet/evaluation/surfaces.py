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

A grid enters as `Steps`: the spacing in mm of the axes in array order, or the (3, 3) matrix M of
`vnet.data.volumes.Volume.voxel_to_mm`, where axes are not at right angles (a tilted gantry). An offset of v voxels has
the length |M v| mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Steps = Sequence[float] | NDArray[np.floating[Any]]


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest of the other, in mm; both arrays are non-empty."""

    to_truth_mm: NDArray[np.float64]  # (surface voxels of the prediction,)
    to_prediction_mm: NDArray[np.float64]  # (surface voxels of the truth,)


def step_matrix(steps: Steps) -> NDArray[np.float64]:
    """(3, 3): M of a grid, whose offsets of v voxels have the length |M v| mm.

    Args:
        steps: spacing (z, y, x) in mm, or M.

    Raises:
        ValueError: not three positive numbers, nor a finite invertible (3, 3) matrix.
    """
    given = np.asarray(steps, float)
    if given.shape == (3, 3) and np.isfinite(given).all() and np.linalg.det(given):
        return given
    if given.shape == (3,) and np.isfinite(given).all() and (given > 0).all():
        return np.diag(given)
    raise ValueError(f"spacing_mm must be three positive numbers or an invertible (3, 3) matrix, got {steps}")


def positions_mm(voxels: NDArray[Any], steps: Steps) -> NDArray[np.float64]:
    """(n, 3) voxel indices, also fractional, to (n, 3) positions in mm, from the centre of the first voxel."""
    positions: NDArray[np.float64] = voxels @ step_matrix(steps).T
    return positions


def surface_voxels(mask: Mask) -> Mask:
    """The voxels of `mask` (any number of axes) with a face neighbour outside of it or beyond the border."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    centre = [slice(1, -1)] * mask.ndim
    for axis in range(mask.ndim):
        for shifted in (slice(0, -2), slice(2, None)):
            inner &= padded[(*centre[:axis], shifted, *centre[axis + 1 :])]
    return mask & ~inner


def surface_distances(predicted_surface: Mask, true_surface: Mask, spacing_mm: Steps) -> SurfaceDistances:
    """Distances in mm between the centres of surface voxels, in both directions.

    Args:
        predicted_surface, true_surface: (D, H, W), from `surface_voxels`.
        spacing_mm: (z, y, x), or the matrix of `Steps`.

    Raises:
        ValueError: a surface is empty; the distance to nothing has no value.
    """
    predicted, true = (positions_mm(np.argwhere(surface), spacing_mm) for surface in (predicted_surface, true_surface))
    if not (len(predicted) and len(true)):
        raise ValueError(f"both surfaces must hold a voxel, got {len(predicted)} predicted and {len(true)} true")
    return SurfaceDistances(nearest_tree(true).query(predicted)[0], nearest_tree(predicted).query(true)[0])


def nearest_tree(positions: NDArray[np.float64]) -> Any:
    """A k-d tree of (n, 3) grid positions, built for a few queries a point."""
    # unbalanced trees build several times faster, and a grid has no clusters that would slow their queries
    return cKDTree(positions, balanced_tree=False, compact_nodes=False)


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


def band_dice(prediction: Mask, truth: Mask, true_surface: Mask, spacing_mm: Steps, band_mm: float) -> float:
    """Dice of the voxels whose centre lies within `band_mm` of a centre of `true_surface`.

    It sees what happens near the surface only; voxels outside the array count as background in both masks.

    Args:
        prediction, truth: (D, H, W).
        true_surface: (D, H, W), the surface voxels of `truth`, at least one.
        spacing_mm: (z, y, x), or the matrix of `Steps`.
        band_mm: half width of the band.
    """
    matrix = step_matrix(spacing_mm)
    if not np.any(matrix - np.diag(np.diag(matrix))):
        band = within_mm(true_surface, np.abs(np.diag(matrix)).tolist(), band_mm)
    else:
        # a distance map needs axes at right angles; voxels outside of both masks change no Dice
        voxels = np.argwhere(prediction | truth)
        limit_mm = band_mm * (1 + 1e-6)
        tree = nearest_tree(positions_mm(np.argwhere(true_surface), matrix))
        distance_mm, _ = tree.query(positions_mm(voxels, matrix), distance_upper_bound=limit_mm * (1 + 1e-9))
        band = np.zeros(truth.shape, bool)
        band[tuple(voxels[distance_mm <= limit_mm].T)] = True
    both = np.count_nonzero(prediction & truth & band)
    return 2 * both / (np.count_nonzero(prediction & band) + np.count_nonzero(truth & band))


def within_mm(surface: NDArray[np.bool_], spacing_mm: Sequence[float], distance_mm: float) -> NDArray[np.bool_]:
    """The voxels whose centre lies within `distance_mm` of the centre of a voxel of `surface`.

    The map is separable: three passes of one-dimensional lower envelopes of parabolas (Felzenszwalb and Huttenlocher,
    Distance transforms of sampled functions, 2012), a few operations a voxel, whatever the distance. scipy's
    distance_transform_edt takes five times as long and 24 bytes a voxel where this takes 4.

    Args:
        surface: (D, H, W).
        spacing_mm: (z, y, x); the axes are at right angles.
        distance_mm: 0 or more; a voxel at exactly this distance is within it.

    Returns:
        (D, H, W).
    """
    # float32 rounds squares by 1e-7 of their size
    limit_mm2 = np.float32(distance_mm**2 * (1 + 1e-6))
    squared_mm2 = np.where(surface, np.float32(0), np.float32(np.inf))
    for axis, spacing in enumerate(spacing_mm):
        _lower_envelopes(np.moveaxis(squared_mm2, axis, -1), spacing, limit_mm2)
    within: NDArray[np.bool_] = squared_mm2 <= limit_mm2
    return within


@numba.njit(cache=True, nogil=True)
def _lower_envelopes(squared_mm2: NDArray[np.float32], spacing_mm: float, limit_mm2: float) -> None:
    """Replace each value by the least of (value + squared distance along the last axis); above the limit, infinity."""
    rows, columns, size = squared_mm2.shape
    centres = np.empty(size, np.int64)  # of the parabolas of the envelope
    heights = np.empty(size, np.float64)
    starts = np.empty(size, np.float64)  # where each parabola becomes the lowest, in voxels
    for row in range(rows):
        for column in range(columns):
            line = squared_mm2[row, column]
            count = 0
            for i in range(size):
                if line[i] > limit_mm2:
                    continue
                height = line[i] / spacing_mm**2
                start = -np.inf
                while count:
                    centre, last = centres[count - 1], heights[count - 1]
                    start = (height + i * i - last - centre * centre) / (2 * (i - centre))
                    if start > starts[count - 1]:
                        break
                    count -= 1
                    start = -np.inf
                centres[count], heights[count], starts[count] = i, height, start
                count += 1
            if not count:
                continue
            nearest = 0
            for i in range(size):
                while nearest + 1 < count and starts[nearest + 1] < i:
                    nearest += 1
                found = (heights[nearest] + (i - centres[nearest]) ** 2) * spacing_mm**2
                line[i] = found if found <= limit_mm2 else np.inf
