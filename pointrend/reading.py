"""Values of volumes at points and in windows around them; best class and uncertainty of logits. 2D and 3D alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend._kernels.threads import traced
from pointrend.coordinates import flat_index, to_grid


def sample_at(volume: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of a volume at fractional positions.

    Points are (z, y, x) or (y, x) in the unit cube of the volume: voxel i of an axis of n voxels has its centre at
    (i + 0.5) / n. Outside the outermost centres the nearest voxel's value is used (border padding).

    Args:
        volume: (B, C, *spatial), two or three spatial axes; floating point for "bilinear", any dtype for "nearest".
        points: (B, N, ndim) in [0, 1]; N may be 0. With "bilinear" they may want a gradient.
        mode: "bilinear" (trilinear in 3D) for logits and features, "nearest" (the voxel that holds the point) for
            labels.

    Returns:
        (B, C, N), dtype and device of `volume`.

    Raises:
        ValueError: `points` is not (B, N, ndim) for this volume or holds NaN, or `mode` is another word.
        TypeError: "bilinear" of integers.
    """
    check_points(volume, points)
    if not traced() and has_nan(points):
        raise ValueError("points must be numbers, got NaN")
    if mode == "nearest":
        return read_voxels(volume, flat_index(points, volume.shape[2:]))
    if mode != "bilinear":
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
    return interpolate_at(volume, points)


def interpolate_at(volume: Tensor, points: Tensor) -> Tensor:
    """As `sample_at`, for points that are known to fit and to hold no NaN: looking for NaN waits for a GPU."""
    if not volume.is_floating_point():
        raise TypeError(f"bilinear sampling needs a floating-point volume, got {volume.dtype}")
    if not (len(volume) and points.shape[1] and volume.shape[1]):
        return volume.new_empty(*volume.shape[:2], points.shape[1])
    if _compiled_reads(volume, points):
        from pointrend._kernels.reading import interpolate

        return interpolate(volume, points)
    grid = to_grid(points)
    spread = (slice(None), slice(None)) + (None,) * (grid.shape[-1] - 1)  # (B, N, 1, (1,) ndim)
    # in float32: the 8 bits of a bfloat16 coordinate cannot tell 300 voxels apart
    exact = volume if volume.dtype == torch.float64 else volume.float()
    # border padding: with zeros, 18 % of uniform points on a 16-voxel grid are pulled towards 0
    out = F.grid_sample(
        exact, grid[spread].to(exact.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return out.flatten(2).to(volume.dtype)


def _compiled_reads(volume: Tensor, points: Tensor) -> bool:
    """Whether the compiled loop may read: on the CPU, at most float32, no gradient of the points, no tracing."""
    moving = torch.is_grad_enabled() and points.requires_grad
    plain = volume.device.type == points.device.type == "cpu" and torch.float64 not in (volume.dtype, points.dtype)
    return plain and not moving and not traced()


def read_voxels(volume: Tensor, index: Tensor) -> Tensor:
    """Values of a volume at voxels.

    Args:
        volume: (B, C, *spatial), any dtype.
        index: (B, N) int64, flat row-major within the spatial axes.

    Returns:
        (B, C, N), dtype of `volume`.
    """
    return volume.flatten(2).gather(2, index[:, None].expand(-1, volume.shape[1], -1))


def read_at(volume: Tensor, points: Tensor, grid: Sequence[int] | None = None) -> Tensor:
    """Values at points that may be known to be voxel centres; else `sample_at`.

    Args:
        volume: (B, C, *spatial), floating point.
        points: (B, N, ndim) in the unit cube.
        grid: size of the grid whose voxel centres all points are; None if they are not. A volume of that very grid
            is read by index: the same values, and the backward pass is ten times faster.

    Returns:
        (B, C, N), dtype of `volume`.
    """
    check_points(volume, points)
    if grid is not None and tuple(grid) == tuple(volume.shape[2:]):
        return read_voxels(volume, flat_index(points, grid))
    return interpolate_at(volume, points)


def uncertainty(logits: Tensor) -> Tensor:
    """Second best minus best logit: 0 where two classes tie, more negative the clearer the best class.

    For two classes it is -|l1 - l0|: the distance of the foreground probability to 0.5 (PointRend, section 3.1), on
    the logit scale.

    Args:
        logits: (B, K, ...), K >= 2, already interpolated. Interpolating uncertainties instead would miss the zero
            crossing between two sure neighbours.

    Returns:
        (B, ...), at most 0.

    Raises:
        ValueError: fewer than two classes.
    """
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, K, ...) with K >= 2, got {tuple(logits.shape)}")
    best, second = logits[:, 0], torch.full_like(logits[:, 0], -math.inf)
    # running maxima: torch.topk over the class axis is 4 to 20 times slower on a CPU
    for one in logits.unbind(1)[1:]:
        second = torch.maximum(second, torch.minimum(best, one))
        best = torch.maximum(best, one)
    return second - best


def best_class(logits: Tensor) -> Tensor:
    """The class with the largest logit; ties go to the lower class.

    Args:
        logits: (B, K, ...), K >= 1.

    Returns:
        (B, ...) int32.
    """
    best, label = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.int32)
    for k, one in enumerate(logits.unbind(1)[1:], start=1):
        label = label.masked_fill_(one > best, k)
        best = torch.maximum(best, one)
    return label


