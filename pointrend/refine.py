"""PointRend as a module: one path from points to logits, used by the loss and by every step of refinement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.coordinates import check_extent, check_size, extent_centres, voxel_centres
from pointrend.head import PointHead
from pointrend.neighbours import read_window
from pointrend.reading import best_class, read_at, sample_at
from pointrend.render import render_labels
from pointrend.sampling import PointSampling, training_voxels
from pointrend.subdivision import Change, Chosen, Field, step_sizes


@dataclass(frozen=True)
class Refinement:
    """Labels of a batch on a target grid, and what refinement did.

    Attributes:
        labels: (B, *size) uint8 (uint16 from 257 classes on), refined.
        unrefined: (B, *size), the argmax of the up-sampled coarse logits.
        index: per sample the (n,) int64 flat indices of the voxels that the head was asked about, ascending.
        uncertainty: per sample the (n,) float32 second best minus best coarse logit there.
        differs: share of voxels where `labels` differs from asking the head about every voxel; None if not checked.
    """

    labels: Tensor
    unrefined: Tensor
    index: tuple[Tensor, ...]
    uncertainty: tuple[Tensor, ...]
    differs: float | None = None


class PointRend(nn.Module):
    """A point head on any backbone that gives coarse logits (arXiv 1912.08193), in 2D and 3D.

    Coarse logits, features and image may have any strides: all span the same unit cube.

    Args:
        classes: K, at least 2; a binary task has 2.
        features: channels by name of the feature maps that the head reads, in this order.
        image_channels: channels of the image, if the head also reads it at the point; 0 if not.
        width: channels of the head's hidden layers.
        layers: hidden layers.
        frequencies: octaves of a Fourier code of the position; 0 for none.
        windows: by name of a feature map, or `image`: the voxels per axis that the head reads around a point, odd;
            what is not named is read at the point alone. See `pointrend.neighbours`.
        ndim: spatial axes; needed for the code and the windows alone.
        sampling: how the loss draws its points.

    Raises:
        ValueError: a number out of range, or a window of something that the head does not read.
    """

    def __init__(
        self,
        *,
        classes: int,
        features: Mapping[str, int],
        image_channels: int = 0,
        width: int = 64,
        layers: int = 3,
        frequencies: int = 0,
        windows: Mapping[str, int] | None = None,
        ndim: int = 3,
        sampling: PointSampling | None = None,
    ) -> None:
        super().__init__()
        self.sampling = PointSampling() if sampling is None else sampling
        self.classes, self.feature_names, self.image_channels = classes, tuple(features), image_channels
        channels = [*features.values(), *([image_channels] if image_channels else [])]
        names = [*features, *(["image"] if image_channels else [])]
        self.windows = [(windows or {}).get(name, 1) for name in names]
        unknown = [name for name in windows or {} if name not in names]
        if unknown or not all(size >= 1 and size % 2 for size in self.windows):
            raise ValueError(f"windows must hold odd sizes of {names}, got {dict(windows or {})}")
        self.head = PointHead(
            classes=classes,
            features=sum(n * size**ndim for n, size in zip(channels, self.windows, strict=True)),
            width=width,
            layers=layers,
            frequencies=frequencies,
            ndim=ndim,
        )

    def predict_points(
        self,
        points: Tensor,
        coarse: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor | None = None,
        *,
        grid: Sequence[int] | None = None,
    ) -> Tensor:
        """The head's logits at points.

        Args:
            points: (B, N, ndim) in the unit cube of the features; N may be 0.
            coarse: (B, K, N) coarse logits at the points.
            features: (B, C, *spatial) by name; names that the head does not read are left alone.
            image: (B, C, *spatial); needed where `image_channels` is not 0.
            grid: size of the grid whose voxel centres all points are, if they are: maps of that size are then read
                by index, which is quicker and the same.

        Returns:
            (B, K, N) in the dtype of `coarse`.

        Raises:
            ValueError: a feature map or the image is missing or has other channels.
        """
        volumes = self._volumes(features, image)
        read = zip(volumes, self.windows, strict=True)
        fine = [read_window(volume, points, window, grid).to(coarse.dtype) for volume, window in read]
        joined = torch.cat(fine, dim=1) if fine else coarse[:, :0]
        return self.head(joined, coarse, points)

    def training_logits(
        self,
        coarse: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor | None,
        labels: Tensor,
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The head's logits at training points, drawn by `sampling`.

        Args:
            coarse: (B, K, *coarse) logits.
            features: as in `predict_points`.
            image: as in `predict_points`.
            labels: (B, *size) integers.
            generators: one CPU generator per sample; None draws from torch's global generator.

        Returns:
            Points (B, N, ndim), logits (B, K, N) with gradient, labels (B, N) int64.
        """
        size = tuple(labels.shape[1:])
        index = training_voxels(coarse.detach(), size, self.sampling, labels=labels, generators=generators)
        points = voxel_centres(index, size)
        logits = self.predict_points(points, read_at(coarse, points, size), features, image, grid=size)
        return points, logits, labels.flatten(1).gather(1, index).long()

    def loss(
        self,
        coarse: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor | None,
        labels: Tensor,
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Cross-entropy at training points: the mean over each sample's counted points, then over samples.

        Samples weigh the same, so that several processes with equal shares agree with one. Arguments are those of
        `training_logits`.

        Returns:
            A scalar; 0, with a gradient, where no point counts.
        """
        _, logits, truth = self.training_logits(coarse, features, image, labels, generators=generators)
        # ignored voxels are drawn only where a sample holds nothing else: the mean over all points is the one over
        # those that count, or 0
        no_label = -100 if self.sampling.ignore is None else self.sampling.ignore
        total = F.cross_entropy(logits.float(), truth, ignore_index=no_label, reduction="sum")
        return total / max(truth.numel(), 1)

    @torch.no_grad()
    def refine(
        self,
        coarse: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor | None,
        size: Sequence[int],
        *,
        num_points: int | None = None,
        max_margin: float | None = None,
        extent: Sequence[float] | None = None,
        steps: int = 1,
        chunk: int = 65536,
        check: bool = False,
    ) -> Refinement:
        """Labels on any grid: the head's at uncertain voxels, those of the up-sampled coarse logits elsewhere.

        No tensor of classes x target voxels is made.

        Args:
            coarse: (B, K, *coarse) logits.
            features: as in `predict_points`.
            image: as in `predict_points`.
            size: voxels per axis of the target grid.
            num_points: ask the head about at most this many voxels per sample and step, the most uncertain.
            max_margin: ask only where best minus second-best logit is at most this. At least one of the two.
            extent: share of the unit cube that the target grid spans, per axis, from the origin.
            steps: grids to refine in turn, each twice as fine as the one before (the paper's subdivision); one goes
                straight to the target. The head reads the coarse logits in every step; what it changed moves the
                choice of later voxels and the labels next to refined ones.
            chunk: points at once.
            check: ask the head about every voxel as well, to report the share that differs. Slow.

        Raises:
            ValueError: shapes that disagree, or numbers out of range.
        """
        shares = check_extent(extent, coarse.ndim - 2)
        size = check_size(size, coarse.ndim - 2)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        grids = step_sizes(coarse.shape[2:], size, steps, num_points)
        unrefined = torch.as_tensor(render_labels(coarse, size, extent=extent))
        labels = unrefined.clone()
        chosen: list[Chosen] = []
        differing = 0
        for sample in range(len(coarse)):
            own = {name: maps[sample, None] for name, maps in features.items() if name in self.feature_names}
            picture = None if image is None else image[sample, None]
            ask = partial(self._logits_at, coarse[sample, None], shares, own, picture)
            field, flat = Field(coarse[sample], shares), labels[sample].view(-1)
            for grid in grids[:-1]:
                index = field.choose(grid, num_points=num_points, max_margin=max_margin).index
                delta = [ask(some, grid) - field.at(some, grid) for some in index.split(chunk)]
                field = field.with_change(Change(grid, index, torch.cat(delta, dim=1)))
            last = field.choose(size, num_points=num_points, max_margin=max_margin)
            flat[last.changed] = last.best.to(flat.dtype)
            _write_labels(flat, last.index, partial(ask, size=size), chunk)
            chosen.append(last)
            if check:
                dense = flat.clone()
                _write_labels(dense, torch.arange(len(flat), device=flat.device), partial(ask, size=size), chunk)
                differing += int((dense != flat).sum())
        return Refinement(
            labels,
            unrefined,
            tuple(last.index for last in chosen),
            tuple(last.uncertainty for last in chosen),
            differing / labels.numel() if check else None,
        )

    def _logits_at(
        self,
        coarse: Tensor,
        extent: tuple[float, ...],
        features: Mapping[str, Tensor],
        image: Tensor | None,
        index: Tensor,
        size: Sequence[int],
    ) -> Tensor:
        """The head's logits (K, N) at voxels of a target grid of one sample; the volumes have a batch of 1."""
        points = extent_centres(index, size, extent)[None]
        grid = size if all(share == 1 for share in extent) else None
        return self.predict_points(points, sample_at(coarse, points), features, image, grid=grid)[0]

    def _volumes(self, features: Mapping[str, Tensor], image: Tensor | None) -> list[Tensor]:
        missing = [name for name in self.feature_names if name not in features]
        if missing:
            raise ValueError(f"features must hold {self.feature_names}, {missing} missing from {sorted(features)}")
        volumes = [features[name] for name in self.feature_names]
        if self.image_channels:
            if image is None:
                raise ValueError("image must be given to a head with image_channels, got None")
            if image.shape[1] != self.image_channels:
                raise ValueError(f"image must have {self.image_channels} channels, got {image.shape[1]}")
            volumes.append(image)
        return volumes


def _write_labels(labels: Tensor, index: Tensor, logits_at: Callable[[Tensor], Tensor], chunk: int) -> None:
    """Write the best class of logits_at(index) (K, N) into flat labels, `chunk` voxels at a time."""
    for some in index.split(chunk):
        labels[some] = best_class(logits_at(some)[None])[0].to(labels.dtype)
