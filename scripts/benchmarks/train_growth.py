"""Seconds of a training step by size of the volume and by number of classes."""

from __future__ import annotations

import statistics
import time

import torch

from scripts.benchmarks.rows import Row
from scripts.benchmarks.step import random_batch
from vnet.core.config import load_config
from vnet.core.hardware import keep_freed_memory, set_threads
from vnet.core.randomness import point_generators
from vnet.model.losses import total_loss
from vnet.model.segmenter import build_model, count_multiply_adds


def measure(arm: str, side: int, classes: int, turns: int) -> Row:
    """Seconds of forward, losses and backward of one sample of side^3 voxels."""
    config = load_config(["--config", "configs/hippocampus.yaml", "--arm", arm])
    model = build_model(config, in_channels=1, classes=classes)
    image, blobs = random_batch((side,) * 3, 1)
    labels = (blobs * (torch.arange(side) * (classes - 1) // side + 1)).clamp_max(classes - 1)
    taken = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        total_loss(model(image, labels, point_generators(0, 0, range(1))), config.training).backward()
        taken.append(time.perf_counter() - start)
    seconds = statistics.median(taken[1:])
    return {
        "arm": arm,
        "side": side,
        "classes": classes,
        "seconds": round(seconds, 4),
        "ns_per_voxel": round(seconds / side**3 * 1e9, 1),
        "multiply_adds_g": round(count_multiply_adds(model, image) / 1e9, 3),
    }


def run(quick: bool = False) -> list[Row]:
    """Sides 32 to 128 with 3 classes, then 2 to 25 classes at 96^3 (`quick`: smaller)."""
    set_threads(0)
    keep_freed_memory()
    sides, classes = ((32, 48), (2, 25)) if quick else ((32, 48, 64, 96, 128), (2, 8, 25))
    cases = [(side, 3) for side in sides] + [(sides[-1] if quick else 96, count) for count in classes]
    return [
        measure(arm, side, count, turns=3 if quick else 5)
        for side, count in cases
        for arm in ("dense", "pointrend_s2", "pointrend_s4")
    ]
