"""Smooth random fields, as functions of position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of sines of position.

    Attributes:
        vectors: (n, 3) in radians per mm.
        phases: (n,).
        weights: (n, outputs).
    """

    vectors: np.ndarray
    phases: np.ndarray
    weights: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, wavelength_mm: float, amplitude: float, *, outputs: int = 1) -> Waves:
        """A field of eight waves of about the given length; its standard deviation is `amplitude` per output."""
        directions = rng.normal(size=(8, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength_mm * rng.uniform(0.8, 1.4, (8, 1))
        weights = rng.normal(size=(8, outputs))
        weights *= amplitude * np.sqrt(2) / np.linalg.norm(weights, axis=0)
        return cls(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, 8), weights)

    def __call__(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """(outputs, *grid) float32 at the open grid `axes` of z, y, x in mm."""
        out = np.zeros((self.weights.shape[1], *np.broadcast_shapes(*(axis.shape for axis in axes))), np.float32)
        for vector, phase, weight in zip(self.vectors, self.phases, self.weights, strict=True):
            angle = sum(np.float32(k) * axis for k, axis in zip(vector, axes, strict=True)) + np.float32(phase)
            wave = np.sin(angle, dtype=np.float32)
            for one, share in zip(out, weight, strict=True):
                one += np.float32(share) * wave
        return out
