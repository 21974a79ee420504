"""V-Net (Milletari et al. 2016, arXiv 1606.04797), with a decoder that may stop early.

A stage is a run of convolutions with an additive residual around it. Strided convolutions lead down, transposed ones
up; skips are concatenated. The decoder stops at `output_stride`, where a 1x1x1 convolution gives the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vnet.core.config import Axes, NetworkConfig, cumulative_strides, per_axis
from vnet.model.layers import Convolution, InstanceNorm, Pointwise, PReLU, upsample


class VNetOutput(NamedTuple):
    """Coarse logits (B, K, D/s, H/s, W/s), and features by name, each (B, C, ...) at the stride of its stage.

    Where a stride does not divide the input, a grid has ceil(size / stride) voxels and extends past the input's end.
    """

    logits: Tensor
    features: dict[str, Tensor]


def normalisation(kind: str, channels: int) -> nn.Module:
    """The layer of `network.norm`.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "none":
            return nn.Identity()
        case "batch":
            return nn.BatchNorm3d(channels)
        case "instance":
            return InstanceNorm(channels)
        case "group":
            # eight channels a group, or all of a narrower stage
            return nn.GroupNorm(max(channels // 8, 1) if channels % 8 == 0 else 1, channels)
    raise ValueError(f"norm must be none, batch, instance or group, got {kind}")


def activation(kind: str, channels: int) -> nn.Module:
    """The layer of `network.activation`.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "prelu":
            return PReLU(channels)
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU(0.01, inplace=True)
        case "elu":
            return nn.ELU(inplace=True)
    raise ValueError(f"activation must be prelu, relu, leaky_relu or elu, got {kind}")


Layer = Callable[[nn.Module, int], nn.Sequential]


def layer_builder(norm: str, act: str) -> Layer:
    """A function from a convolution and its channels to convolution -> normalisation -> activation."""

    def build(convolution: nn.Module, channels: int) -> nn.Sequential:
        return nn.Sequential(convolution, normalisation(norm, channels), activation(act, channels))

    return build


class Residual(nn.Module):
    """`convolutions` layers plus their input: act(norm(conv(... )) + x), the last activation after the sum.

    Where the input has fewer channels than the output (the image, in the first stage), they are repeated cyclically.
    """

    def __init__(self, *, inputs: int, channels: int, convolutions: int, kernel: Axes, norm: str, act: str) -> None:
        super().__init__()
        if inputs > channels:
            raise ValueError(f"width must be at least the {inputs} input channels, got {channels}")
        layer = layer_builder(norm, act)
        sizes = [inputs] + [channels] * convolutions
        bias = norm == "none"  # a normalisation's own shift makes the bias idle
        convs = [Convolution(a, b, kernel, bias=bias) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*(layer(conv, channels) for conv in convs[:-1]))
        self.last = nn.Sequential(convs[-1], normalisation(norm, channels))
        self.act = activation(act, channels)
        self.register_buffer("repeat", torch.arange(channels) % inputs, persistent=False)
        self.repeat: Tensor
        self.same = inputs == channels
        self.single = inputs == 1

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.same or self.single else x[:, self.repeat]  # one channel broadcasts
        # in place: neither a normalisation nor a convolution needs its own result to go backward
        return self.act(self.last(self.layers(x)).add_(skip))


class SpaceToDepth(nn.Module):
    """Blocks of voxels as channels: (B, C, D, H, W) to (B, C * block, D / z, H / y, W / x); nothing is lost.

    Args:
        block: voxels (z, y, x) of a block; they divide the sizes.
    """

    def __init__(self, block: Axes) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        z, y, x_ = self.block
        batch, channels, depth, height, width = x.shape
        parts = x.view(batch, channels, depth // z, z, height // y, y, width // x_, x_)
        return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


class ThinStage(nn.Module):
    """Logits at full resolution from up-sampled coarse logits, the first stage and the image, at little arithmetic.

    They are joined, squeezed to `channels` by a 1x1x1 convolution, and a 3x3x3 convolution gives what is added to the
    up-sampled logits.

    Args:
        classes: K.
        features: channels of the first stage.
        image_channels: of the image.
        channels: of the stage.
        layer: of `layer_builder`.
    """

    def __init__(self, *, classes: int, features: int, image_channels: int, channels: int, layer: Layer) -> None:
        super().__init__()
        self.squeeze = layer(Pointwise(classes + features + image_channels, channels), channels)
        self.correction = Convolution(channels, classes, (3, 3, 3), bias=True)

    def forward(self, coarse: Tensor, features: Tensor, image: Tensor) -> Tensor:
        """(B, K, d, h, w), (B, C, D, H, W) and (B, C_in, D, H, W) to logits (B, K, D, H, W)."""
        upsampled = upsample(coarse, features.shape[2:])
        correction: Tensor = self.correction(self.squeeze(torch.cat([upsampled, features, image], dim=1)))
        return upsampled + correction


class VNet(nn.Module):
    """V-Net with named features.

    Args:
        in_channels: channels of the image.
        classes: K, two or more (softmax).
        width: channels of the first stage, doubled by each stage down.
        kernel: odd size of the convolutions, one number or (z, y, x).
        down: convolutions of each stage on the way down, the bottom included.
        up: convolutions of each stage on the way up, deepest first.
        strides: (z, y, x) of each step down.
        norm, act: see `normalisation` and `activation`.
        dropout: share of channels dropped after each stage but the first; 0 builds no layer.
        output_stride: where the decoder stops, one number or (z, y, x).
        stem: `full` begins with a stage at full resolution; `space_to_depth` turns blocks of voxels into channels and
            begins with the second stage; there is no feature map `encoder1` then.
        thin_stage: channels of a `ThinStage` behind a decoder that stops early; 0 builds none.

    Attributes:
        output_stride: (z, y, x) of the logits.
        decoder_stride: (z, y, x) of the last decoder stage; the same but with a thin stage.

    Raises:
        ValueError: K below 2, a width below the number of image channels, an output stride that no stage has.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        classes: int = 2,
        width: int = 16,
        kernel: int | Axes = 5,
        down: Sequence[int] = (1, 2, 3, 3, 3),
        up: Sequence[int] = (3, 3, 2, 1),
        strides: Sequence[Axes] = ((2, 2, 2),) * 4,
        norm: str = "batch",
        act: str = "prelu",
        dropout: float = 0.0,
        output_stride: int | Axes = 1,
        stem: str = "full",
        thin_stage: int = 0,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be 2 or more (a binary task has 2), got {classes}")
        self.totals = cumulative_strides(strides)
        if stem not in ("full", "space_to_depth"):
            raise ValueError(f"stem must be full or space_to_depth, got {stem}")
        reachable = self.totals[:-1] if stem == "full" else self.totals[1:-1]
        if per_axis(output_stride) not in reachable:
            raise ValueError(f"output_stride must be one of {reachable}, got {output_stride}")
        self.decoder_stride, self.stem = per_axis(output_stride), stem
        self.output_stride = (1, 1, 1) if thin_stage else self.decoder_stride
        stop = self.totals.index(self.decoder_stride)
        size, layer = per_axis(kernel), layer_builder(norm, act)
        channels = [width * 2**i for i in range(len(down))]
        dropped: Callable[[], nn.Module] = (lambda: nn.Dropout3d(dropout)) if dropout else nn.Identity

        def stage(inputs: int, outputs: int, convolutions: int) -> Residual:
            return Residual(inputs=inputs, channels=outputs, convolutions=convolutions, kernel=size, norm=norm, act=act)

        bias = norm == "none"
        first: nn.Module = stage(in_channels, width, down[0]) if stem == "full" else SpaceToDepth(strides[0])
        self.encoders = nn.ModuleList([first])
        self.downs = nn.ModuleList()
        for i, step in enumerate(strides):
            if i == 0 and stem == "space_to_depth":
                conv: nn.Module = Pointwise(in_channels * math.prod(step), channels[1])
            else:
                conv = nn.Conv3d(channels[i], channels[i + 1], step, stride=step, bias=bias)
            self.downs.append(layer(conv, channels[i + 1]))
            self.encoders.append(nn.Sequential(stage(channels[i + 1], channels[i + 1], down[i + 1]), dropped()))
        self.ups, self.decoders = nn.ModuleList(), nn.ModuleList()
        coming = channels[-1]
        for i in reversed(range(stop, len(strides))):
            conv_up = nn.ConvTranspose3d(coming, channels[i], strides[i], stride=strides[i], bias=bias)
            self.ups.append(layer(conv_up, channels[i]))
            coming = 2 * channels[i]
            convolutions = up[len(strides) - 1 - i]
            self.decoders.append(nn.Sequential(stage(coming, coming, convolutions), dropped()))
        self.logits = Pointwise(coming, classes)
        self.thin_stage = (
            ThinStage(
                classes=classes,
                features=width,
                image_channels=in_channels,
                channels=thin_stage,
                layer=layer,
            )
            if thin_stage
            else None
        )
        self.feature_channels = {f"encoder{i + 1}": c for i, c in enumerate(channels)} | {"decoder": coming}
        if stem == "space_to_depth":
            del self.feature_channels["encoder1"]

    @property
    def total_stride(self) -> Axes:
        """Stride of the deepest stage: the input is padded to a multiple of it."""
        return self.totals[-1]

    def forward(self, image: Tensor) -> VNetOutput:
        """(B, C_in, D, H, W) of any size -> logits and features; padded at the end of each axis, cropped back."""
        size = image.shape[2:]
        padding = [-n % s for n, s in zip(size, self.total_stride, strict=True)]
        padded = F.pad(image, [p for pad in reversed(padding) for p in (0, pad)]) if any(padding) else image
        stages = [self.encoders[0](padded)]
        for down, encoder in zip(self.downs, list(self.encoders)[1:], strict=True):
            stages.append(encoder(down(stages[-1])))
        x = stages[-1]
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(stages[:-1]), strict=False):
            x = decoder(torch.cat([up(x), skip], dim=1))
        features = {f"encoder{i + 1}": stage for i, stage in enumerate(stages)} | {"decoder": x}
        strides = [*self.totals, self.decoder_stride]
        cropped = {
            name: crop(feature, size, stride)
            for (name, feature), stride in zip(features.items(), strides, strict=True)
            if name in self.feature_channels
        }
        logits = self.logits(x)
        if self.thin_stage is not None:
            logits = self.thin_stage(logits, stages[0], padded)
        return VNetOutput(crop(logits, size, self.output_stride), cropped)

    def first_stage(self, image: Tensor) -> Tensor:
        """The feature map `encoder1` alone: about a sixth of the time of `forward` (small body, stride 4).

        Args:
            image: (B, C_in, D, H, W), sizes that the total stride divides.
        """
        first: Tensor = self.encoders[0](image)
        return first


def crop(volume: Tensor, size: Sequence[int], stride: Axes) -> Tensor:
    """The first ceil(size / stride) voxels of each axis."""
    d, h, w = (-(-n // s) for n, s in zip(size, stride, strict=True))
    return volume if tuple(volume.shape[2:]) == (d, h, w) else volume[..., :d, :h, :w]


def build_network(config: NetworkConfig, *, in_channels: int, classes: int) -> VNet:
    """The V-Net that `config` describes."""
    return VNet(
        in_channels=in_channels,
        classes=classes,
        width=config.width,
        kernel=config.kernel,
        down=config.down,
        up=config.up,
        strides=config.strides,
        norm=config.norm,
        act=config.activation,
        dropout=config.dropout,
        output_stride=config.output_stride,
        stem=config.stem,
        thin_stage=config.thin_stage,
    )
