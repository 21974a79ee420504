"""Prediction in parts: see each one's module."""

from __future__ import annotations

from scripts.benchmarks import extras, sliding

PARTS = {
    "monai": sliding.run,
    "extras": extras.run,
}
