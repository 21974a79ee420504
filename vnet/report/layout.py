"""Panels of three planes composed to one picture: title, names of the planes, legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vnet.report.slices import Picture

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
