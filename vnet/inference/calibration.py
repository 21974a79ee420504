"""The margin within which a head changes labels, measured at random voxels of volumes.

The margin of a voxel is its best minus its second-best coarse logit. A head asked only where the margin is small
enough misses few of the labels that it would change if it were asked everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vnet.core.config import Config
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import Volume
from vnet.inference.ensemble import tile_size
from vnet.inference.segment import segment
from vnet.model.segmenter import Segmenter

VOXELS = 2**17  # asked in a volume, at most
SHARE = 0.99  # of the label changes lie within the calibrated margin

Margins = NDArray[np.float32]


def changed_margins(
    model: Segmenter, volume: Volume, preprocessing: Preprocessing, config: Config, generator: torch.Generator
) -> Margins:
    """(n,) margins of the voxels whose label the head changes, among at most `VOXELS` random ones of a volume.

    Args:
        model: with a head.
        generator: draws the voxels of larger volumes; a smaller one is asked everywhere.
    """
    size = volume.array.shape[1:]
    voxels = math.prod(size)
    index = torch.arange(voxels)
    if voxels > VOXELS:
        index = torch.randint(voxels, (VOXELS,), generator=generator).unique()
    prediction = segment(
        model,
        torch.from_numpy(np.ascontiguousarray(preprocessing.apply(volume))),
        size,
        patch=tile_size(config),
        overlap=config.inference.overlap,
        refine=True,
        refine_fraction=1.0,
        mirror=config.inference.mirror,
        precision=config.inference.precision or config.training.precision,
        index=index,
    )
    changed = prediction.labels.reshape(-1)[index.numpy()] != prediction.unrefined_labels
    return -prediction.uncertainty[changed]


def calibrated_margin(margins: Sequence[Margins]) -> float:
    """The smallest margin that holds `SHARE` of all label changes; 0 where no label changes."""
    pooled = np.concatenate([*margins, np.zeros(0, np.float32)])
    return float(np.quantile(pooled, SHARE, method="higher")) if len(pooled) else 0.0


def share_within(margins: Sequence[Margins], margin: float) -> float | None:
    """Share of the label changes within a margin; None where no label changes."""
    pooled = np.concatenate([*margins, np.zeros(0, np.float32)])
    return float((pooled <= margin).mean()) if len(pooled) else None
