"""A training step of every arm: seconds, multiply-adds and the head's share.

The arms take turns in one process, on the same random batch, so that a change of the machine's speed meets all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.benchmarks.fresh import call
from scripts.benchmarks.rows import Row, paired, take_turns
from vnet.core.config import ARMS, load_config
from vnet.core.hardware import keep_freed_memory, peak_memory_mib, set_threads
from vnet.core.randomness import point_generators
from vnet.model.losses import total_loss
from vnet.model.segmenter import build_model, count_multiply_adds
from vnet.training.optimizer import build_optimizer

# one network; the head reads a point, or a window around it
CONFIGS = ("configs/hippocampus.yaml", "configs/study_hippocampus.yaml")


def step_of(arm: str, config_file: str, image: torch.Tensor, labels: torch.Tensor) -> tuple[Callable[[], None], float]:
    """A function that makes one optimiser step of an arm, and its multiply-adds a volume in units of 1e9."""
    config = load_config(["--config", config_file, "--arm", arm])
    model = build_model(config, in_channels=1, classes=3)
    optimizer = build_optimizer(model, config.training)

    def step() -> None:
        loss = total_loss(model(image, labels, point_generators(0, 0, range(len(image)))), config.training)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, count_multiply_adds(model, image[:1]) / 1e9


def random_batch(size: tuple[int, ...], batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of noise, with labels of smooth blobs of three classes, whose surfaces are uncertain."""
    image = torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(0))
    blobs = torch.nn.functional.avg_pool3d(image[:, 0], 9, stride=1, padding=4)
    return image, blobs.mul(60).clamp(-1, 1).round().long() + 1


def measure(config_file: str, size: tuple[int, int, int], batch: int, rounds: int) -> list[Row]:
    """Median seconds of a step of each arm over `rounds` turns, after one that is not counted; `of_dense` and
    `head_share` (of the arm's own step) are medians of ratios within a turn."""
    image, labels = random_batch(size, batch)
    arms = {arm: step_of(arm, config_file, image, labels) for arm in ARMS}
    seconds = take_turns({arm: step for arm, (step, _) in arms.items()}, rounds)
    made = {arm: made_g for arm, (_, made_g) in arms.items()}
    del arms
    middle = {arm: statistics.median(values) for arm, values in seconds.items()}
    rows = []
    for arm, values in seconds.items():
        plain = arm.replace("pointrend", "coarse").replace("coarse_s1", "dense")
        rows.append(
            {
                "size": "x".join(map(str, size)),
                "batch": batch,
                "arm": arm,
                "seconds": round(middle[arm], 4),
                "fastest": round(min(values), 4),
                "slowest": round(max(values), 4),
                "of_dense": round(paired(values, seconds["dense"]), 3),
                "head_share": round(1 - 1 / paired(values, seconds[plain]), 3) if plain != arm else None,
                "multiply_adds_g": round(made[arm], 3),
                "multiply_adds_of_dense": round(made[arm] / made["dense"], 3),
                "config": Path(config_file).stem,
                **call("step", "peak", arm=arm, config_file=config_file, size=size, batch=batch),
            }
        )
    for row in rows:
        row["memory_of_dense"] = round(row["peak_memory_mib"] / rows[0]["peak_memory_mib"], 3)
    return rows


def peak(arm: str, config_file: str, size: list[int], batch: int) -> Row:
    """Peak memory in MiB of a process that makes three steps of an arm, the libraries included."""
    set_threads(0)
    keep_freed_memory()
    step, _ = step_of(arm, config_file, *random_batch(tuple(size), batch))
    for _ in range(3):
        step()
    return {"peak_memory_mib": round(peak_memory_mib())}


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes few turns of the smallest size."""
    set_threads(0)
    keep_freed_memory()
    rows = []
    for config_file in CONFIGS:
        patch = load_config(["--config", config_file]).training.patch
        rows += measure(config_file, patch, batch=2, rounds=5 if quick else 20)
    if not quick:
        rows += measure(CONFIGS[0], (96, 96, 96), batch=1, rounds=7)
        rows += measure(CONFIGS[0], (64, 128, 128), batch=1, rounds=5)
    return rows
