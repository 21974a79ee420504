"""Labels of a volume on its own grid: tiles -> blended coarse logits -> rendered labels -> refined voxels.

The logits of several models and of mirrored tiles are averaged. No float tensor of classes x native voxels is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointrend.coordinates import extent_centres, voxel_centres
from pointrend.reading import best_class, sample_at, uncertainty
from pointrend.render import render_labels
from pointrend.uncertain import uncertain_voxels
from vnet.core.config import Axes
from vnet.core.hardware import each_on_one_thread
from vnet.inference.prediction import Prediction
from vnet.inference.tiled_network import POINTS_AT_ONCE, TiledNetwork, mean_logits, saved_bytes
from vnet.inference.tiling import TileGrid, lay_tiles, mirror_sets
from vnet.model.segmenter import Segmenter


def refine_labels(
    networks: Sequence[TiledNetwork],
    own: Sequence[Tensor],
    labels: np.ndarray,
    index: Tensor,
    *,
    extent: tuple[float, ...],
    logits: Tensor | None = None,
) -> Tensor:
    """Write the labels of the heads at flat `index` into `labels`, each voxel read from the tile nearest to it.

    Args:
        networks: one a model.
        own: the coarse logits of each model, which its own head reads.
        labels: (D, H, W), C-contiguous.
        index: (n,) int64, ascending.
        extent: share of the canvas that the labels fill, per axis, from the origin.
        logits: (K, n), filled with the mean of the heads where given.

    Returns:
        (n,) second best minus best of the mean of the heads.
    """
    flat, grid = labels.reshape(-1), networks[0].grid
    on_voxels = labels.shape == tuple(networks[0].image.shape[1:])
    refined_uncertainty = torch.zeros(len(index))

    @torch.inference_mode()
    def refine_tile(task: tuple[int, Tensor]) -> None:
        number, places = task
        points = voxel_centres(index[places], labels.shape) * torch.tensor(extent)  # unit cube of the canvas
        total = torch.zeros(len(own[0]), len(places))
        for network, coarse in zip(networks, own, strict=True):
            total += network.logits_at(number, points, coarse, on_voxels=on_voxels)
        total /= len(networks)
        flat[index[places].numpy()] = best_class(total[None])[0].numpy()
        refined_uncertainty[places] = uncertainty(total[None])[0]
        if logits is not None:
            logits[:, places] = total

    tasks = points_by_tile(grid, labels.shape, index, extent)
    if own[0].device.type == "cpu":
        each_on_one_thread(refine_tile, tasks)
    else:
        for task in tasks:
            refine_tile(task)
    return refined_uncertainty


def points_by_tile(
    grid: TileGrid, size: Sequence[int], index: Tensor, extent: Sequence[float]
) -> Iterator[tuple[int, Tensor]]:
    """Yield each tile that is nearest to some voxels, with their places in `index`, ascending.

    One layer of tiles along the first axis is sorted at a time: a sort of all voxels would take 20 bytes a voxel.

    Args:
        size: (D, H, W) of the target grid.
        index: (n,) int64, ascending flat indices into it.
        extent: share of the canvas that the target fills, per axis.
    """
    lines = zip(size, extent, grid.canvas, strict=True)
    owners = [
        grid.nearest(axis, (torch.arange(n) + 0.5) / n * (share * voxels))
        for axis, (n, share, voxels) in enumerate(lines)
    ]
    _, rows, columns = (len(starts) for starts in grid.starts)
    plane = math.prod(size[1:])
    for layer in owners[0].unique().tolist():
        planes = torch.searchsorted(owners[0], torch.tensor([layer, layer + 1]))  # owners ascend
        first, last = torch.searchsorted(index, planes * plane).tolist()
        here = index[first:last] % plane
        owner = owners[1][here // size[2]] * columns + owners[2][here % size[2]]
        owner, order = owner.sort(stable=True)
        tiles, counts = owner.unique_consecutive(return_counts=True)
        for tile, places in zip(tiles.tolist(), order.split(counts.tolist()), strict=True):
            yield layer * rows * columns + tile, places + first


# Features of tiles are kept for the refinement in half of the memory that the logits of a dense network would take
# beyond the coarse ones (the other half is for the tiles in work), or in this many bytes; other tiles go through the
# network twice.
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
    room = max(saved // 2, KEPT_BYTES) // len(members) if refined else 0
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
