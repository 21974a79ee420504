"""Training in parts: see each one's module; every arm's step is `benchmarks.step`."""

from __future__ import annotations

from scripts.benchmarks import growth, job, rivals, roofline

PARTS = {
    "monai": rivals.run,
    "job": job.run,
    "growth": growth.run,
    "roofline": roofline.run,
}
