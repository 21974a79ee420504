"""Prediction in parts: see each one's module."""

from __future__ import annotations

from benchmarks import extras, sliding

PARTS = {
    "monai": sliding.run,
    "extras": extras.run,
}
