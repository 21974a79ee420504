"""Which voxels a training step looks at, in images and in boxes. 2D and 3D alike.

Uniform candidates are thinned towards uncertain ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from pointrend.boxes import Boxes
from pointrend.coordinates import check_size, voxel_centres
from pointrend.reading import interpolate_at, uncertainty


@dataclass(frozen=True, kw_only=True)
class PointSampling:
    """How training points are drawn (PointRend, arXiv 1912.08193, section 3.1).

    Attributes:
        num_points: N, points per sample; 0 draws none.
        oversample_ratio: k, uniform candidates per point that is chosen by uncertainty, at least 1.
        importance_ratio: beta, share of N chosen by uncertainty, in [0, 1]; the rest is uniform.
        quotas: per class, the share of N drawn among the voxels of that label, so that small structures are not
            starved; at least 0, of sum at most 1. None draws from all voxels alike.
        ignore: label of voxels that are never drawn; None draws everywhere.

    Raises:
        ValueError: a number out of range.
    """

    num_points: int = 2048
    oversample_ratio: float = 10.0
    importance_ratio: float = 1.0
    quotas: tuple[float, ...] | None = None
    ignore: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.num_points, Integral) or self.num_points < 0:
            raise ValueError(f"num_points must be a whole number of at least 0, got {self.num_points}")
        if not 1 <= self.oversample_ratio < math.inf:
            raise ValueError(f"oversample_ratio must be at least 1, got {self.oversample_ratio}")
        if not 0 <= self.importance_ratio <= 1:
            raise ValueError(f"importance_ratio must lie in [0, 1], got {self.importance_ratio}")
        # the tolerance takes shares that sum to 1 but for rounding; each is rounded down to whole points anyway
        shares = self.quotas or ()
        if not all(share >= 0 for share in shares) or not math.fsum(shares) <= 1 + 1e-9:
            raise ValueError(f"quotas must be shares of at least 0 and of sum at most 1, got {tuple(shares)}")

    @classmethod
    def paper(cls, *, num_points: int) -> PointSampling:
        """N points as in the paper: k = 3 and beta = 0.75 (arXiv 1912.08193, section 4.1)."""
        return cls(num_points=num_points, oversample_ratio=3.0, importance_ratio=0.75)

    @property
    def needs_labels(self) -> bool:
        """Whether the draw depends on the labels."""
        return self.quotas is not None or self.ignore is not None


def training_points(
    logits: Tensor,
    size: Sequence[int],
    sampling: PointSampling,
    *,
    labels: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Training points as coordinates: the centres of the voxels that `training_voxels` draws, same arguments.

    Returns:
        (B, N, ndim) float32 in the unit cube, axes in array order.
    """
    return voxel_centres(training_voxels(logits, size, sampling, labels=labels, generators=generators), size)


