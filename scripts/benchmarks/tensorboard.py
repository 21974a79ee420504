"""Seconds that logging adds to a short training, and seconds until TensorBoard shows its first page.

Phantoms as in configs/quickstart.yaml, arm pointrend_s2, which has most to log. Without logging the loop trains and
scores its validation cases and writes no event. The page is that of a run of 2000 steps of a small network, whose
events are as many and as large as any, in a headless Chromium with an empty cache.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scripts.benchmarks.rows import Row, timed
from vnet.core.config import Config, load_config
from vnet.core.errors import InputError
from vnet.core.hardware import set_threads
from vnet.data.prepared import prepare_data
from vnet.training import logger
from vnet.training.run import train_run
from vnet.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--arm", "pointrend_s2"]
# what is drawn for TensorBoard alone
DRAWN = ("open_page", "log_cases", "log_dice", "log_first_case", "log_points", "log_refinement")


@contextmanager
def without_logging() -> Iterator[None]:
    """While entered, a training draws and writes nothing for TensorBoard."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(logger, "Board", IdleBoard))
        for name in DRAWN:
            stack.enter_context(patch.object(logger, name, lambda *_: None))
        yield


class IdleBoard:
    """Stands in for the event writer: every method does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def clocked(spent: list[float]) -> Iterator[None]:
    """While entered, the seconds of every call that draws or writes for TensorBoard are appended to `spent`."""
    with ExitStack() as stack:
        for name in DRAWN:
            stack.enter_context(patch.object(logger, name, timed(getattr(logger, name), spent)))
        curves = timed(logger.RunLogger.log_curves, spent)
        stack.enter_context(patch.object(logger.RunLogger, "log_curves", curves))
        yield


def train_seconds(config: Config) -> float:
    """Seconds of the training loop with its validations, without reading data and the last evaluation."""
    seconds: list[float] = []
    with patch.object(Trainer, "train", timed(Trainer.train, seconds)):
        train_run(config)
    return seconds[0]


def measure_cost(folder: Path, steps: int, rounds: int) -> Row:
    """Median seconds with and without logging and their ratio within a turn, after one that is not counted.

    `logging_share` is the time inside the calls that log against the rest of the same run: what changes on the machine
    between two runs does not touch it.
    """
    with_s: list[float] = []
    without_s: list[float] = []
    shares: list[float] = []
    for turn in range(rounds + 1):
        words = ["--data.root", str(folder / "phantoms"), "--training.steps", str(steps)]
        words += ["--training.validate_every", str(steps // 2), "--data.cache", str(folder / "cache")]
        configs = [load_config([*WORDS, *words, "--run_root", str(folder / f"{kind}{turn}")]) for kind in "ab"]
        spent: list[float] = []
        with clocked(spent):
            logged = train_seconds(configs[0])
        with without_logging():
            plain = train_seconds(configs[1])
        if turn:
            with_s.append(logged)
            without_s.append(plain)
            shares.append(sum(spent) / (logged - sum(spent)))
    ratio = statistics.median(a / b for a, b in zip(with_s, without_s, strict=True))
    return {
        "measured": f"{steps} steps, 2 validations",
        "with_s": round(statistics.median(with_s), 2),
        "without_s": round(statistics.median(without_s), 2),
        "ratio": round(ratio, 3),
        "logging_share": round(statistics.median(shares), 4),
    }


def measure_page(folder: Path, steps: int) -> Row:
    """Seconds to the first page of a run of `steps` steps; without Playwright or Chromium only its size."""
    from scripts.figures.tensorboard_tabs import browser, first_page_seconds, serve

    words = ["--data.root", str(folder / "phantoms"), "--training.steps", str(steps), "--network.width", "2"]
    words += ["--training.patch", "[16,16,32]", "--training.validate_every", str(steps // 8), "--name", "page"]
    config = load_config([*WORDS, *words, "--run_root", str(folder)])
    run = train_run(config).folder
    size = sum(file.stat().st_size for file in run.glob("events.out.tfevents.*"))
    row: Row = {"measured": f"first page, {steps} steps, 8 validations", "events_mib": round(size / 2**20, 1)}
    try:
        with serve(run.parent.parent) as address, browser() as chromium:
            pages = [first_page_seconds(chromium, address) for _ in range(3)]
            row["page_s"] = round(statistics.median(pages), 2)
    except InputError as error:
        print(error)
    return row


def run(quick: bool = False) -> list[Row]:
    """Two rows; `quick` takes few steps."""
    set_threads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_data(load_config([*WORDS, "--data.root", str(folder / "phantoms"), "--run_root", name]))
        cost = measure_cost(folder, steps=40 if quick else 200, rounds=1 if quick else 3)
        return [cost, measure_page(folder, steps=80 if quick else 2000)]
