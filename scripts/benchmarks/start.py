"""Seconds of importing the library and of the first call of each compiled function.

Every measurement is a fresh process with one thread. Imports are the fastest of several; `beyond torch` is the time of
the import after torch is there. First calls are made twice: with an empty cache of compiled code, and again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.benchmarks.rows import Row

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
