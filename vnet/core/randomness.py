"""Seeds as a function of (seed, step, sample): a resumed run and several processes draw the same numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

POINTS, DROPOUT, CALIBRATION = 1, 2, 3  # purposes; each has random numbers of its own


def sample_seed(seed: int, step: int, sample: int, purpose: int) -> int:
    """A seed of 63 bits, well mixed from the four numbers."""
    words = np.random.SeedSequence([seed, step, sample, purpose]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def point_generators(seed: int, step: int, samples: Iterable[int]) -> list[torch.Generator]:
    """One generator per sample, for its training points.

    Args:
        samples: numbers in the batch over all processes.
    """
    return [torch.Generator().manual_seed(sample_seed(seed, step, sample, POINTS)) for sample in samples]
