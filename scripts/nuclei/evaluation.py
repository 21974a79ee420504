"""Score a detector on images: detections against the truth, and masks at true boxes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from vnet.core.hardware import peak_memory_mib, reset_peak_memory

Rows = list[dict[str, Any]]


def score_detections(
    detector: MaskRCNN,
    shades: Sequence[NDArray],
    labels: Sequence[NDArray[np.int32]],
    boundaries: Mapping[str, int],
) -> tuple[dict[str, list[float]], list[dict[str, NDArray]]]:
    """`average_precision` of the detector, and what it found in each image."""
    found = [detect(detector, shade) for shade in shades]
    truth = [instances(label)[0] for label in labels]
    masks, scores = [one["masks"] for one in found], [one["scores"] for one in found]
    return average_precision(truth, masks, scores, boundaries), found


def score_images(config: Config, detector: MaskRCNN, images: Images, rows: Sequence[int]) -> tuple[Rows, Rows]:
    """Scores of some images, with the point head and, where there is one, without it.

    Returns:
        A row per image (`image`, `refined`, `ap`, `boundary_ap` and `wide_boundary_ap`
        of a boundary of `boundary_pixels` and of 2 % of the diagonal, and the means over its nuclei at true boxes
        `mask_iou`, `boundary_iou`, with `nuclei`, `mask_seconds`, `mask_memory_mib`), one of `image` all among them
        with the AP over all images; and a row per nucleus (`image`, `refined`, `nucleus`, `diameter_pixels`,
        `mask_iou`, `boundary_iou`).
    """
    cases: Rows = []
    nuclei: Rows = []
    shades, labels = [normalised(images.images[i]) for i in rows], [images.labels[i] for i in rows]
    # the paper's width is 2 % of the image's diagonal
    diagonal = float(np.hypot(*images.images.shape[1:]))
    boundaries = {"boundary_ap": config.boundary_pixels, "wide_boundary_ap": round(0.02 * diagonal)}
    heads = detector.roi_heads
    has_points = isinstance(heads, PointRendRoIHeads)
    for refined in (False, True) if has_points else (False,):
        asked = heads.num_points if has_points else 0
        if has_points:
            heads.num_points = asked if refined else 0
        try:
            scores, _ = score_detections(detector, shades, labels, boundaries)
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
    """A row per nucleus of one image, its mask predicted in its true box; and the cost of the mask part.

    The cost is of all nuclei of the image: `mask_seconds` of the processor, and `mask_memory_mib`, the rise of the peak
    of resident memory (0 where the system cannot tell).
    """
    truth, boxes = instances(label)
    with torch.no_grad():
        features, shapes = features_of(detector, shade)
        reset_peak_memory()
        held = peak_memory_mib()
        masks = masks_from_features(detector, features, torch.from_numpy(boxes), shapes)
        memory = peak_memory_mib() - held
        # once more for the time: after a release of memory every page is fresh, and slow
        started = time.process_time()
        masks_from_features(detector, features, torch.from_numpy(boxes), shapes)
        cost = {"mask_seconds": time.process_time() - started, "mask_memory_mib": memory}
    values = np.unique(label[label > 0])
    rows = []
    for value, mask, guess in zip(values, truth, masks, strict=True):
        row: dict[str, Any] = {"nucleus": int(value), "diameter_pixels": 2 * float(np.sqrt(mask.sum() / np.pi))}
        row |= {"mask_iou": iou(mask, guess), "boundary_iou": boundary_iou(mask, guess, config.boundary_pixels)}
        rows.append(row)
    return rows, cost
