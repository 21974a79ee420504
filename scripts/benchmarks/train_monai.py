"""A training step of MONAI's V-Net against ours with the same stages, and against our arms.

All sides take turns in one process on one batch, with the same losses: `seconds` is forward and backward. MONAI's
dropout is off, ours has none. `alone_s` and the peak memory are those of fresh processes: MONAI's with torch's
defaults, ours with the settings of `vnet train`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.harness import Row, call, paired
from scripts.benchmarks.step import random_batch
from vnet.core.config import load_config
from vnet.core.hardware import keep_freed_memory, peak_memory_mib, set_threads
from vnet.core.randomness import point_generators
from vnet.model.losses import segmentation_terms
from vnet.model.segmenter import build_model

CLASSES = 3
MONAI = {"monai": ("elu", {"inplace": True}), "monai, PReLU": "PRELU"}  # its default first; ours has PReLU
# the stages of MONAI's V-Net; the paper's decoder is deeper
STAGES = {"width": 16, "kernel": 5, "down": [1, 1, 2, 3, 2], "up": [2, 2, 1, 1], "norm": "batch"}
# the arms that take these stages
SIDES = (*MONAI, "dense", "coarse_s2", "coarse_s4", "pointrend_s1", "pointrend_s2", "pointrend_s4")


@dataclass(frozen=True)
class Side:
    """A network with its loss."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


def build(side: str) -> Side:
    """The side of a name of `SIDES`."""
    if side in MONAI:
        from monai.networks.nets import VNet

        monai = VNet(out_channels=CLASSES, act=MONAI[side], dropout_prob_down=None, dropout_prob_up=(None, 0.0)).train()
        return Side(monai, monai, lambda image, labels: total(segmentation_terms(monai(image), labels)))
    words = [f"--network.{key}={value}" for key, value in STAGES.items()]
    config = load_config(["--config", "configs/hippocampus.yaml", "--arm", side, *words])
    ours = build_model(config, in_channels=1, classes=CLASSES).train()

    def loss(image: Tensor, labels: Tensor) -> Tensor:
        return total(ours(image, labels, point_generators(0, 0, range(len(image)))))

    return Side(ours, lambda image: ours.network(image).logits, loss)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def multiply_adds(side: Side, image: Tensor, labels: Tensor) -> int:
    """Multiply-adds of forward and losses for one sample, the head at its points included. Two samples are counted and
    halved: of a single one, `vnet.model.layers` may convolve overlapping halves."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        side.loss(image[:1].expand(2, -1, -1, -1, -1), labels[:1].expand(2, -1, -1, -1))
    return int(counter.get_total_flops()) // 4


def forward(side: Side, image: Tensor) -> float:
    """Seconds of a forward pass in training mode that keeps nothing for backward."""
    start = time.perf_counter()
    with torch.no_grad():
        side.logits(image)
    return time.perf_counter() - start


def step(side: Side, image: Tensor, labels: Tensor) -> float:
    """Seconds of forward, losses and backward."""
    start = time.perf_counter()
    side.loss(image, labels).backward()
    seconds = time.perf_counter() - start
    side.model.zero_grad(set_to_none=True)
    return seconds


def alone(name: str, size: list[int], batch: int, steps: int) -> Row:
    """Measure one side in this process: the median step without the first, and peak memory."""
    import monai.networks.nets  # noqa: F401  every side holds the same libraries in memory

    if name in MONAI:
        torch.set_num_threads(torch.get_num_threads())
    else:
        set_threads(0)
        keep_freed_memory()
    side, (image, labels) = build(name), random_batch(tuple(size), batch)
    seconds = [step(side, image, labels) for _ in range(steps + 1)][1:]
    return {"alone_s": round(statistics.median(seconds), 3), "peak_memory_mib": round(peak_memory_mib())}


def measure(size: tuple[int, int, int], batch: int, rounds: int, sides: tuple[str, ...] = SIDES) -> list[Row]:
    """One row a side. `times_faster` than `monai` is the median of ratios within a turn."""
    image, labels = random_batch(size, batch)
    built = {name: build(name) for name in sides}
    forwards: dict[str, list[float]] = {name: [] for name in sides}
    steps: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in built.items():
            ahead, both = forward(side, image), step(side, image, labels)
            if turn:
                forwards[name].append(ahead)
                steps[name].append(both)
    work = {name: multiply_adds(side, image, labels) for name, side in built.items()}
    del built
    rows = []
    for name in sides:
        fresh = call("train_monai", "alone", name=name, size=size, batch=batch, steps=2)
        rows.append(
            {
                "side": name,
                "size": "x".join(map(str, size)),
                "batch": batch,
                "seconds": round(statistics.median(steps[name]), 3),
                "fastest": round(min(steps[name]), 3),
                "slowest": round(max(steps[name]), 3),
                "forward_s": round(statistics.median(forwards[name]), 3),
                "times_faster": round(paired(steps["monai"], steps[name]), 2),
                "forward_times_faster": round(paired(forwards["monai"], forwards[name]), 2),
                "multiply_adds_g": round(work[name] / 1e9, 2),
                "multiply_adds_of_monai": round(work[name] / work["monai"], 3),
                **fresh,
            }
        )
    for row in rows:
        row["alone_times_faster"] = round(rows[0]["alone_s"] / row["alone_s"], 2)
        row["memory_of_monai"] = round(row["peak_memory_mib"] / rows[0]["peak_memory_mib"], 3)
    return rows


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes one small size."""
    set_threads(0)
    keep_freed_memory()
    return measure((48, 64, 48), batch=1, rounds=3) if quick else measure((96, 96, 96), batch=1, rounds=5)
