"""Choose the points that training draws. Pure functions, 2D and 3D alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from pointrend.coordinates import check_size, voxel_centres
from pointrend.reading import best_class, read_at, read_voxels, sample_at, uncertainty
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


def training_points(
    logits: Tensor,
    size: Sequence[int],
    *,
    count: int,
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
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
        oversample_ratio=oversample_ratio,
        importance_ratio=importance_ratio,
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
    oversample_ratio: float = 3.0,
    importance_ratio: float = 0.75,
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
        oversample_ratio: k, candidates per point, at least 1.
        importance_ratio: beta, share of N taken by uncertainty, in [0, 1].
        generators: one CPU generator per sample. The draw of a sample is a function of its generator, logits and
            labels alone, whatever else is in the batch.
        labels: (B, *size) integers; needed for `ignore` and `quotas`.
        ignore: label of voxels that are never drawn. A sample of nothing else is drawn from as if all counted.
        quotas: per class, the share of N drawn among the voxels of that label (by the same rule), so that small
            structures are not starved; sums to at most 1. A class that is absent leaves its share to the rest,
            which is drawn from all voxels.

    Returns:
        (B, N) int64, flat indices into `size`, ascending, on the device of `logits`.

    Raises:
        ValueError: a number out of range, or shapes that disagree.
    """
    _check_draw(logits, size, count, oversample_ratio, importance_ratio, generators)
    _check_labels(logits, size, labels, ignore, quotas)
    rows = []
    for sample, generator in enumerate(generators):
        strata = _strata(None if labels is None else labels[sample].flatten(), count, ignore, quotas)
        parts = []
        for pool, share in strata:
            candidates, rest = _draw(pool, share, math.prod(size), oversample_ratio, importance_ratio, generator)
            parts.append(_most_uncertain(logits[sample, None], candidates, size, int(importance_ratio * share)))
            parts.append(rest.to(logits.device))
        rows.append(torch.cat(parts).sort().values)  # neighbours in memory are read together
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
    pool: Tensor | None,
    count: int,
    voxels: int,
    oversample_ratio: float,
    importance_ratio: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Uniform voxels of a pool: the candidates, and those that are kept as they come."""
    chosen = int(importance_ratio * count)
    candidates = int(oversample_ratio * count) if chosen else 0
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


def _check_draw(
    logits: Tensor,
    size: Sequence[int],
    count: int,
    oversample_ratio: float,
    importance_ratio: float,
    generators: Sequence[torch.Generator],
) -> None:
    if logits.ndim not in (4, 5) or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, K, H, W) or (B, K, D, H, W) with K >= 2, got {tuple(logits.shape)}")
    check_size(size, logits.ndim - 2)
    if not isinstance(count, Integral) or count < 0:
        raise ValueError(f"count must be a whole number of at least 0, got {count}")
    if not 1 <= oversample_ratio < math.inf:
        raise ValueError(f"oversample_ratio must be at least 1, got {oversample_ratio}")
    if not 0 <= importance_ratio <= 1:
        raise ValueError(f"importance_ratio must lie in [0, 1], got {importance_ratio}")
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
