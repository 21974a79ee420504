"""Losses of a training step, each a mean over samples: several processes of equal shares agree with one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pointrend.head import soft_dice_loss
from vnet.core.config import TrainingConfig
from vnet.model.layers import upsample


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor, ignore: int, top_k_share: float = 1.0) -> Tensor:
    """Cross-entropy: the mean over the counted voxels of each sample, then over samples.

    Args:
        log_probabilities: (B, K, ...), the logarithm of the softmax.
        labels: (B, ...) integers, `ignore` where a voxel does not count.
        top_k_share: share of the counted voxels of a sample, rounded up, whose loss is averaged: those with the
            largest; in (0, 1].

    Returns:
        A scalar; a sample without counted voxels adds 0.
    """
    voxels = F.nll_loss(log_probabilities, labels, ignore_index=ignore, reduction="none").flatten(1)
    counted = (labels != ignore).flatten(1).sum(1)
    if top_k_share < 1:
        kept = (counted * top_k_share).ceil().long().clamp_min(1).tolist()
        # the loss of an ignored voxel is 0, and no loss is below: it comes last
        return torch.stack([row.topk(count).values.mean() for row, count in zip(voxels, kept, strict=True)]).mean()
    return (voxels.sum(1) / counted.clamp_min(1)).mean()


def segmentation_terms(
    logits: Tensor, labels: Tensor, ignore: int | None = None, top_k_share: float = 1.0
) -> dict[str, Tensor]:
    """Dice and cross-entropy of coarse logits against the labels of the full grid.

    Logits on a coarser grid are up-sampled (trilinear) first, so that every arm is scored on the labels' grid.

    Args:
        logits: (B, K, d, h, w); or (B, K, N), at points.
        labels: (B, D, H, W) int64, or (B, N); `ignore` marks voxels that do not count.
        top_k_share: of the cross-entropy, as in `negative_log_likelihood`.
    """
    if logits.shape[2:] != labels.shape[1:]:
        logits = upsample(logits, labels.shape[1:])
    counted = None if ignore is None else labels != ignore
    shown = labels if counted is None else labels.where(counted, labels.new_zeros(()))
    log_probabilities = logits.float().log_softmax(dim=1)  # once for both
    return {
        "dice": soft_dice_loss(log_probabilities, shown, counted),
        "cross_entropy": negative_log_likelihood(
            log_probabilities, labels, -100 if ignore is None else ignore, top_k_share
        ),
    }


def total_loss(terms: Mapping[str, Tensor], config: TrainingConfig) -> Tensor:
    """Weighted sum of the terms; Dice and cross-entropy of all voxels weigh 1."""
    weights = {"point": config.point_weight, "point_dice": config.point_dice_weight}
    return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
