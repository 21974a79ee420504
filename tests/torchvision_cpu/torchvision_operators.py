"""Operators of torchvision in numpy and numba, for the CPU: non-maximum suppression and RoIAlign with its gradient."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor


def define_operators() -> list[torch.library.Library]:
    """Define `torchvision::nms` and `torchvision::qnms`; they vanish with the libraries that come back."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CompositeExplicitAutograd")
    return [library]


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices (int64) of the boxes that non-maximum suppression keeps, by falling score; ties by lower index.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,).
        threshold: a box is dropped where its IoU with a kept box of higher score is above this.
    """
    x1, y1, x2, y2 = boxes.detach().cpu().numpy().astype(np.float64).T
    areas = (x2 - x1) * (y2 - y1)
    order = np.argsort(-scores.detach().cpu().numpy(), kind="stable")
    kept = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        width = np.minimum(x2[first], x2[rest]) - np.maximum(x1[first], x1[rest])
        height = np.minimum(y2[first], y2[rest]) - np.maximum(y1[first], y1[rest])
        shared = width.clip(0) * height.clip(0)
        # no division: an empty box has no IoU
        order = rest[shared <= threshold * (areas[first] + areas[rest] - shared)]
    return torch.as_tensor(np.array(kept, np.int64), device=boxes.device)


def roi_align(
    volume: Tensor, rois: Tensor, scale: float, height: int, width: int, samples: int, aligned: bool
) -> Tensor:
    """RoIAlign as torchvision's C++ operator does it, on the CPU in float32.

    Args:
        volume: (B, C, H, W).
        rois: (R, 5), the image's index, then x1 y1 x2 y2.
        scale: of the boxes to voxels of the volume.
        height, width: bins.
        samples: points per bin and axis; 0 or less takes as many as a bin has voxels, rounded up.
        aligned: whether voxel i has its centre at i + 0.5.

    Returns:
        (R, C, height, width).
    """
    out: Tensor = _Align.apply(volume, rois, scale, height, width, samples, aligned)
    return out


class _Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx, volume, rois, scale, height, width, samples, aligned):  # type: ignore[no-untyped-def]
        corners = rois.detach().double().numpy()
        numbers = (scale, height, width, samples, aligned)
        ctx.shape, ctx.dtype, ctx.corners, ctx.numbers = volume.shape, volume.dtype, corners, numbers
        values = volume.detach().float().contiguous().numpy()
        out = np.zeros((len(corners), volume.shape[1], height, width), np.float32)
        _align(values, corners, *numbers, out, False)
        return torch.from_numpy(out).to(volume.dtype)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        into = np.zeros(ctx.shape, np.float32)
        _align(into, ctx.corners, *ctx.numbers, gradient.float().contiguous().numpy(), True)
        return torch.from_numpy(into).to(ctx.dtype), None, None, None, None, None, None


@numba.njit(cache=True)
def _align(volume, rois, scale, height, width, samples, aligned, bins, backward):  # type: ignore[no-untyped-def]
    """Average the volume into bins, or with `backward` spread the bins' gradient into the volume."""
    _, channels, rows, columns = volume.shape
    for r in range(len(rois)):
        image = int(rois[r, 0])
        x1, y1, x2, y2 = rois[r, 1:] * scale - (0.5 if aligned else 0.0)
        wide, high = x2 - x1, y2 - y1
        if not aligned:
            wide, high = max(wide, 1.0), max(high, 1.0)
        down = samples if samples > 0 else math.ceil(high / height)
        across = samples if samples > 0 else math.ceil(wide / width)
        share = 1.0 / max(down * across, 1)
        for i in range(height):
            for j in range(width):
                for a in range(down):
                    y = y1 + (i + (a + 0.5) / down) * high / height
                    for b in range(across):
                        x = x1 + (j + (b + 0.5) / across) * wide / width
                        if y < -1.0 or y > rows or x < -1.0 or x > columns:
                            continue  # torchvision counts 0 there
                        top, below, v = _neighbours(y, rows)
                        left, right, u = _neighbours(x, columns)
                        w00, w01 = share * (1 - v) * (1 - u), share * (1 - v) * u
                        w10, w11 = share * v * (1 - u), share * v * u
                        for c in range(channels):
                            plane = volume[image, c]
                            if backward:
                                g = bins[r, c, i, j]
                                plane[top, left] += w00 * g
                                plane[top, right] += w01 * g
                                plane[below, left] += w10 * g
                                plane[below, right] += w11 * g
                            else:
                                bins[r, c, i, j] += (
                                    w00 * plane[top, left]
                                    + w01 * plane[top, right]
                                    + w10 * plane[below, left]
                                    + w11 * plane[below, right]
                                )


@numba.njit(cache=True)
def _neighbours(at, voxels):  # type: ignore[no-untyped-def]
    """The voxels below and above a position on an axis, and the share of the upper one."""
    at = max(at, 0.0)
    lower = int(at)
    if lower >= voxels - 1:
        return voxels - 1, voxels - 1, 0.0
    return lower, lower + 1, at - lower
