"""Pictures of a case: pure functions from arrays to pixels, quick enough to be drawn at every validation.

Every picture shows three planes, each axis in mm, with the patient's right on the right (volumes are in the canonical
orientation of `vnet.data`). A picture is (height, width, 3) uint8; a voxel is a block of pixels, nothing is smoothed.

Volumes are (D, H, W): z towards the head, y to the front, x to the right of the patient. The planes are cut out of them
as `Slices`, which hold all that a picture needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vnet.evaluation.metrics import Labels
from vnet.evaluation.surfaces import Mask

Volume = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]

LABEL_NAMES = ("truth", "unrefined", "refined")
CROPPED_VOX = 128  # a longer axis is cut to the structures


@dataclass(frozen=True)
class Slices:
    """Three planes of a case: all that its picture needs, small whatever the size of the volume.

    Attributes:
        image: a (rows, columns) uint8 plane across z, y, x; rows go up.
        labels: name to three planes of label values.
        cuts: slice number of each plane.
        spacing_mm: (z, y, x).
    """

    image: tuple[Picture, ...]
    labels: Mapping[str, tuple[Labels, ...]]
    cuts: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def cut_slices(
    image: Volume, labels: Mapping[str, Labels], spacing_mm: Sequence[float], structure: int | None = None
) -> Slices:
    """The planes where the chosen structure of the first label volume is largest, or the middle where it is empty.

    Args:
        image: (D, H, W), shown from its 1st to its 99th percentile.
        labels: name ("truth", "unrefined", "refined") to (D, H, W) whole numbers.
        spacing_mm: (z, y, x).
        structure: label value to cut through; None takes all of the foreground.

    Raises:
        ValueError: no labels, an unknown name, or shapes that disagree.
    """
    if not labels or not set(labels) <= set(LABEL_NAMES):
        raise ValueError(f"labels must be named among {list(LABEL_NAMES)}, got {list(labels)}")
    for name, volume in labels.items():
        if volume.shape != image.shape:
            raise ValueError(f"{name} must have the shape of the image {image.shape}, got {volume.shape}")
    first = next(iter(labels.values()))
    cuts = largest_slices(first > 0 if structure is None else first == structure)
    sample = image[tuple(slice(None, None, max(n // 64, 1)) for n in image.shape)]
    low, high = np.percentile(sample, (1, 99))
    grey = [np.clip((plane - low) * (255 / max(high - low, 1e-6)), 0, 255) for plane in planes_of(image, cuts)]
    cut = {name: planes_of(volume, cuts) for name, volume in labels.items()}
    windows = [_window([planes[axis] for planes in cut.values()]) for axis in range(3)]
    return Slices(
        tuple(np.asarray(plane, np.uint8)[window] for plane, window in zip(grey, windows, strict=True)),
        {
            name: tuple(plane[window].copy() for plane, window in zip(planes, windows, strict=True))
            for name, planes in cut.items()
        },
        cuts,
        tuple(map(float, spacing_mm)),
    )


def largest_slices(mask: Mask) -> tuple[int, ...]:
    """Per axis, the first slice that holds most voxels of `mask`; the middle one where it is empty."""
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    return tuple(int(np.count_nonzero(mask, axis=rest).argmax()) for rest in others)


def planes_of(volume: NDArray[Any], cuts: Sequence[int]) -> tuple[NDArray[Any], ...]:
    return tuple(np.take(volume, cut, axis) for axis, cut in enumerate(cuts))


def _window(planes: Sequence[Labels]) -> tuple[slice, slice]:
    """Where the structures of a plane lie, with 16 voxels around, along its axes that are long."""
    found = np.logical_or.reduce([plane > 0 for plane in planes])
    spans = []
    for axis, n in enumerate(found.shape):
        filled = np.flatnonzero(found.any(1 - axis))
        whole = n <= CROPPED_VOX or not len(filled)
        spans.append(slice(0, n) if whole else slice(max(filled[0] - 16, 0), filled[-1] + 17))
    return spans[0], spans[1]


Colour = tuple[int, int, int]

PLANES = ("axial", "coronal", "sagittal")  # across z, y, x
INK, PAPER = (232, 232, 232), (16, 16, 16)
DASHED = "refined"  # the legend's entry whose line is drawn dashed


def pixel_voxels(
    shape: Sequence[int], spacing_mm: Sequence[float], axis: int, height_px: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of the voxel under each pixel of a panel, the first row on top; widths are kept in reason."""
    down, across = (spacing for other, spacing in enumerate(spacing_mm) if other != axis)
    ratio = float(np.clip(shape[1] * across / (shape[0] * down), 0.4, 2.5))
    rows, columns = (
        ((np.arange(size) + 0.5) / size * n).astype(np.intp)
        for size, n in ((height_px, shape[0]), (round(height_px * ratio), shape[1]))
    )
    return rows[::-1], columns


def compose(panels: Sequence[Picture], cuts: Sequence[int], title: str, legend: Mapping[str, Colour]) -> Picture:
    """Panels side by side below a title, each below its name, above a legend."""
    gap, top, bottom = 8, 44 if title else 24, 26
    width = sum(panel.shape[1] for panel in panels) + gap * (len(panels) + 1)
    page = Image.new("RGB", (width, top + max(len(panel) for panel in panels) + bottom), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((width / 2, 12), title, INK, _font(14), anchor="mm")
    left = gap
    for axis, panel in enumerate(panels):
        page.paste(Image.fromarray(panel), (left, top))
        middle = left + panel.shape[1] / 2
        draw.text((middle, top - 11), f"{PLANES[axis]}, slice {cuts[axis]}", INK, _font(12), anchor="mm")
        if axis < 2:
            right = (left + panel.shape[1] - 5, top + len(panel) / 2)
            draw.text(right, "R", INK, _font(13), anchor="rm", stroke_width=2, stroke_fill=PAPER)
        left += panel.shape[1] + gap
    lengths = [_font(12).getlength(name) + 44 for name in legend]
    left_px, line = (width - sum(lengths)) / 2, page.height - bottom / 2
    for (name, colour), length in zip(legend.items(), lengths, strict=True):
        draw.line((left_px, line, left_px + 20, line), colour, 3)
        if name == DASHED:
            draw.rectangle((left_px + 8, line - 2, left_px + 12, line + 2), PAPER)
        draw.text((left_px + 26, line), name, INK, _font(12), anchor="lm")
        left_px += length
    return np.asarray(page)


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


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
