"""Cost of torch's deterministic algorithms: training steps with them and without, taking turns.

Beside the seconds the table says whether weights agree bit for bit: between two trainings with one thread and with two,
with and without those algorithms, and between one thread and two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from scripts.benchmarks.rows import Row
from vnet.core.config import Config, load_config
from vnet.core.hardware import set_threads
from vnet.core.randomness import point_generators
from vnet.model.losses import total_loss
from vnet.model.segmenter import Segmenter, build_model
from vnet.training.optimizer import build_optimizer

ARMS = ("dense", "pointrend_s2")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def random_step(config: Config) -> tuple[Segmenter, Callable[[int], None]]:
    """A fresh model and a function that trains it for step `number`, on one random batch."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(config.training.batch, 1, *config.training.patch, generator=generator)
    labels = (image[:, 0] > 0.3).long() + (image[:, 0] > 1).long()
    model = build_model(config, in_channels=1, classes=3)
    optimizer = build_optimizer(model, config.training)

    def step(number: int) -> None:
        terms = model(image, labels, point_generators(config.seed, number, range(len(image))))
        total_loss(terms, config.training).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


def weights_after(config: Config, steps: int, *, threads: int, strict: bool) -> bytes:
    """The bytes of all weights after some steps."""
    set_threads(threads)
    model, step = random_step(config)
    with deterministic(strict):
        for number in range(steps):
            step(number)
    return b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())


def cost(config: Config, rounds: int) -> Row:
    """Median seconds of a step with and without, and the median of their ratios within a turn."""
    _, step = random_step(config)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(rounds + 1):
        for strict in (False, True) if turn % 2 else (True, False):
            with deterministic(strict):
                start = time.perf_counter()
                step(turn)
                if turn:
                    seconds[strict].append(time.perf_counter() - start)
    ratios = [strict / free for free, strict in zip(seconds[False], seconds[True], strict=True)]
    return {
        "seconds": statistics.median(seconds[False]),
        "seconds_deterministic": statistics.median(seconds[True]),
        "ratio": statistics.median(ratios),
    }


def run(quick: bool = False, config_file: str = "configs/hippocampus.yaml") -> list[Row]:
    """A row an arm; `quick` takes fewer turns."""
    rows = []
    for arm in ARMS:
        config = load_config(["--config", config_file, "--arm", arm])
        steps = 3 if quick else 20
        one, two = (weights_after(config, steps, threads=n, strict=False) for n in (1, 2))
        rows.append(
            {"arm": arm, "steps": steps}
            | {
                f"same_bits_{n}_threads": weights_after(config, steps, threads=n, strict=False) == kept
                for n, kept in ((1, one), (2, two))
            }
            | {"same_bits_as_deterministic": weights_after(config, steps, threads=2, strict=True) == two}
            | {"same_bits_1_and_2_threads": one == two}
        )
        set_threads(0)
        rows[-1] |= cost(config, 5 if quick else 40)
    return rows
