"""PointRend as a module: one path from points to logits, used by the loss and by every step of refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.boxes import Boxes
from pointrend.coordinates import check_extent, extent_centres, voxel_centres
from pointrend.head import PointHead
from pointrend.reading import read_at, sample_at
from pointrend.roi import BoxRefinement, box_training_logits, refine_boxes
from pointrend.sampling import PointSampling, training_voxels
from pointrend.subdivision import Refinement, subdivide
from pointrend.windows import read_window


class PointRend(nn.Module):
    """A point head for any network that gives coarse logits (PointRend, arXiv 1912.08193), in 2D and 3D.

    Coarse logits, features and image may have any strides: all fill the same unit cube.

    Args:
        classes: K, at least 2; a binary task has 2.
        features: channels by name of the feature maps that the head reads, in this order.
        image_channels: channels of the image, if the head also reads the image at the point; 0 if not.
        width: channels of the head's hidden layers.
        layers: hidden layers.
        frequencies: octaves of a Fourier code of the position; 0 for none. See `PointHead`.
        windows: by name of a feature map, or `image`: the voxels per axis, odd, that the head reads around a point.
            A map that is not named is read at the point alone.
        ndim: spatial axes, 2 or 3; it matters with `frequencies` and `windows` alone.
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
            points: (B, N, ndim) in the unit cube, axes in array order; N may be 0.
            coarse: (B, K, N) coarse logits at the points.
            features: (B, C, *spatial) by name; names that the head does not read are ignored.
            image: (B, C, *spatial); needed unless `image_channels` is 0.
            grid: size of the grid whose voxel centres all points are; None if they are not. Maps of that size are
                read by index: the same values, and quicker.

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
        boxes: Boxes | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The head's logits at training points, drawn by `sampling`.

        Args:
            coarse: (B, K, *coarse) logits.
            features: as in `predict_points`.
            image: as in `predict_points`.
            labels: (B, *size) integers.
            generators: one CPU generator per sample; None draws from torch's global generator.
            boxes: R regions of interest: coarse logits (R, K, *coarse) are then those in the boxes, features, image and
                labels those of the whole images, and one generator serves all boxes. See `pointrend.roi`.

        Returns:
            Points (B, N, ndim) in the unit cube, logits (B, K, N) with gradient, labels (B, N) int64; with boxes R in
            place of B, and of K the logits that compete.
        """
        if boxes is not None:
            if generators is not None and len(generators) != 1:
                raise ValueError(f"generators must be one for all boxes, got {len(generators)}")
            one = None if generators is None else generators[0]
            return box_training_logits(self, coarse, features, image, labels, boxes, generator=one)
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
        boxes: Boxes | None = None,
    ) -> Tensor:
        """Cross-entropy at training points: the mean over the points of each sample (or box), then over samples.

        Samples weigh the same, so that the mean over several processes of equal batches is the loss of one. Arguments
        are those of `training_logits`.

        Returns:
            A scalar; 0, with a gradient, where every voxel is ignored or no point is drawn.
        """
        _, logits, truth = self.training_logits(coarse, features, image, labels, generators=generators, boxes=boxes)
        # ignored voxels are drawn only where a sample holds nothing else: the sum over N is each sample's mean, or 0
        no_label = -100 if self.sampling.ignore is None else self.sampling.ignore
        total = F.cross_entropy(logits.float(), truth, ignore_index=no_label, reduction="sum")
        return total / max(truth.numel(), 1)

    @overload
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
        boxes: None = None,
    ) -> Refinement: ...
    @overload
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
        boxes: Boxes,
    ) -> BoxRefinement: ...
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
        boxes: Boxes | None = None,
    ) -> Refinement | BoxRefinement:
        """Labels on any grid: the head's at uncertain voxels, those of the up-sampled coarse logits elsewhere.

        No tensor of classes x target voxels is made.

        Args:
            coarse: (B, K, *coarse) logits.
            features: as in `predict_points`.
            image: as in `predict_points`.
            size: voxels per axis of the target grid, in array order.
            num_points: ask the head about at most this many voxels per sample and step, the most uncertain.
            max_margin: ask only where best minus second-best logit is at most this. At least one of the two.
            extent: share of the unit cube that the target grid fills, per axis, from the origin; None is all of it.
            steps: grids to refine in turn, each twice as fine as the one before (the paper's subdivision); 1 goes
                straight to the target. The head reads the coarse logits in every step; the voxels that it changed
                move the choice of later voxels, and the labels around them.
            chunk: voxels that the head is asked about at once.
            check: ask the head about every voxel as well, to report the share of labels that differ. Slow.
            boxes: R regions of interest: coarse logits (R, K, *coarse) are then those in the boxes, and the voxels in
                the boxes alone are labelled; `num_points` counts per box, and `steps` are those of `refine_boxes`.

        Returns:
            Labels with and without refinement, and the refined voxels; with boxes a `BoxRefinement`.

        Raises:
            ValueError: shapes that disagree, or numbers out of range.
        """
        if boxes is not None:
            if check:
                raise ValueError(
                    "check=True asks about whole images, and is not there with boxes; leave one of them out"
                )
            return refine_boxes(
                self,
                coarse,
                features,
                image,
                size,
                boxes,
                num_points=num_points,
                max_margin=max_margin,
                extent=extent,
                steps=steps,
                chunk=chunk,
            )
        shares = check_extent(extent, coarse.ndim - 2)
        whole = all(share == 1 for share in shares)
        maps = {name: features[name] for name in self.feature_names if name in features}

        def logits_at(sample: int, index: Tensor, grid: tuple[int, ...]) -> Tensor:
            points = extent_centres(index, grid, shares)[None]
            at_points = sample_at(coarse[sample, None], points)
            own = {name: volume[sample, None] for name, volume in maps.items()}
            picture = None if image is None else image[sample, None]
            return self.predict_points(points, at_points, own, picture, grid=grid if whole else None)[0]

        return subdivide(
            coarse,
            size,
            logits_at,
            num_points=num_points,
            max_margin=max_margin,
            extent=extent,
            steps=steps,
            chunk=chunk,
            check=check,
        )

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
