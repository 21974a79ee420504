"""A whole training: seconds to the first step and share of waiting for data, with an empty cache and a full one.

It runs on the hippocampus data below DECATHLON_ROOT if that is set, else on phantoms of about their size.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmarks.fresh import call
from scripts.benchmarks.rows import Row
from vnet.data.phantoms import PhantomKind, write_phantoms


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


def run(quick: bool = False) -> list[Row]:
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
                "job", "job", root=str(root), folder=f"{name}/runs", name=f"job_{cache}", steps=30 if quick else 160
            )
            rows.append({"cache": cache, "data": data, "steps": 30 if quick else 160, **figures})
        return rows
