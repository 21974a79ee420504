"""Score a detector on images: detections against the truth, and masks at true boxes."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import MaskRCNN

from pointrend.integrations.torchvision import PointRendRoIHeads
from scripts.nuclei.config import Config
from scripts.nuclei.detector import detect, features_of, masks_from_features
from scripts.nuclei.images import Images, instances, normalised
from scripts.nuclei.scoring import average_precision, boundary_iou, iou

Rows = list[dict[str, Any]]


def score_detections(
    config: Config, detector: MaskRCNN, shades: Sequence[NDArray], labels: Sequence[NDArray[np.int32]]
) -> tuple[dict[str, list[float]], list[dict[str, NDArray]]]:
    """`average_precision` of the detector, and what it found in each image."""
    found = [detect(detector, shade) for shade in shades]
    truth = [instances(label)[0] for label in labels]
    masks, scores = [one["masks"] for one in found], [one["scores"] for one in found]
    return average_precision(truth, masks, scores, pixels=config.boundary_pixels), found


def score_images(config: Config, detector: MaskRCNN, images: Images, rows: Sequence[int]) -> tuple[Rows, Rows]:
    """Scores of some images, with the point head and, where there is one, without it.

    Returns:
        A row per image (`image`, `refined`, `ap`, `boundary_ap`, and the means over its nuclei at true boxes
        `mask_iou`, `boundary_iou`, with `nuclei`, `mask_seconds`, `mask_memory_mib`), one of `image` all among them
        with the AP over all images; and a row per nucleus (`image`, `refined`, `nucleus`, `diameter_pixels`,
        `mask_iou`, `boundary_iou`).
    """
    cases: Rows = []
    nuclei: Rows = []
    shades, labels = [normalised(images.images[i]) for i in rows], [images.labels[i] for i in rows]
    heads = detector.roi_heads
    has_points = isinstance(heads, PointRendRoIHeads)
    for refined in (False, True) if has_points else (False,):
        asked = heads.num_points if has_points else 0
        if has_points:
            heads.num_points = asked if refined else 0
        try:
            scores, _ = score_detections(config, detector, shades, labels)
            cases.append({"image": "all", "refined": refined} | {key: values[0] for key, values in scores.items()})
            for row, shade, label in zip(range(len(rows)), shades, labels, strict=True):
                name = images.names[rows[row]]
                own, cost = score_true_boxes(config, detector, shade, label)
                nuclei += [{"image": name, "refined": refined} | one for one in own]
                case: dict[str, Any] = {"image": name, "refined": refined, "nuclei": len(own)}
                case |= {key: values[row + 1] for key, values in scores.items()}
                case |= {key: float(np.mean([one[key] for one in own])) for key in ("mask_iou", "boundary_iou")}
                cases.append(case | cost)
        finally:
            if has_points:
                heads.num_points = asked
    return cases, nuclei


def score_true_boxes(
    config: Config, detector: MaskRCNN, shade: NDArray[np.float32], label: NDArray[np.int32]
) -> tuple[Rows, dict[str, float]]:
    """A row per nucleus of one image, its mask predicted in its true box; and the cost of the mask part."""
    truth, boxes = instances(label)
    with torch.no_grad():
        features, shapes = features_of(detector, shade)
        before = resident_mib(reset=True)
        started = time.process_time()
        masks = masks_from_features(detector, features, torch.from_numpy(boxes), shapes)
        cost = {"mask_seconds": time.process_time() - started, "mask_memory_mib": max(resident_mib() - before, 0.0)}
    values = np.unique(label[label > 0])
    rows = []
    for value, mask, guess in zip(values, truth, masks, strict=True):
        row: dict[str, Any] = {"nucleus": int(value), "diameter_pixels": 2 * float(np.sqrt(mask.sum() / np.pi))}
        row |= {"mask_iou": iou(mask, guess), "boundary_iou": boundary_iou(mask, guess, config.boundary_pixels)}
        rows.append(row)
    return rows, cost


def resident_mib(*, reset: bool = False) -> float:
    """Highest resident memory of this process, since the last reset where the system can forget (Linux)."""
    status, switch = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if reset:
        switch.write_text("5")  # the peak falls to what is resident now
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10
