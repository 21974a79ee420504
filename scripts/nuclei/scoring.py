"""Scores of instance masks: average precision by pycocotools, boundary IoU, and IoU at true boxes."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from torchvision.models.detection import MaskRCNN

from pointrend.integrations.torchvision import PointRendRoIHeads
from scripts.nuclei.config import Config
from scripts.nuclei.detector import detect, features_of, masks_from_features
from scripts.nuclei.images import Images, instances, normalised
from vnet.core.hardware import peak_memory_mib, reset_peak_memory

Masks = NDArray[np.bool_]  # (n, H, W)


def boundary(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) within `pixels` of its edge (chessboard distance); the image's edge is one."""
    inside = np.zeros_like(mask)
    y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(y):
        place = (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))
        inside[place] = ndimage.binary_erosion(mask[place], np.ones((3, 3)), iterations=pixels)
    return mask & ~inside


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Shared pixels over all pixels of two masks; 1 where both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def boundary_iou(first: NDArray[np.bool_], second: NDArray[np.bool_], pixels: int) -> float:
    """IoU of the two boundaries (Cheng et al. 2021, arXiv 2103.16562)."""
    return iou(boundary(first, pixels), boundary(second, pixels))


class _Evaluation(COCOeval):
    """pycocotools' evaluation of masks of one category, over all areas, with at most 100 detections an image."""

    def __init__(self, truth: COCO, found: COCO) -> None:
        super().__init__(truth, found, "segm")
        self.evalImgs: list = []
        self.params.areaRng, self.params.areaRngLbl, self.params.maxDets = [[0, 1e10]], ["all"], [100]

    def precision_over(self, images: Sequence[int]) -> float:
        """AP over .50:.05:.95 of some images (rows), each counted as a new one; NaN where no instance is."""
        kept, rows, self.evalImgs = self.evalImgs, self.params.imgIds, [self.evalImgs[row] for row in images]
        self.params.imgIds = self._paramsEval.imgIds = list(range(len(images)))
        try:
            self.accumulate()
        finally:
            self.evalImgs, self.params.imgIds, self._paramsEval.imgIds = kept, rows, rows
        precision = self.eval["precision"]
        return float(precision[precision > -1].mean()) if (precision > -1).any() else float("nan")


class _BoundaryEvaluation(_Evaluation):
    """The smaller of mask IoU and boundary IoU in place of mask IoU, as the paper's AP at boundary has it."""

    def __init__(self, truth: COCO, found: COCO, true_edges: list, found_edges: list) -> None:
        super().__init__(truth, found)
        self.true_edges, self.found_edges = true_edges, found_edges

    def computeIoU(self, imgId: int, catId: int) -> NDArray | list:
        ious = super().computeIoU(imgId, catId)
        if not len(ious):
            return ious
        found = sorted(self._dts[imgId, catId], key=lambda one: -one["score"])[: self.params.maxDets[-1]]
        first = [self.found_edges[one["id"] - 1] for one in found]
        second = [self.true_edges[one["id"] - 1] for one in self._gts[imgId, catId]]
        return np.minimum(ious, rle.iou(first, second, [0] * len(second)))


def average_precision(
    truth: Sequence[Masks], found: Sequence[Masks], scores: Sequence[NDArray], boundaries: Mapping[str, int]
) -> dict[str, list[float]]:
    """Mask AP and AP at boundary, over .50:.05:.95.

    Args:
        truth: per image the true masks.
        found: per image the predicted masks.
        scores: per image their scores.
        boundaries: widths of the boundary in pixels, by the name of the AP.

    Returns:
        `ap` and those of `boundaries`: first over all images together, then of each image by itself.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every stage
        known, guessed = _dataset(truth), _dataset(found, scores)
        evaluations: dict[str, _Evaluation] = {"ap": _Evaluation(known, guessed)}
        for name, pixels in boundaries.items():
            edges = [[_encoded(boundary(mask, pixels)) for some in masks for mask in some] for masks in (truth, found)]
            evaluations[name] = _BoundaryEvaluation(known, guessed, *edges)
        results = {}
        for name, evaluation in evaluations.items():
            evaluation.evaluate()
            rows = range(len(truth))
            results[name] = [evaluation.precision_over(rows), *(evaluation.precision_over([row]) for row in rows)]
    return results


def _dataset(masks: Sequence[Masks], scores: Sequence[NDArray] | None = None) -> COCO:
    """Masks of each image as pycocotools' data set; ids count from 1, in order."""
    annotations: list[dict] = []
    for image, some in enumerate(masks):
        for row, mask in enumerate(some):
            one: dict = {"image_id": image, "category_id": 1, "id": len(annotations) + 1, "iscrowd": 0}
            one |= {"segmentation": _encoded(mask), "area": int(mask.sum())}
            annotations.append(one | ({} if scores is None else {"score": float(scores[image][row])}))
    coco = COCO()
    coco.dataset = {
        "images": [
            dict(zip(("id", "height", "width"), (i, *some.shape[1:]), strict=True)) for i, some in enumerate(masks)
        ],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _encoded(mask: NDArray[np.bool_]) -> dict:
    encoded: dict = rle.encode(np.asfortranarray(mask, np.uint8))
    return encoded


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
