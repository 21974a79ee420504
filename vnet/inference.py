"""Labels of a volume on its own grid: tiles -> blended coarse logits -> rendered labels -> refined voxels.

No float tensor of classes x native voxels exists on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.render import render_labels
from pointrend.sampling import best_class, sample_at, uncertainty
from pointrend.uncertain import uncertain_voxels
from vnet.checkpoints import load_model
from vnet.config import Axes, Config, cumulative_strides
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import Volume, volume_from_array
from vnet.model import Segmenter
from vnet.runs import open_run
from vnet.tiles import Blend, Box, TileGrid, lay_tiles

# Features of tiles are kept for the refinement up to this; those of further tiles are computed again.
KEPT_FEATURE_BYTES = 2**30
POINTS_AT_ONCE = 65536


@dataclass(frozen=True)
class Prediction:
    """Labels of one volume, in canonical (z, y, x) order, and what refinement did.

    Attributes:
        labels: (D, H, W) uint8 or uint16, the answer.
        unrefined: the same without refinement (the same array where nothing was refined).
        refined: whether a head was asked; then `index` may still be empty.
        index: (n,) flat indices of the refined voxels, ascending.
        uncertainty: (n,) second best minus best coarse logit there.
        coarse: (K, d, h, w) logits on the canvas.
        canvas: voxels (z, y, x) of the padded working grid.
        extent: share of the canvas that the volume fills, per axis, from the origin.
    """

    labels: np.ndarray
    unrefined: np.ndarray
    refined: bool
    index: np.ndarray
    uncertainty: np.ndarray
    coarse: Tensor
    canvas: Axes
    extent: tuple[float, ...]

    def uncertainty_map(self) -> np.ndarray:
        """(D, H, W) second best minus best logit, about on the working grid.

        A float volume per class exists for a moment, so the grid is cut to 256 voxels an axis: it is for the eye.
        """
        size = [min(n, 256) for n in self.canvas]
        dense = F.interpolate(self.coarse[None], size=size, mode="trilinear", align_corners=False)
        d, h, w = (max(round(n * share), 1) for n, share in zip(size, self.extent, strict=True))
        return uncertainty(dense)[0, :d, :h, :w].numpy()


class TileFeatures:
    """The network over tiles; features are kept while they fit, else computed again when asked for.

    Kept is the part of a tile that points are read from, and only where more than one class is seen: in a body scan
    most tiles hold no surface.
    """

    def __init__(self, model: Segmenter, image: Tensor, grid: TileGrid, *, budget: int = KEPT_FEATURE_BYTES) -> None:
        self.model, self.image, self.grid, self.budget = model, image, grid, budget
        self.corners = grid.corners()
        self.kept: dict[int, tuple[Box, dict[str, Tensor]]] = {}

    def tile(self, number: int) -> Tensor:
        """(1, C, *tile) of the canvas, on the model's device."""
        here = (slice(start, start + n) for start, n in zip(self.corners[number], self.grid.tile, strict=True))
        device = next(self.model.parameters()).device
        return self.image[(slice(None), *here)][None].to(device)

    def logits(self, number: int) -> Tensor:
        """(K, d, h, w) coarse logits of a tile."""
        logits, features = self.model.predict(self.tile(number))
        if features and self.budget > 0 and shows_surface(logits):
            self.keep(number, features)
        return logits[0]

    def keep(self, number: int, features: Mapping[str, Tensor]) -> None:
        strides = [self.strides(feature) for feature in features.values()]
        z, y, x = (max(steps) for steps in zip((1, 1, 1), *strides, strict=True))
        box = self.grid.owned(number, (z, y, x))
        parts = {name: cut(feature, box, self.strides(feature)) for name, feature in features.items()}
        size = sum(part.numel() * part.element_size() for part in parts.values())
        if size <= self.budget:
            self.budget -= size
            # contiguous copies let go of the rest; the only tile of a volume is not copied
            self.kept[number] = box, {name: part.contiguous() for name, part in parts.items()}

    def strides(self, feature: Tensor) -> Axes:
        d, h, w = (n // m for n, m in zip(self.grid.tile, feature.shape[2:], strict=True))
        return d, h, w

    def read(self, number: int, points: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """What the head reads of a tile, for points (N, 3) of the canvas's unit cube that are nearest to it.

        Returns:
            The points (1, N, 3) in the unit cube of a box of the tile, features (1, C, ...) and image (1, C, ...)
            of that box; a tile is read once.
        """
        image = self.tile(number)
        box: Box = (slice(0, image.shape[2]), slice(0, image.shape[3]), slice(0, image.shape[4]))
        if number in self.kept:
            box, features = self.kept.pop(number)
        else:
            features = self.model.predict(image).features
        local = self.grid.to_box(points, self.corners[number], box)
        return local[None].to(image.device), features, cut(image, box, (1, 1, 1))


def shows_surface(logits: Tensor) -> bool:
    """Whether more than one class wins somewhere in (1, K, ...) logits."""
    labels = best_class(logits)
    return bool((labels != labels.flatten()[0]).any())


def cut(volume: Tensor, box: Box, strides: Axes) -> Tensor:
    """The part of (1, C, ...) that a box, in voxels of stride 1, names."""
    z, y, x = (slice(part.start // s, part.stop // s) for part, s in zip(box, strides, strict=True))
    return volume[:, :, z, y, x]


@torch.inference_mode()
def segment(
    model: Segmenter,
    image: Tensor,
    size: Sequence[int],
    *,
    patch: Axes,
    overlap: float,
    refine: bool,
    test_share: float,
    margin: float | None = None,
) -> Prediction:
    """Segment a preprocessed volume on a target grid that spans the same box.

    Args:
        model: in evaluation mode.
        image: (C, D, H, W) on the working grid.
        size: voxels of the target grid, any.
        patch: voxels the network sees at once, multiples of the output stride.
        overlap: share of a tile that neighbours have in common, [0, 1).
        refine: re-predict uncertain voxels, if the model has a head.
        test_share: share of the target's voxels that are refined.
        margin: refine only where best minus second-best logit is at most this.
    """
    stride = model.network.output_stride
    working = image.shape[1:]
    grid = lay_tiles(working, patch, overlap=overlap, align=stride)
    padding = [n - m for n, m in zip(grid.canvas, working, strict=True)]
    canvas = F.pad(image, [p for pad in reversed(padding) for p in (0, pad)])
    extent = tuple(n / m for n, m in zip(working, grid.canvas, strict=True))
    tiles = TileFeatures(model, canvas, grid, budget=KEPT_FEATURE_BYTES if refine else 0)
    if len(tiles.corners) == 1:
        coarse = tiles.logits(0)  # nothing to blend: the very logits of the network
    else:
        blend = Blend(classes=model.network.logits.out_channels, grid=grid, stride=stride)
        for number, corner in enumerate(tiles.corners):
            blend.add(tiles.logits(number), corner)
        coarse = blend.result()
    unrefined = np.asarray(render_labels(coarse[None], tuple(size), extent=extent)[0].cpu())
    if not (refine and model.head is not None):
        none = np.zeros(0, np.int64)
        return Prediction(unrefined, unrefined, False, none, none.astype(np.float32), coarse, grid.canvas, extent)
    index, margins = uncertain_voxels(
        coarse, tuple(size), count=round(test_share * int(np.prod(size))), margin=margin, extent=extent
    )
    labels = unrefined.copy()
    refine_tiles(tiles, coarse, labels, index.cpu(), extent=extent)
    return Prediction(
        labels, unrefined, True, index.cpu().numpy(), margins.cpu().numpy(), coarse.cpu(), grid.canvas, extent
    )


def refine_tiles(tiles: TileFeatures, coarse: Tensor, labels: np.ndarray, index: Tensor, *, extent: tuple) -> None:
    """Write the head's labels at flat `index` into `labels`, each voxel read from the tile nearest to it."""
    head, flat = tiles.model.head, labels.reshape(-1)
    assert head is not None
    points = voxel_centres(index, labels.shape) * torch.tensor(extent)  # unit cube of the canvas
    owner, order = tiles.grid.nearest(points).sort(stable=True)
    numbers, counts = owner.unique_consecutive(return_counts=True)
    for number, mine in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
        local, features, image = tiles.read(number, points[mine])
        for some, at in zip(mine.split(POINTS_AT_ONCE), local.split(POINTS_AT_ONCE, dim=1), strict=True):
            at_points = sample_at(coarse[None], points[some][None].to(coarse.device)).to(image.device)
            logits = head.predict_points(at, at_points, features, image)
            flat[index[some].numpy()] = logits[0].argmax(0).cpu().numpy()


def predict_volume(model: Segmenter, volume: Volume, preprocessing: Preprocessing, config: Config) -> Prediction:
    """Segment a volume as read from disk, on its own grid."""
    image = torch.from_numpy(np.ascontiguousarray(preprocessing.apply(volume)))
    return segment(
        model,
        image,
        volume.array.shape[1:],
        patch=tile_size(config),
        overlap=config.inference.overlap,
        refine=config.points.refine,
        test_share=config.points.test_share,
        margin=config.points.margin,
    )


def tile_size(config: Config) -> Axes:
    """The training patch, grown to what the network would pad it to anyway."""
    total = cumulative_strides(config.network.strides)[-1]
    d, h, w = (-(-n // s) * s for n, s in zip(config.training.patch, total, strict=True))
    return d, h, w


class Predictor:
    """A trained run as a function of an image.

    Args:
        run: a run folder.
        checkpoint: `last` or `best`.
        overrides: config keys as on the command line, for example ["--points.refine", "false"].
        device: where the network runs.

    Raises:
        InputError: not a run, or a checkpoint that is missing or of another network.
    """

    def __init__(
        self, run: str | Path, *, checkpoint: str = "last", overrides: Sequence[str] = (), device: str = "cpu"
    ) -> None:
        self.run, self.config = open_run(run, overrides)
        trained = load_model(self.run, self.config, checkpoint)
        self.model, self.preprocessing = trained.model.to(device), trained.preprocessing
        self.structures, self.in_channels = trained.structures, trained.in_channels

    def predict(self, volume: Volume) -> Prediction:
        """Labels of a volume as `vnet.data.volumes.read_image` gives it, with and without refinement."""
        return predict_volume(self.model, volume, self.preprocessing, self.config)

    def __call__(self, image: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Labels of an image in memory.

        Args:
            image: (X, Y, Z) or (X, Y, Z, C) as nibabel gives it.
            affine: (4, 4) voxel to mm, of any orientation.

        Returns:
            (X, Y, Z) uint8 or uint16, voxel for voxel of `image`.
        """
        volume = volume_from_array(image, affine)
        return volume.restore(self.predict(volume).labels)
