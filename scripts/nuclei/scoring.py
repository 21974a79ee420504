"""Scores of instance masks: average precision by pycocotools, boundary IoU, and IoU at true boxes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

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
