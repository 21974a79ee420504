"""Pictures of points in three planes: the voxels that were refined, and those that a training step drew.

Planes, display and colours are those of `vnet.data.planes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from vnet.data.colours import Colour, structure_colours
from vnet.data.planes import (
    PAGE_PX,
    PANEL_PX,
    Labels,
    Mask,
    Picture,
    Volume,
    compose,
    displayed,
    draw_outlines,
    grey_planes,
    largest_slices,
    planes_of,
)

ASKED: Colour = (0, 229, 255)  # on magma, black to cream
DRAWN: Colour = (255, 255, 255)  # on an image that is dimmed
DIMMED = 0.6
FLOOR = -6.0  # uncertainty shown as the darkest: a margin of 6 logits is a probability of .0025


def uncertainty_picture(
    uncertainty: Volume, points: NDArray[np.floating[Any]], spacing_mm: Sequence[float], title: str = ""
) -> Picture:
    """Three planes of an uncertainty map, one below the other, with the chosen points, where most points lie.

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
    panels = []
    for axis, (plane, mask) in enumerate(zip(planes_of(uncertainty, cuts), planes_of(chosen, cuts), strict=True)):
        shade = np.clip(255 - plane * (255 / FLOOR), 0, 255).astype(np.uint8)
        panels.append(_dotted(displayed(magma[shade], spacing_mm, axis, PANEL_PX, upright=True), mask, ASKED))
    notes = [f"bright: in doubt, dark: {-FLOOR:g} logits sure"]
    return compose([panels], [""], cuts, title, {"asked": ASKED}, notes, upright=True, page_px=PAGE_PX)


def points_picture(
    image: Volume,
    truth: Labels,
    points: NDArray[np.floating[Any]],
    spacing_mm: Sequence[float],
    title: str = "",
) -> Picture:
    """Three planes of an image, one below the other, with the outlines of the truth and the training points.

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
    palette = np.array([(0, 0, 0), *structure_colours(int(truth.max(initial=0)))], np.uint8)
    panels = []
    planes = zip(grey_planes(image, cuts), planes_of(truth, cuts), planes_of(chosen, cuts), strict=True)
    for axis, (grey, labels, mask) in enumerate(planes):
        shown, there = (displayed(plane, spacing_mm, axis, PANEL_PX, upright=True) for plane in (grey, labels))
        dim = np.repeat((DIMMED * shown)[..., None], 3, axis=2).astype(np.uint8)
        panels.append(_dotted(draw_outlines(dim, there, palette, line_px=2), mask, DRAWN))
    return compose(
        [panels], [""], cuts, title, {"training points": DRAWN}, ["line: truth"], upright=True, page_px=PAGE_PX
    )


def _voxels_of(points: NDArray[np.floating[Any]], shape: Sequence[int]) -> Mask:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got {points.shape}")
    voxels = np.clip(np.floor(points * np.array(shape)).astype(int), 0, np.array(shape) - 1)
    chosen = np.zeros(tuple(shape), bool)
    chosen[tuple(voxels.T)] = True
    return chosen


def _dotted(panel: Picture, chosen: Mask, colour: Colour) -> Picture:
    """The panel with a small square in the middle of each chosen voxel of its plane."""
    shape, pixels = np.array(chosen.shape), np.array(panel.shape[:2])
    places = np.argwhere(chosen[::-1, ::-1])  # as `displayed` turns the plane
    centres = ((places + 0.5) / shape * pixels).astype(int)
    side = max(int((pixels / shape).min() * 0.5), 1)
    dotted = panel.copy()
    for down in range(side):
        for across in range(side):
            place = np.minimum(centres - side // 2 + (down, across), pixels - 1)
            dotted[place[:, 0], place[:, 1]] = colour
    return dotted
