"""Two passes whose gradients are thrown away: they fill caches and measure what a step takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch


def warm_up(model: torch.nn.Module, forward_and_backward: Callable[[], None]) -> float:
    """Seconds of the faster of two passes; buffers and gradients of `model` are afterwards as before."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    seconds = math.inf
    model.train()
    for _ in range(2):
        start = time.perf_counter()
        forward_and_backward()
        model.zero_grad(set_to_none=True)
        seconds = min(seconds, time.perf_counter() - start)
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    return seconds
