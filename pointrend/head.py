"""The point head: the maps that it reads, a small multilayer perceptron, the same at every point, and its losses.

Each loss is a mean over samples: several processes with equal shares agree with one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.reading import read_window

WINDOW = 3  # voxels per axis that a head reads of what lies on the image's grid, unless told otherwise
# Without gradients the layers take this many hidden values at a time. They then stay in the second-level cache:
# 65 536 points take 1 / 2.5 of the time of all at once.
VALUES_PER_BLOCK = 1 << 18


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
        self, maps: Mapping[str, Tensor], points: Tensor, grid: Sequence[int] | None, dtype: torch.dtype
    ) -> Tensor:
        """(B, width, N) values of what `maps` gives at points (B, N, ndim); `grid` as for `read_window`."""
        parts = [read_window(volume, points, self.windows[name], grid).to(dtype) for name, volume in maps.items()]
        return torch.cat(parts, dim=1) if parts else points.new_empty(len(points), 0, points.shape[1], dtype=dtype)

    def maps(self, features: Mapping[str, Tensor], image: Tensor | None, batch: int, ndim: int) -> dict[str, Tensor]:
        """The maps that are read, in order; arguments and errors of `PointRend.predict_points`."""
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


class PointHead(nn.Module):
    """Logits at points from fine features and coarse logits (PointRend, arXiv 1912.08193, sections 3.3 and 4.1).

    Each layer reads the output of the one before, joined with the coarse logits. The last layer starts as the
    identity on the coarse logits plus small random weights, so that an untrained head changes next to nothing.

    Args:
        classes: K, at least 2.
        features: F, channels of the fine features; 0 for none.
        width: channels of the hidden layers, at least 1.
        layers: hidden layers, at least 1.
        frequencies: octaves of a Fourier code of the position (NeRF, arXiv 2003.08934, equation 4) that joins the
            fine features; 0 for none.
        ndim: axes of the points, 2 or 3; it matters with `frequencies` alone.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, *, classes: int, features: int, width: int = 64, layers: int = 3, frequencies: int = 0, ndim: int = 3
    ) -> None:
        super().__init__()
        lowest = {"classes": 2, "features": 0, "width": 1, "layers": 1, "frequencies": 0, "ndim": 1}
        for name, least in lowest.items():
            if locals()[name] < least:
                raise ValueError(f"{name} must be at least {least}, got {locals()[name]}")
        self.classes, self.features, self.frequencies, self.ndim = classes, features, frequencies, ndim
        inputs = [features + 2 * frequencies * ndim, *[width] * (layers - 1)]
        self.hidden = nn.ModuleList(nn.Linear(n + classes, width) for n in inputs)
        self.logits = nn.Linear(width + classes, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew from torch's global generator."""
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)
        with torch.no_grad():
            self.logits.weight[:, -self.classes :] += torch.eye(self.classes)

    def forward(self, fine: Tensor, coarse: Tensor, points: Tensor | None = None) -> Tensor:
        """Logits at points.

        Args:
            fine: (B, F, N) features at the points; N may be 0.
            coarse: (B, K, N) coarse logits at the same points.
            points: (B, N, ndim) in the unit cube, axes in array order; needed with `frequencies` alone.

        Returns:
            (B, K, N).

        Raises:
            ValueError: other channels than those of the constructor, or points missing.
        """
        if fine.shape[1] != self.features or coarse.shape[1] != self.classes:
            raise ValueError(
                f"fine and coarse must have {self.features} and {self.classes} channels, "
                f"got {fine.shape[1]} and {coarse.shape[1]}"
            )
        if self.frequencies:
            if points is None:
                raise ValueError("points must be given to a head with frequencies, got None")
            fine = torch.cat([fine, fourier_code(points, self.frequencies).to(fine.dtype)], dim=1)
        if torch.is_grad_enabled() or coarse.device.type != "cpu":
            return self._layers(fine, coarse)
        block = max(VALUES_PER_BLOCK // self.logits.in_features, 1)
        pairs = zip(fine.split(block, dim=2), coarse.split(block, dim=2), strict=True)
        return torch.cat([self._layers(*pair) for pair in pairs], dim=2)

    def _layers(self, fine: Tensor, coarse: Tensor) -> Tensor:
        hidden = fine
        for layer in self.hidden:
            hidden = F.relu(_per_point(layer, torch.cat([hidden, coarse], dim=1)))
        return _per_point(self.logits, torch.cat([hidden, coarse], dim=1))

    @property
    def fine_weights(self) -> Tensor:
        """(F, width), the first layer's weights of the fine features; of a head without frequencies."""
        return self._weights(self.hidden[0])[0]

    def after_first_layer(self, first: Tensor, coarse: Tensor) -> Tensor:
        """`forward` on the CPU without gradients, from what the fine features give the first layer.

        Points are the slow axis here: two threads then share a matrix product, which they do not share the other way.

        Args:
            first: (B, N, width), the fine features times `fine_weights`; overwritten.
            coarse: (B, K, N).

        Returns:
            (B, K, N).
        """
        out = torch.empty(len(coarse), coarse.shape[2], self.classes)
        block = max(VALUES_PER_BLOCK // self.logits.in_features, 1)
        for sample in zip(first, coarse.transpose(1, 2), out, strict=True):
            for hidden, logits, into in zip(*(values.split(block) for values in sample), strict=True):
                for number, layer in enumerate(self.hidden):
                    of_hidden, of_coarse, bias = self._weights(layer)
                    hidden = torch.addmm(bias, hidden, of_hidden) if number else hidden.add_(bias)
                    hidden.addmm_(logits, of_coarse).relu_()
                of_hidden, of_coarse, bias = self._weights(self.logits)
                torch.addmm(bias, hidden, of_hidden, out=into).addmm_(logits, of_coarse)
        return out.transpose(1, 2)

    def _weights(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of a layer for what it reads first and for the coarse logits, inputs x outputs; its bias."""
        assert isinstance(layer, nn.Linear)
        return layer.weight.T[: -self.classes], layer.weight.T[-self.classes :], layer.bias


def _per_point(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer on (B, C, N). The points stay the fast axis, which spares two transposes a layer."""
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.expand(len(x), -1, -1)
    return torch.baddbmm(layer.bias[:, None], weight, x)


def fourier_code(points: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines of 2^j pi p for j < frequencies, the points p scaled from [0, 1] to [-1, 1].

    Args:
        points: (B, N, ndim) in the unit cube.
        frequencies: octaves, at least 1 (NeRF, arXiv 2003.08934, equation 4).

    Returns:
        (B, 2 * frequencies * ndim, N): all sines, then all cosines, octave by octave, axes in array order.
    """
    octaves = math.pi * 2.0 ** torch.arange(frequencies, device=points.device, dtype=points.dtype)
    angles = (octaves[:, None] * (2 * points - 1)[:, :, None]).flatten(2).transpose(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def point_losses(logits: Tensor, labels: Tensor, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy and soft Dice loss at the points of each sample.

    Args:
        logits: (B, K, N).
        labels: (B, N) int64 in [0, K), or `ignore`.
        ignore: label of points that do not count.

    Returns:
        The cross-entropy, a mean over all points, ignored ones adding 0; and the Dice loss of `soft_dice_loss`.
        Both are scalars, 0 with a gradient where no point counts.
    """
    log_probabilities = logits.float().log_softmax(dim=1)  # once for both
    no_label = -100 if ignore is None else ignore
    total = F.nll_loss(log_probabilities, labels, ignore_index=no_label, reduction="sum")
    counted = None if ignore is None else labels != ignore
    shown = labels if counted is None else labels.where(counted, labels.new_zeros(()))
    return total / max(labels.numel(), 1), soft_dice_loss(log_probabilities, shown, counted)


def soft_dice_loss(log_probabilities: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """One minus the soft Dice of the foreground classes that the sample holds (V-Net, arXiv 1606.04797, without
    the squares), averaged over classes, then samples.

    Classes absent from a sample are left to the cross-entropy: their Dice is 0 however little is predicted.

    Args:
        log_probabilities: (B, K, ...), the logarithm of the softmax.
        labels: (B, ...) integers in [0, K), also where not counted.
        counted: (B, ...) bool, voxels that count; None for all.

    Returns:
        A scalar in [0, 1]; 0 for samples without foreground.
    """
    probabilities = log_probabilities.flatten(2).exp()  # (B, K, V)
    labels = labels.flatten(1)
    at_label = probabilities.gather(1, labels[:, None])[:, 0]
    truth = class_counts(labels, probabilities.shape[1], counted)
    if counted is None:
        predicted = probabilities.sum(2)
    else:
        weights = counted.flatten(1).to(probabilities.dtype)
        at_label, predicted = at_label * weights, (probabilities * weights[:, None]).sum(2)
    overlap = torch.zeros_like(predicted).scatter_add(1, labels, at_label)
    dice = 2 * overlap / (predicted + truth).clamp_min(1e-6)
    present = truth[:, 1:] > 0
    lost = ((1 - dice[:, 1:]) * present).sum(1) / present.sum(1).clamp_min(1)
    return lost.mean() if len(lost) else lost.sum()


def class_counts(labels: Tensor, classes: int, counted: Tensor | None) -> Tensor:
    """Voxels of each class in each sample: (B, K). One count over all samples is far quicker than a scatter."""
    samples = torch.arange(len(labels), device=labels.device)[:, None] * classes
    flat = (labels + samples).flatten()
    if counted is not None:
        flat = flat[counted.flatten()]
    return torch.bincount(flat, minlength=len(labels) * classes).reshape(len(labels), classes)
