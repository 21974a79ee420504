"""Learning rate as a pure function of progress."""

from __future__ import annotations

import math


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
