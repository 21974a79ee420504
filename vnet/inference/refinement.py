"""Refined voxels of a tiled volume: asked tile by tile, written straight into the labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, uncertainty
from vnet.inference.tiled_network import TiledNetwork
from vnet.inference.tiling import TileGrid


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
    for number, places in points_by_tile(grid, labels.shape, index, extent):
        points = voxel_centres(index[places], labels.shape) * torch.tensor(extent)  # unit cube of the canvas
        total = torch.zeros(len(own[0]), len(places))
        for network, coarse in zip(networks, own, strict=True):
            total += network.logits_at(number, points, coarse, on_voxels=on_voxels)
        total /= len(networks)
        flat[index[places].numpy()] = best_class(total[None])[0].numpy()
        refined_uncertainty[places] = uncertainty(total[None])[0]
        if logits is not None:
            logits[:, places] = total
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
