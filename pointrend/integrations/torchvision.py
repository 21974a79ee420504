"""PointRend on any Mask R-CNN of torchvision: its mask parts replaced, its training and its output format kept.

    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from pointrend.integrations.torchvision import PointRendRoIHeads

    detector = maskrcnn_resnet50_fpn(weights=None)
    PointRendRoIHeads.replace(detector)

Needs the `detection` extra. The detector then trains with `loss_mask` (of the coarse logits) and `loss_mask_point`
beside torchvision's other losses, and predicts boxes, labels, scores and masks as before. Masks are labelled on the
image's own pixels, from boxes that keep their fractions of a pixel: torchvision casts boxes to integers before it
pastes a 28 x 28 mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from pointrend.refine import PointRend
from pointrend.roi import Boxes, BoxRefinement, CoarseMaskHead, box_training_logits, refine_boxes, roi_align
from pointrend.sampling import PointSampling

PAPER_SAMPLING = PointSampling.paper(num_points=14 * 14)  # per box, with the paper's k and beta
PAPER_POINTS = 28 * 28  # asked about per box in prediction


class GridPool(nn.Module):
    """Features of one pyramid level at a regular grid in each box: the input of the paper's coarse head.

    It is called as torchvision's `MultiScaleRoIAlign`, without that one's shift by half a voxel of the feature map.

    Args:
        name: of the level, the finest one in the paper.
        size: points per axis of the grid.
        samples: points per bin and axis that are averaged; 1 reads the bin's centre.
    """

    def __init__(self, name: str = "0", size: int = 14, samples: int = 1) -> None:
        super().__init__()
        self.name, self.size, self.samples = name, size, samples

    def forward(
        self, features: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """(R, C, size, size) for boxes (n, 4), x1 y1 x2 y2 in pixels, of each image."""
        level = features[self.name]
        unit = unit_boxes(boxes, padded_size(level, image_shapes))
        return roi_align(level, unit, (self.size, self.size), self.samples)


@dataclass(frozen=True)
class PendingMasks:
    """Masks of one image before its own size is known: the transform makes them last."""

    heads: PointRendRoIHeads
    coarse: Tensor  # (R, K, *coarse)
    features: Mapping[str, Tensor]  # (1, C, *spatial) by name
    boxes: Boxes
    extent: tuple[float, float]  # share of the padded batch image that this image fills

    def refine(self, size: Sequence[int]) -> BoxRefinement:
        """Labels and log-odds of the boxes on the image's own pixels."""
        heads = self.heads
        coarse, boxes = heads.class_logits(self.coarse, self.boxes)
        return refine_boxes(
            heads.point_rend,
            coarse,
            self.features,
            None,
            size,
            boxes,
            num_points=heads.num_points,
            extent=self.extent,
            steps=heads.steps,
        )


