"""Pictures of a case: pure functions from arrays to a matplotlib figure, drawn off screen.

Volumes are (D, H, W) in the canonical orientation of `vnet.data`: z towards the head, y to the front, x to
the right of the patient. Every picture shows three planes, each axis in mm, with the patient's right on the
right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from vnet.metrics import Labels

Volume = NDArray[np.floating[Any]]
LineStyle = Literal["solid", "dashed"]

PLANES = ("axial", "coronal", "sagittal")  # across z, y, x
# Okabe and Ito's colours, told apart in every common kind of colour blindness; the truth below, dashed lines on top
CONTOURS: dict[str, tuple[str, LineStyle]] = {
    "truth": ("#f0e442", "solid"),
    "unrefined": ("#d55e00", "solid"),
    "refined": ("#56b4e9", "dashed"),
}
INK, PAPER = "#e8e8e8", "#101010"


def contour_picture(
    image: Volume,
    labels: Mapping[str, Labels],
    spacing_mm: Sequence[float],
    structure: int | None = None,
    title: str = "",
) -> Figure:
    """Three planes of an image with the outlines of several label volumes.

    The planes cut where the chosen structure of the first label volume is largest, or the middle where it is
    empty.

    Args:
        image: (D, H, W), shown from its 1st to its 99th percentile.
        labels: name ("truth", "unrefined", "refined") to (D, H, W) whole numbers; each label value has its
            outline.
        spacing_mm: (z, y, x).
        structure: label value to cut through; None takes all of the foreground.
        title: one line above.

    Raises:
        ValueError: no labels, an unknown name, or shapes that disagree.
    """
    if not labels or not set(labels) <= set(CONTOURS):
        raise ValueError(f"labels must be named among {list(CONTOURS)}, got {list(labels)}")
    for name, volume in labels.items():
        if volume.shape != image.shape:
            raise ValueError(f"{name} must have the shape of the image {image.shape}, got {volume.shape}")
    first = next(iter(labels.values()))
    cuts = largest_slices(first > 0 if structure is None else first == structure)
    low, high = np.percentile(image, (1, 99))
    figure, panels = _three_planes(image.shape, spacing_mm, cuts, title)
    for axis, panel in enumerate(panels):
        _show(panel, image, axis, cuts[axis], spacing_mm, cmap="gray", vmin=low, vmax=high)
        for name, volume in labels.items():
            _outline(panel, volume, axis, cuts[axis], spacing_mm, name)
    lines = [Line2D([], [], color=CONTOURS[name][0], linestyle=CONTOURS[name][1], label=name) for name in labels]
    _legend(figure, lines)
    return figure


def uncertainty_picture(
    uncertainty: Volume,
    points: NDArray[np.floating[Any]],
    spacing_mm: Sequence[float],
    title: str = "",
    floor: float = -6.0,
) -> Figure:
    """Three planes of an uncertainty map with the points that were chosen in them.

    The planes cut where most points lie.

    Args:
        uncertainty: (D, H, W), second best minus best logit: 0 is a tie, lower is surer.
        points: (N, 3), (z, y, x) in the unit cube; N may be 0.
        spacing_mm: (z, y, x).
        title: one line above.
        floor: shown as the darkest value; a margin of 6 logits is a probability of .0025.

    Raises:
        ValueError: `points` is not (N, 3).
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got {points.shape}")
    shape = np.array(uncertainty.shape)
    voxels = np.clip(np.floor(points * shape).astype(int), 0, shape - 1)
    chosen = np.zeros(uncertainty.shape, bool)
    chosen[tuple(voxels.T)] = True
    cuts = largest_slices(chosen)
    figure, panels = _three_planes(uncertainty.shape, spacing_mm, cuts, title)
    for axis, panel in enumerate(panels):
        shown = _show(panel, uncertainty, axis, cuts[axis], spacing_mm, cmap="magma", vmin=floor, vmax=0.0)
        rows, columns = np.nonzero(np.take(chosen, cuts[axis], axis))
        (down, across), side = _plane_spacing(spacing_mm, axis), _dot_size(figure, shape, axis)
        panel.scatter((columns + 0.5) * across, (rows + 0.5) * down, s=side, c="#56b4e9", marker="s", linewidths=0)
    bar = figure.colorbar(shown, ax=panels, fraction=0.03, pad=0.01)
    bar.set_label("second best minus best logit", color=INK)
    bar.ax.tick_params(colors=INK)
    dot = Line2D([], [], color="#56b4e9", marker="s", linestyle="none", markersize=4, label="chosen point")
    _legend(figure, [dot])
    return figure


