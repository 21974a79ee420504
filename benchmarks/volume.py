"""Prediction of one large volume, 3 classes, by the network of configs/hippocampus.yaml: seconds and peak memory.

The network is first trained for a few steps on phantoms, so that its labels have surfaces as real ones do. Each
prediction is a process of its own: reading, tiles, rendering, refinement and writing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vnet.data.phantoms import PhantomKind, write_phantoms

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]

PREDICT = """
import json, resource, sys, time
from vnet.prediction import predict_files
run, source, output, *overrides = sys.argv[1:]
start = time.perf_counter()
predict_files(run, source, output, overrides=overrides)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_memory_mib": round(peak)}))
"""


def train(folder: Path, arm: str, steps: int) -> Path:
    """A run of `arm` on phantoms of 1 mm with two organs, below `folder`."""
    data = folder / "phantoms"
    if not data.exists():
        kind = PhantomKind(size=(44, 56, 44), spacing_mm=(1.0, 1.0, 1.0), vessels=False)
        write_phantoms(data, 10, seed=0, kind=kind)
    words = f"--arm {arm} --training.steps {steps} --training.validate_every 0 --study.keep false --name volume".split()
    where = ["--data.root", str(data), "--run_root", str(folder / "runs"), "--data.spacing_mm", "[1,1,1]"]
    train_script, config = str(ROOT / "scripts/train.py"), str(ROOT / "configs/hippocampus.yaml")
    done = subprocess.run(
        [sys.executable, train_script, "--config", config, *words, *where], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return folder / "runs/volume" / arm / "fold0_seed0"


def predict(run: Path, source: Path, output: Path) -> dict[str, float]:
    words = [sys.executable, "-c", PREDICT, str(run), str(source), str(output)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run(quick: bool = False) -> list[Row]:
    """One row an arm; `quick` takes a small volume and few steps."""
    size, spacing_mm = ((60, 96, 96), (1.0, 0.8, 0.8)) if quick else ((300, 512, 512), (1.0, 0.8, 0.8))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind = PhantomKind(
            size=size, spacing_mm=spacing_mm, orientations=("RAS",), fineness=1, vary=False, vessels=False
        )
        write_phantoms(folder / "large", 1, seed=1, kind=kind)
        for arm in ("pointrend_s2",) if quick else ("pointrend_s2", "dense"):
            trained = train(folder, arm, steps=10 if quick else 100)
            figures = predict(trained, folder / "large/imagesTr", folder / "labels")
            shape = {"size": "x".join(map(str, size)), "spacing_mm": "x".join(map(str, spacing_mm))}
            rows.append({"arm": arm, **shape, "classes": 3, **figures})
    return rows
