"""The prediction of one volume: labels, the refined voxels, and maps of probability and uncertainty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.reading import uncertainty
from vnet.core.config import Axes
from vnet.inference.probabilities import probability_slabs, uncertainty_volume

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
        """(D, H, W) uint8: 255 where two classes tie, 0 where one is sure; see `vnet.inference.probabilities`."""
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
