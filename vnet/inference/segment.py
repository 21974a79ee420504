"""Labels of a volume on its own grid: tiles -> blended coarse logits -> rendered labels -> refined voxels.

The logits of several models and of mirrored tiles are averaged. No float tensor of classes x native voxels is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, uncertainty
from pointrend.render import render_labels
from pointrend.uncertain import uncertain_voxels
from vnet.core.config import Axes
from vnet.inference.mirroring import mirror_sets
from vnet.inference.prediction import Prediction
from vnet.inference.tiled_network import TiledNetwork, mean_logits
from vnet.inference.tiling import lay_tiles
from vnet.model.segmenter import Segmenter

# Features of tiles are kept for the refinement up to this; those of further tiles are computed again.
KEPT_FEATURE_BYTES = 2**30


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
    """
    working = members[0][1].shape[1:]
    grid = lay_tiles(working, patch, overlap=overlap, align=members[0][0].network.output_stride)
    padding = [p for n, m in zip(reversed(grid.canvas), reversed(working), strict=True) for p in (0, n - m)]
    extent = tuple(n / m for n, m in zip(working, grid.canvas, strict=True))
    refined = refine and any(model.head is not None for model, _ in members)
    budget = KEPT_FEATURE_BYTES // len(members) if refined else 0
    networks = [
        TiledNetwork(
            model, F.pad(image, padding), grid, budget=budget, mirrors=mirror_sets(mirror), precision=precision
        )
        for model, image in members
    ]
    own, coarse = mean_logits(networks, keep=refined)
    unrefined = np.asarray(render_labels(coarse[None], tuple(size), extent=extent)[0].cpu())
    if not refined:
        none = np.zeros(0, np.int64)
        empty = none.astype(np.float32)
        return Prediction(unrefined, unrefined, False, none, empty, empty, coarse.cpu(), grid.canvas, extent)
    index, margins = uncertain_voxels(
        coarse,
        tuple(size),
        num_points=round(refine_fraction * int(np.prod(size))),
        max_margin=max_margin,
        extent=extent,
    )
    labels = unrefined.copy()
    logits = torch.zeros(len(coarse), len(index)) if keep_logits else None
    refined_uncertainty = refine_tiles(networks, own, labels, index.cpu(), extent=extent, logits=logits)
    kept = index.cpu().numpy(), margins.cpu().numpy(), refined_uncertainty.numpy()
    return Prediction(labels, unrefined, True, *kept, coarse.cpu(), grid.canvas, extent, logits)


def refine_tiles(
    networks: Sequence[TiledNetwork],
    own: Sequence[Tensor],
    labels: np.ndarray,
    index: Tensor,
    *,
    extent: tuple[float, ...],
    logits: Tensor | None = None,
) -> Tensor:
    """Write the heads' labels at flat `index` into `labels`, each voxel read from the tile nearest to it.

    Args:
        networks: one a model.
        own: the coarse logits of each model, which its own head reads.
        logits: (K, n), filled with the heads' mean where given.

    Returns:
        (n,) second best minus best of the heads' mean.
    """
    flat, grid = labels.reshape(-1), networks[0].grid
    points = voxel_centres(index, labels.shape) * torch.tensor(extent)  # unit cube of the canvas
    owner, order = grid.nearest(points).sort(stable=True)
    numbers, counts = owner.unique_consecutive(return_counts=True)
    refined_uncertainty = torch.zeros(len(index))
    for number, mine in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
        total = torch.zeros(len(own[0]), len(mine))
        for network, coarse in zip(networks, own, strict=True):
            total += network.logits_at(number, points[mine], coarse)
        total /= len(networks)
        flat[index[mine].numpy()] = best_class(total[None])[0].numpy()
        refined_uncertainty[mine] = uncertainty(total[None])[0]
        if logits is not None:
            logits[:, mine] = total
    return refined_uncertainty
