"""Segment volumes with one trained model, or several averaged, as a config says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from vnet.core.config import Axes, Config, cumulative_strides
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import Volume
from vnet.inference.prediction import Prediction
from vnet.inference.segment import segment_together
from vnet.model.segmenter import Segmenter

NEIGHBOURS = np.ones((3, 3, 3), bool)  # by face, edge or corner: a thin oblique structure is one piece


def clean_components(labels: np.ndarray, voxel_mm3: float, *, largest: bool = False, min_mm3: float = 0.0) -> None:
    """Make components of each structure background, in place.

    Args:
        labels: (D, H, W) uint8 or uint16, 0 is background.
        voxel_mm3: volume of a voxel, by the determinant of the affine.
        largest: keep of each structure the component with most voxels; of equal ones the first in array order.
        min_mm3: drop components smaller than this.
    """
    if not (largest or min_mm3):
        return
    fewest = min_mm3 / voxel_mm3 * (1 - 1e-9)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        part = labels[box]
        pieces, count = ndimage.label(part == value, structure=NEIGHBOURS)
        voxels = np.bincount(pieces.ravel(), minlength=count + 1)
        voxels[0] = 0
        dropped = voxels < fewest
        if largest:
            dropped |= np.arange(count + 1) != voxels.argmax()
        dropped[0] = False  # what is not of this structure
        part[dropped[pieces]] = 0


@dataclass(frozen=True)
class Member:
    """A trained model and how its images are prepared."""

    model: Segmenter
    preprocessing: Preprocessing


def predict_volume(model: Segmenter, volume: Volume, preprocessing: Preprocessing, config: Config) -> Prediction:
    """Segment a volume as read from disk, on its own grid."""
    return predict_together([Member(model, preprocessing)], volume, config)


def predict_together(
    members: Sequence[Member], volume: Volume, config: Config, *, keep_logits: bool = False
) -> Prediction:
    """`predict_volume` of an ensemble; the working grid is that of the first member.

    Args:
        keep_logits: keep the logits of the heads, which probabilities need.
    """
    spacing_mm = members[0].preprocessing.spacing_mm
    prepared: dict[Preprocessing, Tensor] = {}
    for member in members:
        own = replace(member.preprocessing, spacing_mm=spacing_mm)
        if own not in prepared:
            prepared[own] = torch.from_numpy(np.ascontiguousarray(own.apply(volume)))
    images = [prepared[replace(member.preprocessing, spacing_mm=spacing_mm)] for member in members]
    prediction = segment_together(
        [(member.model, image) for member, image in zip(members, images, strict=True)],
        volume.array.shape[1:],
        patch=tile_size(config),
        overlap=config.inference.overlap,
        refine=config.points.refine,
        refine_fraction=config.points.refine_fraction,
        max_margin=largest_margin([member.model for member in members], config),
        mirror=config.inference.mirror,
        keep_logits=keep_logits,
        precision=config.inference.precision or config.training.precision,
    )
    rules = config.inference
    if rules.largest_component or rules.min_component_mm3:
        versions = [prediction.labels] + ([prediction.unrefined] if prediction.refined else [])  # made from raw labels
        for labels in versions:
            clean_components(
                labels, 1000 * volume.voxel_ml, largest=rules.largest_component, min_mm3=rules.min_component_mm3
            )
    return prediction


def largest_margin(models: Sequence[Segmenter], config: Config) -> float | None:
    """`points.max_margin`; of `auto` the largest of the models with a head, None where one has not been measured."""
    if config.points.max_margin != "auto":
        return config.points.max_margin
    margins = [model.max_margin for model in models if model.head is not None]
    known = [margin for margin in margins if margin is not None]
    return max(known) if known and len(known) == len(margins) else None


def tile_size(config: Config) -> Axes:
    """The training patch, grown to the size that the network would pad it to."""
    total = cumulative_strides(config.network.strides)[-1]
    d, h, w = (-(-n // s) * s for n, s in zip(config.training.patch, total, strict=True))
    return d, h, w
