"""The detector of each arm: one small trunk, torchvision's Mask R-CNN, and three kinds of mask part."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from pointrend.integrations.torchvision import PointRendRoIHeads
from pointrend.sampling import PointSampling
from scripts.nuclei.config import Config

LEVELS = ("0", "1", "2")  # strides 4, 8, 16
CLASSES = 2  # background, nucleus


class Trunk(nn.Module):
    """Three levels of features by strided convolutions and a feature pyramid, trained from nothing.

    Args:
        width: channels at stride 2.
        channels: of each level.
    """

    def __init__(self, *, width: int, channels: int) -> None:
        super().__init__()
        self.out_channels = channels
        self.stem = _block(1, width, stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(_block(n, m, stride=2), _block(m, m))
            for n, m in [(width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width)]
        )
        self.pyramid = FeaturePyramidNetwork([2 * width, 4 * width, 4 * width], channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Features (B, channels, H / stride, W / stride) by level, from (B, 1, H, W)."""
        hidden, levels = self.stem(image), OrderedDict()
        for name, stage in zip(LEVELS, self.stages, strict=True):
            levels[name] = hidden = stage(hidden)
        features: dict[str, Tensor] = self.pyramid(levels)
        return features


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # group norm: a batch of two crops has no batch statistics worth the name
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(4, outputs), nn.ReLU())


class OwnPixels(GeneralizedRCNNTransform):
    """torchvision's transform without its change of size (its own switch for that counts in training alone)."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Image and target as they are."""
        return image, target


def build_detector(config: Config) -> MaskRCNN:
    """The arm's Mask R-CNN, with weights drawn from torch's global generator."""
    channels = config.channels
    detector = MaskRCNN(
        Trunk(width=config.width, channels=channels),
        rpn_anchor_generator=AnchorGenerator(((12, 24), (36, 48), (64, 96)), ((0.7, 1.0, 1.4),) * 3),
        rpn_pre_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_train=200,
        rpn_post_nms_top_n_test=200,
        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, 2),
        box_head=TwoMLPHead(channels * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, CLASSES),
        box_batch_size_per_image=32,
        box_positive_fraction=0.5,
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, 2),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, CLASSES),
    )
    detector.transform = OwnPixels(1, 1, image_mean=[0.2], image_std=[0.25])
    if config.arm != "conv28":
        PointRendRoIHeads.replace(
            detector,
            coarse_size=7 if config.arm == "pointrend7" else None,
            coarse_width=config.coarse_width,
            width=config.head_width,
            sampling=PointSampling.paper(num_points=config.num_points),
            num_points=config.refine_points,
        )
    return detector


@torch.no_grad()
def detect(detector: MaskRCNN, image: NDArray[np.float32]) -> dict[str, NDArray]:
    """Boxes (n, 4), scores (n,) and masks (n, H, W) bool of one image (H, W), best score first."""
    (found,) = detector.eval()([torch.from_numpy(image)[None]])
    masks = found["masks"][:, 0] >= 0.5
    return {"boxes": found["boxes"].numpy(), "scores": found["scores"].numpy(), "masks": masks.numpy()}


@torch.no_grad()
def masks_in_boxes(
    detector: MaskRCNN, image: NDArray[np.float32], boxes: NDArray[np.float32], *, refine: bool = True
) -> NDArray[np.bool_]:
    """Masks (n, H, W) of given boxes (n, 4) of one image (H, W); the detector's own boxes play no part.

    Args:
        refine: False leaves out the point head: pixels are labelled by the coarse logits alone.
    """
    features, shapes = features_of(detector, image)
    return masks_from_features(detector, features, torch.from_numpy(boxes), shapes, refine=refine)


def features_of(detector: MaskRCNN, image: NDArray[np.float32]) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """The pyramid of one image, and its size in pixels."""
    images, _ = detector.eval().transform([torch.from_numpy(image)[None]])
    return detector.backbone(images.tensors), images.image_sizes


def masks_from_features(
    detector: MaskRCNN,
    features: dict[str, Tensor],
    boxes: Tensor,
    shapes: list[tuple[int, int]],
    *,
    refine: bool = True,
) -> NDArray[np.bool_]:
    """The mask part alone: (n, H, W) from the pyramid of one image."""
    heads, labels = detector.roi_heads, [torch.ones(len(boxes), dtype=torch.int64)]
    if not isinstance(heads, PointRendRoIHeads):
        logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, [boxes], shapes)))
        soft = paste_masks_in_image(maskrcnn_inference(logits, labels)[0], boxes, shapes[0])[:, 0]
        return (soft >= 0.5).numpy()
    asked = heads.num_points
    heads.num_points = asked if refine else 0
    try:
        (pending,) = heads.pending_masks(features, [boxes], labels, shapes)
        return pending.refine(shapes[0]).paste(shapes[0]).bool().numpy()
    finally:
        heads.num_points = asked
