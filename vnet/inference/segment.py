"""Labels of a volume on its own grid: tiles -> blended coarse logits -> rendered labels -> refined voxels.

Several models, and mirrored views of the image, are averaged as logits.

No float tensor of classes x native voxels exists on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, uncertainty
from pointrend.render import render_labels
from pointrend.uncertain import uncertain_voxels
from vnet.core.config import Axes, Config, cumulative_strides
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import Volume
from vnet.inference.components import clean_components
from vnet.inference.probabilities import probability_slabs, uncertainty_volume
from vnet.inference.tiled_network import TiledNetwork, mean_logits, mirror_sets
from vnet.inference.tiling import lay_tiles
from vnet.model.segmenter import Segmenter

# Features of tiles are kept for the refinement up to this; those of further tiles are computed again.
KEPT_FEATURE_BYTES = 2**30


@dataclass(frozen=True)
class Prediction:
    """Labels of one volume, in canonical (z, y, x) order, and what refinement did.

    Attributes:
        labels: (D, H, W) uint8 or uint16, the answer.
        unrefined: the same without refinement (the same array where nothing was refined).
        refined: whether a head was asked; then `index` may still be empty.
        index: (n,) flat indices of the refined voxels, ascending.
        uncertainty: (n,) second best minus best coarse logit there.
        answer: (n,) second best minus best logit of the head there.
        coarse: (K, d, h, w) logits on the canvas; of an ensemble their mean.
        canvas: voxels (z, y, x) of the padded working grid.
        extent: share of the canvas that the volume fills, per axis, from the origin.
        logits: (K, n) the head's, where they were to be kept.
    """

    labels: np.ndarray
    unrefined: np.ndarray
    refined: bool
    index: np.ndarray
    uncertainty: np.ndarray
    answer: np.ndarray
    coarse: Tensor
    canvas: Axes
    extent: tuple[float, ...]
    logits: Tensor | None = None

    def uncertainty_map(self) -> np.ndarray:
        """(D, H, W) second best minus best logit, about on the working grid.

        A float volume per class exists for a moment, so the grid is cut to 256 voxels an axis: it is for the eye.
        """
        size = [min(n, 256) for n in self.canvas]
        dense = F.interpolate(self.coarse[None], size=size, mode="trilinear", align_corners=False)
        d, h, w = (max(round(n * share), 1) for n, share in zip(size, self.extent, strict=True))
        return uncertainty(dense)[0, :d, :h, :w].numpy()

    def uncertainty_volume(self) -> np.ndarray:
        """(D, H, W) uint8: 255 where two classes tie, 0 where one is sure; see `probabilities`."""
        return uncertainty_volume(self.coarse, self.labels.shape, self.extent, self.index, self.answer)

    def probability_slabs(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Probabilities of planes first:last, (K, last - first, H, W) float32, one slab after the other.

        Raises:
            ValueError: the head's logits were not kept.
        """
        logits = self.logits if self.refined else torch.zeros(len(self.coarse), 0)
        if logits is None:
            raise ValueError("probabilities need the head's logits; predict with keep_logits=True")
        return probability_slabs(self.coarse, self.labels.shape, self.extent, self.index, logits)


def segment(model: Segmenter, image: Tensor, size: Sequence[int], **rules: Any) -> Prediction:
    """`segment_together` of one model."""
    return segment_together([(model, image)], size, **rules)


