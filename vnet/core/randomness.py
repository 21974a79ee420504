"""Random numbers as a function of (seed, step, sample): a resumed or divided run draws the same."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

POINTS, DROPOUT = 1, 2  # purposes, so that no two uses share a stream


def sample_seed(seed: int, step: int, sample: int, purpose: int) -> int:
    """63 well-mixed bits of the four numbers."""
    words = np.random.SeedSequence([seed, step, sample, purpose]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def point_generators(seed: int, step: int, samples: Iterable[int]) -> list[torch.Generator]:
    """A generator per sample of the global batch, from which its training points are drawn."""
    return [torch.Generator().manual_seed(sample_seed(seed, step, sample, POINTS)) for sample in samples]
