"""Seconds of a training step by operation: multiply-adds and bytes against the machine's ceilings.

The ceilings are measured here: the best convolution of a set of large ones (float32, all threads), a matrix product,
a copy. One row for each operation and shape of `configs/hippocampus.yaml`, from torch's profiler.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from scripts.benchmarks.rows import Row
from scripts.benchmarks.step import random_batch, step_of
from vnet.core.hardware import keep_freed_memory, set_threads

STEPS = 3
SHOWN = 14  # rows an arm; one row sums up the rest


def seconds_of(function: Callable[[], object], turns: int = 7) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    function()
    taken = []
    for _ in range(turns):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def ceilings() -> Row:
    """Multiply-adds a second of a convolution and of a matrix product, and bytes a second of a copy, in G."""
    n = 2048
    one, other = torch.randn(n, n), torch.randn(n, n)
    image, weight = torch.randn(2, 64, 32, 32, 32), torch.randn(64, 64, 3, 3, 3)
    source, target = torch.randn(2**26), torch.empty(2**26)
    with torch.no_grad():
        product = n**3 / seconds_of(lambda: one @ other)
        convolution = image.numel() * 64 * 27 / seconds_of(lambda: F.conv3d(image, weight, padding=1))
        copied = 8 * len(source) / seconds_of(lambda: target.copy_(source))
    return {
        "convolution_g_per_second": round(convolution / 1e9, 1),
        "matrix_product_g_per_second": round(product / 1e9, 1),
        "copy_gb_per_second": round(copied / 1e9, 1),
    }


def work_of(name: str, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-adds of a convolution by its arguments' shapes; 0 for other operations."""
    if name == "aten::mkldnn_convolution":
        image, weight = shapes[0], shapes[1]
        strided = weight[-1] == 2  # kernel and stride 2: every voxel is read once
        return math.prod(image) * math.prod(weight) // weight[1] // (math.prod(weight[2:]) if strided else 1)
    if name == "aten::convolution_backward":
        grad, image, weight = shapes[0], shapes[1], shapes[2]
        once = math.prod(grad) * math.prod(weight) // weight[0] if len(weight) == 5 else 0
        if len(weight) == 5 and grad[1] != weight[0]:  # transposed
            once = math.prod(image) * math.prod(weight) // weight[0]
        return once * (1 if image[1] == 1 else 2)  # the image needs no gradient
    return 0


def bytes_of(shapes: Sequence[Sequence[int]]) -> int:
    """Bytes of the arguments, read or written once, and of a result as large as the first."""
    sizes = [4 * math.prod(shape) for shape in shapes if shape]
    return sum(sizes) + (sizes[0] if sizes else 0)


def measure(arm: str, size: tuple[int, int, int], batch: int, ceiling: Row) -> list[Row]:
    """The operations of a step with the largest share of its seconds."""
    step, _ = step_of(arm, "configs/hippocampus.yaml", *random_batch(size, batch))
    plain = []
    for _ in range(STEPS + 2):
        start = time.perf_counter()
        step()
        plain.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        for _ in range(STEPS):
            step()
    events = recorded.key_averages(group_by_input_shape=True)
    whole = sum(event.self_cpu_time_total for event in events) / 1e6 / STEPS
    rows: list[Row] = []
    known = {"size": "x".join(map(str, size)), "batch": batch, "step_seconds": round(statistics.median(plain[2:]), 4)}
    left = whole
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:SHOWN]:
        seconds = event.self_cpu_time_total / 1e6 / STEPS
        left -= seconds
        calls = event.count // STEPS
        work = calls * work_of(event.key, event.input_shapes) / 1e9
        moved = calls * bytes_of(event.input_shapes) / 1e9
        rows.append(
            {
                "operation": f"{arm}: {event.key.removeprefix('aten::')}",
                **known,
                "shape": "x".join(map(str, event.input_shapes[0])) if event.input_shapes else "",
                "calls": calls,
                "seconds": round(seconds, 4),
                "share": round(seconds / whole, 3),
                "multiply_adds_g": round(work, 3) or None,
                "gb": round(moved, 3),
                "of_convolution_ceiling": round(work / seconds / ceiling["convolution_g_per_second"], 2) or None,
                "of_copy_ceiling": round(moved / seconds / ceiling["copy_gb_per_second"], 2),
            }
        )
    rest = {"seconds": round(left, 4), "share": round(left / whole, 3)}
    return [*rows, {"operation": f"{arm}: all others", **known, **rest}]


def run(quick: bool = False) -> list[Row]:
    """The ceilings first, then `pointrend_s2` and `dense`; `quick` takes the small size only."""
    set_threads(0)
    keep_freed_memory()
    ceiling = ceilings()
    rows: list[Row] = [{"operation": "ceilings", **ceiling}]
    sizes: list[tuple[tuple[int, int, int], int]] = [((48, 64, 48), 2)]
    if not quick:
        sizes.append(((96, 96, 96), 1))
    for size, batch in sizes:
        for arm in ("pointrend_s2", "dense"):
            rows += measure(arm, size, batch, ceiling)
    return rows
