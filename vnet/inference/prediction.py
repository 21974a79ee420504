"""The prediction of one volume: labels, refined voxels, and maps of probability and uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import interpolation_table
from pointrend.reading import uncertainty
from vnet.core.config import Axes

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


MAP_VOX = 256  # at most, along an axis of `Prediction.uncertainty_map`


@dataclass(frozen=True)
class Prediction:
    """Labels of one volume, in canonical (z, y, x) order, and the voxels that were refined.

    Attributes:
        labels: (D, H, W) uint8 or uint16, refined where a head refines.
        refined: whether a head was asked; then `index` may still be empty.
        index: (n,) flat indices of the refined voxels, ascending.
        unrefined_labels: (n,) labels there without refinement.
        uncertainty: (n,) second best minus best coarse logit there.
        refined_uncertainty: (n,) second best minus best logit of the head there.
        coarse: (K, d, h, w) logits on the canvas; of an ensemble their mean.
        canvas: voxels (z, y, x) of the padded working grid.
        extent: share of the canvas that the volume fills, per axis, from the origin.
        logits: (K, n) logits of the head, where they were kept.
    """

    labels: np.ndarray
    refined: bool
    index: np.ndarray
    unrefined_labels: np.ndarray
    uncertainty: np.ndarray
    refined_uncertainty: np.ndarray
    coarse: Tensor
    canvas: Axes
    extent: tuple[float, ...]
    logits: Tensor | None = None

    @cached_property
    def unrefined(self) -> np.ndarray:
        """(D, H, W) labels without refinement; `labels` itself where nothing was refined. Made when first read."""
        if not self.refined:
            return self.labels
        labels = self.labels.copy()
        labels.reshape(-1)[self.index] = self.unrefined_labels
        return labels

    def uncertainty_map(self) -> np.ndarray:
        """(D, H, W) second best minus best coarse logit, on the working grid cut to `MAP_VOX` an axis, for pictures.

        A float volume per class exists for a moment.
        """
        size = [min(n, MAP_VOX) for n in self.canvas]
        dense = F.interpolate(self.coarse[None], size=size, mode="trilinear", align_corners=False)
        d, h, w = (max(round(n * share), 1) for n, share in zip(size, self.extent, strict=True))
        return uncertainty(dense)[0, :d, :h, :w].numpy()

    def uncertainty_volume(self) -> np.ndarray:
        """(D, H, W) uint8: 255 where two classes tie, 0 where one is sure; see `vnet.inference.prediction`."""
        return uncertainty_volume(self.coarse, self.labels.shape, self.extent, self.index, self.refined_uncertainty)

    def probability_slabs(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield probabilities of planes first:last, (K, last - first, H, W) float32, slab by slab.

        Raises:
            ValueError: the logits of the head were not kept.
        """
        logits = self.logits if self.refined else torch.zeros(len(self.coarse), 0)
        if logits is None:
            raise ValueError("probabilities need the head's logits; predict with keep_logits=True")
        return probability_slabs(self.coarse, self.labels.shape, self.extent, self.index, logits)