def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """The drawn figure: (height, width, 3), 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def largest_slices(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Per axis, the first slice that holds most voxels of `mask`; the middle one where it is empty."""
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    return tuple(int(np.count_nonzero(mask, axis=rest).argmax()) for rest in others)


def _three_planes(
    shape: Sequence[int], spacing_mm: Sequence[float], cuts: Sequence[int], title: str
) -> tuple[Figure, list[Axes]]:
    """A dark figure of three panels, as wide as their mm and equally high."""
    sizes = [np.delete(np.multiply(shape, spacing_mm), axis) for axis in range(3)]
    ratios = np.clip([width / height for height, width in sizes], 0.4, 2.5)
    height = 2.4
    figure = Figure(figsize=(float(height * ratios.sum() + 0.6), height + 0.75), dpi=110, facecolor=PAPER)
    figure.set_layout_engine("constrained")
    panels = list(figure.subplots(1, 3, width_ratios=ratios))
    if title:
        figure.suptitle(title, color=INK, fontsize=9)
    for axis, panel in enumerate(panels):
        panel.set_title(f"{PLANES[axis]}, slice {cuts[axis]}", color=INK, fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_facecolor(PAPER)
        if axis < 2:
            right = panel.text(
                0.98, 0.5, "R", color=INK, fontsize=8, ha="right", va="center", transform=panel.transAxes
            )
            right.set_path_effects([withStroke(linewidth=2, foreground=PAPER)])
    return figure, panels


def _plane_spacing(spacing_mm: Sequence[float], axis: int) -> tuple[float, float]:
    down, across = (spacing for other, spacing in enumerate(spacing_mm) if other != axis)
    return down, across


def _show(panel: Axes, volume: Volume, axis: int, cut: int, spacing_mm: Sequence[float], **style: Any) -> Any:
    """One slice, its lower left corner at 0 mm."""
    plane = np.take(volume, cut, axis)
    down, across = _plane_spacing(spacing_mm, axis)
    extent = (0, plane.shape[1] * across, 0, plane.shape[0] * down)
    return panel.imshow(plane, origin="lower", extent=extent, interpolation="nearest", **style)


def _outline(panel: Axes, labels: Labels, axis: int, cut: int, spacing_mm: Sequence[float], name: str) -> None:
    """The outline of each label value in one slice, half way between the voxel centres inside and outside."""
    # one voxel of background around, so that the outline closes where a structure leaves the image
    plane = np.pad(np.take(labels, cut, axis), 1)
    down, across = _plane_spacing(spacing_mm, axis)
    rows, columns = (np.arange(plane.shape[0]) - 0.5) * down, (np.arange(plane.shape[1]) - 0.5) * across
    colour, line = CONTOURS[name]
    for value in np.unique(plane[plane > 0]):
        panel.contour(
            columns, rows, (plane == value).astype(float), levels=[0.5], colors=colour, linestyles=line, linewidths=1.1
        )
    panel.set_xlim(0, (plane.shape[1] - 2) * across)
    panel.set_ylim(0, (plane.shape[0] - 2) * down)


def _dot_size(figure: Figure, shape: NDArray[np.integer[Any]], axis: int) -> float:
    """Area in square points of a dot of about half a voxel's height."""
    voxels_high = np.delete(shape, axis)[0]
    return float((figure.get_figheight() * 72 * 0.7 / voxels_high * 0.6) ** 2)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(
        handles=list(handles), loc="outside lower center", ncols=len(handles), fontsize=8, labelcolor=INK, frameon=False
    )
