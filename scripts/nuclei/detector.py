"""The detector of each arm: one small trunk, torchvision's Mask R-CNN, and three kinds of mask part.

Its weights are kept in checkpoints. A trained one finds instances in images, or masks in given boxes, and labels the
images of a file.
"""

from __future__ import annotations

import csv
import io
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
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
from scripts.nuclei.images import normalised, read_arrays
from vnet.core.errors import InputError
from vnet.core.files import write_bytes, write_table

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


def save_checkpoint(
    path: Path, averaged: AveragedModel, detector: MaskRCNN, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Everything that is needed to continue; random numbers are functions of seed and step."""
    parts = {"averaged": averaged, "model": detector, "optimizer": optimizer}
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(
    path: Path,
    averaged: AveragedModel,
    detector: MaskRCNN | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> int:
    """Steps done; 0 where there is no checkpoint."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    averaged.load_state_dict(state["averaged"])
    if detector is not None and optimizer is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def trained_detector(run: Path) -> MaskRCNN:
    """The detector of a run with its last weights, in evaluation mode."""
    checkpoint, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    if not (checkpoint.is_file() and config.is_file()):
        raise InputError(
            f"{run}: not a trained run (no config.yaml and checkpoints/last.ckpt); name RUN_ROOT/NAME/ARM/seedS"
        )
    keys = yaml.safe_load(config.read_text(encoding="utf-8"))
    known = {item.name for item in fields(Config)}
    torch.manual_seed(0)
    detector = build_detector(Config(**{key: value for key, value in keys.items() if key in known}))
    averaged = AveragedModel(detector)
    load_checkpoint(checkpoint, averaged)
    trained: MaskRCNN = averaged.module
    return trained.eval()


def predict_file(run: Path, file: Path, output: Path, *, boxes: Path | None = None, score: float = 0.5) -> int:
    """Write NAME.png (uint16, instance k has the value k) of each image of a file, and instances.csv; the count.

    Args:
        run: RUN_ROOT/NAME/ARM/seedS.
        file: .npz of `names` and `images`; labels are not read.
        output: a folder.
        boxes: CSV of image, x1, y1, x2, y2 in pixels, at least one a named image; None detects boxes.
        score: lowest score of a detection.

    Raises:
        InputError: not a run, not such a file, an image without a box, a box outside of its image.
    """
    detector = trained_detector(run)
    names, images = read_arrays(file, ("names", "images"))
    if images.ndim != 3 or images.dtype != np.uint8 or len(names) != len(images):
        raise InputError(f"{file}: needs uint8 images (N, H, W) and N names, got {images.dtype} {images.shape}")
    given = None if boxes is None else read_boxes(boxes, [str(name) for name in names], images.shape[1:])
    rows = []
    for name, image in zip(map(str, names), images, strict=True):
        shade = normalised(image)
        if given is None:
            found = detect(detector, shade)
            kept = found["scores"] >= score
            corners, masks, scores = found["boxes"][kept], found["masks"][kept], found["scores"][kept]
        else:
            corners = given[name]
            masks, scores = masks_in_boxes(detector, shade, corners), np.ones(len(corners))
        write_map(output / f"{name}.png", masks)
        for number, (box, own, mask) in enumerate(zip(corners, scores, masks, strict=True), start=1):
            row = {"image": name, "instance": number, "score": float(own), "pixels": int(mask.sum())}
            rows.append(row | {key: float(edge) for key, edge in zip(("x1", "y1", "x2", "y2"), box, strict=True)})
    columns = ("image", "instance", "score", "pixels", "x1", "y1", "x2", "y2")
    write_table(output / "instances.csv", rows, columns)
    return len(images)


def read_boxes(path: Path, names: list[str], size: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Boxes (n, 4), x1 y1 x2 y2 in pixels, of each image.

    Raises:
        InputError: a line for each fault.
    """
    columns = ("x1", "y1", "x2", "y2")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a CSV of image,{','.join(columns)}") from None
    if not lines or not {"image", *columns} <= set(lines[0]):
        raise InputError(f"{path}: needs a head image,{','.join(columns)} and a line per box")
    boxes: dict[str, list[list[float]]] = {name: [] for name in names}
    faults = []
    for number, line in enumerate(lines, start=2):
        try:
            box = [float(line[key]) for key in columns]
        except (TypeError, ValueError):
            faults.append(f"{path}: line {number}: {','.join(columns)} must be numbers")
            continue
        if line["image"] not in boxes:
            faults.append(f"{path}: line {number}: no image {line['image']} in the input")
        elif not (box[0] < box[2] and box[1] < box[3]):
            faults.append(f"{path}: line {number}: x1 must be below x2 and y1 below y2, got {box}")
        elif not (box[0] >= 0 and box[1] >= 0 and box[2] <= size[1] and box[3] <= size[0]):
            faults.append(f"{path}: line {number}: box {box} lies outside of its image of {size[1]} x {size[0]} pixels")
        else:
            boxes[line["image"]].append(box)
    faults += [f"{path}: no box in image {name}; add one, or leave the image out" for name in names if not boxes[name]]
    if faults:
        raise InputError(faults)
    return {name: np.array(rows, np.float32) for name, rows in boxes.items()}


def write_map(path: Path, masks: NDArray[np.bool_]) -> None:
    """An instance map as a PNG of 16 bits; where masks overlap, the one with the better score stays."""
    from PIL import Image

    label = np.zeros(masks.shape[1:], np.uint16)
    for number in range(len(masks), 0, -1):
        label[masks[number - 1]] = number
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
