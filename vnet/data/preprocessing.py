"""Preprocessing: intensities normalised by modality, volumes resampled to the working spacing.

The working grid spans the same box as the volume, so that a point of the unit cube is the same place on both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vnet.core.errors import InputError
from vnet.core.hardware import memory_limit_bytes
from vnet.data.checks import CheckResult
from vnet.data.dataset import Dataset
from vnet.data.facts import QUANTILES, CaseFacts, Intensities
from vnet.data.volumes import Volume

SAME_SPACING = 1e-3  # relative: headers round to float32
SLAB_VOXELS = 2**20
# memory of a case on the working grid, per voxel: float32 per channel, and the label with the places of its classes
CHANNEL_BYTES, LABEL_BYTES = 4, 12


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised.

    Attributes:
        rule: `zscore` (each volume by its own mean and standard deviation), `ct` (clipped, then by the data set's
            foreground mean and standard deviation, as nnU-Net does), or `none`.
        lower, upper: for `ct`, the 0.5 and 99.5 % points of the foreground.
        mean, std: for `ct`, of the foreground.
    """

    rule: str
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    def apply(self, array: np.ndarray) -> None:
        """Normalise float32 `array` in place. A constant volume becomes 0."""
        if self.rule == "ct":
            np.clip(array, self.lower, self.upper, out=array)
            array -= np.float32(self.mean)
            array /= np.float32(max(self.std, 1e-8))
        elif self.rule == "zscore":
            mean, std = moments(array)
            # the largest first: intensities near float32's end would overflow in the difference
            scale = float(max(abs(float(array.min())), abs(float(array.max())), 1e-30))
            constant = std <= 1e-6 * scale
            array /= np.float32(scale)
            array -= np.float32(mean / scale)
            array *= np.float32(0 if constant else scale / std)