@torch.no_grad()
def training_voxels(
    logits: Tensor,
    size: Sequence[int],
    sampling: PointSampling,
    *,
    labels: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Voxels to train on, drawn with a bias to uncertain ones (PointRend, arXiv 1912.08193, section 3.1).

    Of int(k * N) uniform candidates the int(beta * N) most uncertain are kept, by the uncertainty of the interpolated
    logits; the other N - int(beta * N) are uniform. Each quota is drawn by the same rule among the voxels of its
    label; a class that is absent leaves its share to the rest, which is drawn from all voxels. As in the paper the
    draw is with replacement: a voxel may come twice. Voxels, not continuous points, so that their labels are exact.

    Args:
        logits: (B, K, *coarse) with K >= 2, two or three spatial axes.
        size: voxels per axis of the label grid, over the same unit cube.
        sampling: N, k, beta, quotas and the ignored label. A sample in which every voxel is ignored is drawn from as
            if all counted.
        labels: (B, *size) integers; needed with quotas or an ignored label.
        generators: one CPU generator per sample: the draw of a sample then depends on its generator, logits and
            labels alone, whatever else is in the batch. None draws from torch's global generator.

    Returns:
        (B, N) int64, flat row-major indices into `size`, ascending, on the device of `logits`.

    Raises:
        ValueError: shapes that disagree, or another number of quotas or generators.
    """
    _check(logits, size, sampling, labels)
    own: Sequence[torch.Generator | None] = [None] * len(logits) if generators is None else generators
    if len(own) != len(logits):
        raise ValueError(f"generators must be one per sample, got {len(own)} for a batch of {len(logits)}")
    rows = []
    for sample, generator in enumerate(own):
        strata = _strata(None if labels is None else labels[sample].flatten(), sampling)
        parts = []
        for pool, count in strata:
            chosen = int(sampling.importance_ratio * count)
            candidates = int(sampling.oversample_ratio * count) if chosen else 0
            drawn = _draw(pool, math.prod(size), candidates + count - chosen, generator).to(logits.device)
            parts.append(_most_uncertain(logits[sample, None], drawn[:candidates], size, chosen))
            parts.append(drawn[candidates:])
        rows.append(torch.cat(parts).sort().values)  # ascending: neighbours in memory are read together
    empty = torch.zeros(0, sampling.num_points, dtype=torch.int64, device=logits.device)
    return torch.stack(rows) if rows else empty


def _strata(labels: Tensor | None, sampling: PointSampling) -> list[tuple[Tensor | None, int]]:
    """Pools of flat indices (None: every voxel) and how many points are drawn from each."""
    total, ignore = sampling.num_points, sampling.ignore
    strata: list[tuple[Tensor | None, int]] = []
    for label, quota in enumerate(sampling.quotas or ()):
        pool = (labels == label).nonzero()[:, 0].cpu() if labels is not None and int(quota * total) else None
        if pool is not None and len(pool) and label != ignore:
            strata.append((pool, int(quota * total)))
    everywhere = None
    if ignore is not None and labels is not None:
        counted = (labels != ignore).nonzero()[:, 0].cpu()
        everywhere = counted if 0 < len(counted) < len(labels) else None
    return [*strata, (everywhere, total - sum(count for _, count in strata))]


def _draw(pool: Tensor | None, voxels: int, count: int, generator: torch.Generator | None) -> Tensor:
    """(count,) int64 uniform voxels of a pool, or of all `voxels`, with replacement."""
    drawn = torch.randint(voxels if pool is None else len(pool), (count,), generator=generator)
    return drawn if pool is None else pool[drawn]


def _most_uncertain(logits: Tensor, candidates: Tensor, size: Sequence[int], count: int) -> Tensor:
    """The `count` most uncertain of some voxels; logits (1, K, *coarse)."""
    if count == 0:
        return candidates[:0]
    # uncertainty after interpolation: -1 and +1 neighbours are sure of themselves, the zero crossing between is not
    doubt = uncertainty(interpolate_at(logits, voxel_centres(candidates, size)[None]))[0]
    return candidates[doubt.topk(count, sorted=False).indices]


def check_labels(labels: Tensor, logits: Tensor, *, rows: int | None) -> None:
    """Refuse labels that are not integers (rows, *size) for logits (B, K, *coarse); None takes any number of rows.

    Raises:
        TypeError: labels that are not integers.
        ValueError: another shape.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, got {labels.dtype}; use labels.long()")
    due = f"({'B' if rows is None else rows}, {', '.join('DHW'[-(logits.ndim - 2) :])})"
    if labels.ndim == logits.ndim and labels.shape[1] == 1:
        raise ValueError(f"labels must be {due}, without a channel axis, got {tuple(labels.shape)}; use labels[:, 0]")
    if labels.ndim != logits.ndim - 1 or (rows is not None and len(labels) != rows):
        raise ValueError(f"labels must be {due}, got {tuple(labels.shape)}")


def _check(logits: Tensor, size: Sequence[int], sampling: PointSampling, labels: Tensor | None) -> None:
    if logits.ndim not in (4, 5) or logits.shape[1] < 2:
        raise ValueError(f"logits must be (B, K, H, W) or (B, K, D, H, W) with K >= 2, got {tuple(logits.shape)}")
    check_size(size, logits.ndim - 2)
    if labels is None and sampling.needs_labels:
        raise ValueError("labels must be given with ignore or quotas, got None")
    if labels is not None and labels.shape != (len(logits), *size):
        raise ValueError(f"labels must be {(len(logits), *size)}, got {tuple(labels.shape)}")
    if sampling.quotas is not None and len(sampling.quotas) != logits.shape[1]:
        raise ValueError(f"quotas must be one share per class, {logits.shape[1]} here, got {tuple(sampling.quotas)}")


@torch.no_grad()
def box_training_voxels(
    logits: Tensor,
    size: Sequence[int],
    boxes: Boxes,
    sampling: PointSampling,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Voxels of the image's own grid to train on, drawn in each box with a bias to uncertain ones.

    The rule is that of `training_voxels`; one generator serves all boxes.

    Args:
        logits: (R, K, *coarse) of the boxes, K >= 2, those that compete (see `Boxes.mask_logits`).
        size: voxels per axis of the label grid, which spans the image.
        boxes: R boxes.
        sampling: N, k, beta and the ignored label; quotas are refused. A box of ignored voxels alone is drawn from as
            if all counted.
        labels: (L, *size), row `boxes.target[r]` being that of box r; needed with an ignored label.
        generator: a CPU generator; None draws from torch's global one.

    Returns:
        (R, N) int64, flat row-major indices into `size`, ascending, on the device of `logits`.

    Raises:
        ValueError: quotas, or an ignored label without labels.
    """
    if sampling.quotas is not None:
        raise ValueError("quotas are not drawn in boxes, which hold one instance each; give None")
    if sampling.ignore is not None and labels is None:
        raise ValueError("labels must be given with ignore, got None")
    chosen = int(sampling.importance_ratio * sampling.num_points)
    candidates = int(sampling.oversample_ratio * sampling.num_points) if chosen else 0
    count = candidates + sampling.num_points - chosen
    # float64: a share of 2^-24 or less would never reach the last voxels of a large box
    share = torch.rand(len(boxes), count, boxes.ndim, generator=generator, dtype=torch.float64).to(logits.device)
    drawn = _drawn_voxels(share, *boxes.windows(size), size)
    if sampling.ignore is not None and labels is not None:
        drawn = _without_ignored(drawn, share[..., 0], boxes, labels, sampling.ignore)
    if chosen:
        doubt = uncertainty(interpolate_at(logits, boxes.to_box(voxel_centres(drawn[:, :candidates], size))))
        best = doubt.topk(chosen, dim=1, sorted=False).indices
        drawn = torch.cat([drawn.gather(1, best), drawn[:, candidates:]], dim=1)
    return drawn.sort(dim=1).values


def voxels_between(first: Tensor, stop: Tensor, size: Sequence[int]) -> Tensor:
    """(n,) flat indices into `size`, ascending, of the voxels from `first` up to `stop`, both (ndim,)."""
    index = first.new_zeros(())
    for start, end, voxels in zip(first.tolist(), stop.tolist(), size, strict=True):
        index = index[..., None] * voxels + torch.arange(start, end, device=first.device)
    return index.flatten()


def _drawn_voxels(share: Tensor, first: Tensor, stop: Tensor, size: Sequence[int]) -> Tensor:
    """(R, N) flat indices of the voxels of windows at shares (R, N, ndim) in [0, 1) of their sides."""
    sides = (stop - first)[:, None]
    voxel = first[:, None] + (share * sides).long().minimum(sides - 1)
    index = torch.zeros_like(voxel[..., 0])
    for axis, voxels in enumerate(size):
        index = index * voxels + voxel[..., axis]
    return index


def _without_ignored(drawn: Tensor, share: Tensor, boxes: Boxes, labels: Tensor, ignore: int) -> Tensor:
    """`drawn` (R, N); a box that holds ignored voxels is drawn anew among its others, at shares (R, N) of these."""
    size, target = labels.shape[1:], boxes.targets(len(labels))
    rows = list(drawn)
    for row, (first, stop) in enumerate(zip(*boxes.windows(size), strict=True)):
        inside = voxels_between(first, stop, size)
        counted = inside[labels[target[row]].flatten()[inside] != ignore]
        if 0 < len(counted) < len(inside):
            rows[row] = counted[(share[row] * len(counted)).long().clamp_max(len(counted) - 1)]
    return torch.stack(rows) if rows else drawn
