"""Pictures of label volumes in three planes: where they are cut, how they lie on the page, what is drawn in them.

The display is radiological, as in Slicer and ITK-SNAP: axial and coronal planes have the patient's right on the left
of the page, sagittal planes the front. Every side is marked. The truth is a tint, every other label volume an outline
beside it, and a structure has one colour in both (`vnet.data.colours`).

Volumes are (D, H, W): z towards the head, y to the front, x to the right of the patient. A picture is (height, width,
3) uint8; a voxel is a block of pixels, nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vnet.data.colours import Colour, structure_colours

Volume = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]
Picture = NDArray[np.uint8]

PLANES = ("axial", "coronal", "sagittal")  # across z, y, x
SIDES = ("RL", "RL", "AP")  # left and right of the page: right and left, anterior and posterior
TRUTH = "truth"
CROPPED_VOX = 128  # a longer axis is cut to the structures
# TensorBoard shows a picture 350 pixels wide until it is clicked, and skips pixels: of 700 every second
PAGE_PX, PANEL_PX = 700, 338
TINT = 0.45  # of the colour over the grey
NAMED = 12  # structures in a legend
Entry = tuple[str, Colour | None]  # of a legend
INK, PAPER = (232, 232, 232), (16, 16, 16)


@dataclass(frozen=True)
class Slices:
    """Three planes of a case: all that its picture needs, small whatever the size of the volume.

    Attributes:
        image: a (rows, columns) uint8 plane across z, y, x, along the axes of the volume.
        labels: name to three planes of label values.
        cuts: slice number of each plane.
        spacing_mm: (z, y, x).
        structures: names by label value, the background first; may be empty.
    """

    image: tuple[Picture, ...]
    labels: Mapping[str, tuple[Labels, ...]]
    cuts: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    structures: tuple[str, ...] = ()


def cut_slices(
    image: Volume,
    labels: Mapping[str, Labels],
    spacing_mm: Sequence[float],
    structures: Sequence[str] = (),
    *,
    structure: int | None = None,
) -> Slices:
    """The planes where the chosen structure of the first label volume is largest, or the middle where it is empty.

    Args:
        image: (D, H, W), shown from its 1st to its 99th percentile.
        labels: name to (D, H, W) whole numbers.
        spacing_mm: (z, y, x).
        structures: names by label value, the background first; further values (an ignored one) are not shown.
        structure: label value to cut through; None takes all of the foreground.

    Raises:
        ValueError: no labels, or shapes that disagree.
    """
    if not labels:
        raise ValueError("labels must hold at least one label volume, got none")
    for name, volume in labels.items():
        if volume.shape != image.shape:
            raise ValueError(f"{name} must have the shape of the image {image.shape}, got {volume.shape}")
    first = next(iter(labels.values()))
    cuts = largest_slices(first > 0 if structure is None else first == structure)
    cut = {name: _known(planes_of(volume, cuts), len(structures)) for name, volume in labels.items()}
    windows = [_window([planes[axis] for planes in cut.values()]) for axis in range(3)]
    return Slices(
        tuple(plane[window] for plane, window in zip(grey_planes(image, cuts), windows, strict=True)),
        {
            name: tuple(plane[window].copy() for plane, window in zip(planes, windows, strict=True))
            for name, planes in cut.items()
        },
        cuts,
        tuple(map(float, spacing_mm)),
        tuple(structures),
    )


def grey_planes(image: Volume, cuts: Sequence[int]) -> list[Picture]:
    """The planes of an image as bytes, from its 1st to its 99th percentile."""
    sample = image[tuple(slice(None, None, max(n // 64, 1)) for n in image.shape)]
    low, high = np.percentile(sample, (1, 99))
    shades = (np.clip((plane - low) * (255 / max(high - low, 1e-6)), 0, 255) for plane in planes_of(image, cuts))
    return [np.asarray(shade, np.uint8) for shade in shades]


def largest_slices(mask: Mask) -> tuple[int, ...]:
    """Per axis, the first slice that holds most voxels of `mask`; the middle one where it is empty."""
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    return tuple(int(np.count_nonzero(mask, axis=rest).argmax()) for rest in others)


def planes_of(volume: NDArray[Any], cuts: Sequence[int]) -> tuple[NDArray[Any], ...]:
    """The plane across each axis at its slice."""
    return tuple(np.take(volume, cut, axis) for axis, cut in enumerate(cuts))


def _known(planes: Sequence[Labels], count: int) -> list[Labels]:
    return [np.where(plane < count, plane, 0) if count else plane for plane in planes]


def _window(planes: Sequence[Labels]) -> tuple[slice, slice]:
    """Where the structures of a plane lie, with 16 voxels around, along its axes that are long."""
    found = np.logical_or.reduce([plane > 0 for plane in planes])
    spans = []
    for axis, n in enumerate(found.shape):
        filled = np.flatnonzero(found.any(1 - axis))
        whole = n <= CROPPED_VOX or not len(filled)
        spans.append(slice(0, n) if whole else slice(max(filled[0] - 16, 0), filled[-1] + 17))
    return spans[0], spans[1]


def displayed(
    plane: NDArray[Any], spacing_mm: Sequence[float], axis: int, size_px: int, *, upright: bool = False
) -> NDArray[Any]:
    """A (rows, columns, ...) plane of a volume as it lies on the page, each axis in mm, with blocks of pixels.

    Args:
        axis: across which the plane was cut.
        size_px: its height on the page, its width if `upright`; the other side is 0.4 to 2.5 times as long.
    """
    down, across = (spacing for other, spacing in enumerate(spacing_mm) if other != axis)
    ratio = float(np.clip(plane.shape[1] * across / (plane.shape[0] * down), 0.4, 2.5))
    height, width = (round(size_px / ratio), size_px) if upright else (size_px, round(size_px * ratio))
    # rows go up, columns to the left: the head, the front, or the patient's right comes first
    rows, columns = (
        ((np.arange(size) + 0.5) / size * n).astype(np.intp)[::-1]
        for size, n in ((height, plane.shape[0]), (width, plane.shape[1]))
    )
    return plane[np.ix_(rows, columns)]


def contour_picture(slices: Slices, title: str = "", size_px: int = PANEL_PX, *, upright: bool = False) -> Picture:
    """Three planes of every label volume: the truth as a tint, the volume's own labels as outlines.

    Args:
        slices: from `cut_slices`. Where the truth is all there is, its outline is drawn.
        title: one line above.
        size_px: of a plane: its height, its width if `upright`.
        upright: the label volumes are columns and the planes rows, else the reverse. Beside a single one stands the
            image alone.
    """
    truth = slices.labels.get(TRUTH)
    versions = {name: planes for name, planes in slices.labels.items() if name != TRUTH}
    bare = upright and len(versions) == 1
    palette = np.array([PAPER, *structure_colours(_largest(slices))], np.uint8)
    grid = []
    for planes in [*([None] if bare else []), *(versions or slices.labels).values()]:
        row = []
        for axis, grey in enumerate(slices.image):
            place = partial(displayed, spacing_mm=slices.spacing_mm, axis=axis, size_px=size_px, upright=upright)
            panel = np.repeat(place(grey)[..., None], 3, axis=2)
            if truth is not None and versions and planes is not None:
                panel = tint(panel, place(truth[axis]), palette)
            if planes is not None:
                panel = draw_outlines(panel, place(planes[axis]), palette, line_px=max(size_px // 120, 2))
            row.append(panel)
        grid.append(row)
    notes = ["tint: truth", "line: prediction"] if truth is not None and versions else []
    names, legend = [*(["image"] if bare else []), *(versions or slices.labels)], structure_legend(slices, palette)
    return compose(grid, names, slices.cuts, title, legend, notes, upright=upright, page_px=PAGE_PX * upright)


def _largest(slices: Slices) -> int:
    values = [int(plane.max(initial=0)) for planes in slices.labels.values() for plane in planes]
    return max(len(slices.structures) - 1, *values)


def structure_legend(slices: Slices, palette: Picture) -> dict[str, Colour]:
    """Name to colour of the structures that are seen, at most `NAMED`."""
    seen = sorted({int(v) for planes in slices.labels.values() for plane in planes for v in np.unique(plane) if v > 0})
    names = slices.structures
    named: dict[str, Colour] = {}
    for value in seen[:NAMED]:
        red, green, blue = palette[value].tolist()
        named[names[value] if value < len(names) else f"structure {value}"] = (red, green, blue)
    return named | ({f"and {len(seen) - NAMED} more": INK} if len(seen) > NAMED else {})


def tint(picture: Picture, labels: Labels, palette: Picture) -> Picture:
    """The picture with every structure in its colour, the grey shining through; arguments as of `draw_outlines`."""
    mixed = (1 - TINT) * picture + TINT * palette[labels]
    return np.where((labels > 0)[..., None], mixed, picture).astype(np.uint8)


def draw_outlines(picture: Picture, labels: Labels, palette: Picture, line_px: int) -> Picture:
    """The picture with the outline of every structure, inside of it and in its colour.

    Args:
        picture: (rows, columns, 3).
        labels: (rows, columns).
        palette: (K, 3) colour of each label value.
    """
    edge = outline(labels, line_px)
    drawn = picture.copy()
    drawn[edge] = palette[labels[edge]]
    return drawn


def outline(plane: Labels, line_px: int = 1) -> Mask:
    """The pixels of structures in a (rows, columns) plane that lie within `line_px` of another label or of its end."""
    padded = np.pad(plane, line_px)
    edge = np.zeros(plane.shape, bool)
    rows, columns = plane.shape
    for step in range(1, line_px + 1):
        for down, across in ((step, 0), (-step, 0), (0, step), (0, -step)):
            top, left = line_px + down, line_px + across
            edge |= padded[top : top + rows, left : left + columns] != plane
    return edge & (plane > 0)


def compose(
    grid: Sequence[Sequence[Picture]],
    names: Sequence[str],
    cuts: Sequence[int],
    title: str,
    legend: Mapping[str, Colour],
    notes: Sequence[str] = (),
    *,
    upright: bool = False,
    axes: Sequence[int] = (0, 1, 2),
    page_px: int = 0,
) -> Picture:
    """Panels on a page: a row a name and a column a plane (the reverse if `upright`), title above, legend below.

    Args:
        grid: of each name its planes.
        names: of the label volumes, written above each panel; may be "".
        cuts: slice number of each plane.
        legend: name to colour.
        notes: what is written behind the legend.
        axes: that the planes are across.
        page_px: least width of the page, whose letters are then a 27th of it; else they follow the panels.
    """
    cells = [[planes[k] for planes in grid] for k in range(len(axes))] if upright else grid
    gap = 8
    widths = [max(row[i].shape[1] for row in cells) for i in range(len(cells[0]))]
    heights = [max(len(panel) for panel in row) for row in cells]
    panel_px = min(panel.shape[1 if upright else 0] for row in grid for panel in row)
    size = page_px // 27 or max(panel_px // 18, 12)
    font = _font(size)
    words: list[Entry] = [*legend.items(), *((note, None) for note in notes)]
    least = max(sum(widths) + gap * (len(widths) + 1), font.getlength(title) + 2 * gap)
    width = int(max(least, page_px))
    lines = _wrapped(words, font, width - 2 * gap)
    line = round(1.5 * size)
    height = line * bool(title) + sum(h + line for h in heights) + line * len(lines) + gap
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((width / 2, line / 2), title, INK, font, anchor="mm")
    top = line * bool(title)
    for i, row in enumerate(cells):
        left = (width - sum(widths) - gap * (len(widths) - 1)) // 2
        for j, panel in enumerate(row):
            number, name = (i, names[j]) if upright else (j, names[i])
            axis = axes[number]
            place = left + (widths[j] - panel.shape[1]) // 2
            page.paste(Image.fromarray(panel), (place, top + line))
            caption = ", ".join(filter(None, [name, f"{PLANES[axis]} {cuts[number]}"]))
            draw.text((left + widths[j] / 2, top + line / 2), caption, INK, font, anchor="mm")
            _mark_sides(draw, SIDES[axis], place, top + line, panel.shape, font)
            left += widths[j] + gap
        top += heights[i] + line
    for entries in lines:
        _draw_legend(draw, entries, width, top + line / 2, font)
        top += line
    return np.asarray(page)


def _mark_sides(draw: Any, sides: str, left: int, top: int, shape: Sequence[int], font: Any) -> None:
    middle = top + shape[0] / 2
    for side, column, anchor in ((sides[0], left + 4, "lm"), (sides[1], left + shape[1] - 4, "rm")):
        draw.text((column, middle), side, INK, font, anchor=anchor, stroke_width=2, stroke_fill=PAPER)


def _length(word: Entry, font: Any) -> float:
    return float(font.getlength(word[0]) + font.size * (2.2 if word[1] else 1.0))


def _wrapped(words: Sequence[Entry], font: Any, width: float) -> list[list[Entry]]:
    lines: list[list[Entry]] = []
    for word in words:
        if lines and sum(_length(other, font) for other in (*lines[-1], word)) <= width:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def _draw_legend(draw: Any, entries: Sequence[Entry], width: int, middle: float, font: Any) -> None:
    left, half = (width - sum(_length(entry, font) for entry in entries)) / 2, font.size * 0.4
    for name, colour in entries:
        if colour:
            draw.rectangle((left, middle - half, left + 2 * half, middle + half), colour)
        draw.text((left + font.size * (1.2 if colour else 0), middle), name, INK, font, anchor="lm")
        left += _length((name, colour), font)


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
