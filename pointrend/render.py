"""Labels at any resolution from coarse logits, without the tensor of classes x fine voxels in between.

Segmentation as rendering (Kirillov et al., PointRend, CVPR 2020): linear interpolation is a convex mix, so a cell whose
corners share their best class holds that class everywhere. Only cells that a surface cuts are interpolated, for the
classes that can be best there. Where most cells are cut (noise), a streaming dense loop takes over.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointrend.coordinates import CellAxis, check_extent

VALUES_AT_ONCE = 1 << 26  # floats that the path for other devices holds at once


@overload
def render_labels(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = ...,
    *,
    extent: Sequence[float] | None = ...,
    threads: int | None = ...,
) -> Tensor: ...
@overload
def render_labels(
    logits: NDArray[Any],
    size: Sequence[int],
    align_corners: bool = ...,
    *,
    extent: Sequence[float] | None = ...,
    threads: int | None = ...,
) -> NDArray[Any]: ...
def render_labels(
    logits: Tensor | NDArray[Any],
    size: Sequence[int],
    align_corners: bool = False,
    *,
    extent: Sequence[float] | None = None,
    threads: int | None = None,
) -> Tensor | NDArray[Any]:
    """The most likely class of every voxel of a grid, from logits on another grid.

    Equals `interpolate(logits, size, mode="trilinear" or "bilinear", align_corners).argmax(1)` up to float32 ties;
    an exact tie goes to the lower class. Memory: the labels and some 10 MB, or two coarse planes of all classes.

    Args:
        logits: (B, K, D, H, W) or (B, K, H, W), finite, K from 1 to 65536; float16, bfloat16 (tensors), float32 or
            float64 (rounded to float32). Any strides; arrays may be memory-mapped.
        size: voxels of the target per spatial axis, in array order, smaller or larger than the source.
        align_corners: as in `torch.nn.functional.interpolate`.
        extent: the share of the source, from its origin, that the target fills, per axis in (0, 1]: for logits of a
            volume that was padded at the end of its axes. None is all of it.
        threads: threads on the CPU; None takes torch's number.

    Returns:
        (B, *size), tensor or array as `logits`, on its device; uint8 up to 256 classes, else uint16. Empty if B is 0.

    Raises:
        TypeError: logits that are no floating-point tensor or array, sizes that are no whole numbers.
        ValueError: wrong rank or size, an empty axis, no class or too many, NaN or infinite logits, `extent`
            together with `align_corners`.
    """
    target, ndim = _checked(logits, size)
    shares = check_extent(extent, ndim)
    lengths = zip(logits.shape[2:], target, shares, strict=True)
    axes = [CellAxis.between(*length, align_corners=align_corners) for length in lengths]
    workers = torch.get_num_threads() if threads is None else _whole("threads", threads)
    if isinstance(logits, Tensor) and logits.device.type != "cpu":
        return _render_on_device(logits.detach(), axes)
    from pointrend._kernels.rendering import render

    array = _as_array(logits)
    if ndim == 2:  # a volume of one plane
        array = array[:, :, None]
        axes.insert(0, CellAxis.between(1, 1, 1.0))
    labels = render(array, axes, workers).reshape(len(array), *target)
    return torch.from_numpy(labels) if isinstance(logits, Tensor) else labels


def _checked(logits: Tensor | NDArray[Any], size: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The target size as plain integers, and the number of spatial axes."""
    if isinstance(logits, Tensor):
        known = logits.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    elif isinstance(logits, np.ndarray):
        known = logits.dtype.kind == "f" and logits.itemsize <= 8
    else:
        raise TypeError(f"logits must be a tensor or an array, got {type(logits).__name__}")
    if not known:
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.ndim not in (4, 5):
        raise ValueError(f"logits must be (B, K, D, H, W) or (B, K, H, W), got {tuple(logits.shape)}")
    if 0 in logits.shape[2:] or not 1 <= logits.shape[1] <= 65536:
        raise ValueError(f"logits must have 1 to 65536 classes and no empty spatial axis, got {tuple(logits.shape)}")
    ndim = logits.ndim - 2
    if len(size) != ndim:
        raise ValueError(f"size must be {ndim} whole numbers for logits {tuple(logits.shape)}, got {tuple(size)}")
    return tuple(_whole("size", voxels) for voxels in size), ndim


def _whole(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be whole, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _as_array(logits: Tensor | NDArray[Any]) -> NDArray[Any]:
    """The same memory as a numpy array; the bits of bfloat16, which numpy lacks, as uint16."""
    if isinstance(logits, np.ndarray):
        return logits
    logits = logits.detach().resolve_neg()
    if logits.dtype == torch.bfloat16:
        return logits.view(torch.uint16).numpy()
    return logits.numpy()


def _render_on_device(logits: Tensor, axes: Sequence[CellAxis]) -> Tensor:
    """Labels by dense interpolation in torch, a few target planes at a time, where there are no compiled loops."""
    if not torch.isfinite(logits).all():
        raise ValueError("logits must be finite (in float32), got NaN or infinity")
    size = [axis.target for axis in axes]
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.uint16
    labels = torch.empty((len(logits), *size), dtype=dtype, device=logits.device)
    planes = max(1, VALUES_AT_ONCE // (logits.shape[1] * math.prod(size[1:])))
    for item in range(len(logits)):
        for first in range(0, size[0], planes):
            part = logits[item]
            for dim, axis in enumerate(axes, start=1):
                part = _interpolated(part, dim, axis, slice(first, first + planes) if dim == 1 else slice(None))
            labels[item, first : first + planes] = part.argmax(0).to(labels.dtype)
    return labels


def _interpolated(values: Tensor, dim: int, axis: CellAxis, chunk: slice) -> Tensor:
    """`values` interpolated along one dimension at a range of the targets, in float32."""

    def on_device(table: NDArray[Any]) -> Tensor:
        return torch.from_numpy(table[chunk]).to(values.device)

    weight = on_device(axis.weight).reshape(-1, *[1] * (values.ndim - dim - 1))
    lower = values.index_select(dim, on_device(axis.lower)).float()
    return lower.lerp_(values.index_select(dim, on_device(axis.upper)).float(), weight)
