"""A network over the overlapping tiles of a volume: its coarse logits, and the logits of its head at points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import flat_index
from pointrend.reading import best_class, sample_at, uncertainty
from vnet.core.config import Axes
from vnet.core.hardware import autocast
from vnet.inference.tiling import Blend, Box, Mirror, TileGrid, mirrored, mirrored_box
from vnet.model.network import VNetOutput
from vnet.model.segmenter import Segmenter

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
        # in cells of the reach, which divide tile and blocks: a point touches its cell and the cells next to it
        cells = [n // reach for n, reach in zip(self.tile, self.reach, strict=True)]
        mask = torch.zeros(math.prod(cells))
        mask[flat_index(points, cells)] = 1
        return F.adaptive_max_pool3d(F.max_pool3d(mask.view(1, *cells), 3, 1, 1), self.counts)[0] > 0


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


POINTS_AT_ONCE = 16384  # of a tile; what is read at them is in memory at once
FIRST_STAGE = "encoder1"
Features = dict[str, Tensor]


class TiledNetwork:
    """A network over the tiles of a volume and their mirrored copies.

    For the points that are read later, features of each tile are kept near its most uncertain voxels, while there is
    room. The first stage, at full resolution, takes the most memory and the least time: it is not kept but made again.
    Where features are read that are not kept, the whole tile goes through the network once more. Features of a lone
    tile are kept whole. Nothing is kept of a tile that holds one class alone: most tiles of a body scan do.

    Args:
        model: in evaluation mode.
        image: (C, D, H, W) on the working grid; beyond its ends the canvas is 0.
        grid: the tiles.
        room: bytes of features to keep.
        mirrors: sets of axes to mirror, () among them.
        max_margin: voxels that are surer are not read; None where any may be.
        precision: arithmetic, as `training.precision`.
    """

    def __init__(
        self,
        model: Segmenter,
        image: Tensor,
        grid: TileGrid,
        *,
        room: int = 0,
        mirrors: Sequence[Mirror] = ((),),
        max_margin: float | None = None,
        precision: str = "32-true",
    ) -> None:
        self.model, self.image, self.grid, self.mirrors = model, image, grid, mirrors
        self.room, self.max_margin, self.precision = room, max_margin, precision
        self.corners = grid.corners()
        self.passes = len(self.corners) * len(mirrors)  # of tiles through the network that are left
        self.kept: dict[tuple[int, Mirror], KeptFeatures] = {}
        self.whole: dict[Mirror, Features] = {}

    def tile(self, number: int, mirror: Mirror = ()) -> Tensor:
        """(1, C, *tile) of the canvas, mirrored, on the model's device."""
        here = [slice(start, start + n) for start, n in zip(self.corners[number], self.grid.tile, strict=True)]
        part = self.image[(slice(None), *here)]
        missing = [n - m for n, m in zip(self.grid.tile, part.shape[1:], strict=True)]
        if any(missing):
            part = F.pad(part, [p for n in reversed(missing) for p in (0, n)])
        device = next(self.model.parameters()).device
        return mirrored(part, mirror)[None].to(device)

    def predict(self, tile: Tensor) -> VNetOutput:
        """Coarse logits and features of a tile (1, C, *tile), in the arithmetic asked for."""
        with autocast(tile.device, self.precision):
            return self.model.predict(tile)

    def logits(self, number: int) -> Tensor:
        """(K, d, h, w) coarse logits of a tile, the mean over the mirrors; its features are kept on the way."""
        total: Tensor | None = None
        for mirror in self.mirrors:
            logits, features = self.predict(self.tile(number, mirror))
            self.keep(number, mirror, logits, features)
            one = mirrored(logits[0], mirror)
            total = one if total is None else total + one
        assert total is not None  # () is among the mirrors
        return total if len(self.mirrors) == 1 else total / len(self.mirrors)

    def keep(self, number: int, mirror: Mirror, logits: Tensor, features: Features) -> None:
        """Keep features of a tile: a lone one's whole, else blocks in the tile's share of the room that is left."""
        if self.room == 0:
            return
        if len(self.corners) == 1:
            self.whole[mirror] = features
            return
        share, self.passes = self.room // self.passes, self.passes - 1
        deep = {name: feature for name, feature in features.items() if name != FIRST_STAGE}
        if deep and shows_surface(logits):
            box = mirrored_box(self.grid.owned(number), self.grid.tile, mirror)
            grid = self.block_grid(deep)
            kept = keep_blocks(grid, box, logits, deep, room=share, max_margin=self.max_margin)
            self.kept[number, mirror] = kept
            self.room -= sum(part.numel() * part.element_size() for part in kept.parts.values())

    def block_grid(self, features: Mapping[str, Tensor]) -> BlockGrid:
        """The blocks that a tile and these maps of it divide into."""
        strides = [self.model.network.output_stride]
        for feature in features.values():
            d, h, w = (n // m for n, m in zip(self.grid.tile, feature.shape[2:], strict=True))
            strides.append((d, h, w))
        return BlockGrid.of(self.grid.tile, strides)

    def features(self, number: int, mirror: Mirror, image: Tensor, points: Tensor) -> Features:
        """Feature maps of a mirrored tile that hold at least what is read at points; kept ones are given away once.

        Args:
            image: the tile, mirrored.
            points: (N, 3) in its unit cube.
        """
        if mirror in self.whole:
            return self.whole.pop(mirror)
        names, kept = self.model.points.features, self.kept.pop((number, mirror), None)
        deep = any(name != FIRST_STAGE for name in names)
        if deep and (kept is None or not kept.cover(points)):
            return self.predict(image).features
        maps = kept.maps() if kept is not None else {}
        if FIRST_STAGE in names:
            with autocast(image.device, self.precision):
                maps[FIRST_STAGE] = self.model.network.first_stage(image)
        return maps

    def coarse(self) -> Tensor:
        """(K, d, h, w) logits on the coarse grid of the canvas, blended where tiles overlap."""
        if len(self.corners) == 1:
            return self.logits(0)
        network = self.model.network
        blend = Blend(classes=network.logits.out_channels, grid=self.grid, stride=network.output_stride)
        for number, corner in enumerate(self.corners):
            blend.add(self.logits(number), corner)
        return blend.result()

    def logits_at(self, number: int, points: Tensor, coarse: Tensor, *, on_voxels: bool) -> Tensor:
        """(K, N) logits of the head at points read from a tile, the mean over the mirrors.

        A model without a head gives its coarse logits. A tile is read once.

        Args:
            points: (N, 3) in the unit cube of the canvas, nearest to this tile.
            coarse: (K, d, h, w), this model's own logits.
            on_voxels: whether all points are voxel centres of the canvas; maps are then read by index.
        """
        head, device = self.model.head, self.image.device
        parts = points.split(POINTS_AT_ONCE)
        at_points = [sample_at(coarse[None], part[None].to(coarse.device)) for part in parts]
        if head is None:
            return torch.cat(at_points, dim=2)[0].to(device)
        total = torch.zeros(len(coarse), len(points))
        for mirror in self.mirrors:
            local = self.grid.to_tile(points, self.corners[number])
            local[:, list(mirror)] = 1 - local[:, list(mirror)]
            image = self.tile(number, mirror)
            features = self.features(number, mirror, image, local)
            split = local.to(image.device).split(POINTS_AT_ONCE), at_points, total.split(POINTS_AT_ONCE, dim=1)
            for some, known, out in zip(*split, strict=True):
                with autocast(image.device, self.precision):
                    logits = head.predict_points(
                        some[None],
                        known.to(image.device),
                        features,
                        image,
                        grid=self.grid.tile if on_voxels else None,
                    )
                out += logits[0].to(device)
        return total / len(self.mirrors)


def shows_surface(logits: Tensor) -> bool:
    """Whether more than one class wins somewhere in (1, K, ...) logits."""
    labels = best_class(logits)
    return bool((labels != labels.flatten()[0]).any())


def mean_logits(networks: Sequence[TiledNetwork], *, keep: bool) -> tuple[list[Tensor], Tensor]:
    """The coarse logits of each model (none unless `keep`), and their mean."""
    if len(networks) == 1:
        only = networks[0].coarse()
        return [only], only
    own, total = [], None
    for network in networks:
        one = network.coarse()
        total = one.clone() if total is None else total.add_(one.to(total.device))
        own += [one] if keep else []
    assert total is not None
    return own, total.div_(len(networks))
