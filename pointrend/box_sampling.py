"""Which voxels of an image a training step looks at in boxes: the rule of `pointrend.sampling`, box by box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointrend.boxes import Boxes
from pointrend.coordinates import voxel_centres
from pointrend.reading import interpolate_at, uncertainty
from pointrend.sampling import PointSampling


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

    The rule is that of `pointrend.sampling.training_voxels`; one generator serves all boxes.

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
