"""Pictures of a case: pure functions from arrays to pixels, quick enough to be drawn at every validation.

Every picture shows three planes, each axis in mm, with the patient's right on the right (volumes are in the canonical
orientation of `vnet.data`). A picture is (height, width, 3) uint8; a voxel is a block of pixels, nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from vnet.evaluation.metrics import Labels
from vnet.evaluation.surfaces import Mask
from vnet.report.layout import Colour, compose, pixel_voxels
from vnet.report.slices import Picture, Slices, Volume, largest_slices, planes_of

# Okabe and Ito's colours, told apart in every common kind of colour blindness. The truth is drawn first and
# widest, the refined outline last and dashed, so that all three are seen where they agree.
CONTOURS: dict[str, Colour] = {"truth": (240, 228, 66), "unrefined": (213, 94, 0), "refined": (86, 180, 233)}
DOT = CONTOURS["refined"]
PANEL_PX = 264
FLOOR = -6.0  # uncertainty shown as the darkest: a margin of 6 logits is a probability of .0025


def contour_picture(slices: Slices, title: str = "", height_px: int = PANEL_PX) -> Picture:
    """Three planes with the outlines of every label value of each label volume.

    Args:
        slices: from `cut_slices`.
        title: one line above.
        height_px: of each plane.
    """
    panels = []
    for axis, grey in enumerate(slices.image):
        rows, columns = pixel_voxels(grey.shape, slices.spacing_mm, axis, height_px)
        panel = np.repeat(grey[np.ix_(rows, columns)][..., None], 3, axis=2)
        for name, planes in slices.labels.items():
            edge = outline(planes[axis][np.ix_(rows, columns)], wide=name == "truth")
            panel[edge & _dashes(edge.shape) if name == "refined" else edge] = CONTOURS[name]
        panels.append(panel)
    return compose(panels, slices.cuts, title, {name: CONTOURS[name] for name in slices.labels})


def uncertainty_picture(
    uncertainty: Volume, points: NDArray[np.floating[Any]], spacing_mm: Sequence[float], title: str = ""
) -> Picture:
    """Three planes of an uncertainty map with the points that were chosen in them, where most points lie.

    Args:
        uncertainty: (D, H, W), second best minus best logit: 0 (bright) is a tie, `FLOOR` and below is dark.
        points: (N, 3), (z, y, x) in the unit cube; N may be 0.
        spacing_mm: (z, y, x).
        title: one line above.

    Raises:
        ValueError: `points` is not (N, 3).
    """
    chosen = _voxels_of(points, uncertainty.shape)
    cuts = largest_slices(chosen)
    magma = np.asarray(colormaps["magma"](np.arange(256), bytes=True)[:, :3])
    shade = [np.clip(255 - plane * (255 / FLOOR), 0, 255).astype(np.uint8) for plane in planes_of(uncertainty, cuts)]
    panels = _dotted([magma[plane] for plane in shade], planes_of(chosen, cuts), spacing_mm)
    return compose(panels, cuts, title, {f"chosen; bright: in doubt, dark: {-FLOOR:g} logits sure": DOT})


def points_picture(
    image: Volume, truth: Labels, points: NDArray[np.floating[Any]], spacing_mm: Sequence[float], title: str = ""
) -> Picture:
    """Three planes of an image with the outline of the truth and the training points drawn in them.

    Args:
        image, truth: (D, H, W).
        points: (N, 3), (z, y, x) in the unit cube; N may be 0.
        spacing_mm: (z, y, x).
        title: one line above.

    Raises:
        ValueError: `points` is not (N, 3).
    """
    chosen = _voxels_of(points, image.shape)
    cuts = largest_slices(truth > 0)
    low, high = np.percentile(image, (1, 99))
    panels = []
    for axis, (grey, mask) in enumerate(zip(planes_of(image, cuts), planes_of(truth, cuts), strict=True)):
        rows, columns = pixel_voxels(grey.shape, spacing_mm, axis, PANEL_PX)
        shade = np.clip((grey - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
        panel = np.repeat(shade[np.ix_(rows, columns)][..., None], 3, axis=2)
        panel[outline(mask[np.ix_(rows, columns)])] = CONTOURS["truth"]
        panels.append(panel)
    dotted = _dots(panels, planes_of(chosen, cuts))
    return compose(dotted, cuts, title, {"truth": CONTOURS["truth"], "training points": DOT})


def outline(plane: Labels, wide: bool = False) -> Mask:
    """The pixels on both sides of every border between two labels of a (rows, columns) plane; twice as many if wide.

    A structure that leaves the plane ends at the plane's edge.
    """
    edge = np.zeros(plane.shape, bool)
    for axis in (0, 1):
        along, seen = np.moveaxis(plane, axis, 0), np.moveaxis(edge, axis, 0)
        for line in (0, -1):
            seen[line] |= along[line] > 0
        border = along[1:] != along[:-1]
        seen[1:] |= border
        seen[:-1] |= border
        if wide:
            seen[2:] |= border[:-1]
            seen[:-2] |= border[1:]
    return edge


def _dashes(shape: tuple[int, ...]) -> Mask:
    row, column = np.ogrid[: shape[0], : shape[1]]
    # no common direction of a border runs along these stripes
    return np.asarray((3 * row + 5 * column) % 36 < 20)


def _voxels_of(points: NDArray[np.floating[Any]], shape: Sequence[int]) -> Mask:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got {points.shape}")
    voxels = np.clip(np.floor(points * np.array(shape)).astype(int), 0, np.array(shape) - 1)
    chosen = np.zeros(tuple(shape), bool)
    chosen[tuple(voxels.T)] = True
    return chosen


def _dotted(planes: Sequence[Picture], chosen: Sequence[Mask], spacing_mm: Sequence[float]) -> list[Picture]:
    panels = []
    for axis, plane in enumerate(planes):
        rows, columns = pixel_voxels(plane.shape[:2], spacing_mm, axis, PANEL_PX)
        panels.append(plane[np.ix_(rows, columns)])
    return _dots(panels, chosen)


def _dots(panels: Sequence[Picture], chosen: Sequence[Mask]) -> list[Picture]:
    """A small square in the middle of each chosen voxel."""
    dotted = []
    for panel, mask in zip(panels, chosen, strict=True):
        shape = np.array(mask.shape)
        pixels = np.array(panel.shape[:2])
        rows, columns = np.nonzero(mask[::-1])
        centres = ((np.stack([rows, columns], axis=1) + 0.5) / shape * pixels).astype(int)
        side = max(int((pixels / shape).min() * 0.5), 1)
        panel = panel.copy()
        for down in range(side):
            for across in range(side):
                place = np.minimum(centres - side // 2 + (down, across), pixels - 1)
                panel[place[:, 0], place[:, 1]] = DOT
        dotted.append(panel)
    return dotted
