"""Labels at a finer resolution: `render_labels` against dense interpolation, whole and streaming.

Each side runs in a fresh process that loads the logits from a file, calls itself on a small case (compilation, thread
pools), resets the peak of its memory and measures: added memory in the first call, and seconds. Every side of a row is
called equally often, in turns; its seconds are the median.

`torch` interpolates all classes and takes the argmax; `torch_class` keeps a running maximum, a class at a time;
`skimage` resizes class by class with order 1, as nnU-Net does by default; `stream` is a plain separable loop in numba
over target planes and classes with a running maximum; `dense` is the loop that `render_labels` falls back to.

Synthetic logits are wobbly ellipsoids. With a run, its coarse logits of a validation case are rendered too.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from scripts.benchmarks.harness import Row, chosen_names

Render = Callable[[NDArray[np.float32], tuple[int, ...]], NDArray[Any]]
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """Logits (classes, *source) rendered as labels (*target), with normal noise of this standard deviation added."""

    classes: int
    source: tuple[int, int, int]
    target: tuple[int, int, int]
    noise: float = 0.2  # infinite: nothing but noise


CASES = {
    "3 classes": Case(3, (64, 64, 64), (128, 128, 128)),
    "14 classes": Case(14, (96, 96, 96), (256, 256, 256)),
    "25 classes": Case(25, (133, 134, 160), (321, 512, 512)),
    "118 classes": Case(118, (128, 128, 128), (256, 256, 256)),
    "300 classes": Case(300, (96, 96, 96), (192, 192, 192)),
    "14 classes, noise 1": Case(14, (96, 96, 96), (256, 256, 256), noise=1),
    "14 classes, pure noise": Case(14, (96, 96, 96), (256, 256, 256), noise=math.inf),
}
GROWTH = {f"14 classes, {n} to {3 * n}": Case(14, (n, n, n), (3 * n, 3 * n, 3 * n)) for n in (24, 48, 96, 128)} | {
    f"14 classes, 64 to {n}": Case(14, (64, 64, 64), (n, n, n)) for n in (96, 128, 192, 256, 384)
}
SIDES = ("torch", "torch_class", "skimage", "stream", "dense", "render", "render_2_threads")
QUICK_SIDES = ("torch", "torch_class", "stream", "dense", "render", "render_2_threads")
OWN_SIDES = ("stream", "dense", "render", "render_2_threads")
TURNS = 3  # of all sides, one after the other: the machine's speed drifts
SLOW_CLASSES = 25  # from here on torch and scikit-image take half a minute, and all sides are called once a turn
TRAINED_FACTORS = (4, 8)


def synthetic_logits(case: Case, seed: int = 0) -> NDArray[np.float32]:
    """(1, classes, *source) logits of wobbly ellipsoids in a background, falling with the distance."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((1, case.classes, *case.source), dtype=np.float32)
    if math.isinf(case.noise):
        return logits
    logits *= case.noise
    axes = np.meshgrid(*[(np.arange(n, dtype=np.float32) + 0.5) / n for n in case.source], indexing="ij", sparse=True)
    logits[0, 0] += 2
    shrink = min(1.0, (20 / case.classes) ** (1 / 3))
    for label in range(1, case.classes):
        centre = 0.5 + random.uniform(-0.3, 0.3, 3)
        radius = shrink * random.uniform(0.13, 0.25, 3)
        squares = [((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radius, strict=True)]
        wobble = 0.1 * np.sin(9 * axes[0] + label) * np.sin(8 * axes[1] + 2 * label) * np.sin(10 * axes[2])
        distance = np.sqrt(squares[0] + squares[1] + squares[2]) + wobble
        logits[0, label] += np.clip(12 * (1 - distance), -10, 10)
    return logits


def torch_whole(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
    import torch

    dense = torch.nn.functional.interpolate(torch.from_numpy(logits), size=size, mode="trilinear")
    return dense.argmax(1).to(torch.uint16 if logits.shape[1] > 256 else torch.uint8).numpy()


def torch_class(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
    import torch

    tensor = torch.from_numpy(logits)
    best = torch.full((1, 1, *size), -math.inf)
    labels = torch.zeros((1, 1, *size), dtype=torch.int16 if logits.shape[1] > 256 else torch.uint8)
    for label in range(tensor.shape[1]):
        values = torch.nn.functional.interpolate(tensor[:, label : label + 1], size=size, mode="trilinear")
        labels.masked_fill_(values > best, label)
        torch.maximum(best, values, out=best)
    return labels[:, 0].numpy()


def skimage_whole(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
    from skimage.transform import resize

    dense = np.empty((logits.shape[1], *size), np.float32)
    for label in range(len(dense)):
        dense[label] = resize(logits[0, label].astype(float), size, order=1, mode="edge", anti_aliasing=False)
    return dense.argmax(0)[None].astype(np.uint16)


@numba.njit(cache=True, nogil=True)
def _stream(  # type: ignore[no-untyped-def]
    logits, lower_z, upper_z, weight_z, lower_y, upper_y, weight_y, lower_x, upper_x, weight_x, out
):
    classes, _, height, width = logits.shape
    plane, row = np.empty((height, width), np.float32), np.empty(width, np.float32)
    best = np.empty((len(lower_y), len(lower_x)), np.float32)
    one = np.float32(1)
    for z in range(len(lower_z)):
        for label in range(classes):
            low, high, w = logits[label, lower_z[z]], logits[label, upper_z[z]], weight_z[z]
            for y in range(height):
                for x in range(width):
                    plane[y, x] = (one - w) * low[y, x] + w * high[y, x]
            for y in range(len(lower_y)):
                above, below, w = plane[lower_y[y]], plane[upper_y[y]], weight_y[y]
                for x in range(width):
                    row[x] = (one - w) * above[x] + w * below[x]
                for x in range(len(lower_x)):
                    value = (one - weight_x[x]) * row[lower_x[x]] + weight_x[x] * row[upper_x[x]]
                    if label == 0 or value > best[y, x]:
                        best[y, x] = value
                        out[z, y, x] = label


def stream(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
    from pointrend.coordinates import interpolation_table

    labels = np.empty((1, *size), np.uint8 if logits.shape[1] <= 256 else np.uint16)
    tables = [
        table
        for source, target in zip(logits.shape[2:], size, strict=True)
        for table in interpolation_table(source, target)
    ]
    _stream(logits[0], *tables, labels[0])
    return labels


def dense(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
    from pointrend import render_labels
    from pointrend._kernels import rendering

    chosen, rendering.pays_by_surface = rendering.pays_by_surface, lambda volume, axes: False
    try:
        return render_labels(logits, size, threads=1)
    finally:
        rendering.pays_by_surface = chosen


def rendered(threads: int) -> Render:
    def render(logits: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[Any]:
        from pointrend import render_labels

        return render_labels(logits, size, threads=threads)

    return render


FUNCTIONS: dict[str, Render] = {
    "torch": torch_whole,
    "torch_class": torch_class,
    "skimage": skimage_whole,
    "stream": stream,
    "dense": dense,
    "render": rendered(1),
    "render_2_threads": rendered(2),
}


def peak_bytes(field: str) -> int:
    """An entry of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def measure_here(side: str, source: str, output: str, size: tuple[int, ...], calls: int) -> Row:
    """Measure one side in the fresh process: seconds and added bytes. Its labels are written to `output`."""
    logits, function = np.load(source), FUNCTIONS[side]
    small = np.ascontiguousarray(logits[:, :, :6, :6, :6])
    noise = np.random.default_rng(0).standard_normal(small.shape, dtype=np.float32)
    layers = np.full_like(small, -1)
    layers[:, 0, :3], layers[:, -1, 3:] = 1, 1
    for warm in (small, noise, layers):
        function(warm, (15, 15, 15))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = peak_bytes("VmRSS"), time.perf_counter()
    labels = function(logits, size)
    seconds, added = [time.perf_counter() - start], peak_bytes("VmHWM") - before
    for _ in range(calls - 1):
        start = time.perf_counter()
        function(logits, size)
        seconds.append(time.perf_counter() - start)
    np.save(output, labels.astype(np.uint16))
    return {"seconds": seconds, "added_mb": added / 1e6}


def measure_apart(side: str, source: Path, output: Path, target: Sequence[int], calls: int) -> Row:
    arguments = [side, str(source), str(output), list(target), calls]
    code = (
        "import json, sys; from scripts.benchmarks.render import measure_here;"
        "print(json.dumps(measure_here(*json.loads(sys.argv[1]))))"
    )
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | one,
    )
    if done.returncode:
        raise RuntimeError(f"{side} failed on {source}: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def mixed_share(logits: NDArray[np.float32]) -> float:
    """The share of cells between source voxels whose corners disagree on the best class."""
    winner = logits[0].argmax(0)
    low, high = winner, winner
    for axis in range(3):
        first, last = (tuple(slice(*end) if a == axis else slice(None) for a in range(3)) for end in ((-1,), (1, None)))
        low, high = np.minimum(low[first], low[last]), np.maximum(high[first], high[last])
    return float((low != high).mean())


def measure(name: str, logits: NDArray[np.float32], target: tuple[int, ...], sides: Sequence[str], calls: int) -> Row:
    """One row: seconds and added megabytes of each side, and the voxels that differ from the first side.

    Args:
        logits: (1, K, *source).
        calls: of each side in each of three turns.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    added: dict[str, float] = {}
    differing, reference = 0, None
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "logits.npy"), Path(folder, "labels.npy")
        np.save(source, logits)
        for side in tuple(sides) * TURNS:
            result = measure_apart(side, source, output, target, calls)
            seconds[side] += result["seconds"]
            added.setdefault(side, result["added_mb"])
            labels = np.load(output)
            reference = labels if reference is None else reference
            differing = max(differing, int((labels != reference).sum()))
    middle = {side: statistics.median(values) for side, values in seconds.items()}
    row: Row = {"case": name, "classes": logits.shape[1], "source": _by(logits.shape[2:]), "target": _by(target)}
    row |= {"calls": TURNS * calls, "mixed_share": round(mixed_share(logits), 4)}
    row |= {f"{side}_s": round(value, 4) for side, value in middle.items()}
    row |= {f"{side}_mb": round(value, 1) for side, value in added.items()}
    row["labels_mb"] = round(math.prod(target) * (2 if logits.shape[1] > 256 else 1) / 1e6, 1)
    own = middle["render"]
    row |= {f"faster_than_{side}": round(value / own, 2) for side, value in middle.items() if "render" not in side}
    if "torch" in middle:
        row["stream_faster_than_torch"] = round(middle["torch"] / middle["stream"], 2)
    row["two_threads_faster"] = round(own / middle["render_2_threads"], 2)
    return row | {"most_differing_voxels": differing}


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def coarse_logits(run: Path) -> NDArray[np.float32]:
    """(1, K, d, h, w) logits of the run's network on the first case of its validation fold.

    Raises:
        InputError: not a run.
    """
    from vnet.data.prepared import prepare_data
    from vnet.data.volumes import read_image
    from vnet.inference.predictor import Predictor

    predictor = Predictor(run)
    prepared = prepare_data(predictor.config)
    case = prepared.cases(prepared.fold.val[:1])[0]
    return predictor.predict(read_image(case.images)).coarse[None].numpy()


def run(quick: bool = False, cases: Sequence[str] = (), trained: Path | None = None) -> list[Row]:
    """Rows of the table, one thread a side except where its name says two.

    Args:
        quick: three small cases.
        cases: only these rows; none is all of them.
        trained: a run whose logits are rendered too, 4 and 8 times finer than its network's grid.

    Raises:
        InputError: no such case, or not a run.
    """
    if quick:
        small = replace(CASES["14 classes"], source=(48, 48, 48), target=(128, 128, 128))
        made = {"3 classes": CASES["3 classes"], "14 classes": small}
        made |= {"14 classes, pure noise": replace(small, noise=math.inf)}
    else:
        made = CASES | GROWTH
    study = "" if trained is None else f"{trained.parent.parent.name} {trained.parent.name}"
    real = [f"{study}, {factor} times finer" for factor in TRAINED_FACTORS] if study else []
    rows = []
    for name in chosen_names((*made, *real), cases):
        if name in made:
            case = made[name]
            sides = QUICK_SIDES if quick else SIDES if name in CASES else OWN_SIDES
            rows.append(
                measure(
                    name, synthetic_logits(case), case.target, sides, calls=1 if case.classes >= SLOW_CLASSES else 5
                )
            )
        else:
            assert trained is not None
            logits, factor = coarse_logits(trained), TRAINED_FACTORS[real.index(name)]
            target = tuple(n * factor for n in logits.shape[2:])
            rows.append(measure(name, logits, target, QUICK_SIDES, calls=5))
    return rows
