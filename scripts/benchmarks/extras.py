"""What a better answer costs: mirroring, an ensemble, clean-up and maps against one plain prediction.

The sides take turns in one process on the same made volume, with untrained networks of configs/hippocampus.yaml.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from scripts.benchmarks.rows import Row, paired, take_turns
from vnet.core.config import Config, load_config
from vnet.core.hardware import set_threads
from vnet.data.preprocessing import Channel, Preprocessing
from vnet.data.volumes import Volume, volume_from_array
from vnet.inference.ensemble import Member, predict_together
from vnet.inference.prediction import Prediction
from vnet.model.segmenter import build_model

CONFIG = "configs/hippocampus.yaml"
MIRROR_X = ("--inference.mirror", "[x]")
MIRROR_ALL = ("--inference.mirror", "[z,y,x]")
CLEAN = ("--inference.largest_component", "true")


def config_of(arm: str, *words: str) -> Config:
    return load_config(["--config", CONFIG, "--arm", arm, *words])


def made_volume(shape: tuple[int, int, int]) -> Volume:
    """Smooth blobs of 1 mm voxels, so that labels have surfaces rather than noise."""
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool3d(F.avg_pool3d(noise, 7, 1, 3), 7, 1, 3)[0]
    return volume_from_array(smooth.numpy(), np.eye(4))


def sides_of(arm: str, volume: Volume) -> dict[str, Callable[[], Prediction]]:
    """What is compared, by name; the first is the plain prediction."""
    models = [
        Member(
            build_model(config_of(arm, "--seed", str(seed)), in_channels=1, classes=3).eval(),
            Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),)),
        )
        for seed in range(5)
    ]

    def predict(count: int, *words: str, keep: bool = False) -> Prediction:
        return predict_together(models[:count], volume, config_of(arm, *words), keep_logits=keep)

    def with_probabilities() -> Prediction:
        prediction = predict(1, keep=True)
        for _ in prediction.probability_slabs():
            pass
        return prediction

    def with_uncertainty() -> Prediction:
        prediction = predict(1)
        prediction.uncertainty_volume()
        return prediction

    return {
        "plain": lambda: predict(1),
        "mirrored along x": lambda: predict(1, *MIRROR_X),
        "mirrored along z, y, x": lambda: predict(1, *MIRROR_ALL),
        "five runs": lambda: predict(5),
        "largest components": lambda: predict(1, *CLEAN),
        "uncertainty map": with_uncertainty,
        "probability map": with_probabilities,
    }


def measure(arm: str, shape: tuple[int, int, int], rounds: int) -> list[Row]:
    """Median seconds over `rounds` turns, after one that is not counted; `of_plain` is the median of ratios within a
    turn."""
    sides = sides_of(arm, made_volume(shape))
    seconds = take_turns(sides, rounds)
    return [
        {
            "side": name,
            "arm": arm,
            "size": "x".join(map(str, shape)),
            "seconds": round(statistics.median(values), 4),
            "of_plain": round(paired(values, seconds["plain"]), 2),
        }
        for name, values in seconds.items()
    ]


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes few turns of the smaller volume."""
    set_threads(0)
    rows = measure("pointrend_s2", (40, 56, 40), rounds=3 if quick else 20)
    return rows if quick else rows + measure("pointrend_s2", (128, 128, 96), rounds=5)
