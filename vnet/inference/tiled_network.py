"""A network over the overlapping tiles of a volume: its coarse logits, and the logits of its head at points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pointrend.reading import best_class, sample_at
from vnet.core.config import Axes
from vnet.core.hardware import autocast
from vnet.inference.mirroring import Mirror, mirrored, mirrored_box
from vnet.inference.tiling import Blend, Box, TileGrid
from vnet.model.network import VNetOutput
from vnet.model.segmenter import Segmenter

POINTS_AT_ONCE = 65536


class TiledNetwork:
    """The network over tiles, mirrored too; features are kept while they fit, else computed again when points are read.

    Of a tile the part is kept that points are read from, and only where the tile holds more than one class: in a body
    scan most tiles hold no surface.

    Args:
        image: (C, *canvas).
        budget: bytes of features to keep.
        mirrors: sets of axes to mirror, () among them.
        precision: arithmetic, as `training.precision`.
    """

    def __init__(
        self,
        model: Segmenter,
        image: Tensor,
        grid: TileGrid,
        *,
        budget: int,
        mirrors: Sequence[Mirror] = ((),),
        precision: str = "32-true",
    ) -> None:
        self.model, self.image, self.grid, self.budget, self.mirrors = model, image, grid, budget, mirrors
        self.precision = precision
        self.corners = grid.corners()
        self.kept: dict[tuple[int, Mirror], tuple[Box, dict[str, Tensor]]] = {}

    def tile(self, number: int, mirror: Mirror = ()) -> Tensor:
        """(1, C, *tile) of the canvas, mirrored, on the model's device."""
        here = (slice(start, start + n) for start, n in zip(self.corners[number], self.grid.tile, strict=True))
        device = next(self.model.parameters()).device
        return mirrored(self.image[(slice(None), *here)], mirror)[None].to(device)

    def predict(self, tile: Tensor) -> VNetOutput:
        """Coarse logits and features of a tile (1, C, *tile), in the arithmetic asked for."""
        with autocast(tile.device, self.precision):
            return self.model.predict(tile)

    def logits(self, number: int) -> Tensor:
        """(K, d, h, w) coarse logits of a tile, the mean over the mirrors."""
        total: Tensor | None = None
        for mirror in self.mirrors:
            logits, features = self.predict(self.tile(number, mirror))
            if features and self.budget > 0 and shows_surface(logits):
                self.keep(number, mirror, features)
            one = mirrored(logits[0], mirror)
            total = one if total is None else total + one
        assert total is not None  # () is among the mirrors
        return total if len(self.mirrors) == 1 else total / len(self.mirrors)

    def keep(self, number: int, mirror: Mirror, features: Mapping[str, Tensor]) -> None:
        strides = [self.strides(feature) for feature in features.values()]
        z, y, x = (max(steps) for steps in zip((1, 1, 1), *strides, strict=True))
        box = self.grid.owned(number, (z, y, x))
        there = mirrored_box(box, self.grid.tile, mirror)
        parts = {name: cut(feature, there, self.strides(feature)) for name, feature in features.items()}
        size = sum(part.numel() * part.element_size() for part in parts.values())
        if size <= self.budget:
            self.budget -= size
            # contiguous copies let go of the rest; the only tile of a volume is not copied
            self.kept[number, mirror] = box, {name: part.contiguous() for name, part in parts.items()}

    def strides(self, feature: Tensor) -> Axes:
        d, h, w = (n // m for n, m in zip(self.grid.tile, feature.shape[2:], strict=True))
        return d, h, w

    def read(self, number: int, mirror: Mirror, points: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """What the head reads of a mirrored tile, at points (N, 3) of the canvas's unit cube that are nearest to it.

        Returns:
            The points (1, N, 3) in the unit cube of a box of the tile, features (1, C, ...) and image (1, C, ...)
            of that box. A tile is read once: kept features are dropped.
        """
        image = self.tile(number, mirror)
        box: Box = (slice(0, image.shape[2]), slice(0, image.shape[3]), slice(0, image.shape[4]))
        if (number, mirror) in self.kept:
            box, features = self.kept.pop((number, mirror))
        else:
            features = self.predict(image).features
        local = self.grid.to_box(points, self.corners[number], box)
        local[:, list(mirror)] = 1 - local[:, list(mirror)]
        shown = cut(image, mirrored_box(box, self.grid.tile, mirror), (1, 1, 1))
        return local[None].to(image.device), features, shown

    def coarse(self) -> Tensor:
        """(K, d, h, w) logits on the coarse grid of the canvas, blended where tiles overlap."""
        if len(self.corners) == 1:
            return self.logits(0)  # nothing to blend
        network = self.model.network
        blend = Blend(classes=network.logits.out_channels, grid=self.grid, stride=network.output_stride)
        for number, corner in enumerate(self.corners):
            blend.add(self.logits(number), corner)
        return blend.result()

    def logits_at(self, number: int, points: Tensor, coarse: Tensor) -> Tensor:
        """(K, N) logits of the head at points read from a tile, the mean over the mirrors.

        A model without a head gives its coarse logits.

        Args:
            points: (N, 3) in the unit cube of the canvas, nearest to this tile.
            coarse: (K, d, h, w), this model's own logits.
        """
        head, device = self.model.head, self.image.device
        parts = points.split(POINTS_AT_ONCE)
        at_points = [sample_at(coarse[None], part[None].to(coarse.device)) for part in parts]
        if head is None:
            return torch.cat(at_points, dim=2)[0].to(device)
        total = torch.zeros(len(coarse), len(points))
        for mirror in self.mirrors:
            local, features, image = self.read(number, mirror, points)
            split = local.split(POINTS_AT_ONCE, dim=1), at_points, total.split(POINTS_AT_ONCE, dim=1)
            for some, known, out in zip(*split, strict=True):
                with autocast(image.device, self.precision):
                    logits = head.predict_points(some, known.to(image.device), features, image)
                out += logits[0].to(device)
        return total / len(self.mirrors)


def shows_surface(logits: Tensor) -> bool:
    """Whether more than one class wins somewhere in (1, K, ...) logits."""
    labels = best_class(logits)
    return bool((labels != labels.flatten()[0]).any())


def cut(volume: Tensor, box: Box, strides: Axes) -> Tensor:
    """The part of (1, C, ...) that a box, in voxels of stride 1, names."""
    z, y, x = (slice(part.start // s, part.stop // s) for part, s in zip(box, strides, strict=True))
    return volume[:, :, z, y, x]


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
