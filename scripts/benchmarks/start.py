"""Seconds of a start: importing the library, first calls of compiled functions, the first step of a training.

`run`: every measurement is a fresh process with one thread. Imports are the fastest of several; `beyond torch` is the
time of the import after torch is there. First calls are made twice: with an empty cache of compiled code, and again.

`run_train_job`: a whole training with an empty cache and with a full one: seconds to the first step and share of
waiting for data. It runs on the hippocampus data below DECATHLON_ROOT if that is set, else on phantoms of about their
size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness import Row, call
from vnet.data.phantoms import PhantomKind, write_phantoms

REPOSITORY = Path(__file__).resolve().parents[2]
CLOCK = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
NAMES = "PointHead, PointRend, getpoint, render_labels, sample_at, taps"
IMPORTS = {
    "import torch": CLOCK.format("import torch"),
    "import pointrend": CLOCK.format("import pointrend"),
    "import pointrend, beyond torch": "import torch; " + CLOCK.format("import pointrend"),
    "every public name, beyond torch": "import torch; " + CLOCK.format(f"from pointrend import {NAMES}"),
}
CALLS = {
    "render_labels": "import torch; from pointrend import render_labels as call; logits = torch.randn(1, 3, 8, 8, 8); "
    + CLOCK.format("call(logits, (16, 16, 16))"),
    "render_labels, both loops": "import torch; from pointrend import render_labels as call; "
    "noise = torch.randn(1, 3, 8, 8, 8); layers = torch.zeros(1, 3, 8, 8, 8); layers[:, 1, 4:] = 1; "
    + CLOCK.format("call(noise, (16, 16, 16)); call(layers, (16, 16, 16))"),
    "PointRend.refine": "import torch; from pointrend import PointRend; "
    "model = PointRend(classes=3, features={'fine': 4}); "
    "coarse, fine = torch.randn(1, 3, 8, 8, 8), {'fine': torch.randn(1, 4, 8, 8, 8)}; "
    + CLOCK.format("model.refine(coarse, fine, None, (16, 16, 16), num_points=9)"),
    "getpoint": "import numpy; from pointrend import getpoint; mask = numpy.eye(443); "
    + CLOCK.format("getpoint(mask, 1, 0.95, rng=0)"),
}


def seconds(code: str, cache: str | None = None) -> float:
    """The seconds that a fresh process prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=True
    )
    return round(float(done.stdout), 4)


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` takes one turn and one compilation."""
    rows: list[Row] = [
        {"case": name, "seconds": min(seconds(code) for _ in range(1 if quick else 5))}
        for name, code in IMPORTS.items()
    ]
    for name, code in list(CALLS.items())[:1] if quick else CALLS.items():
        with tempfile.TemporaryDirectory() as cache:
            first = seconds(code, cache)
            rows.append(
                {"case": f"first call of {name}", "seconds": first, "in_later_processes_s": seconds(code, cache)}
            )
    return rows


def job(root: str, folder: str, name: str, steps: int) -> Row:
    """One training in this process; the clock starts before the imports of a user's command."""
    import time

    start = time.perf_counter()
    import numpy as np

    from vnet.core.config import load_config
    from vnet.training.run import train_run
    from vnet.training.trainer import Trainer

    words = f"--arm pointrend_s2 --name {name} --training.steps {steps} --training.validate_every 0".split()
    where = ["--data.root", root, "--run_root", folder, "--study.keep", "false"]
    config = load_config(["--config", "configs/hippocampus.yaml", *words, *where])
    first: list[float] = []
    trainers: list[Trainer] = []
    step = Trainer.step

    def noted(trainer: Trainer, *given: Any) -> Any:
        terms = step(trainer, *given)
        if not first:
            first.append(time.perf_counter() - start)
            trainers.append(trainer)
        return terms

    setattr(Trainer, "step", noted)  # noqa: B010  a function in place of a method
    train_run(config)
    progress = trainers[0].progress
    taken, waited = np.array(progress.step_seconds), np.array(progress.wait_seconds)
    return {
        "first_step_s": round(first[0], 1),
        "seconds": round(float(taken.sum()), 1),
        "step_median_s": round(float(np.median(taken)), 4),
        "waiting_share": round(float(waited.sum() / taken.sum()), 4),
        "waiting_share_after_10": round(float(waited[10:].sum() / taken[10:].sum()), 4),
        "whole_job_s": round(time.perf_counter() - start, 1),
    }


def run_train_job(quick: bool = False) -> list[Row]:
    """Two rows: the first run starts with an empty cache, the second with the cache of the first."""
    real = Path(os.environ.get("DECATHLON_ROOT", "")) / "Task04_Hippocampus"
    with tempfile.TemporaryDirectory() as name:
        if real.is_dir():
            root, data = real, "Hippocampus, 208 cases"
        else:
            root, data = Path(name) / "phantoms", "40 phantoms"
            write_phantoms(root, 40, kind=PhantomKind(size=(36, 50, 36), spacing_mm=(1.0, 1.0, 1.0), vessels=False))
        rows = []
        for cache in ("cold", "warm"):
            figures = call(
                "start", "job", root=str(root), folder=f"{name}/runs", name=f"job_{cache}", steps=30 if quick else 160
            )
            rows.append({"cache": cache, "data": data, "steps": 30 if quick else 160, **figures})
        return rows