def moments(array: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in float64, slab by slab so that no float64 volume exists."""
    flat = array.reshape(-1)
    slabs = [flat[start : start + SLAB_VOXELS] for start in range(0, flat.size, SLAB_VOXELS)]
    mean = sum(float(slab.sum(dtype=np.float64)) for slab in slabs) / flat.size
    square = sum(float(np.square(slab.astype(np.float64) - mean).sum()) for slab in slabs) / flat.size
    return mean, float(np.sqrt(square))


@dataclass(frozen=True)
class Preprocessing:
    """Everything needed to prepare a volume as in training; kept in the checkpoint.

    Attributes:
        spacing_mm: of the working grid, (z, y, x).
        channels: one normalisation per channel.
    """

    spacing_mm: tuple[float, float, float]
    channels: tuple[Channel, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"spacing_mm": list(self.spacing_mm), "channels": [asdict(channel) for channel in self.channels]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        z, y, x = (float(value) for value in plain["spacing_mm"])
        return cls((z, y, x), tuple(Channel(**channel) for channel in plain["channels"]))

    def size(self, volume: Volume) -> tuple[int, int, int]:
        """Voxels (D, H, W) of the working grid; the volume's own where the spacing is the same."""
        d, h, w = volume.array.shape[-3:]
        return working_size((d, h, w), volume.spacing_mm, self.spacing_mm)

    def apply(self, volume: Volume) -> np.ndarray:
        """The image normalised, then resampled linearly; `volume` is left as it is.

        Returns:
            (C, D, H, W) float32 on the working grid.

        Raises:
            InputError: the volume has another number of channels, or its working grid is larger than memory.
        """
        where = "" if volume.path is None else f"{volume.path}: "
        if len(volume.array) != len(self.channels):
            raise InputError(
                f"{where}the image has {len(volume.array)} channels where {len(self.channels)} are due; "
                "give the channels the network was trained on"
            )
        d, h, w = volume.array.shape[-3:]
        if fault := size_fault((d, h, w), volume.spacing_mm, self):
            raise InputError(where + fault)
        array = volume.array.astype(np.float32)
        for channel, values in zip(self.channels, array, strict=True):
            channel.apply(values)
        return resample_image(array, self.size(volume))

    def apply_label(self, volume: Volume) -> np.ndarray:
        """The label on the working grid, nearest neighbour: (D, H, W), same type."""
        return resample_label(volume.array, self.size(volume))


def working_size(
    shape: tuple[int, int, int], spacing_mm: Sequence[float], working_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Voxels (D, H, W) of the grid of spacing `working_mm` over the box of a volume; its own where they are equal."""
    ratios = [have / want for have, want in zip(spacing_mm, working_mm, strict=True)]
    if all(abs(ratio - 1) < SAME_SPACING for ratio in ratios):
        return shape
    d, h, w = (max(1, round(n * ratio)) for n, ratio in zip(shape, ratios, strict=True))
    return d, h, w


def size_fault(shape: tuple[int, int, int], spacing_mm: Sequence[float], preprocessing: Preprocessing) -> str | None:
    """Why the working grid of a volume cannot be held in memory, None where it can."""
    size = working_size(shape, spacing_mm, preprocessing.spacing_mm)
    need = math.prod(size) * (CHANNEL_BYTES * len(preprocessing.channels) + LABEL_BYTES)
    limit = memory_limit_bytes()
    if need <= limit:
        return None
    return (
        f"{shape} voxels of {round_off(spacing_mm)} mm become {size} at the working spacing of "
        f"{round_off(preprocessing.spacing_mm)} mm (z, y, x), {need / 2**30:.3g} GiB where memory holds "
        f"{limit / 2**30:.1f}; mend the spacing in the header, crop the volume, or train with a larger data.spacing_mm"
    )


def round_off(values: Sequence[float]) -> tuple[float, ...]:
    """Numbers to four digits, for messages."""
    return tuple(float(f"{value:.4g}") for value in values)


def grid_faults(dataset: Dataset, facts: Mapping[str, CaseFacts], preprocessing: Preprocessing) -> list[str]:
    """A line for each case whose working grid cannot be held in memory."""
    files = {case.name: case.images[0] for case in dataset.cases}
    return [
        f"case {name}: {files[name]}: {fault}"
        for name, fact in facts.items()
        if (fault := size_fault(fact.shape, fact.spacing_mm, preprocessing))
    ]


def resample_image(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(C, D, H, W) float32 on another grid over the same box: linear between voxel centres, no antialiasing."""
    if tuple(size) == array.shape[1:]:
        return array
    out = F.interpolate(torch.from_numpy(array)[None], tuple(size), mode="trilinear", align_corners=False)
    return out[0].numpy()


def resample_label(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(D, H, W) labels to another grid over the same box: the voxel that holds the new centre."""
    if tuple(size) == label.shape:
        return label
    nearest = [((2 * np.arange(m) + 1) * n) // (2 * m) for n, m in zip(label.shape, size, strict=True)]
    return np.ascontiguousarray(label[np.ix_(*nearest)])


def plan_preprocessing(
    dataset: Dataset,
    checked: CheckResult,
    spacing_mm: Sequence[float] | None = None,
    cases: Collection[str] | None = None,
) -> Preprocessing:
    """Working spacing and normalisation from a checked data set.

    Args:
        spacing_mm: (z, y, x); None takes the median of the cases on each axis.
        cases: names of the cases to plan on, those of the training fold; None takes all.
    """
    facts = [fact for name, fact in sorted(checked.facts.items()) if cases is None or name in cases]
    if not facts:
        raise ValueError(f"cases must name cases of the data set, got {cases!r:.80}")
    spacing = np.median([fact.spacing_mm for fact in facts], 0) if spacing_mm is None else np.asarray(spacing_mm)
    z, y, x = (round(float(value), 6) for value in spacing)
    channels = [plan_channel(name, facts, number) for number, name in enumerate(dataset.modalities)]
    return Preprocessing((z, y, x), tuple(channels))


def plan_channel(modality: str, facts: Sequence[CaseFacts], number: int) -> Channel:
    """Normalisation of a channel by the name of its modality: CT, noNorm, or anything else for z-scores."""
    rule = {"ct": "ct", "nonorm": "none"}.get(modality.lower(), "zscore")
    if rule != "ct":
        return Channel(rule)
    stats = [fact.foreground[number] for fact in facts if fact.foreground]
    return pooled(stats) if stats else Channel("zscore")


def describe_rule(number: int, modality: str, channel: Channel) -> str:
    """How a channel's intensities are normalised, as a line."""
    rules = {
        "none": "left as they are",
        "zscore": "z-scores of each volume",
        "ct": f"clipped to {channel.lower:.4g} to {channel.upper:.4g} (0.5 and 99.5 % of the foreground), less "
        f"{channel.mean:.4g}, divided by {channel.std:.4g}",
    }
    return f"intensities of channel {number} ({modality}): {rules[channel.rule]}"


def pooled(stats: Sequence[Intensities]) -> Channel:
    """CT normalisation from the foreground of all cases, each with the same weight."""
    values = np.sort(np.concatenate([stat.quantiles for stat in stats]))
    lower, upper = np.quantile(values, [QUANTILES[1], QUANTILES[-2]])
    mean = float(np.mean([stat.mean for stat in stats]))
    square = np.mean([stat.std**2 + (stat.mean - mean) ** 2 for stat in stats])
    return Channel("ct", float(lower), float(upper), mean, max(float(np.sqrt(square)), 1e-8))