class PointRendRoIHeads(RoIHeads):
    """torchvision's RoI heads with a point head: boxes and their losses are torchvision's, masks are PointRend's.

    Args:
        heads: those of a Mask R-CNN; their parts are shared, not copied.
        point_rend: reads pyramid levels by their names in the detector's backbone. It has as many classes as the
            detector, or 2 with `class_agnostic`.
        coarse: gives logits (R, K, size, size) from the features of the pool, as `CoarseMaskHead`; None takes the
            convolution head of `heads` (28 x 28).
        coarse_pool: called as `MultiScaleRoIAlign`; None takes that of `heads`.
        num_points: asked about per box in prediction; 0 labels pixels by the coarse logits alone.
        steps: 1 asks about pixels of the image; 4 is the paper's subdivision 28 -> 56 -> 112 -> 224.
        class_agnostic: the point head reads and gives one mask logit; else one per class.
        generator: draws the training points; None is torch's global one.

    Raises:
        ValueError: a class-agnostic point head of other than 2 classes.
    """

    def __init__(
        self,
        heads: RoIHeads,
        point_rend: PointRend,
        *,
        coarse: nn.Module | None = None,
        coarse_pool: nn.Module | None = None,
        num_points: int = PAPER_POINTS,
        steps: int = 1,
        class_agnostic: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            heads.proposal_matcher.high_threshold,
            heads.proposal_matcher.low_threshold,
            heads.fg_bg_sampler.batch_size_per_image,
            heads.fg_bg_sampler.positive_fraction,
            heads.box_coder.weights,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            keypoint_roi_pool=heads.keypoint_roi_pool,
            keypoint_head=heads.keypoint_head,
            keypoint_predictor=heads.keypoint_predictor,
        )
        self.coarse = coarse if coarse is not None else nn.Sequential(heads.mask_head, heads.mask_predictor)
        self.coarse_pool = coarse_pool if coarse_pool is not None else heads.mask_roi_pool
        self.point_rend, self.num_points, self.steps = point_rend, num_points, steps
        self.class_agnostic, self.generator = class_agnostic, generator
        if class_agnostic and point_rend.classes != 2:
            raise ValueError(f"a class-agnostic point head must have 2 classes, got {point_rend.classes}")

    @classmethod
    def replace(
        cls,
        detector: MaskRCNN,
        *,
        levels: Sequence[str] = ("0",),
        coarse_size: int | None = None,
        coarse_width: int = 1024,
        width: int = 256,
        layers: int = 3,
        sampling: PointSampling = PAPER_SAMPLING,
        num_points: int = PAPER_POINTS,
        steps: int = 1,
        class_agnostic: bool = False,
        generator: torch.Generator | None = None,
    ) -> PointRendRoIHeads:
        """Replace the mask parts of a detector in place.

        Args:
            detector: a Mask R-CNN of torchvision, of any backbone with `out_channels`.
            levels: names of the pyramid levels that the point head reads.
            coarse_size: None keeps the detector's convolution head for the coarse logits; 7 takes the paper's light
                head of 7 x 7 bins on the first of `levels`.
            coarse_width: of that light head.
            width: of the point head.
            layers: of the point head.
            sampling: how training points are drawn in each box.
            num_points, steps, class_agnostic, generator: as in the constructor.

        Returns:
            The new heads, which `detector.roi_heads` now is.

        Raises:
            ValueError: a detector without mask parts.
        """
        if not detector.roi_heads.has_mask():
            raise ValueError("the detector has no mask parts to replace; build a Mask R-CNN")
        channels = detector.backbone.out_channels
        classes = _mask_classes(detector.roi_heads)
        point_rend = PointRend(
            classes=2 if class_agnostic else classes,
            features=dict.fromkeys(levels, channels),
            width=width,
            layers=layers,
            ndim=2,
            sampling=sampling,
        )
        coarse, pool = None, None
        if coarse_size is not None:
            coarse = CoarseMaskHead(channels=channels, classes=classes, size=coarse_size, width=coarse_width)
            pool = GridPool(levels[0], 2 * coarse_size)
        heads = cls(
            detector.roi_heads,
            point_rend,
            coarse=coarse,
            coarse_pool=pool,
            num_points=num_points,
            steps=steps,
            class_agnostic=class_agnostic,
            generator=generator,
        )
        detector.roi_heads = heads
        if not isinstance(detector.transform, LateMasks):
            detector.transform = LateMasks(detector.transform)
        return heads

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """As torchvision's; `masks` of a result are `PendingMasks` until the transform has the image's own size."""
        if self.training:
            self.check_targets(targets)
            _check_fit(targets or [], image_shapes)
        result, losses = super().forward(features, proposals, image_shapes, targets)
        if self.training:
            assert targets is not None
            losses |= self._mask_losses(features, image_shapes, targets)
        else:
            boxes, labels = [one["boxes"] for one in result], [one["labels"] for one in result]
            for one, pending in zip(result, self.pending_masks(features, boxes, labels, image_shapes), strict=True):
                one["masks"] = pending
        return result, losses

    def check_targets(self, targets: list[dict[str, Tensor]] | None) -> None:
        """Refuse targets that the losses cannot use, naming the image.

        Raises:
            ValueError: masks that are missing or not one per box.
        """
        super().check_targets(targets)
        for row, target in enumerate(targets or ()):
            masks, boxes = target.get("masks"), target["boxes"]
            if masks is None or masks.ndim != 3 or len(masks) != len(boxes):
                found = None if masks is None else tuple(masks.shape)
                raise ValueError(f"targets[{row}]: masks must be ({len(boxes)}, H, W), one per box, got {found}")

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """torchvision's choice of proposals, kept for the mask losses of this step."""
        chosen = super().select_training_samples(proposals, targets)
        self._chosen = chosen[:3]
        return chosen

    def pending_masks(
        self,
        features: Mapping[str, Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> list[PendingMasks]:
        """Masks of given boxes (n, 4), x1 y1 x2 y2 in pixels, and labels (n,) of each image, to be refined."""
        coarse = self.coarse(self.coarse_pool(features, boxes, image_shapes))
        size = padded_size(next(iter(features.values())), image_shapes)
        pending = []
        for row, logits in enumerate(coarse.split([len(some) for some in boxes])):
            own = unit_boxes([boxes[row]], size, category=labels[row])
            maps = {name: features[name][row, None] for name in self.point_rend.feature_names}
            extent = (image_shapes[row][0] / size[0], image_shapes[row][1] / size[1])
            pending.append(PendingMasks(self, logits, maps, own, extent))
        return pending

    def class_logits(self, coarse: Tensor, boxes: Boxes) -> tuple[Tensor, Boxes]:
        """Coarse logits and boxes as the point head takes them: one logit per class, or 0 and the label's own."""
        if not self.class_agnostic:
            return coarse, boxes
        plain = Boxes(corners=boxes.corners, sample=boxes.sample, target=boxes.target)
        return boxes.mask_logits(coarse), plain

    def _mask_losses(
        self, features: Mapping[str, Tensor], image_shapes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        proposals, matched, labels = self._chosen
        del self._chosen
        positive = [(label > 0).nonzero()[:, 0] for label in labels]
        boxes = [box[rows] for box, rows in zip(proposals, positive, strict=True)]
        coarse = self.coarse(self.coarse_pool(features, boxes, image_shapes))
        size = padded_size(next(iter(features.values())), image_shapes)
        totals = [coarse.sum() * 0, coarse.sum() * 0]
        for row, logits in enumerate(coarse.split([len(some) for some in boxes])):
            if not len(logits):
                continue
            masks = _padded(targets[row]["masks"], size)
            unit = unit_boxes([boxes[row]], size, matched[row][positive[row]], labels[row][positive[row]])
            bins = Boxes(corners=unit.corners, sample=unit.targets(len(masks)))
            coverage = roi_align(masks[:, None].to(logits.dtype), bins, logits.shape[2:])[:, 0]
            own = unit.mask_logits(logits)[:, 1]
            totals[0] = totals[0] + F.binary_cross_entropy_with_logits(own, coverage, reduction="sum")
            maps = {name: features[name][row, None] for name in self.point_rend.feature_names}
            given, unit = self.class_logits(logits, unit)
            _, at_points, truth = box_training_logits(
                self.point_rend, given, maps, None, masks, unit, generator=self.generator
            )
            totals[1] = totals[1] + F.cross_entropy(at_points, truth, reduction="sum")
        count = max(len(coarse), 1)
        bins_per_box, points_per_box = math.prod(coarse.shape[2:]), max(self.point_rend.sampling.num_points, 1)
        return {
            "loss_mask": totals[0] / (count * bins_per_box),
            "loss_mask_point": totals[1] / (count * points_per_box),
        }


def _check_fit(targets: Sequence[Mapping[str, Tensor]], image_shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse masks of another size than their image, and boxes outside of it.

    Raises:
        ValueError: the first of them.
    """
    for row, (target, (height, width)) in enumerate(zip(targets, image_shapes, strict=True)):
        if tuple(target["masks"].shape[1:]) != (height, width):
            found = tuple(target["masks"].shape[1:])
            raise ValueError(f"targets[{row}]: masks must have the size of their image, {(height, width)}, got {found}")
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        outside = (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)
        if outside.any():
            box = int(outside.nonzero()[0])
            corners = [round(value, 1) for value in target["boxes"][box].tolist()]
            raise ValueError(
                f"targets[{row}]: box {box} lies outside of its image of {width} x {height}, got {corners}"
            )


class LateMasks(nn.Module):
    """A detector's transform that makes the masks last, on each image's own pixels."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner transform's forward."""
        return self.transform(*args, **kwargs)

    def postprocess(
        self, result: list[dict[str, Any]], image_shapes: list[tuple[int, int]], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes in the image's own pixels, and masks (n, 1, H, W): float32 probabilities, 0 outside of the boxes."""
        pending = [one.pop("masks", None) for one in result]
        done: list[dict[str, Tensor]] = self.transform.postprocess(result, image_shapes, sizes)  # type: ignore[operator]
        for one, masks, size in zip(done, pending, sizes, strict=False):  # training has no results
            if masks is not None:
                one["masks"] = masks.refine(size).probabilities(size)[:, None]
        return done


def unit_boxes(
    boxes: Sequence[Tensor], size: Sequence[int], target: Tensor | None = None, category: Tensor | None = None
) -> Boxes:
    """torchvision's boxes as PointRend's.

    Args:
        boxes: per image (n, 4), x1 y1 x2 y2 in pixels.
        size: (H, W) of the padded batch image, whose unit cube the features span.
        target: as in `Boxes`.
        category: as in `Boxes`.
    """
    joined = torch.cat(list(boxes))
    height, width = size
    scale = joined.new_tensor([height, width, height, width])
    sample = torch.cat([torch.full((len(some),), row, device=joined.device) for row, some in enumerate(boxes)])
    return Boxes(corners=joined[:, [1, 0, 3, 2]] / scale, sample=sample, target=target, category=category)


def padded_size(level: Tensor, image_shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(H, W) in pixels of the padded batch image, from a feature map (B, C, h, w) of it.

    The stride is the power of two that fits best, as torchvision infers it.
    """
    largest = [max(shape[axis] for shape in image_shapes) for axis in (0, 1)]
    strides = [2 ** round(math.log2(pixels / n)) for pixels, n in zip(largest, level.shape[2:], strict=True)]
    return level.shape[2] * strides[0], level.shape[3] * strides[1]


def _padded(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, H, W) continued by 0 to the padded batch image."""
    height, width = masks.shape[1:]
    return F.pad(masks, (0, size[1] - width, 0, size[0] - height))


def _mask_classes(heads: RoIHeads) -> int:
    """Channels of the mask predictor: its last layer that has some."""
    layers = [layer for layer in heads.mask_predictor.modules() if hasattr(layer, "out_channels")]
    if not layers:
        raise ValueError("mask_predictor must end in a convolution, whose channels are the classes")
    return int(layers[-1].out_channels)
