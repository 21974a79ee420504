"""A training step: of every arm, by size of the volume and number of classes, and by operation.

`run`: seconds, multiply-adds and the head's share of every arm. The arms take turns in one process, on the same random
batch, so that a change of the machine's speed meets all.

`run_step_bodies`: the same of every arm of `configs/lean_bodies.yaml`.

`run_arithmetic`: float32, bfloat16, channels last and `torch.compile`, for `dense` and `lean_s4`.

`run_train_growth`: seconds by size of the volume and by number of classes.

`run_train_roofline`: multiply-adds and bytes of the step's operations against the machine's ceilings. The ceilings are
measured here: the best convolution of a set of large ones (float32, all threads), a matrix product, a copy. One row for
each operation and shape of `configs/hippocampus.yaml`, from torch's profiler.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from scripts.benchmarks.harness import Row, call, paired, take_turns
from vnet.core.config import ARMS, load_config
from vnet.core.hardware import autocast, keep_freed_memory, peak_memory_mib, set_threads
from vnet.core.randomness import point_generators
from vnet.model.losses import total_loss
from vnet.model.segmenter import build_model, count_multiply_adds
from vnet.training.optimizer import build_optimizer

# one network; the head reads a point, or a window around it
CONFIGS = ("configs/hippocampus.yaml", "configs/study_hippocampus.yaml")
BODIES = "configs/lean_bodies.yaml"


def step_of(arm: str, config_file: str, image: torch.Tensor, labels: torch.Tensor) -> tuple[Callable[[], None], float]:
    """A function that makes one optimiser step of an arm, and its multiply-adds a volume in units of 1e9."""
    config = load_config(["--config", config_file, "--arm", arm])
    model = build_model(config, in_channels=1, classes=3)
    optimizer = build_optimizer(model, config.training)

    def step() -> None:
        loss = total_loss(model(image, labels, point_generators(0, 0, range(len(image)))), config.training)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, count_multiply_adds(model, image[:1]) / 1e9


def random_batch(size: tuple[int, ...], batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of noise, with labels of smooth blobs of three classes, whose surfaces are uncertain."""
    image = torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(0))
    blobs = torch.nn.functional.avg_pool3d(image[:, 0], 9, stride=1, padding=4)
    return image, blobs.mul(60).clamp(-1, 1).round().long() + 1


def measure(
    config_file: str, size: tuple[int, int, int], batch: int, rounds: int, names: Iterable[str] = ARMS
) -> list[Row]:
    """Median seconds of a step of each arm over `rounds` turns, after one that is not counted; `of_dense` and
    `head_share` (of the arm's own step) are medians of ratios within a turn."""
    image, labels = random_batch(size, batch)
    arms = {arm: step_of(arm, config_file, image, labels) for arm in names}
    seconds = take_turns({arm: step for arm, (step, _) in arms.items()}, rounds)
    made = {arm: made_g for arm, (_, made_g) in arms.items()}
    del arms
    middle = {arm: statistics.median(values) for arm, values in seconds.items()}
    rows = []
    for arm, values in seconds.items():
        plain = arm.replace("pointrend", "coarse").replace("coarse_s1", "dense")
        rows.append(
            {
                "size": "x".join(map(str, size)),
                "batch": batch,
                "arm": arm,
                "seconds": round(middle[arm], 4),
                "fastest": round(min(values), 4),
                "slowest": round(max(values), 4),
                "of_dense": round(paired(values, seconds["dense"]), 3),
                "head_share": round(1 - 1 / paired(values, seconds[plain]), 3)
                if plain != arm and plain in seconds
                else None,
                "multiply_adds_g": round(made[arm], 3),
                "multiply_adds_of_dense": round(made[arm] / made["dense"], 3),
                "config": Path(config_file).stem,
                **call("step", "peak", arm=arm, config_file=config_file, size=size, batch=batch),
            }
        )
    for row in rows:
        row["memory_of_dense"] = round(row["peak_memory_mib"] / rows[0]["peak_memory_mib"], 3)
    return rows


def peak(arm: str, config_file: str, size: list[int], batch: int) -> Row:
    """Peak memory in MiB of a process that makes three steps of an arm, the libraries included."""
    set_threads(0)
    keep_freed_memory()
    step, _ = step_of(arm, config_file, *random_batch(tuple(size), batch))
    for _ in range(3):
        step()
    return {"peak_memory_mib": round(peak_memory_mib())}


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes few turns of the smallest size."""
    set_threads(0)
    keep_freed_memory()
    rows = []
    for config_file in CONFIGS:
        patch = load_config(["--config", config_file]).training.patch
        rows += measure(config_file, patch, batch=2, rounds=5 if quick else 20)
    if not quick:
        rows += measure(CONFIGS[0], (96, 96, 96), batch=1, rounds=7)
        rows += measure(CONFIGS[0], (64, 128, 128), batch=1, rounds=5)
    return rows


def run_step_bodies(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes few turns."""
    set_threads(0)
    keep_freed_memory()
    config = load_config(["--config", BODIES])
    patch, batch = config.training.patch, config.training.batch
    return measure(BODIES, patch, batch, rounds=2 if quick else 20, names=config.study.arms)