def has_nan(points: Tensor) -> bool:
    """Whether any coordinate is NaN; a minimum passes NaN on, in one pass over the points."""
    return points.numel() > 0 and math.isnan(float(points.detach().amin()))


def check_points(volume: Tensor, points: Tensor) -> None:
    """Refuse points that do not fit a volume (B, C, *spatial).

    Raises:
        ValueError: the volume has not two or three spatial axes, or the points are not (B, N, ndim) for it.
    """
    ndim = volume.ndim - 2
    if ndim not in (2, 3):
        raise ValueError(f"volume must be (B, C, H, W) or (B, C, D, H, W), got {tuple(volume.shape)}")
    if points.ndim != 3 or points.shape[-1] != ndim or len(points) != len(volume):
        raise ValueError(f"points must be ({len(volume)}, N, {ndim}), got {tuple(points.shape)}")


def read_window(volume: Tensor, points: Tensor, window: int, grid: Sequence[int] | None = None) -> Tensor:
    """Values of a cubic window around each point, its samples one voxel of the volume apart.

    A linear layer on them is a convolution of that kernel size, evaluated at the points alone. Beyond the border the
    outermost voxels are repeated.

    Args:
        volume: (B, C, *spatial), two or three spatial axes, floating point.
        points: (B, N, ndim) in the unit cube of the volume, axes in array order; N may be 0.
        window: samples per axis, odd; 1 reads the point alone.
        grid: size of the grid whose voxel centres all points are; None if they are not. A volume of that very grid
            is read by index: the same values, and quicker.

    Returns:
        (B, C * window^ndim, N): channel by channel, the samples of a window in row-major order.

    Raises:
        ValueError: an even window, or shapes that disagree.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    if window == 1:
        return read_at(volume, points, grid)
    check_points(volume, points)
    size = tuple(volume.shape[2:])
    if grid is not None and tuple(grid) == size:
        return _around_voxels(volume, flat_index(points, size), window)
    if _compiled_window_reads(volume, points):
        from pointrend._kernels.reading import interpolate_windows

        return interpolate_windows(volume, points, window)
    shifted = points[:, :, None] + _offsets(window, points) / points.new_tensor(size)  # (B, N, window^ndim, ndim)
    values = interpolate_at(volume, shifted.transpose(1, 2).flatten(1, 2))
    return values.unflatten(2, (window ** len(size), points.shape[1])).flatten(1, 2)


def _compiled_window_reads(volume: Tensor, points: Tensor) -> bool:
    """Whether the compiled loop may read between voxels: float32 on the CPU, no gradient wanted, no tracing."""
    plain = volume.device.type == points.device.type == "cpu" and volume.dtype == points.dtype == torch.float32
    moving = torch.is_grad_enabled() and (volume.requires_grad or points.requires_grad)
    return plain and not moving and not traced()


def _offsets(window: int, points: Tensor) -> Tensor:
    """(window^ndim, ndim) steps in voxels, row-major."""
    steps = range(-(window // 2), window // 2 + 1)
    return points.new_tensor(list(product(steps, repeat=points.shape[-1])))


def _around_voxels(volume: Tensor, index: Tensor, window: int) -> Tensor:
    """The windows around voxels (B, N): the compiled loop for float32 on the CPU, torch's gather elsewhere."""
    if volume.device.type == "cpu" and volume.dtype == torch.float32 and not traced():
        from pointrend._kernels.reading import gather_windows

        return gather_windows(volume, index, window)
    size = volume.shape[2:]
    flat = torch.zeros_like(index)[:, None]  # (B, 1, N), after each axis (B, window times as many, N)
    for axis, voxels in enumerate(size):
        stride = math.prod(size[axis + 1 :])
        steps = torch.arange(window, device=index.device)[:, None] - window // 2
        on_axis = ((index // stride % voxels)[:, None] + steps).clamp(0, voxels - 1)  # (B, window, N)
        flat = (flat[:, :, None] + on_axis[:, None] * stride).flatten(1, 2)
    values = read_voxels(volume, flat.flatten(1))
    return values.unflatten(2, flat.shape[1:]).flatten(1, 2)
