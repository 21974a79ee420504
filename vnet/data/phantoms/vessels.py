"""Trees of vessels: a trunk that enters an organ's body and branches into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tube:
    """A segment of a vessel: balls along a smooth path.

    Attributes:
        points: (n, 3) centres in mm.
        radii: (n,) in mm.
    """

    points: np.ndarray
    radii: np.ndarray


def fill_tube(material: np.ndarray, axes: Sequence[np.ndarray], tube: Tube, value: int) -> None:
    """Set the voxels whose centres lie in the tube to `value`.

    Args:
        material: (D, H, W), written to.
        axes: open grid of z, y, x in mm.
    """
    lines = [axis.reshape(-1) for axis in axes]
    for point, radius in zip(tube.points, tube.radii, strict=True):
        ends = [np.searchsorted(line, [p - radius, p + radius]) for line, p in zip(lines, point, strict=True)]
        if any(low >= high for low, high in ends):
            continue
        near = [(line[low:high] - p) ** 2 for line, (low, high), p in zip(lines, ends, point, strict=True)]
        ball = near[0][:, None, None] + near[1][:, None] + near[2] <= radius**2
        material[tuple(slice(low, high) for low, high in ends)][ball] = value


def draw_tree(rng: np.random.Generator, radii_mm: np.ndarray, radius_mm: float) -> list[Tube]:
    """A trunk that enters from the back and below and ends in the organs, and branches that run into them."""
    start = radii_mm * (np.array([-0.7, -1.3, 0.2]) + rng.normal(0, 0.08, 3))
    trunk = draw_tube(rng, start, radii_mm * rng.normal(0.1, 0.1, 3), 1.2 * radius_mm)
    tubes = [trunk]
    for share in (0.3, 0.5, 0.65, 0.8, 0.95):
        at = trunk.points[int(share * (len(trunk.points) - 1))]
        branch = draw_tube(rng, at, radii_mm * inner_place(rng), radius_mm)
        fork = draw_tube(rng, branch.points[len(branch.points) // 2], radii_mm * inner_place(rng), 0.85 * radius_mm)
        tubes += [branch, fork]
    return tubes


def inner_place(rng: np.random.Generator) -> np.ndarray:
    """A point of the unit ball, away from its middle."""
    direction = rng.normal(size=3)
    return direction / np.linalg.norm(direction) * rng.uniform(0.55, 0.9)


def draw_tube(rng: np.random.Generator, start: np.ndarray, end: np.ndarray, radius_mm: float) -> Tube:
    """A curved path between two points, tapering to 80 %."""
    span = np.asarray(end) - start
    length = float(np.linalg.norm(span))
    count = max(int(3 * length / radius_mm), 2)
    along = np.linspace(0, 1, count)[:, None]
    sway = rng.normal(0, 0.12 * length, (2, 3))  # half a wave and a whole one, both 0 at the ends
    points = start + along * span + np.sin(np.pi * along) * sway[0] + np.sin(2 * np.pi * along) * sway[1] / 2
    return Tube(points, radius_mm * np.linspace(1, 0.8, count))
