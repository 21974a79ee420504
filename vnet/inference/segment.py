"""Labels of a volume on its own grid: tiles -> blended coarse logits -> rendered labels -> refined voxels.

The logits of several models and of mirrored tiles are averaged. No float tensor of classes x native voxels is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointrend.coordinates import extent_centres
from pointrend.reading import sample_at, uncertainty
from pointrend.render import render_labels
from pointrend.uncertain import uncertain_voxels
from vnet.core.config import Axes
from vnet.inference.kept_features import saved_bytes
from vnet.inference.mirroring import mirror_sets
from vnet.inference.prediction import Prediction
from vnet.inference.refinement import refine_labels
from vnet.inference.tiled_network import POINTS_AT_ONCE, TiledNetwork, mean_logits
from vnet.inference.tiling import lay_tiles
from vnet.model.segmenter import Segmenter

# Features of tiles are kept for the refinement as far as the logits of a dense network would take more memory than the
# coarse ones, and at least this many bytes; other tiles go through the network twice.
KEPT_BYTES = 2**26


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
    max_margin: float | None = None,
    mirror: Sequence[str] = (),
    keep_logits: bool = False,
    precision: str = "32-true",
    index: Tensor | None = None,
) -> Prediction:
    """Segment a preprocessed volume on a target grid that spans the same box.

    The logits of several models are averaged, not their probabilities: a mean of logits commutes with interpolation
    and with the blending of tiles, so that averaging on the coarse grid and at the refined points is the same.

    Args:
        members: models in evaluation mode, of one output stride and number of classes, each with its preprocessed
            image (C, D, H, W); all on one working grid.
        size: voxels of the target grid, any.
        patch: voxels the network sees at once, multiples of the output stride.
        overlap: share of a tile that neighbours have in common, [0, 1).
        refine: predict the uncertain voxels of the mean again, each model with its own head.
        refine_fraction: share of the target's voxels that are refined.
        max_margin: refine only where best minus second-best logit is at most this.
        mirror: axes among z, y, x along which every tile is also predicted mirrored.
        keep_logits: keep the logits of the heads, which probabilities need.
        precision: arithmetic of networks and heads, `32-true`, `bf16-mixed` or `16-mixed`.
        index: (n,) int64 ascending flat indices to refine in place of the most uncertain voxels.
    """
    working = members[0][1].shape[1:]
    network = members[0][0].network
    grid = lay_tiles(working, patch, overlap=overlap, align=network.output_stride)
    extent = tuple(n / m for n, m in zip(working, grid.canvas, strict=True))
    refined = refine and any(model.head is not None for model, _ in members)
    saved = saved_bytes(network.logits.out_channels, grid.canvas, network.output_stride)
    room = max(saved, KEPT_BYTES) // len(members) if refined else 0
    networks = [
        TiledNetwork(
            model,
            image,
            grid,
            room=room,
            mirrors=mirror_sets(mirror),
            max_margin=max_margin,
            precision=precision,
        )
        for model, image in members
    ]
    own, coarse = mean_logits(networks, keep=refined)
    labels = np.asarray(render_labels(coarse[None], tuple(size), extent=extent)[0].cpu())
    if not refined:
        none = np.zeros(0, np.int64)
        empty = none.astype(np.float32)
        return Prediction(labels, False, none, labels[:0].ravel(), empty, empty, coarse.cpu(), grid.canvas, extent)
    if index is None:
        most = round(refine_fraction * math.prod(size))
        index, margins = uncertain_voxels(coarse, tuple(size), num_points=most, max_margin=max_margin, extent=extent)
    else:
        margins = uncertainty_at(coarse, index, size, extent)
    index = index.cpu()
    unrefined = labels.reshape(-1)[index.numpy()]
    logits = torch.zeros(len(coarse), len(index)) if keep_logits else None
    refined_uncertainty = refine_labels(networks, own, labels, index, extent=extent, logits=logits)
    of_voxels = index.numpy(), unrefined, margins.cpu().numpy(), refined_uncertainty.numpy()
    return Prediction(labels, True, *of_voxels, coarse.cpu(), grid.canvas, extent, logits)


def uncertainty_at(coarse: Tensor, index: Tensor, size: Sequence[int], extent: Sequence[float]) -> Tensor:
    """(n,) second best minus best of the interpolated coarse logits (K, d, h, w) at voxels of a target grid."""
    points = extent_centres(index.to(coarse.device), tuple(size), extent)
    parts = [uncertainty(sample_at(coarse[None], some[None]))[0] for some in points.split(POINTS_AT_ONCE)]
    return torch.cat(parts)
