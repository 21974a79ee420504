"""Points near the boundary of a mask: the numpy function of 2020, for any number of axes.

PointRend (Kirillov et al., CVPR 2020, section 3.1) draws training points with a bias to uncertain places. Of a mask
without probabilities, the uncertain places are those near a boundary: a neighbourhood that holds more than one value.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def getpoint(
    mask_img: ArrayLike,
    k: float,
    beta: float,
    training: bool = True,
    nearest_neighbor: int = 3,
    new_if_near: bool = True,
    rng: np.random.Generator | int | None = None,
) -> NDArray[Any]:
    """Random points, more of them near the boundaries of a mask.

    First come int(beta * k * size) uniform candidates, of which only those are kept whose neighbourhood (the elements
    within `nearest_neighbor` of theirs along every axis, cut at the border) holds more than one value. Then come
    int((1 - beta) * k * size) uniform points.

    Args:
        mask_img: mask of one or more axes; boolean, integer or floating point (finite). An empty axis gives no points.
        k: points per element, at least 0. (Not PointRend's k, which is the oversampling.)
        beta: share of the points that are candidates for a boundary, in [0, 1].
        training: False returns the elements above zero instead of drawing points.
        nearest_neighbor: radius of the neighbourhood in elements; 0 keeps no candidate.
        new_if_near: False tests one window after the other in plain numpy: slow, the same points for the same `rng`.
        rng: a numpy generator, or a seed for one; None seeds from the system.

    Returns:
        (M, ndim) float64 in elements, axes in array order: point p lies in element floor(p). With `training=False`
        the (M, ndim) int64 indices of the elements above zero. `zip(*points)` gives one sequence per axis.

    Raises:
        TypeError: the mask is not numeric, or a number is of the wrong type.
        ValueError: no axis, not finite, or `k`, `beta`, `nearest_neighbor` out of range.
    """
    mask = _checked_mask(mask_img)
    radius = _checked_numbers(k, beta, nearest_neighbor)
    if not training:
        return np.argwhere(mask > 0)
    generator = np.random.default_rng(rng)
    shape = np.array(mask.shape, dtype=np.float64)
    # random() < 1, and times a length it stays below that length after rounding: floor(p) is an element
    candidates = generator.random((int(beta * k * mask.size), mask.ndim))
    near = _near_boundary if new_if_near else _near_boundary_by_window
    kept = near(mask, candidates, radius)
    others = generator.random((int((1 - beta) * k * mask.size), mask.ndim))
    return np.concatenate((kept, others * shape))


def _checked_mask(mask_img: ArrayLike) -> NDArray[Any]:
    mask = np.asarray(mask_img)
    if mask.dtype.kind not in "biuf":
        raise TypeError(f"mask_img must be boolean, integer or floating point, got dtype {mask.dtype}")
    if mask.ndim == 0:
        raise ValueError("mask_img must have at least one axis, got a single number")
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise ValueError("mask_img must be finite, got NaN or infinity")
    return mask


def _checked_numbers(k: float, beta: float, nearest_neighbor: int) -> int:
    for name, value in (("k", k), ("beta", beta)):
        if not isinstance(value, Real) or isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(k) and k >= 0):
        raise ValueError(f"k must be finite and at least 0, got {k}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    try:
        radius = operator.index(nearest_neighbor)
    except TypeError:
        raise TypeError(f"nearest_neighbor must be a whole number, got {nearest_neighbor!r}") from None
    if radius < 0:
        raise ValueError(f"nearest_neighbor must be at least 0, got {radius}")
    return radius


def _near_boundary(mask: NDArray[Any], unit: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """The points of `unit` (M, ndim), in [0, 1), that are near a boundary, scaled to elements, in their order."""
    from pointrend._kernels import mask_windows

    if not len(unit) or not radius:
        return np.empty((0, mask.ndim))
    shape = np.array(mask.shape, dtype=np.int64)
    values = _as_bits(mask).reshape(-1)
    side = np.minimum(2 * radius + 1, shape)
    # costs in scattered reads: a point reads 2**ndim blocks and scans about a tenth of the windows; the table of all
    # windows is computed an axis at a time, vectorised
    by_window = len(unit) * (2.0**mask.ndim + side.prod(dtype=np.float64) / 10)
    if by_window < mask.size * (side.sum() / 16 + 1):
        count = mask_windows.keep_by_window(values, shape, radius, unit)
    else:
        count = mask_windows.keep_by_table(_mixed_table(values, mask.shape, radius), shape, unit)
    return unit[:count]


def _mixed_table(values: NDArray[Any], shape: tuple[int, ...], radius: int) -> NDArray[np.bool_]:
    """Whether the window around each element holds more than one value; flat as `values`."""
    from pointrend._kernels import mask_windows

    low, high = values, values
    for axis, length in enumerate(shape):
        if length > 1:
            inner = math.prod(shape[axis + 1 :])
            low, high = mask_windows.window_extremes(low, high, length, inner, min(radius, length - 1))
    return low != high


def _as_bits(mask: NDArray[Any]) -> NDArray[Any]:
    """The mask as unsigned integers of its own width, equal where the values are: fewer dtypes to compile for."""
    if mask.dtype.kind == "f":
        mask = mask.astype(np.float64 if mask.itemsize > 4 else np.float32) + 0  # -0 becomes 0
    mask = np.ascontiguousarray(mask, dtype=mask.dtype.newbyteorder("="))
    return mask.view(f"u{mask.itemsize}")


def _near_boundary_by_window(mask: NDArray[Any], unit: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """As `_near_boundary`, one window after the other: the definition, and the reference of the tests."""
    points = unit * np.array(mask.shape, dtype=np.float64)
    near = np.zeros(len(points), dtype=bool)
    for row, element in enumerate(points.astype(np.int64)):
        window = mask[tuple(slice(max(i - radius, 0), i + radius + 1) for i in element)]
        near[row] = window.min() != window.max()
    return points[near]
