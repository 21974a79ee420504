"""How good a segmentation is: overlap and surface metrics of one case, in mm, on the grid of its label.

One function finds the distances between two surfaces, small ones summarise them, as every metric here reads
the same distances. Definitions:

- A *surface voxel* belongs to the structure and has at least one of its six face neighbours outside of it; a
  structure that touches the border of the image ends there. Distances run between centres of surface voxels.
  This is MONAI's definition without sub-voxels; DeepMind's surface elements ("surfels") weigh each voxel by
  the area that the surface has in it instead.
- HD95 is the larger of the two directed 95th percentiles, never the percentile of both directions pooled.
- ASSD pools both directions.
- Surface Dice at a tolerance is the share of all surface voxels, of both surfaces, that lie within the
  tolerance of the other one.

Distances come from a k-d tree of the surface voxels (scipy), so that memory follows the surface and not the
volume; MONAI's metrics hold three distance maps of the volume, and give NaN or infinity for a missed
structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Row = dict[str, Any]

METRICS = ("dice", "surface_dice", "hd95_mm", "assd_mm", "band_dice")
HIGHER_IS_BETTER = {"dice": True, "surface_dice": True, "hd95_mm": False, "assd_mm": False, "band_dice": True}
BAND_MM = 2.0  # half width of the band around the true surface, of `band_dice`


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface voxel of one mask to the nearest of the other, in mm; both arrays are non-empty."""

    to_truth_mm: NDArray[np.float64]  # (surface voxels of the prediction,)
    to_prediction_mm: NDArray[np.float64]  # (surface voxels of the truth,)


def case_metrics(
    prediction: Labels,
    truth: Labels,
    structures: Sequence[str],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    ignore: int | None = None,
) -> list[Row]:
    """Score one case, a row a structure.

    A structure that is missed, or predicted where there is none, scores 0 for the three Dice values and the
    diagonal of the image in mm for HD95 and ASSD: leaving it out would reward missing it. One that is absent
    in both has `None` for all five.

    Args:
        prediction: (D, H, W), whole numbers in [0, K).
        truth: (D, H, W), whole numbers in [0, K), or `ignore`.
        structures: K names, index = label value; the first is the background and gets no row.
        spacing_mm: of the three axes, in the order of the arrays.
        tolerance_mm: of the surface Dice.
        ignore: label value whose voxels count as background in both arrays.

    Returns:
        K - 1 rows with `structure`, the five `METRICS` (`band_dice` is the Dice of the voxels within
        `BAND_MM` of the true surface), `truth_ml`, `predicted_ml` and `thinness`: the share of the
        structure's true voxels that are surface, 1 where it is nowhere thicker than two voxels, `None` where
        it is absent.

    Raises:
        ValueError: shapes differ or are not 3-D, a label lies outside the classes, a spacing or the tolerance
            is not a positive number.
    """
    spacing = _check_spacing(spacing_mm)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be a number of 0 or more, got {tolerance_mm}")
    prediction, truth = _without_ignored(prediction, truth, len(structures), ignore)
    diagonal_mm = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    predicted_boxes = ndimage.find_objects(prediction, max_label=len(structures) - 1)
    true_boxes = ndimage.find_objects(truth, max_label=len(structures) - 1)
    rows = []
    for label, structure in enumerate(structures[1:], start=1):
        boxes = [box for box in (predicted_boxes[label - 1], true_boxes[label - 1]) if box is not None]
        if boxes:
            # outside of the joint bounding box both masks are empty: cropping changes no value
            box = _union(boxes)
            scores = _mask_metrics(prediction[box] == label, truth[box] == label, spacing, tolerance_mm, diagonal_mm)
        else:
            scores = {**dict.fromkeys(METRICS), "truth_ml": 0.0, "predicted_ml": 0.0, "thinness": None}
        plain = {name: None if value is None else float(value) for name, value in scores.items()}
        rows.append({"structure": structure, **plain})
    return rows


def dice_scores(prediction: Labels, truth: Labels, classes: int, ignore: int | None = None) -> NDArray[np.float64]:
    """Dice of the classes 1 to K - 1 alone: (K - 1,), NaN for a class that is absent in both.

    Arguments and errors as in `case_metrics`, for arrays of any number of axes.
    """
    prediction, truth = _without_ignored(prediction, truth, classes, ignore)
    pairs = truth.ravel().astype(np.int64) * classes + prediction.ravel()
    table = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)  # (truth, prediction)
    sizes = table.sum(0) + table.sum(1)
    return np.divide(2 * np.diag(table), sizes, out=np.full(classes, np.nan), where=sizes > 0)[1:]


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


def _mask_metrics(
    prediction: Mask, truth: Mask, spacing_mm: tuple[float, ...], tolerance_mm: float, diagonal_mm: float
) -> Row:
    """Scores of one structure that is present in at least one of the two masks."""
    predicted_vox, true_vox = np.count_nonzero(prediction), np.count_nonzero(truth)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    true_surface = surface_voxels(truth)
    volumes = {
        "truth_ml": true_vox * voxel_ml,
        "predicted_ml": predicted_vox * voxel_ml,
        "thinness": np.count_nonzero(true_surface) / true_vox if true_vox else None,
    }
    if not predicted_vox or not true_vox:
        return dict(zip(METRICS, (0.0, 0.0, diagonal_mm, diagonal_mm, 0.0), strict=True)) | volumes
    distances = surface_distances(surface_voxels(prediction), true_surface, spacing_mm)
    return {
        "dice": 2 * np.count_nonzero(prediction & truth) / (predicted_vox + true_vox),
        "surface_dice": surface_dice(distances, tolerance_mm),
        "hd95_mm": hausdorff95_mm(distances),
        "assd_mm": average_distance_mm(distances),
        "band_dice": band_dice(prediction, truth, true_surface, spacing_mm, BAND_MM),
    } | volumes


def _ball(spacing_mm: Sequence[float], radius_mm: float) -> NDArray[np.int64]:
    """The voxel offsets of at most `radius_mm`: (n, axes)."""
    spacing = np.asarray(spacing_mm, float)
    reach = np.floor(radius_mm / spacing + 1e-9).astype(int)
    offsets = np.indices(tuple(2 * reach + 1)).reshape(len(reach), -1).T - reach
    kept: NDArray[np.int64] = offsets[np.linalg.norm(offsets * spacing, axis=1) <= radius_mm * (1 + 1e-9)]
    return kept


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _check_spacing(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing_mm must be three positive numbers, got {spacing_mm}")
    return spacing


def _without_ignored(prediction: Labels, truth: Labels, classes: int, ignore: int | None) -> tuple[Labels, Labels]:
    """Both arrays checked, with the ignored voxels set to background."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must agree in shape, got {prediction.shape} and {truth.shape}")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must hold whole numbers, got dtype {labels.dtype}")
    if ignore is not None:
        ignored = truth == ignore
        prediction, truth = np.where(ignored, 0, prediction), np.where(ignored, 0, truth)
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.size and (labels.min() < 0 or labels.max() >= classes):
            raise ValueError(f"{name} must lie in [0, {classes}), got {labels.min()} to {labels.max()}")
    return prediction, truth
