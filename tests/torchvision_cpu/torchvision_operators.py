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
    order = np.argsort(-scores.detach().cpu().numpy(), kind="stable")
    kept = _suppress(boxes.detach().cpu().double().numpy(), order, threshold)
    return torch.as_tensor(order[kept], device=boxes.device)


@numba.njit(cache=True)
def _suppress(boxes, order, threshold):  # type: ignore[no-untyped-def]
    """Whether each box is kept, in the order given."""
    kept = np.ones(len(order), np.bool_)
    for i in range(len(order)):
        if not kept[i]:
            continue
        x1, y1, x2, y2 = boxes[order[i]]
        for j in range(i + 1, len(order)):
            left, top, right, bottom = boxes[order[j]]
            shared = max(min(x2, right) - max(x1, left), 0.0) * max(min(y2, bottom) - max(y1, top), 0.0)
            union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - shared
            if shared > threshold * union:  # no division: an empty box has no IoU
                kept[j] = False
    return kept


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
        values = volume.detach().float().permute(0, 2, 3, 1).contiguous().numpy()
        out = np.zeros((len(corners), height, width, volume.shape[1]), np.float32)
        _align(values, corners, *numbers, out, False)
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous().to(volume.dtype)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        batch, channels, rows, columns = ctx.shape
        into = np.zeros((batch, rows, columns, channels), np.float32)
        _align(into, ctx.corners, *ctx.numbers, gradient.float().permute(0, 2, 3, 1).contiguous().numpy(), True)
        return torch.from_numpy(into).permute(0, 3, 1, 2).contiguous().to(ctx.dtype), None, None, None, None, None, None


@numba.njit(cache=True)
def _align(volume, rois, scale, height, width, samples, aligned, bins, backward):  # type: ignore[no-untyped-def]
    """Average the volume (B, H, W, C) into bins (R, h, w, C), or with `backward` spread the bins' gradient into it."""
    _, rows, columns, channels = volume.shape
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
                one = bins[r, i, j]
                for a in range(down):
                    y = y1 + (i + (a + 0.5) / down) * high / height
                    for b in range(across):
                        x = x1 + (j + (b + 0.5) / across) * wide / width
                        if y < -1.0 or y > rows or x < -1.0 or x > columns:
                            continue  # torchvision counts 0 there
                        top, below, v = _neighbours(y, rows)
                        left, right, u = _neighbours(x, columns)
                        w00, w01 = np.float32(share * (1 - v) * (1 - u)), np.float32(share * (1 - v) * u)
                        w10, w11 = np.float32(share * v * (1 - u)), np.float32(share * v * u)
                        v00, v01 = volume[image, top, left], volume[image, top, right]
                        v10, v11 = volume[image, below, left], volume[image, below, right]
                        for c in range(channels):
                            if backward:
                                v00[c] += w00 * one[c]
                                v01[c] += w01 * one[c]
                                v10[c] += w10 * one[c]
                                v11[c] += w11 * one[c]
                            else:
                                one[c] += w00 * v00[c] + w01 * v01[c] + w10 * v10[c] + w11 * v11[c]


@numba.njit(cache=True)
def _neighbours(at, voxels):  # type: ignore[no-untyped-def]
    """The voxels below and above a position on an axis, and the share of the upper one."""
    at = max(at, 0.0)
    lower = int(at)
    if lower >= voxels - 1:
        return voxels - 1, voxels - 1, 0.0
    return lower, lower + 1, at - lower
