"""Layers that give what torch's own give, in less time on a CPU. On other devices they are torch's own.

The seconds in the comments: AMD EPYC, 2 cores, float32; see docs/speed.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pointrend.coordinates import interpolation_table

# A lone sample with fewer values than this in its channels and first two axes, and a kernel of at most 3, is convolved
# by torch's own loops, not by oneDNN (ATen/native/Convolution.cpp, use_mkldnn).
FEW_VALUES = 20480


class Convolution(nn.Conv3d):
    """`nn.Conv3d` of stride 1 and odd kernel, padded to keep the size.

    A lone small sample is cut into two that overlap by the kernel's reach: oneDNN takes those, which is 3 to 6 times
    quicker from stride 4 on (32 channels at 24^3: 8 ms instead of 49, forward and backward).

    Args:
        inputs, outputs: channels.
        kernel: odd, (z, y, x).
        bias: add a bias.
    """

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], *, bias: bool) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, padding=padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not left_to_loops(x, self.kernel_size):
            return super().forward(x)
        depth, reach = x.shape[2], self.kernel_size[0] // 2
        half = -(-depth // 2)
        padded = F.pad(x, (0, 0, 0, 0, reach, reach + 2 * half - depth))
        two = torch.cat([padded[:, :, : half + 2 * reach], padded[:, :, half:]])
        out = F.conv3d(two, self.weight, self.bias, padding=(0, *self.padding[1:]))
        joined = out.transpose(0, 1).flatten(1, 2)[None]  # one copy, either way
        return joined if 2 * half == depth else joined[:, :, :depth]


def left_to_loops(x: Tensor, kernel: tuple[int, ...]) -> bool:
    """Whether torch would not hand this convolution to oneDNN."""
    lone = len(x) == 1 and x.shape[2] > 1 and math.prod(x.shape[1:4]) <= FEW_VALUES
    return lone and x.device.type == "cpu" and x.dtype == torch.float32 and min(kernel[1:]) <= 3


class Pointwise(nn.Conv3d):
    """`nn.Conv3d` of kernel 1 as a matrix product: 5 ms instead of 12 for 16 channels to 3 logits at 2 x 48x64x48."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)
        assert self.bias is not None
        self.bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        weights = self.weight.flatten(1).expand(len(x), -1, -1)  # (B, outputs, inputs)
        return torch.baddbmm(self.bias[:, None], weights, x.flatten(2)).unflatten(2, x.shape[2:])


class InstanceNorm(nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` with scale and shift: a group norm of one channel a group, whose loop is twice as quick."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x[0, 0].numel() == 1:  # torch refuses a single value, with its own words
            return super().forward(x)
        return F.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class PReLU(nn.PReLU):
    """`nn.PReLU` with a slope a channel; the backward pass in 20 ms instead of 55 for 16 channels at 96^3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.dtype == self.weight.dtype:
            out: Tensor = SlopedReLU.apply(x, self.weight)
            return out
        return super().forward(x)


class SlopedReLU(torch.autograd.Function):
    """x where positive, slope x elsewhere; torch's own backward makes the slope's gradient voxel by voxel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, x, 0)  # the gradient where x is positive
        below = grad - above
        above.addcmul_(below, slope.view(-1, *[1] * (x.ndim - 2)))
        return above, below.mul_(x).sum([axis for axis in range(x.ndim) if axis != 1])


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear `F.interpolate` as one matrix product an axis: 3 logits to 2 x 48x64x48, forward and backward, in
    1.5 ms instead of 4; 3 to 96^3 in 8 instead of 13; 14 to 64x128x128 in 35 instead of 61.

    Args:
        x: (B, C, D, H, W), floating point.
        size: voxels along each axis of the finer grid over the same box.

    Returns:
        (B, C, *size).
    """
    if x.device.type != "cpu":
        return F.interpolate(x, tuple(size), mode="trilinear", align_corners=False)
    depth, height, width = (
        torch.from_numpy(_weights(*pair)).to(x.dtype) for pair in zip(x.shape[2:], size, strict=True)
    )
    with torch.autocast("cpu", enabled=False):
        x = height @ (x @ width.T)
        return (depth @ x.flatten(3)).unflatten(3, x.shape[3:])


@lru_cache(maxsize=64)
def _weights(source: int, target: int) -> NDArray[np.float32]:
    """(target, source): row i holds the weights of voxel i of the finer grid, at most two of them not 0.

    An array: a tensor first made in inference mode could not go backward later.
    """
    lower, upper, weight = interpolation_table(source, target)
    rows, matrix = np.arange(target), np.zeros((target, source), np.float32)
    matrix[rows, lower] = 1 - weight
    matrix[rows, upper] += weight  # beyond the outermost centres both are the same voxel
    return matrix
