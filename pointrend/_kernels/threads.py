"""The compiled loops, divided over threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

# Below this many values a second thread costs more than it brings: torch's own threads still wait in a busy loop for
# their next work, and take the cores.
VALUES_PER_THREAD = 1 << 18


def divide(work: Callable[[int, int, int], None], *, samples: int, parts: int, values: int) -> None:
    """Run work(sample, start, stop) for every sample and share of its parts, over threads where that pays.

    A part is one thread's alone, so that the results are the same however many threads there are.

    Args:
        samples: of the batch.
        parts: what a sample is cut into, points or channels.
        values: read or written in all.
    """
    threads = min(torch.get_num_threads(), values // VALUES_PER_THREAD)
    shares = max(-(-threads // max(samples, 1)), 1)  # of one sample
    edges = [parts * share // shares for share in range(shares + 1)]
    tasks = [(sample, *edge) for sample in range(samples) for edge in pairwise(edges)]
    if threads < 2:
        for task in tasks:
            work(*task)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, *task) for task in tasks]:
            done.result()


def traced() -> bool:
    """Whether torch records or transforms what is done: numba's loops would be invisible to it."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
