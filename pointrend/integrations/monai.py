"""MONAI transforms from coarse logits to fine labels, in place of resampling followed by `AsDiscrete(argmax=True)`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import Tensor

from pointrend.render import render_labels


class RenderLabels(Transform):
    """The labels of every voxel of a grid, from channel-first logits: linear interpolation and argmax in one.

    Replaces `Resize(size, mode="trilinear")` followed by `AsDiscrete(argmax=True)`: equal up to float32 ties, without
    the tensor of classes x voxels. The affine of a `MetaTensor` is scaled to the new grid, which covers the same field
    of view.

    Args:
        spatial_size: voxels per spatial axis; None takes them from `like`, which every call must then give.
        align_corners: as in `torch.nn.functional.interpolate`.
        threads: threads on the CPU; None takes torch's number.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | None = None,
        *,
        align_corners: bool = False,
        threads: int | None = None,
    ) -> None:
        self.spatial_size = None if spatial_size is None else tuple(spatial_size)
        self.align_corners, self.threads = align_corners, threads

    def __call__(self, logits: Any, like: Any = None) -> Any:
        """The labels of one volume.

        Args:
            logits: (K, *spatial), 2D or 3D.
            like: (C, *size), an image whose spatial size (and affine) the labels take.

        Returns:
            (1, *size) uint8 (uint16 above 256 classes), of the kind of `logits`.

        Raises:
            ValueError: neither a size nor `like`, or what `render_labels` refuses.
        """
        if self.spatial_size is None and like is None:
            raise ValueError("RenderLabels needs a spatial_size or an image to be like, got neither")
        size = tuple(like.shape[1:]) if self.spatial_size is None else self.spatial_size
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        labels = render_labels(plain[None], size, self.align_corners, threads=self.threads)
        if not isinstance(logits, MetaTensor):
            return labels
        if self.spatial_size is None and isinstance(like, MetaTensor):
            affine = like.affine.clone()
        else:
            affine = _scaled(logits.affine, logits.shape[1:], size, self.align_corners)
        return MetaTensor(labels, affine=affine, meta={k: v for k, v in logits.meta.items() if k != "affine"})


class RenderLabelsd(MapTransform):
    """Dictionary form of `RenderLabels`; `like` is the key of the image whose grid the labels take."""

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | None = None,
        *,
        like: Hashable | None = None,
        align_corners: bool = False,
        threads: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.like = like
        self.render = RenderLabels(spatial_size, align_corners=align_corners, threads=threads)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        image = None if self.like is None else result[self.like]
        for key in self.key_iterator(result):
            result[key] = self.render(result[key], image)
        return result


def _scaled(affine: Tensor, old: Sequence[int], new: Sequence[int], align_corners: bool) -> Tensor:
    """The affine of `new` voxels over the field of view of `old` voxels, or between the same corner centres."""
    step = torch.eye(len(affine), dtype=affine.dtype, device=affine.device)
    for axis, (source, target) in enumerate(zip(old, new, strict=True)):
        if align_corners:
            step[axis, axis] = (source - 1) / (target - 1) if target > 1 else 1
        else:
            step[axis, axis] = source / target
            step[axis, -1] = (source / target - 1) / 2  # first centre to first centre
    return affine @ step
