"""Losses of a step, each a mean over samples, so that several processes with equal shares agree with one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_dice_loss(logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """One minus the soft Dice of the foreground classes that the sample holds (V-Net, arXiv 1606.04797, without
    the squares), averaged over classes, then samples.

    Classes absent from a sample are left to the cross-entropy: their Dice is 0 however little is predicted.

    Args:
        logits: (B, K, D, H, W).
        labels: (B, D, H, W) integers in [0, K), also where not counted.
        counted: (B, D, H, W) bool, voxels that count; None for all.

    Returns:
        A scalar in [0, 1]; 0 for samples without foreground.
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(dim=1).flatten(2)  # (B, K, V)
    labels = labels.flatten(1)
    weights = torch.ones_like(probabilities[:, 0]) if counted is None else counted.flatten(1).to(probabilities.dtype)
    at_label = probabilities.gather(1, labels[:, None])[:, 0] * weights
    zeros = probabilities.new_zeros(len(labels), classes)
    overlap = zeros.scatter_add(1, labels, at_label)
    truth = zeros.scatter_add(1, labels, weights)
    predicted = probabilities.sum(2) if counted is None else (probabilities * weights[:, None]).sum(2)
    dice = 2 * overlap / (predicted + truth).clamp_min(1e-6)
    present = truth[:, 1:] > 0
    lost = ((1 - dice[:, 1:]) * present).sum(1) / present.sum(1).clamp_min(1)
    return lost.mean()


def cross_entropy(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Cross-entropy of each sample's counted voxels (or points), averaged over samples.

    Args:
        logits: (B, K, ...).
        labels: (B, ...) integers, `ignore` where a voxel does not count.

    Returns:
        A scalar; a sample without counted voxels adds 0.
    """
    voxels = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none").flatten(1)
    counted = (labels != ignore).flatten(1).sum(1).clamp_min(1)
    return (voxels.sum(1) / counted).mean()


def segmentation_terms(logits: Tensor, labels: Tensor, ignore: int | None = None) -> dict[str, Tensor]:
    """Dice and cross-entropy of coarse logits against the labels of the full grid.

    The logits are up-sampled (trilinear) first: what is scored is what a user without refinement would get, in every
    arm alike.

    Args:
        logits: (B, K, d, h, w).
        labels: (B, D, H, W) int64; `ignore` marks voxels that do not count.
    """
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=labels.shape[1:], mode="trilinear", align_corners=False)
    counted = None if ignore is None else labels != ignore
    shown = labels if counted is None else labels.where(counted, labels.new_zeros(()))
    return {
        "dice": soft_dice_loss(logits.float(), shown, counted),
        "cross_entropy": cross_entropy(logits.float(), labels, -100 if ignore is None else ignore),
    }
