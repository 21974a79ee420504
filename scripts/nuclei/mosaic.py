"""One picture of the study: the same nuclei side by side for every arm."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.nuclei.config import Config
from scripts.nuclei.detector import masks_in_boxes
from scripts.nuclei.images import Images, instances, normalised
from scripts.nuclei.pictures import side_by_side
from scripts.nuclei.prediction import trained_detector
from scripts.nuclei.results import Rows
from scripts.nuclei.scoring import boundary_iou
from vnet.core.files import write_bytes

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