# side: precision, channels last, compiled
ARITHMETIC: dict[str, tuple[str, bool, bool]] = {
    "float32": ("32-true", False, False),
    "bfloat16": ("bf16-mixed", False, False),
    "channels last": ("32-true", True, False),
    "bfloat16, channels last": ("bf16-mixed", True, False),
    "compiled": ("32-true", False, True),
    "bfloat16, compiled": ("bf16-mixed", False, True),
}


def arithmetic_of(
    arm: str, side: str, image: torch.Tensor, labels: torch.Tensor
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One optimiser step, and one forward pass of the network as prediction makes it, in the arithmetic of a side."""
    precision, last, compiled = ARITHMETIC[side]
    config = load_config(["--config", CONFIGS[1], "--arm", arm])
    model = build_model(config, in_channels=1, classes=3)
    if last:
        model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        image = image.contiguous(memory_format=torch.channels_last_3d)
    if compiled:
        model.network.compile()
    optimizer = build_optimizer(model, config.training)

    def step() -> None:
        with autocast(image.device, precision):
            loss = total_loss(model(image, labels, point_generators(0, 0, range(len(image)))), config.training)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def forward() -> None:
        with torch.inference_mode(), autocast(image.device, precision):
            model.predict(image[:1])

    return step, forward


def measure_arithmetic(arm: str, size: tuple[int, int, int], rounds: int) -> list[Row]:
    """One row a side: medians of a step of two volumes and of a forward pass of one, and of the ratios to float32."""
    image, labels = random_batch(size, 2)
    made = {side: arithmetic_of(arm, side, image, labels) for side in ARITHMETIC}
    seconds = take_turns({side: step for side, (step, _) in made.items()}, rounds)
    forward = take_turns({side: once for side, (_, once) in made.items()}, rounds)
    return [
        {
            "arm": f"{arm}: {side}",
            "size": "x".join(map(str, size)),
            "step_s": round(statistics.median(seconds[side]), 4),
            "forward_s": round(statistics.median(forward[side]), 4),
            "step_of_float32": round(paired(seconds[side], seconds["float32"]), 3),
            "forward_of_float32": round(paired(forward[side], forward["float32"]), 3),
        }
        for side in made
    ]


def run_arithmetic(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes few turns of a small size."""
    set_threads(0)
    keep_freed_memory()
    size, rounds = ((32, 32, 32), 3) if quick else ((48, 64, 48), 11)
    return [row for arm in ("dense", "lean_s4") for row in measure_arithmetic(arm, size, rounds)]


def measure_growth(arm: str, side: int, classes: int, turns: int) -> Row:
    """Seconds of forward, losses and backward of one sample of side^3 voxels."""
    config = load_config(["--config", "configs/hippocampus.yaml", "--arm", arm])
    model = build_model(config, in_channels=1, classes=classes)
    image, blobs = random_batch((side,) * 3, 1)
    labels = (blobs * (torch.arange(side) * (classes - 1) // side + 1)).clamp_max(classes - 1)
    taken = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        total_loss(model(image, labels, point_generators(0, 0, range(1))), config.training).backward()
        taken.append(time.perf_counter() - start)
    seconds = statistics.median(taken[1:])
    return {
        "arm": arm,
        "side": side,
        "classes": classes,
        "seconds": round(seconds, 4),
        "ns_per_voxel": round(seconds / side**3 * 1e9, 1),
        "multiply_adds_g": round(count_multiply_adds(model, image) / 1e9, 3),
    }


def run_train_growth(quick: bool = False) -> list[Row]:
    """Sides 32 to 128 with 3 classes, then 2 to 25 classes at 96^3 (`quick`: smaller)."""
    set_threads(0)
    keep_freed_memory()
    sides, classes = ((32, 48), (2, 25)) if quick else ((32, 48, 64, 96, 128), (2, 8, 25))
    cases = [(side, 3) for side in sides] + [(sides[-1] if quick else 96, count) for count in classes]
    return [
        measure_growth(arm, side, count, turns=3 if quick else 5)
        for side, count in cases
        for arm in ("dense", "pointrend_s2", "pointrend_s4")
    ]


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


def measure_operations(arm: str, size: tuple[int, int, int], batch: int, ceiling: Row) -> list[Row]:
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


def run_train_roofline(quick: bool = False) -> list[Row]:
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
            rows += measure_operations(arm, size, batch, ceiling)
    return rows
