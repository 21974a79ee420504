"""Feature maps of a tile kept as small blocks: those near its most uncertain voxels, as many as there is room for.

Which voxels a head is asked about is known when the logits of all tiles are blended. They lie in thin shells around
surfaces; whole maps of every tile, kept until then, would take more memory than the logits of a dense network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.reading import best_class, uncertainty
from vnet.core.config import Axes
from vnet.inference.tiling import Box

BLOCK_VOX = (4, 8, 16, 32)  # edge of a block: the first that fits


@dataclass(frozen=True)
class BlockGrid:
    """Equal blocks that a tile and all its feature maps divide into.

    Attributes:
        tile: voxels (z, y, x).
        block: voxels of a block.
        reach: voxels on each side of a point that reading the maps there may touch; at most a block.
    """

    tile: Axes
    block: Axes
    reach: Axes

    @classmethod
    def of(cls, tile: Axes, strides: Sequence[Axes]) -> BlockGrid:
        """Blocks for maps of these strides that are read at points."""
        blocks, reach = [], []
        for voxels, steps in zip(tile, zip(*strides, strict=True), strict=True):
            fitting = [n for n in BLOCK_VOX if voxels % n == 0 and n % max(steps) == 0]
            blocks.append(fitting[0] if fitting else voxels)
            reach.append(max(steps))  # interpolation reads the next voxel of the coarsest map
        return cls(tile, (blocks[0], blocks[1], blocks[2]), (reach[0], reach[1], reach[2]))

    @property
    def counts(self) -> Axes:
        """Blocks along each axis."""
        z, y, x = (n // m for n, m in zip(self.tile, self.block, strict=True))
        return z, y, x

    def view(self, feature: Tensor) -> Tensor:
        """(a, b, c, C, d, h, w): a map (1, C, D, H, W) of the tile by block, in the same memory."""
        (a, b, c), (_, channels, depth, height, width) = self.counts, feature.shape
        parts = feature.view(channels, a, depth // a, b, height // b, c, width // c)
        return parts.permute(1, 3, 5, 0, 2, 4, 6)

    def doubt(self, logits: Tensor) -> Tensor:
        """(a, b, c): the highest uncertainty in and next to each block; 0 where a surface passes.

        Args:
            logits: (1, K, ...) coarse logits of the tile.
        """
        labels = best_class(logits).float()[:, None]
        doubt = uncertainty(logits)[:, None]
        surface = F.max_pool3d(labels, 3, 1, 1) != -F.max_pool3d(-labels, 3, 1, 1)
        near = F.max_pool3d(doubt.masked_fill(surface, 0), 3, 1, 1)
        return F.adaptive_max_pool3d(near, self.counts)[0, 0]

    def around(self, box: Box) -> Tensor:
        """(a, b, c) bool: the blocks that reading the maps at points in a box of the tile may touch."""
        mask = torch.zeros(self.counts, dtype=torch.bool)
        z, y, x = (
            slice(max(part.start - reach, 0) // block, (part.stop + reach - 1) // block + 1)
            for part, reach, block in zip(box, self.reach, self.block, strict=True)
        )
        mask[z, y, x] = True
        return mask

    def touched(self, points: Tensor) -> Tensor:
        """(a, b, c) bool: the blocks that reading the maps at points (N, 3) of the tile's unit cube may touch."""
        mask = torch.zeros(self.counts, dtype=torch.bool)
        ends = []
        for axis, (voxels, block, reach) in enumerate(zip(self.tile, self.block, self.reach, strict=True)):
            at = (points[:, axis] * voxels).long()
            ends.append([((at + step).clamp(0, voxels - 1)) // block for step in (-reach, 0, reach)])
        for z, y, x in product(*ends):
            mask[z, y, x] = True
        return mask


@dataclass(frozen=True)
class KeptFeatures:
    """Blocks of the feature maps of one tile.

    Attributes:
        grid: the blocks of the tile.
        mask: (a, b, c) bool, the blocks that are kept.
        parts: name of a map -> (kept blocks, C, d, h, w).
        shapes: name of a map -> its shape.
    """

    grid: BlockGrid
    mask: Tensor
    parts: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]

    def cover(self, points: Tensor) -> bool:
        """Whether everything that is read at points (N, 3) of the tile's unit cube is kept."""
        return not bool((self.grid.touched(points) & ~self.mask).any())

    def maps(self) -> dict[str, Tensor]:
        """The maps (1, C, ...), 0 outside of the kept blocks."""
        whole = {name: part.new_zeros(self.shapes[name]) for name, part in self.parts.items()}
        for name, part in self.parts.items():
            self.grid.view(whole[name])[self.mask.to(part.device)] = part
        return whole


def keep_blocks(
    grid: BlockGrid,
    box: Box,
    logits: Tensor,
    features: Mapping[str, Tensor],
    *,
    room: int,
    max_margin: float | None = None,
) -> KeptFeatures:
    """The blocks of a tile's maps that are most likely read.

    Args:
        box: the part of the tile in which points are read.
        logits: (1, K, ...) coarse logits of the tile.
        features: maps (1, C, ...) by name.
        room: bytes that may be kept.
        max_margin: leave out blocks that are surer than twice this.
    """
    doubt = grid.doubt(logits).cpu().masked_fill(~grid.around(box), -math.inf)
    size = sum(map_.numel() * map_.element_size() for map_ in features.values()) // doubt.numel()
    order = doubt.flatten().argsort(descending=True, stable=True)[: room // size]
    mask = torch.zeros(doubt.numel(), dtype=torch.bool)
    mask[order] = True
    mask = mask.view(doubt.shape) & (doubt > -math.inf if max_margin is None else doubt >= -2 * max_margin)
    parts = {name: grid.view(map_)[mask.to(map_.device)] for name, map_ in features.items()}
    return KeptFeatures(grid, mask, parts, {name: map_.shape for name, map_ in features.items()})


def saved_bytes(classes: int, canvas: Axes, stride: Axes) -> int:
    """Bytes that blended logits and their weights at `stride` take less than those of a dense network."""
    voxels = math.prod(canvas)
    return 4 * (classes + 1) * (voxels - voxels // math.prod(stride))
