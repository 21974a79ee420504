"""Pictures of masks: outlines over the image, and the same nuclei side by side for every arm."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.nuclei.config import Config
from scripts.nuclei.detector import masks_in_boxes, trained_detector
from scripts.nuclei.images import Images, instances, normalised
from scripts.nuclei.scoring import Rows, boundary_iou
from vnet.core.files import write_bytes

TRUTH, FOUND = (80, 220, 120), (255, 90, 90)
SHADE = 0.9  # of the brightest pixels of a picture


def outlined(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], label: NDArray[np.int32] | None = None
) -> NDArray[np.uint8]:
    """(H, W, 3) image with the outlines of masks (n, H, W) in red and of an instance map in green."""
    bright = np.clip(image / max(float(np.percentile(image, 99.8)), 1.0), 0, 1)
    picture = np.repeat((255 * SHADE * np.sqrt(bright)).astype(np.uint8)[..., None], 3, axis=2)
    if label is not None:
        for value in np.unique(label[label > 0]):
            picture[_edge(label == value)] = TRUTH
    for mask in masks:
        picture[_edge(mask)] = FOUND
    return picture


def side_by_side(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> Any:
    """A figure with a row a nucleus: its image, then per arm the truth in green and the arm's outline in red.

    Args:
        rows: each with `image` (h, w) uint8, `truth` (h, w) bool, `title`, and by arm a mask (h, w) bool.
        arms: in the order of the columns.
    """
    from matplotlib.figure import Figure  # not pyplot: a figure without a window, and none is kept

    figure = Figure(figsize=(2.2 * (1 + len(arms)), 2.3 * len(rows)))
    axes = figure.subplots(len(rows), 1 + len(arms), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        line[0].imshow(row["image"], cmap="gray", interpolation="nearest")
        line[0].set_ylabel(row["title"], fontsize=8)
        for panel, arm in zip(line[1:], arms, strict=True):
            panel.imshow(row["image"], cmap="gray", interpolation="nearest")
            for mask, colour in ((row["truth"], "#50dc78"), (row[arm], "#ff5a5a")):
                _trace(panel, mask, colour)
            panel.set_xlabel(f"boundary IoU {row[arm + '_boundary_iou']:.2f}", fontsize=8)
    for panel, title in zip(axes[0], ["image", *arms], strict=True):
        panel.set_title(title, fontsize=9)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    figure.tight_layout()
    return figure


def _trace(panel: Any, mask: NDArray[np.bool_], colour: str) -> None:
    """The outline of a mask along the edges of its pixels."""
    padded = np.pad(mask, 1)
    across = np.argwhere(padded[:, 1:] != padded[:, :-1])
    down = np.argwhere(padded[1:] != padded[:-1])
    # pixel i of the mask is i + 1 of the padded one, and lies from i - 0.5 to i + 0.5 of the panel
    lines = [((x - 0.5, y - 1.5), (x - 0.5, y - 0.5)) for y, x in across]
    lines += [((x - 1.5, y - 0.5), (x - 0.5, y - 0.5)) for y, x in down]
    from matplotlib.collections import LineCollection

    panel.add_collection(LineCollection(lines, colors=colour, linewidths=1.1))


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside = mask.copy()
    for axis in (0, 1):
        inside &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return mask & ~inside


QUANTILES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)  # of the diameter: which nuclei are shown is not chosen by hand
AROUND = 4  # pixels of background


def draw_mosaic(config: Config, images: Images, split: Rows, path: Path) -> bool:
    """Draw nuclei of the test images, in their true boxes, by the first seed's runs; False where one is missing."""
    runs = {arm: replace(config, arm=arm, seed=config.seeds[0]).folder for arm in config.arms}
    if not all((folder / "checkpoints" / "last.ckpt").is_file() for folder in runs.values()):
        return False
    detectors = {arm: trained_detector(folder) for arm, folder in runs.items()}
    rows = []
    for image, box, mask in chosen_nuclei(images, [str(row["image"]) for row in split if row["part"] == "test"]):
        x1, y1, x2, y2 = box.astype(int)
        place = (
            slice(max(y1 - AROUND, 0), y2 + AROUND),
            slice(max(x1 - AROUND, 0), x2 + AROUND),
        )
        row: dict[str, Any] = {"image": images.images[image][place], "truth": mask[place]}
        row["title"] = f"{images.names[image]}\n{2 * np.sqrt(mask.sum() / np.pi):.0f} pixels across"
        for arm, detector in detectors.items():
            guess = masks_in_boxes(detector, normalised(images.images[image]), box[None])[0]
            row |= {arm: guess[place], f"{arm}_boundary_iou": boundary_iou(mask, guess, config.boundary_pixels)}
        rows.append(row)
    buffer = io.BytesIO()
    side_by_side(rows, list(detectors)).savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())
    return True


def chosen_nuclei(images: Images, names: list[str]) -> list[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """Row of the image, box and mask of the nuclei at `QUANTILES` of the diameter."""
    nuclei = []
    for name in names:
        masks, boxes = instances(images.labels[images.index(name)])
        nuclei += [(images.index(name), box, mask) for box, mask in zip(boxes, masks, strict=True)]
    nuclei.sort(key=lambda one: int(one[2].sum()))
    return [nuclei[round(q * (len(nuclei) - 1))] for q in QUANTILES]
