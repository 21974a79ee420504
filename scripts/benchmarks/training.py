"""Short trainings: in one process or two, with deterministic algorithms or without, with logging or without.

`run_processes`: two processes of one thread against one of two threads, seconds of a step of the same batch. The
training loop runs as in `vnet train` (batches from the loader, gradients averaged over gloo, the stop signal agreed
on), on phantoms. Both sides stay loaded and take turns, so that a change of the machine's speed meets both.

`run_determinism`: steps with torch's deterministic algorithms and without, taking turns. Beside the seconds the table
says whether weights agree bit for bit: between two trainings with one thread and with two, with and without those
algorithms, and between one thread and two.

`run_tensorboard`: seconds that logging adds to a training, and seconds until TensorBoard shows its first page. Phantoms
as in configs/quickstart.yaml, arm pointrend_s2, which has most to log. Without logging the loop trains and scores its
validation cases and writes no event. The page is that of a run of 2000 steps of a small network, whose events are as
many and as large as any, in a headless Chromium with an empty cache.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from scripts.benchmarks.harness import Row, timed
from vnet.core.config import Config, load_config
from vnet.core.errors import InputError
from vnet.core.hardware import set_threads
from vnet.core.randomness import point_generators
from vnet.data.phantoms import write_phantoms
from vnet.data.prepared import prepare_data
from vnet.model.losses import total_loss
from vnet.model.segmenter import Segmenter, build_model
from vnet.training import validation
from vnet.training.optimizer import build_optimizer
from vnet.training.run import train_run
from vnet.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]

# reads a number of steps a line, prints their seconds
WORKER = """
import sys, time
from vnet.core.config import load_config
from vnet.core.hardware import set_threads
from vnet.core.distributed import launch_fabric, reduce_max, shutdown
from vnet.core.runs import Run
from vnet.data.prepared import prepare_data
from vnet.training.trainer import Trainer

config = load_config(sys.argv[1:])
fabric = launch_fabric(config.training.precision, config.device)
set_threads(config.threads)
trainer = Trainer(config, prepare_data(config, progress=False), Run(config.run_folder, "benchmark"), fabric)
stream = trainer.batches.stream()
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        trainer.step(stream)
        reduce_max(0)
    print(time.perf_counter() - start, flush=True)
stream.close()
shutdown(0)
"""


class Side:
    """Processes that train together, a number of steps at a time."""

    def __init__(self, world: int, threads: int, words: list[str], stack: ExitStack) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.workers = []
        for rank in range(world):
            env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
            if world > 1:
                env |= {"TORCHELASTIC_RUN_ID": "benchmark", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                env |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
                env |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, *words, "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=env,
            )
            self.workers.append(stack.enter_context(worker))

    def seconds(self, steps: int) -> float:
        """Seconds of a step: those of the slowest process."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{steps}\n")
            worker.stdin.flush()
        return max(float(worker.stdout.readline()) for worker in self.workers if worker.stdout) / steps


def measure_processes(arm: str, config_file: str, folder: Path, *, turns: int, steps: int) -> Row:
    """One row: median seconds of a step of both sides, and the median of the ratios within a turn."""
    words = ["--config", config_file, "--arm", arm, "--data.root", str(folder / "data")]
    words += ["--run_root", str(folder / "runs")]
    with ExitStack() as stack:
        one, two = Side(1, 2, words, stack), Side(2, 1, words, stack)
        for side in (one, two, one, two):
            side.seconds(2)  # volumes prepared, memory warm
        pairs = [(one.seconds(steps), two.seconds(steps)) for _ in range(turns)]
        for side in (one, two):
            for worker in side.workers:
                assert worker.stdin is not None
                worker.stdin.close()
    ratios = [a / b for a, b in pairs]
    return {
        "arm": arm,
        "one_process_s": round(statistics.median(a for a, _ in pairs), 4),
        "two_processes_s": round(statistics.median(b for _, b in pairs), 4),
        "throughput_of_one": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "turns": turns,
        "steps_a_turn": steps,
    }


def run_processes(quick: bool = False, config_file: str = "configs/hippocampus.yaml") -> list[Row]:
    """Rows of the table, an arm each: batches of two patches of the config's size, on two cores."""
    turns, steps = (3, 2) if quick else (15, 5)
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder, "data"), 8, seed=0)
        arms = ["pointrend_s2"] if quick else ["dense", "coarse_s2", "pointrend_s2", "pointrend_s4"]
        return [measure_processes(arm, config_file, Path(folder), turns=turns, steps=steps) for arm in arms]


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


def measure_determinism(config: Config, rounds: int) -> Row:
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


def run_determinism(quick: bool = False, config_file: str = "configs/hippocampus.yaml") -> list[Row]:
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
        rows[-1] |= measure_determinism(config, 5 if quick else 40)
    return rows


WORDS = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--arm", "pointrend_s2"]
# what is drawn for TensorBoard alone
DRAWN = ("open_page", "log_cases", "log_dice", "log_first_case", "log_points", "log_refinement")


@contextmanager
def without_logging() -> Iterator[None]:
    """While entered, a training draws and writes nothing for TensorBoard."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(validation, "Board", IdleBoard))
        for name in DRAWN:
            stack.enter_context(patch.object(validation, name, lambda *_: None))
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
            stack.enter_context(patch.object(validation, name, timed(getattr(validation, name), spent)))
        curves = timed(validation.RunLogger.log_curves, spent)
        stack.enter_context(patch.object(validation.RunLogger, "log_curves", curves))
        yield


def train_seconds(config: Config) -> float:
    """Seconds of the training loop with its validations, without reading data and the last evaluation."""
    seconds: list[float] = []
    with patch.object(Trainer, "train", timed(Trainer.train, seconds)):
        train_run(config)
    return seconds[0]


def measure_logging(folder: Path, steps: int, rounds: int) -> Row:
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


def run_tensorboard(quick: bool = False) -> list[Row]:
    """Two rows; `quick` takes few steps."""
    set_threads(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_data(load_config([*WORDS, "--data.root", str(folder / "phantoms"), "--run_root", name]))
        cost = measure_logging(folder, steps=40 if quick else 200, rounds=1 if quick else 3)
        return [cost, measure_page(folder, steps=80 if quick else 2000)]
