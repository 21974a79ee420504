"""PointRend as a module: one path from points to logits, used by the loss and by every step of refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from pointrend._kernels.threads import traced
from pointrend.boxes import Boxes
from pointrend.coordinates import check_extent, extent_centres, voxel_centres, whole_grid
from pointrend.first_layer import VALUES_AT_ONCE, logits_by_voxel, works_by_voxel
from pointrend.head import WINDOW, HeadInputs, PointHead, point_losses
from pointrend.reading import has_nan, interpolate_at, read_at
from pointrend.roi import BoxRefinement, box_training_logits, refine_boxes
from pointrend.sampling import PointSampling, check_labels, training_voxels
from pointrend.subdivision import Refinement, subdivide


class PointRend(nn.Module):
    """A point head for any network that gives coarse logits (PointRend, arXiv 1912.08193), in 2D and 3D.

    Coarse logits, features and image may have any strides: all fill the same unit cube. The defaults are the head that
    did best on volumes: 3x3x3 voxels of the image around each point, points drawn by uncertainty alone, cross-entropy
    and Dice at the points. `PointRend.paper` is the head of the paper. `PointRend.from_example` reads the channels off
    one batch.

    Args:
        classes: K, at least 2; a binary task has 2.
        features: channels by name of the feature maps that the head reads, in this order.
        image_channels: channels of the image, if the head also reads the image around the point; 0 if not.
        width: channels of the head's hidden layers.
        layers: hidden layers.
        frequencies: octaves of a Fourier code of the position; 0 for none. See `PointHead`.
        windows: by name of a feature map, or `image`: the voxels per axis, odd, that the head reads around a point.
            A map that is not named is read at the point alone. None reads 3 of the image; feature maps on the image's
            grid should be named too, as `from_example` does.
        ndim: spatial axes, 2 or 3; it matters with `frequencies` and `windows` alone.
        sampling: how the loss draws its points; None is `PointSampling()`.
        dice_weight: weight of the Dice loss beside the cross-entropy in `loss`, at least 0.

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
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.sampling = PointSampling() if sampling is None else sampling
        if not dice_weight >= 0:
            raise ValueError(f"dice_weight must be at least 0, got {dice_weight}")
        quotas = self.sampling.quotas
        if quotas is not None and len(quotas) != classes:
            raise ValueError(f"quotas must be one share per class, {classes} here, got {tuple(quotas)}")
        self.classes, self.dice_weight = classes, dice_weight
        self.inputs = HeadInputs.of(features, image_channels, windows)
        self.head = PointHead(
            classes=classes,
            features=self.inputs.width(ndim),
            width=width,
            layers=layers,
            frequencies=frequencies,
            ndim=ndim,
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the feature maps that the head reads."""
        return self.inputs.feature_names

    @classmethod
    def paper(cls, *, classes: int, features: Mapping[str, int], num_points: int = 2048, **options: Any) -> PointRend:
        """The head, points and loss of the paper (arXiv 1912.08193, sections 3 and 4.1).

        The head has 3 hidden layers of 256 channels and reads every map at the point alone. Three quarters of the
        points are the most uncertain of three times as many. The loss is the cross-entropy.

        Args:
            classes: as for the constructor.
            features: as for the constructor.
            num_points: N, points per sample.
            options: further arguments of the constructor, which go before the paper's.
        """
        usual: dict[str, Any] = {
            "width": 256,
            "layers": 3,
            "windows": {},
            "sampling": PointSampling.paper(num_points=num_points),
            "dice_weight": 0.0,
        }
        return cls(classes=classes, features=features, **usual | options)

    @classmethod
    def from_example(
        cls, coarse: Tensor, features: Mapping[str, Tensor], image: Tensor | None = None, **options: Any
    ) -> PointRend:
        """A head for the network that gave these tensors: classes, channels and axes are theirs.

        The image, and every feature map of the image's size, is read in windows of 3 voxels per axis.

        Args:
            coarse: (B, K, *coarse) logits of any batch.
            features: (B, C, *spatial) by name, all of them to be read.
            image: (B, C, *spatial), if the head shall read it.
            options: further arguments of the constructor, which go before these.
        """
        windows = {}
        if image is not None:
            windows = {name: WINDOW for name, maps in features.items() if maps.shape[2:] == image.shape[2:]}
            windows["image"] = WINDOW
        read: dict[str, Any] = {
            "classes": coarse.shape[1],
            "features": {name: maps.shape[1] for name, maps in features.items()},
            "image_channels": 0 if image is None else image.shape[1],
            "windows": windows,
            "ndim": coarse.ndim - 2,
        }
        return cls(**read | options)

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
            ValueError: a feature map or the image is missing or has another shape, NaN points (looked for on the CPU
                alone: elsewhere the check would wait for the device).
        """
        if coarse.shape[1] != self.classes:
            raise ValueError(f"coarse must have {self.classes} classes, got {tuple(coarse.shape)}")
        if points.device.type == "cpu" and not traced() and has_nan(points):
            raise ValueError("points must be numbers, got NaN")
        maps = self.inputs.maps(features, image, len(points), points.shape[-1])
        if works_by_voxel(self.head, maps, points, coarse):
            return logits_by_voxel(self.head, maps, self.inputs.windows, points, coarse, grid)
        if torch.is_grad_enabled() or points.device.type != "cpu" or traced():
            return self._logits_at(maps, points, coarse, grid)
        at_once = VALUES_AT_ONCE // (self.inputs.width(points.shape[2]) + 1) + 1
        parts = zip(points.split(at_once, dim=1), coarse.split(at_once, dim=2), strict=True)
        return torch.cat([self._logits_at(maps, some, own, grid) for some, own in parts], dim=2)

    def _logits_at(
        self, maps: Mapping[str, Tensor], points: Tensor, coarse: Tensor, grid: Sequence[int] | None
    ) -> Tensor:
        """(B, K, N) logits at points, everything read there at once."""
        return self.head(self.inputs.read(maps, points, grid, coarse.dtype), coarse, points)

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

        Raises:
            TypeError: labels that are not integers.
            ValueError: shapes that disagree.
        """
        if boxes is not None:
            check_labels(labels, coarse, rows=None)
            if generators is not None and len(generators) != 1:
                raise ValueError(f"generators must be one for all boxes, got {len(generators)}")
            one = None if generators is None else generators[0]
            return box_training_logits(self, coarse, features, image, labels, boxes, generator=one)
        check_labels(labels, coarse, rows=len(coarse))
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
        """Cross-entropy plus `dice_weight` times the Dice loss at training points, means over samples (or boxes).

        Samples weigh the same, so that the mean over several processes of equal batches is the loss of one. Arguments
        and errors are those of `training_logits`, the terms those of `pointrend.head.point_losses`.

        Returns:
            A scalar; 0, with a gradient, where every voxel is ignored or no point is drawn.
        """
        _, logits, truth = self.training_logits(coarse, features, image, labels, generators=generators, boxes=boxes)
        cross_entropy, dice = point_losses(logits, truth, self.sampling.ignore)
        return cross_entropy + self.dice_weight * dice

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

        def logits_at(sample: int, index: Tensor, grid: tuple[int, ...]) -> Tensor:
            points = extent_centres(index, grid, shares)[None]
            at_points = interpolate_at(coarse[sample, None], points)
            own = {name: features[name][sample, None] for name in self.feature_names if name in features}
            picture = None if image is None else image[sample, None]
            return self.predict_points(points, at_points, own, picture, grid=whole_grid(grid, shares))[0]

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
