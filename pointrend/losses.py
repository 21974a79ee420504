"""Losses at points and on grids, each a mean over samples: several processes with equal shares agree with one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def point_losses(logits: Tensor, labels: Tensor, ignore: int | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy and soft Dice loss at the points of each sample.

    Args:
        logits: (B, K, N).
        labels: (B, N) int64 in [0, K), or `ignore`.
        ignore: label of points that do not count.

    Returns:
        The cross-entropy, a mean over all points, ignored ones adding 0; and the Dice loss of `soft_dice_loss`.
        Both are scalars, 0 with a gradient where no point counts.
    """
    log_probabilities = logits.float().log_softmax(dim=1)  # once for both
    no_label = -100 if ignore is None else ignore
    total = F.nll_loss(log_probabilities, labels, ignore_index=no_label, reduction="sum")
    counted = None if ignore is None else labels != ignore
    shown = labels if counted is None else labels.where(counted, labels.new_zeros(()))
    return total / max(labels.numel(), 1), soft_dice_loss(log_probabilities, shown, counted)


def soft_dice_loss(log_probabilities: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
    """One minus the soft Dice of the foreground classes that the sample holds (V-Net, arXiv 1606.04797, without
    the squares), averaged over classes, then samples.

    Classes absent from a sample are left to the cross-entropy: their Dice is 0 however little is predicted.

    Args:
        log_probabilities: (B, K, ...), the logarithm of the softmax.
        labels: (B, ...) integers in [0, K), also where not counted.
        counted: (B, ...) bool, voxels that count; None for all.

    Returns:
        A scalar in [0, 1]; 0 for samples without foreground.
    """
    probabilities = log_probabilities.flatten(2).exp()  # (B, K, V)
    labels = labels.flatten(1)
    at_label = probabilities.gather(1, labels[:, None])[:, 0]
    truth = class_counts(labels, probabilities.shape[1], counted)
    if counted is None:
        predicted = probabilities.sum(2)
    else:
        weights = counted.flatten(1).to(probabilities.dtype)
        at_label, predicted = at_label * weights, (probabilities * weights[:, None]).sum(2)
    overlap = torch.zeros_like(predicted).scatter_add(1, labels, at_label)
    dice = 2 * overlap / (predicted + truth).clamp_min(1e-6)
    present = truth[:, 1:] > 0
    lost = ((1 - dice[:, 1:]) * present).sum(1) / present.sum(1).clamp_min(1)
    return lost.mean() if len(lost) else lost.sum()


def class_counts(labels: Tensor, classes: int, counted: Tensor | None) -> Tensor:
    """Voxels of each class in each sample: (B, K). One count over all samples is far quicker than a scatter."""
    samples = torch.arange(len(labels), device=labels.device)[:, None] * classes
    flat = (labels + samples).flatten()
    if counted is not None:
        flat = flat[counted.flatten()]
    return torch.bincount(flat, minlength=len(labels) * classes).reshape(len(labels), classes)
