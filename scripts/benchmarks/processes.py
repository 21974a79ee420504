"""Two processes of one thread against one process of two threads: seconds of a training step of the same batch.

The training loop runs as in `vnet train` (batches from the loader, gradients averaged over gloo, the stop signal agreed
on), on phantoms. Both sides stay loaded and take turns, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmarks.rows import Row
from vnet.data.phantoms import write_phantoms

REPOSITORY = Path(__file__).resolve().parents[2]

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
            env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads)}
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


def measure(arm: str, config_file: str, folder: Path, *, turns: int, steps: int) -> Row:
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


def run(quick: bool = False, config_file: str = "configs/hippocampus.yaml") -> list[Row]:
    """Rows of the table, an arm each: batches of two patches of the config's size, on two cores."""
    turns, steps = (3, 2) if quick else (15, 5)
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder, "data"), 8, seed=0)
        arms = ["pointrend_s2"] if quick else ["dense", "coarse_s2", "pointrend_s2", "pointrend_s4"]
        return [measure(arm, config_file, Path(folder), turns=turns, steps=steps) for arm in arms]