@torch.inference_mode()
def segment_together(
    members: Sequence[tuple[Segmenter, Tensor]],
    size: Sequence[int],
    *,
    patch: Axes,
    overlap: float,
    refine: bool,
    refine_fraction: float,
    margin: float | None = None,
    mirror: Sequence[str] = (),
    keep_logits: bool = False,
) -> Prediction:
    """Segment a preprocessed volume on a target grid that spans the same box.

    The logits of several models are averaged, not their probabilities: a mean of logits commutes with interpolation
    and with the blending of tiles, so that averaging on the coarse grid and at the refined points is one and the
    same, and surfaces between voxels stay where the models put them.

    Args:
        members: models in evaluation mode, of one output stride and number of classes, each with the image as it
            wants it: (C, D, H, W) on the working grid, the same for all.
        size: voxels of the target grid, any.
        patch: voxels the network sees at once, multiples of the output stride.
        overlap: share of a tile that neighbours have in common, [0, 1).
        refine: re-predict the uncertain voxels of the mean, each model with its own head.
        refine_fraction: share of the target's voxels that are refined.
        margin: refine only where best minus second-best logit is at most this.
        mirror: axes (z, y, x) along which every tile is seen mirrored too.
        keep_logits: keep the head's logits, for probabilities.
    """
    working = members[0][1].shape[1:]
    grid = lay_tiles(working, patch, overlap=overlap, align=members[0][0].network.output_stride)
    padding = [p for n, m in zip(reversed(grid.canvas), reversed(working), strict=True) for p in (0, n - m)]
    extent = tuple(n / m for n, m in zip(working, grid.canvas, strict=True))
    asked = refine and any(model.head is not None for model, _ in members)
    budget = KEPT_FEATURE_BYTES // len(members) if asked else 0
    views = [
        TiledNetwork(model, F.pad(image, padding), grid, budget=budget, mirrors=mirror_sets(mirror))
        for model, image in members
    ]
    own, coarse = mean_logits(views, keep=asked)
    unrefined = np.asarray(render_labels(coarse[None], tuple(size), extent=extent)[0].cpu())
    if not asked:
        none = np.zeros(0, np.int64)
        empty = none.astype(np.float32)
        return Prediction(unrefined, unrefined, False, none, empty, empty, coarse.cpu(), grid.canvas, extent)
    index, margins = uncertain_voxels(
        coarse, tuple(size), num_points=round(refine_fraction * int(np.prod(size))), max_margin=margin, extent=extent
    )
    labels = unrefined.copy()
    logits = torch.zeros(len(coarse), len(index)) if keep_logits else None
    answer = refine_tiles(views, own, labels, index.cpu(), extent=extent, logits=logits)
    kept = index.cpu().numpy(), margins.cpu().numpy(), answer.numpy()
    return Prediction(labels, unrefined, True, *kept, coarse.cpu(), grid.canvas, extent, logits)


def refine_tiles(
    views: Sequence[TiledNetwork],
    own: Sequence[Tensor],
    labels: np.ndarray,
    index: Tensor,
    *,
    extent: tuple[float, ...],
    logits: Tensor | None = None,
) -> Tensor:
    """Write the heads' labels at flat `index` into `labels`, each voxel read from the tile nearest to it.

    Args:
        own: the coarse logits of each model, which its head was trained to read.
        logits: (K, n), filled with the heads' mean where given.

    Returns:
        (n,) second best minus best of the heads' mean.
    """
    flat, grid = labels.reshape(-1), views[0].grid
    points = voxel_centres(index, labels.shape) * torch.tensor(extent)  # unit cube of the canvas
    owner, order = grid.nearest(points).sort(stable=True)
    numbers, counts = owner.unique_consecutive(return_counts=True)
    doubt = torch.zeros(len(index))
    for number, mine in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
        total = torch.zeros(len(own[0]), len(mine))
        for view, coarse in zip(views, own, strict=True):
            total += view.answers(number, points[mine], coarse)
        total /= len(views)
        flat[index[mine].numpy()] = best_class(total[None])[0].numpy()
        doubt[mine] = uncertainty(total[None])[0]
        if logits is not None:
            logits[:, mine] = total
    return doubt


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
    """`predict_volume` of an ensemble; the working grid is the first member's."""
    spacing_mm = members[0].preprocessing.spacing_mm
    prepared: dict[Preprocessing, Tensor] = {}
    for member in members:
        own = replace(member.preprocessing, spacing_mm=spacing_mm)
        if own not in prepared:
            prepared[own] = torch.from_numpy(np.ascontiguousarray(own.apply(volume)))
    images = [prepared[replace(member.preprocessing, spacing_mm=spacing_mm)] for member in members]
    found = segment_together(
        [(member.model, image) for member, image in zip(members, images, strict=True)],
        volume.array.shape[1:],
        patch=tile_size(config),
        overlap=config.inference.overlap,
        refine=config.points.refine,
        refine_fraction=config.points.refine_fraction,
        margin=config.points.max_margin,
        mirror=config.inference.mirror,
        keep_logits=keep_logits,
    )
    rules = config.inference
    for labels in (found.labels, found.unrefined)[: 2 if found.refined else 1]:
        clean_components(labels, volume.spacing_mm, largest=rules.largest_component, min_mm3=rules.min_component_mm3)
    return found


def tile_size(config: Config) -> Axes:
    """The training patch, grown to what the network would pad it to anyway."""
    total = cumulative_strides(config.network.strides)[-1]
    d, h, w = (-(-n // s) * s for n, s in zip(config.training.patch, total, strict=True))
    return d, h, w
