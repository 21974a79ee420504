"""Read volumes at points; choose the points that training draws. Pure functions, 2D and 3D alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.coordinates import check_size, flat_index, to_grid, voxel_centres
from pointrend.uncertain import uncertain_voxels

__all__ = [
    "best_class",
    "count_at_density",
    "read_at",
    "read_voxels",
    "sample_at",
    "training_points",
    "training_voxels",
    "uncertain_voxels",
    "uncertainty",
]


def sample_at(volume: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Read a volume at fractional positions.

    Points are (z, y, x) or (y, x) in the unit cube of the volume; outside the outermost voxel centres the nearest
    voxel's value is used (border padding: with zeros, 18 % of uniform points on a 16-voxel grid are pulled to 0).

    Args:
        volume: (B, C, *spatial), two or three spatial axes; floating point for "bilinear", any for "nearest".
        points: (B, N, ndim) in [0, 1]; N may be 0.
        mode: "bilinear" (trilinear in 3D) for logits and features, "nearest" (the voxel that holds the point)
            for labels.

    Returns:
        (B, C, N), dtype and device of `volume`.

    Raises:
        ValueError: `points` is not (B, N, ndim) for this volume, or `mode` is another word.
        TypeError: "bilinear" of integers.
    """
    _check_points(volume, points)
    if mode == "nearest":
        return read_voxels(volume, flat_index(points, volume.shape[2:]))
    if mode != "bilinear":
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
    if not volume.is_floating_point():
        raise TypeError(f"bilinear sampling needs a floating-point volume, got {volume.dtype}")
    if not (points.shape[1] and volume.shape[1]):
        return volume.new_empty(*volume.shape[:2], points.shape[1])
    if _compiled_reads(volume, points):
        from pointrend._gather import interpolate  # numba is imported on first use

        return interpolate(volume, points)
    grid = to_grid(points)
    spread = (slice(None), slice(None)) + (None,) * (grid.shape[-1] - 1)  # (B, N, 1, (1,) ndim)
    # coordinates need float32: bfloat16 has 8 bits for 128 voxels
    exact = volume if volume.dtype == torch.float64 else volume.float()
    out = F.grid_sample(
        exact, grid[spread].to(exact.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return out.flatten(2).to(volume.dtype)


def _compiled_reads(volume: Tensor, points: Tensor) -> bool:
    """Whether numba may read the volume: on the CPU, in float32 at most, with no gradient and no tracing."""
    gradient = torch.is_grad_enabled() and (volume.requires_grad or points.requires_grad)
    plain = volume.device.type == points.device.type == "cpu" and torch.float64 not in (volume.dtype, points.dtype)
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return plain and not gradient and not traced


def read_voxels(volume: Tensor, index: Tensor) -> Tensor:
    """Values of voxels.

    Args:
        volume: (B, C, *spatial).
        index: (B, N) int64, flat within the spatial axes.

    Returns:
        (B, C, N).
    """
    return volume.flatten(2).gather(2, index[:, None].expand(-1, volume.shape[1], -1))


def read_at(volume: Tensor, points: Tensor, grid: Sequence[int] | None = None) -> Tensor:
    """`sample_at`, where the points may be known to be voxel centres of a grid.

    A volume of that very grid is read by index: the same values, and the backward pass is ten times faster.

    Args:
        volume: (B, C, *spatial), floating point.
        points: (B, N, ndim) in the unit cube.
        grid: size of the grid whose voxel centres all points are; None if they are not.

    Returns:
        (B, C, N).
    """
    if grid is not None and tuple(grid) == tuple(volume.shape[2:]):
        _check_points(volume, points)
        return read_voxels(volume, flat_index(points, grid))
    return sample_at(volume, points)


def uncertainty(logits: Tensor) -> Tensor:
    """Second best minus best logit: 0 where two classes tie, lower where one is sure.

    For two classes it is -|l1 - l0|, the paper's distance of the foreground probability to 0.5 on the logit scale.

    Args:
        logits: (B, K, ...), K >= 2, interpolated already: taking it first and interpolating afterwards would miss a
            zero crossing between two sure neighbours.

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
    """Argmax over classes by running maxima: ties go to the lower class.

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


def training_points(
    logits: Tensor,
    size: Sequence[int],
    *,
    count: int,
    oversample: float = 3.0,
    importance: float = 0.75,
    generators: Sequence[torch.Generator],
    labels: Tensor | None = None,
    ignore: int | None = None,
    quotas: Sequence[float] | None = None,
) -> Tensor:
    """Points to train on, as voxel centres of the label grid; see `training_voxels`.

    Returns:
        (B, N, ndim) float32 in the unit cube.
    """
    index = training_voxels(
        logits,
        size,
        count=count,
        oversample=oversample,
        importance=importance,
        generators=generators,
        labels=labels,
        ignore=ignore,
        quotas=quotas,
    )
    return voxel_centres(index, size)


@torch.no_grad()
def training_voxels(
    logits: Tensor,
    size: Sequence[int],
    *,
    count: int,
    oversample: float = 3.0,
    importance: float = 0.75,
    generators: Sequence[torch.Generator],
    labels: Tensor | None = None,
    ignore: int | None = None,
    quotas: Sequence[float] | None = None,
) -> Tensor:
    """Voxels to train on, drawn with a bias to uncertain ones (PointRend, arXiv 1912.08193, section 3.1).

    Of int(k * N) uniform candidates the int(beta * N) most uncertain are kept, uncertainty being that of the
    interpolated logits; the other N - int(beta * N) are uniform. Voxels, not continuous points, so that their
    labels are exact. As in the paper the draw is with replacement: a voxel may come twice.

    Args:
        logits: (B, K, *coarse) with K >= 2.
        size: voxels per axis of the label grid, over the same unit cube.
        count: N, points per sample.
        oversample: k, candidates per point, at least 1.
        importance: beta, share of N taken by uncertainty, in [0, 1].
        generators: one CPU generator per sample. The draw of a sample is a function of its generator, logits and
            labels alone, whatever else is in the batch.
        labels: (B, *size) integers; needed for `ignore` and `quotas`.
        ignore: label of voxels that are never drawn. A sample of nothing else is drawn from as if all counted.
        quotas: per class, the share of N drawn among the voxels of that label (by the same rule), so that small
            structures are not starved; sums to at most 1. A class that is absent leaves its share to the rest,
            which is drawn from all voxels.

    Returns:
        (B, N) int64, flat indices into `size`, on the device of `logits`.

    Raises:
        ValueError: a number out of range, or shapes that disagree.
    """
    _check_draw(logits, size, count, oversample, importance, generators)
    _check_labels(logits, size, labels, ignore, quotas)
    rows = []
    for sample, generator in enumerate(generators):
        strata = _strata(None if labels is None else labels[sample].flatten(), count, ignore, quotas)
        parts = []
        for pool, share in strata:
            candidates, rest = _draw(pool, share, math.prod(size), oversample, importance, generator)
            parts.append(_most_uncertain(logits[sample, None], candidates, size, int(importance * share)))
            parts.append(rest.to(logits.device))
        rows.append(torch.cat(parts))
    return torch.stack(rows) if rows else torch.zeros(0, count, dtype=torch.int64, device=logits.device)


def count_at_density(size: Sequence[int], spacing_mm: Sequence[float], *, points_per_ml: float) -> int:
    """Points that give a physical density, whatever the voxels' size and shape: the `count` of `training_voxels`.

    A count per volume draws a 0.7 x 0.7 x 5 mm scan and its 1 mm resampling alike only by chance; a density does.

    Args:
        size: voxels per axis of the label grid.
        spacing_mm: distance of voxel centres along each axis, in the same order.
        points_per_ml: points per millilitre (cm^3), at least 0.

    Returns:
        The nearest whole number of points for the volume of the grid.

    Raises:
        ValueError: lengths that differ, a spacing that is not positive, or a negative density.
    """
    size = check_size(size, len(size))
    if len(spacing_mm) != len(size) or not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm must be {len(size)} positive numbers, got {tuple(spacing_mm)}")
    if not 0 <= points_per_ml < math.inf:
        raise ValueError(f"points_per_ml must be at least 0, got {points_per_ml}")
    return round(points_per_ml * math.prod(size) * math.prod(spacing_mm) / 1000)


def _strata(
    labels: Tensor | None, count: int, ignore: int | None, quotas: Sequence[float] | None
) -> list[tuple[Tensor | None, int]]:
    """Pools of flat indices (None: every voxel) and how many points each gives."""
    strata: list[tuple[Tensor | None, int]] = []
    for label, quota in enumerate(quotas or ()):
        pool = (labels == label).nonzero()[:, 0].cpu() if labels is not None and int(quota * count) else None
        if pool is not None and len(pool) and label != ignore:
            strata.append((pool, int(quota * count)))
    everywhere = None
    if ignore is not None and labels is not None:
        counted = (labels != ignore).nonzero()[:, 0].cpu()
        everywhere = counted if 0 < len(counted) < len(labels) else None
    return [*strata, (everywhere, count - sum(share for _, share in strata))]


def _draw(
    pool: Tensor | None, count: int, voxels: int, oversample: float, importance: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Uniform voxels of a pool: the candidates, and those that are kept as they come."""
    chosen = int(importance * count)
    candidates = int(oversample * count) if chosen else 0
    high = voxels if pool is None else len(pool)
    drawn = torch.randint(high, (candidates + count - chosen,), generator=generator)
    drawn = drawn if pool is None else pool[drawn]
    return drawn[:candidates], drawn[candidates:]


def _most_uncertain(logits: Tensor, candidates: Tensor, size: Sequence[int], count: int) -> Tensor:
    """The `count` most uncertain of some voxels, on the device of the logits (1, K, *coarse)."""
    candidates = candidates.to(logits.device)
    if count == 0:
        return candidates[:0]
    doubt = uncertainty(sample_at(logits, voxel_centres(candidates, size)[None]))[0]
    return candidates[doubt.topk(count, sorted=False).indices]


def _check_points(volume: Tensor, points: Tensor) -> None:
    ndim = volume.ndim - 2
    if ndim not in (2, 3):
        raise ValueError(f"volume must be (B, C, H, W) or (B, C, D, H, W), got {tuple(volume.shape)}")
    if points.ndim != 3 or points.shape[-1] != ndim or len(points) != len(volume):
        raise ValueError(f"points must be ({len(volume)}, N, {ndim}), got {tuple(points.shape)}")


def _check_draw(
    logits: Tensor,
    size: Sequence[int],
    count: int,
    oversample: float,
    importance: float,
    generators: Sequence[torch.Generator],
) -> None:
    if logits.ndim not in (4, 5) or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, K, H, W) or (B, K, D, H, W) with K >= 2, got {tuple(logits.shape)}")
    check_size(size, logits.ndim - 2)
    if not isinstance(count, Integral) or count < 0:
        raise ValueError(f"count must be a whole number of at least 0, got {count}")
    if not 1 <= oversample < math.inf:
        raise ValueError(f"oversample must be at least 1, got {oversample}")
    if not 0 <= importance <= 1:
        raise ValueError(f"importance must lie in [0, 1], got {importance}")
    if len(generators) != len(logits):
        raise ValueError(f"generators must be one per sample, got {len(generators)} for a batch of {len(logits)}")


def _check_labels(
    logits: Tensor,
    size: Sequence[int],
    labels: Tensor | None,
    ignore: int | None,
    quotas: Sequence[float] | None,
) -> None:
    if labels is None and (ignore is not None or quotas is not None):
        raise ValueError("labels must be given with ignore or quotas, got None")
    if labels is not None and labels.shape != (len(logits), *size):
        raise ValueError(f"labels must be {(len(logits), *size)}, got {tuple(labels.shape)}")
    if quotas is None:
        return
    if len(quotas) != logits.shape[1] or not all(q >= 0 for q in quotas) or not math.fsum(quotas) <= 1:
        raise ValueError(
            f"quotas must be {logits.shape[1]} shares, at least 0 and of sum at most 1, got {tuple(quotas)}"
        )
