"""Run the compiled loops over threads; they release the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

# Below this many values a second thread costs more than it brings: torch's own threads still wait in a busy loop for
# their next work, and take the cores.
VALUES_PER_THREAD = 1 << 18

Task = TypeVar("Task")


def run_tasks(work: Callable[[Task], None], tasks: Sequence[Task], threads: int) -> None:
    """Call work(task) for every task, `threads` at a time; one thread runs them here, in order."""
    if threads < 2 or len(tasks) < 2:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        for _ in pool.map(work, tasks):  # consuming the results raises what a task raised
            pass


def divide(work: Callable[[int, int, int], None], *, samples: int, parts: int, values: int) -> None:
    """Call work(sample, start, stop) for every sample and every range of its parts, over threads where that pays.

    A part belongs to one thread alone, so the results do not depend on the number of threads.

    Args:
        samples: samples of the batch.
        parts: points or channels of a sample; ranges of them are divided over threads.
        values: numbers read or written in all, which decide how many threads pay.
    """
    threads = min(torch.get_num_threads(), values // VALUES_PER_THREAD)
    ranges = max(-(-threads // max(samples, 1)), 1)  # of one sample
    edges = [parts * i // ranges for i in range(ranges + 1)]
    tasks = [(sample, *edge) for sample in range(samples) for edge in pairwise(edges)]
    run_tasks(lambda task: work(*task), tasks, threads)


def traced() -> bool:
    """Whether torch compiles, traces or transforms the calling code: numba's loops would be invisible to it."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
