"""What a training step costs on a CPU: multiply-adds from the config, seconds and memory by a fit to measured steps.

`measure_step` times the step itself, on any device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from vnet.core.config import Config, cumulative_strides, per_axis
from vnet.core.hardware import keep_freed_memory, peak_memory_mib, reset_peak_memory
from vnet.core.randomness import point_generators
from vnet.data.augmentation import View, draw_matrix, extract_patch, source_box, vary_intensity
from vnet.model.losses import total_loss
from vnet.model.segmenter import build_model, count_multiply_adds
from vnet.training.optimizer import build_optimizer

MEASURED_ON, MEASURED_CORES = "2 cores of an AMD EPYC", 2
# Fitted to 14 steps of 2 x 16^3 to 2 x 96x128x128 voxels, 2 to 117 classes, width 8 and 16, with and without a head, by
# least squares of the relative error; the worst is 1.26 times off in seconds and 1.16 times in memory. The making of
# batches was added by three trainings (docs/data.md).
SECONDS_PER_STEP = 0.010
SECONDS_PER_MULTIPLY_ADD = 1.75e-11  # of the forward pass; forward and backward together
SECONDS_PER_VALUE = 4.1e-9  # of the outputs of convolutions: normalisation, activation, joining
SECONDS_PER_CANDIDATE = 5.5e-8  # logit of a point that may be drawn
SECONDS_PER_SOURCE = 7.5e-8  # value of image or label that a thread turns and varies for the next batch meanwhile
LIBRARIES_MIB = 576
COPIES_OF_VALUES = 4.6  # float32 tensors that are held or made for each output of a convolution
COPIES_OF_LOGITS = 6.2  # for each class and voxel of the patch
COPIES_OF_WEIGHTS = 11.5
COPIES_OF_POINTS = 12.8  # for each value that the head reads


@dataclass(frozen=True)
class StepCost:
    """A training step.

    Attributes:
        multiply_adds: of the forward pass of one sample, the head at its training points included.
        seconds: of the whole step.
        memory_mib: highest memory of the process, the libraries included.
    """

    multiply_adds: int
    seconds: float
    memory_mib: float


class Layer(NamedTuple):
    """A convolution: output values for one patch, weights, and the voxels at which all weights are used once."""

    values: int
    weights: int
    places: int


def convolutions(config: Config, *, channels: int, classes: int) -> Iterator[Layer]:
    """The convolutions of a network with a `full` stem, in its order.

    Args:
        config: names network and patch.
        channels: of the image.
        classes: K.
    """
    network = config.network
    totals, kernel = cumulative_strides(network.strides), math.prod(per_axis(network.kernel))
    padded = [-(-n // s) * s for n, s in zip(config.training.patch, totals[-1], strict=True)]
    voxels = [math.prod(n // s for n, s in zip(padded, total, strict=True)) for total in totals]
    coming = channels
    for stage, count in enumerate(network.down):
        width = network.width * 2**stage
        if stage:
            yield Layer(width * voxels[stage], coming * width * math.prod(network.strides[stage - 1]), voxels[stage])
            coming = width
        for _ in range(count):
            yield Layer(width * voxels[stage], coming * width * kernel, voxels[stage])
            coming = width
    stop = totals.index(per_axis(network.output_stride))
    for stage in reversed(range(stop, len(network.strides))):
        width = network.width * 2**stage
        weights = coming * width * math.prod(network.strides[stage])
        yield Layer(width * voxels[stage], weights, voxels[stage + 1])  # transposed
        coming = 2 * width
        for _ in range(network.up[len(network.strides) - 1 - stage]):
            yield Layer(coming * voxels[stage], coming**2 * kernel, voxels[stage])
    yield Layer(classes * voxels[stop], coming * classes, voxels[stop])


def head_layers(config: Config, *, channels: int, classes: int) -> Iterator[Layer]:
    """The layers of the head at the training points of one sample; it reads `encoder1`, `decoder` and the image."""
    points, network = config.points, config.network
    stage = cumulative_strides(network.strides).index(per_axis(network.output_stride))
    decoder = network.width * 2 ** (stage + (stage < len(network.strides)))
    coming = points.window**3 * (network.width + channels) + decoder
    for width in [*[points.width] * points.layers, classes] if points.num_points else []:
        yield Layer(coming * points.num_points, (coming + classes) * width, points.num_points)
        coming = width


def estimate_step(config: Config, *, channels: int, classes: int, cores: int) -> StepCost:
    """The cost of a step on a CPU with that many cores; arguments as in `convolutions`."""
    layers = [*convolutions(config, channels=channels, classes=classes)]
    head = [*head_layers(config, channels=channels, classes=classes)]
    batch, points = config.training.batch, config.points
    multiply_adds = sum(layer.weights * layer.places for layer in [*layers, *head])
    values = batch * sum(layer.values for layer in layers)
    candidates = batch * points.num_points * points.oversample_ratio * classes
    seconds = (
        SECONDS_PER_STEP
        + SECONDS_PER_MULTIPLY_ADD * batch * multiply_adds
        + SECONDS_PER_VALUE * values
        + SECONDS_PER_CANDIDATE * candidates
        + SECONDS_PER_SOURCE * batch * (channels + 1) * math.prod(config.training.patch)
    )
    copies = (
        COPIES_OF_VALUES * values
        + COPIES_OF_LOGITS * batch * classes * math.prod(config.training.patch)
        + COPIES_OF_WEIGHTS * sum(layer.weights for layer in [*layers, *head])
        + COPIES_OF_POINTS * batch * sum(layer.values for layer in head)
    )
    return StepCost(multiply_adds, seconds * MEASURED_CORES / cores, LIBRARIES_MIB + 4 * copies / 2**20)


def measure_step(config: Config, *, channels: int, classes: int, device: torch.device, steps: int = 2) -> StepCost:
    """The mean cost of some steps on noise, after one that is not counted; a thread makes the batches, as in training.

    Args:
        config: of the arm.
        channels: of the image.
        classes: K.
        device: where the step is made, with all threads of torch.
        steps: how many are timed.
    """
    keep_freed_memory()
    batch, patch = config.training.batch, config.training.patch
    volume = torch.randn(channels, *patch, generator=torch.Generator().manual_seed(0))
    marked = torch.arange(patch[-1]).mul(classes).div(patch[-1]).long().expand(patch)
    make_batch(volume, marked, config, 0)  # loads MONAI, which `LIBRARIES_MIB` counts
    before = peak_memory_mib() if reset_peak_memory() and device.type == "cpu" else 0.0
    model = build_model(config, in_channels=channels, classes=classes).to(device)
    optimizer = build_optimizer(model, config.training)
    image, labels = volume.expand(batch, *volume.shape).to(device), marked.expand(batch, *patch).to(device)
    with ThreadPoolExecutor(1) as pool:
        for step in range(steps + 1):
            if step == 1:
                start = time.perf_counter()
            coming = pool.submit(make_batch, volume, marked, config, step)
            loss = total_loss(model(image, labels, point_generators(config.seed, step, range(batch))), config.training)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            coming.result()
            loss.item()  # waits for the device
        seconds = (time.perf_counter() - start) / steps
    memory_mib = peak_memory_mib() - before + (LIBRARIES_MIB if before else 0)
    return StepCost(count_multiply_adds(model, image[:1]), seconds, memory_mib)


def make_batch(image: Tensor, labels: Tensor, config: Config, step: int) -> None:
    """Make as many patches of a volume as a batch has, and drop them, on one core as `vnet.data.batches` does."""
    torch.get_num_threads()
    with threadpool_limits(1, user_api="openmp"):
        for sample in range(config.training.batch):
            rng = np.random.default_rng([step, sample])
            view = View((0, 0, 0), draw_matrix(rng, config.data.spacing_mm or (1, 1, 1)), ())
            box = source_box(view, config.training.patch, labels.shape)
            varied = vary_intensity(image[(slice(None), *box)], sample)
            extract_patch(varied, labels[box], [part.start for part in box], view, config.training.patch)
