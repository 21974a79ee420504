"""Scores of one case, a row a structure: Dice, surface metrics and volumes, on the grid of the true labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vnet.evaluation.surfaces import (
    Mask,
    Steps,
    average_distance_mm,
    band_dice,
    hausdorff95_mm,
    step_matrix,
    surface_dice,
    surface_distances,
    surface_voxels,
)

Labels = NDArray[np.integer[Any]]
Row = dict[str, Any]

METRICS = ("dice", "surface_dice", "hd95_mm", "assd_mm", "band_dice")
HIGHER_IS_BETTER = {"dice": True, "surface_dice": True, "hd95_mm": False, "assd_mm": False, "band_dice": True}
BAND_MM = 2.0  # half width of the band around the true surface, of `band_dice`


def case_metrics(
    prediction: Labels,
    truth: Labels,
    structures: Sequence[str],
    spacing_mm: Steps,
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
        spacing_mm: (z, y, x), or the (3, 3) matrix of voxel steps in mm (see `vnet.evaluation.surfaces`), which sheared
            grids need.
        tolerance_mm: of the surface Dice.
        ignore: label value whose voxels count as background in both arrays.

    Returns:
        K - 1 rows with `structure`, the five `METRICS` (`band_dice` is the Dice of the voxels within
        `BAND_MM` of the true surface), `truth_ml`, `predicted_ml` and `thinness`: the share of the
        structure's true voxels that are surface, 1 where it is nowhere thicker than two voxels, `None` where
        it is absent.

    Raises:
        ValueError: shapes differ or are not 3-D, a label lies outside the classes, the spacing or the
            tolerance is no length.
    """
    steps = step_matrix(spacing_mm)
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be a number of 0 or more, got {tolerance_mm}")
    prediction, truth = _without_ignored(prediction, truth, len(structures), ignore)
    diagonal_mm = longest_diagonal_mm(truth.shape, steps)
    predicted_boxes = ndimage.find_objects(prediction, max_label=len(structures) - 1)
    true_boxes = ndimage.find_objects(truth, max_label=len(structures) - 1)
    rows = []
    for label, structure in enumerate(structures[1:], start=1):
        boxes = [box for box in (predicted_boxes[label - 1], true_boxes[label - 1]) if box is not None]
        if boxes:
            # outside of the joint bounding box both masks are empty: cropping changes no value
            box = _union(boxes)
            scores = _mask_metrics(prediction[box] == label, truth[box] == label, steps, tolerance_mm, diagonal_mm)
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


def longest_diagonal_mm(shape: Sequence[int], steps: NDArray[np.float64]) -> float:
    """The largest distance between two corners of an image in mm.

    Args:
        shape: (D, H, W).
        steps: (3, 3), from `step_matrix`.
    """
    diagonals = np.array([[1, y, x] for y in (1, -1) for x in (1, -1)]) * shape
    return float(np.linalg.norm(diagonals @ steps.T, axis=1).max())


def _mask_metrics(
    prediction: Mask, truth: Mask, steps: NDArray[np.float64], tolerance_mm: float, diagonal_mm: float
) -> Row:
    """Scores of one structure that is present in at least one of the two masks."""
    predicted_vox, true_vox = np.count_nonzero(prediction), np.count_nonzero(truth)
    voxel_ml = abs(float(np.linalg.det(steps))) / 1000
    true_surface = surface_voxels(truth)
    volumes = {
        "truth_ml": true_vox * voxel_ml,
        "predicted_ml": predicted_vox * voxel_ml,
        "thinness": np.count_nonzero(true_surface) / true_vox if true_vox else None,
    }
    if not predicted_vox or not true_vox:
        return dict(zip(METRICS, (0.0, 0.0, diagonal_mm, diagonal_mm, 0.0), strict=True)) | volumes
    distances = surface_distances(surface_voxels(prediction), true_surface, steps)
    return {
        "dice": 2 * np.count_nonzero(prediction & truth) / (predicted_vox + true_vox),
        "surface_dice": surface_dice(distances, tolerance_mm),
        "hd95_mm": hausdorff95_mm(distances),
        "assd_mm": average_distance_mm(distances),
        "band_dice": band_dice(prediction, truth, true_surface, steps, BAND_MM),
    } | volumes


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


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
