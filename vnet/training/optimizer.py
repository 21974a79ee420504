"""The optimiser of a run: learning rate by progress, and an update that leaves non-finite steps out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vnet.core.config import TrainingConfig


def one_cycle(progress: float, peak: float) -> float:
    """Cosine from peak / 25 to peak over the first 30 %, then to peak / 10000 (Smith & Topin, arXiv 1708.07120)."""
    rise, low, final = 0.3, peak / 25, peak / 10000
    if progress < rise:
        return low + (peak - low) * (1 - math.cos(math.pi * progress / rise)) / 2
    return final + (peak - final) * (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


def poly(progress: float, peak: float) -> float:
    """peak (1 - t)^0.9."""
    return peak * (1 - progress) ** 0.9


def learning_rate(progress: float, *, peak: float, schedule: str) -> float:
    """Learning rate at `progress` (finished share of the steps or seconds), clipped to [0, 1]."""
    return {"one_cycle": one_cycle, "poly": poly}[schedule](min(max(progress, 0.0), 1.0), peak)


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over every parameter; norms, biases and activation slopes are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        # fused: 3 times the speed of torch's loop over parameters, on the CPU too
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.99, nesterov=True, fused=True)


def update_weights(optimizer: Any, loss: Tensor, norm: Tensor, *, precision: str) -> Tensor:
    """Make one optimiser step, dropped where loss or gradient norm are not finite; the device decides.

    Args:
        optimizer: as `Fabric.setup` returns it.
        loss, norm: scalars.
        precision: `training.precision`.

    Returns:
        A bool scalar on the device: whether the step was dropped.
    """
    finite = torch.isfinite(loss)
    if precision != "16-mixed":
        finite = finite & torch.isfinite(norm)
        # The fused optimisers leave weights and moments as they are where `found_inf` is 1. With 16-bit floats torch's
        # loss scaler sets it itself, and drops the steps of too large a scale.
        optimizer.optimizer.found_inf = (~finite).float()
    optimizer.step()
    return ~finite
