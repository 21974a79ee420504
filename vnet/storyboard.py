"""What the board shows of a validation: contours of one case, and where the head looked."""

from __future__ import annotations

import numpy as np

from vnet.board import Board
from vnet.evaluation import Scored
from vnet.pictures import contour_picture, to_rgb, uncertainty_picture


def draw_validation(board: Board, step: int, one: Scored) -> None:
    """Pictures of a case: outlines of truth and prediction, and the uncertainty map with the chosen points."""
    prediction, spacing = one.prediction, one.volume.spacing_mm
    versions = {"truth": one.truth, "unrefined": prediction.unrefined}
    if prediction.refined:
        versions["refined"] = prediction.labels
    picture = contour_picture(one.volume.array[0], versions, spacing, title=f"{one.case.name}, step {step}")
    pictures = {"validation/outlines of the first case": to_rgb(picture)}
    if prediction.refined:
        size = one.truth.shape
        points = (np.stack(np.unravel_index(prediction.index, size), axis=1) + 0.5) / np.array(size)
        shown = prediction.uncertainty_map()
        per_voxel = [mm * n / m for mm, n, m in zip(spacing, size, shown.shape, strict=True)]
        title = f"{one.case.name}, step {step}: uncertainty and the {len(points)} voxels refined"
        pictures["refinement/uncertainty and points"] = to_rgb(
            uncertainty_picture(shown, points, per_voxel, title=title)
        )
    board.pictures(step, pictures)
