"""Maps of probability and uncertainty on the native grid, a few planes at a time: no float volume per class is made.

At refined voxels the logits of the head count, elsewhere the up-sampled coarse ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pointrend.coordinates import interpolation_table
from pointrend.reading import uncertainty

VALUES_AT_ONCE = 2**24  # of all classes in a slab


def logit_slabs(
    coarse: Tensor, size: Sequence[int], extent: Sequence[float], *, values_at_once: int = VALUES_AT_ONCE
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the up-sampled logits, planes first:last of the target at a time.

    Args:
        coarse: (K, d, h, w).
        size: (D, H, W) of the target grid.
        extent: share of the coarse grid's box that the target fills, per axis.

    Yields:
        first, last, (K, last - first, H, W) float32; together what `interpolate(..., "trilinear")` gives.
    """
    tables = [interpolation_table(s, t, extent=e) for s, t, e in zip(coarse.shape[1:], size, extent, strict=True)]
    planes = max(values_at_once // (len(coarse) * math.prod(size[1:])), 1)
    for first in range(0, size[0], planes):
        last = min(first + planes, size[0])
        part = coarse
        for axis, table in enumerate(tables):
            lower, upper, weight = (torch.from_numpy(t[first:last] if axis == 0 else t) for t in table)
            share = weight.reshape(-1, *[1] * (2 - axis))
            part = torch.lerp(part.index_select(axis + 1, lower), part.index_select(axis + 1, upper), share)
        yield first, last, part


def uncertainty_volume(
    coarse: Tensor, size: Sequence[int], extent: Sequence[float], index: np.ndarray, refined_uncertainty: np.ndarray
) -> np.ndarray:
    """How near the second-best class is to the best.

    255 where two classes tie, falling to 0: 2 x 255 x the second's share of the softmax of the two best.

    Args:
        index: (n,) flat indices of the refined voxels.
        refined_uncertainty: (n,) second best minus best logit of the head there.

    Returns:
        (D, H, W) uint8.
    """
    volume = np.empty(tuple(size), np.uint8)
    for first, last, logits in logit_slabs(coarse, size, extent):
        volume[first:last] = as_byte(uncertainty(logits[None])[0]).numpy()
    volume.reshape(-1)[index] = as_byte(torch.from_numpy(refined_uncertainty)).numpy()
    return volume


def as_byte(margins: Tensor) -> Tensor:
    """Second best minus best logit, at most 0, as 0 to 255."""
    return (510 * torch.sigmoid(margins)).round().to(torch.uint8)


def probability_slabs(
    coarse: Tensor, size: Sequence[int], extent: Sequence[float], index: np.ndarray, logits: Tensor
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield the softmax over the classes, planes first:last of the target at a time.

    Args:
        index: (n,) ascending flat indices of the refined voxels.
        logits: (K, n) of the head there.

    Yields:
        first, last, (K, last - first, H, W) float32.
    """
    plane = math.prod(size[1:])
    for first, last, part in logit_slabs(coarse, size, extent):
        low, high = np.searchsorted(index, [first * plane, last * plane])
        part.reshape(len(part), -1)[:, torch.from_numpy(index[low:high] - first * plane)] = logits[:, low:high]
        yield first, last, part.softmax(0).numpy()
