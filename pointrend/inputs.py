"""What a point head reads: feature maps and the image, with their channels and windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pointrend.windows import read_window

WINDOW = 3  # voxels per axis that a head reads of what lies on the image's grid, unless told otherwise


@dataclass(frozen=True)
class HeadInputs:
    """The maps that a head reads, in the order of its input channels: the features, last the image.

    Attributes:
        channels: channels by name of the map; the image is `image`.
        windows: by the same names, the voxels per axis that are read around a point.
        with_image: whether the image is among them.
    """

    channels: Mapping[str, int]
    windows: Mapping[str, int]
    with_image: bool

    @classmethod
    def of(cls, features: Mapping[str, int], image_channels: int, windows: Mapping[str, int] | None) -> HeadInputs:
        """From the arguments of `PointRend`.

        Raises:
            ValueError: a window that is even or of something else, or a feature map named `image` beside the image.
        """
        if image_channels and "image" in features:
            raise ValueError("features must not be named 'image' where the head reads the image too")
        channels = {**features, **({"image": image_channels} if image_channels else {})}
        if windows is None:
            windows = {"image": WINDOW} if image_channels else {}
        sizes = {name: windows.get(name, 1) for name in channels}
        unknown = [name for name in windows if name not in channels]
        if unknown or not all(size >= 1 and size % 2 for size in sizes.values()):
            raise ValueError(f"windows must hold odd sizes of {[*channels]}, got {dict(windows)}")
        return cls(channels, sizes, bool(image_channels))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the feature maps, without the image."""
        return tuple(self.channels)[: -1 if self.with_image else None]

    def width(self, ndim: int) -> int:
        """Values that are read for each point of `ndim` axes."""
        return sum(n * self.windows[name] ** ndim for name, n in self.channels.items())

    def read(
        self,
        points: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor | None,
        grid: Sequence[int] | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """(B, width, N) values at the points (B, N, ndim); arguments and errors of `PointRend.predict_points`."""
        maps = self._checked(features, image, len(points), points.shape[-1])
        parts = [read_window(volume, points, self.windows[name], grid).to(dtype) for name, volume in maps.items()]
        return torch.cat(parts, dim=1) if parts else points.new_empty(len(points), 0, points.shape[1], dtype=dtype)

    def _checked(
        self, features: Mapping[str, Tensor], image: Tensor | None, batch: int, ndim: int
    ) -> dict[str, Tensor]:
        """The maps by name, with their shapes checked."""
        missing = [name for name in self.feature_names if name not in features]
        if missing:
            raise ValueError(f"features must hold {self.feature_names}, {missing} missing from {sorted(features)}")
        maps = {name: features[name] for name in self.feature_names}
        if self.with_image:
            if image is None:
                raise ValueError("image must be given to a head with image_channels, got None")
            maps["image"] = image
        for name, volume in maps.items():
            due = (batch, self.channels[name])
            if volume.ndim != ndim + 2 or volume.shape[:2] != due:
                what = "image" if self.with_image and name == "image" else f"features[{name!r}]"
                axes = ", ".join("DHW"[-ndim:])
                raise ValueError(
                    f"{what} must have {due[1]} channels, ({batch}, {due[1]}, {axes}), got {tuple(volume.shape)}"
                )
        return maps
