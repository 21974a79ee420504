"""Prediction of one large volume by a trained run: seconds and peak resident memory, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vnet.data.phantoms import PhantomKind, write_phantoms

PREDICT = """
import json, resource, sys, time
from vnet.prediction import predict_files
run, source, output, *overrides = sys.argv[1:]
start = time.perf_counter()
predict_files(run, source, output, overrides=overrides)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"seconds": round(time.perf_counter() - start, 1), "peak_memory_mib": round(peak)}))
"""


def measure(
    run: Path,
    size: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Seconds (reading and writing included) and peak memory of predicting one phantom.

    Args:
        run: a trained run of one input channel.
        size: voxels (z, y, x).
        spacing_mm: (z, y, x); the working grid follows from the run's own.
        overrides: config keys as on the command line.
    """
    kind = PhantomKind(size=size, spacing_mm=spacing_mm, orientations=("RAS",), fineness=1, vary=False)
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder, "data"), 1, seed=0, kind=kind)
        words = [str(run), str(Path(folder, "data/imagesTr")), str(Path(folder, "out")), *overrides]
        done = subprocess.run([sys.executable, "-c", PREDICT, *words], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    return {"size": "x".join(map(str, size)), "spacing_mm": "x".join(map(str, spacing_mm)), **figures}
