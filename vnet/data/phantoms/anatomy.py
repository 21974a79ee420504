"""Synthetic anatomy: organs that touch along a folded face, with vessels that branch into them.

Shapes are functions of position in mm, so that they can be rendered on any grid and at any fineness.
"""

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


AIR, TISSUE, FIRST_ORGAN = 0, 1, 2  # materials; organs follow, the vessel is last
GOLDEN = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True)
class Anatomy:
    """One subject.

    Attributes:
        radii_mm: half axes (z, y, x) of the body of organs, before it is bent.
        seeds: (organs, 3) centres of the organs in mm; a point belongs to the organ whose centre is nearest, after
            `reach` is subtracted from the distance.
        reach: (organs,) in mm.
        bend, folds: displacements in mm, of long and of short wavelength.
        cleft: where this field is positive, a thin gap of tissue separates the organs.
        cleft_mm: half width of the gap.
        vessels: segments of the tree.
    """

    radii_mm: np.ndarray
    seeds: np.ndarray
    reach: np.ndarray
    bend: Waves
    folds: Waves
    cleft: Waves
    cleft_mm: float
    vessels: tuple[Tube, ...]

    def materials(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 materials on the open grid `axes` of z, y, x in mm about the middle: air, tissue, organs, vessel."""
        moved = self.bend(axes) + self.folds(axes)
        moved += np.stack(np.broadcast_arrays(*axes))
        depth = np.sqrt(sum((one / np.float32(r)) ** 2 for one, r in zip(moved, self.radii_mm, strict=True)))
        material = np.where(depth < 1.6, np.uint8(TISSUE), np.uint8(AIR))
        organ, gap = nearest_two(moved, self.seeds, self.reach)
        inside = depth < 1
        if len(self.seeds) > 1:
            inside &= (gap > self.cleft_mm) | (self.cleft(axes)[0] < 0)
        material[inside] = (organ + np.uint8(FIRST_ORGAN))[inside]
        for tube in self.vessels:
            fill_tube(material, axes, tube, FIRST_ORGAN + len(self.seeds))
        return material


def nearest_two(moved: np.ndarray, seeds: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nearest seed, distance in mm from the face to the second nearest) of points (3, *grid)."""
    best = np.full(moved.shape[1:], np.inf, np.float32)
    second, organ = best.copy(), np.zeros(moved.shape[1:], np.uint8)
    for number, (seed, less) in enumerate(zip(seeds.astype(np.float32), reach, strict=True)):
        away = np.sqrt(sum((one - s) ** 2 for one, s in zip(moved, seed, strict=True))) - np.float32(less)
        closer = away < best
        second = np.where(closer, best, np.minimum(second, away))
        best = np.where(closer, away, best)
        organ[closer] = number
    return organ, (second - best) / 2


def draw_anatomy(
    rng: np.random.Generator, box_mm: Sequence[float], finest_mm: float, organs: int, vessels: bool
) -> Anatomy:
    """A random subject that fits a box.

    Args:
        box_mm: field of view (z, y, x).
        finest_mm: coarsest spacing; folds and vessels are a few of these wide.
        organs: 1 or more; organ i lies at about the same place in every subject, so that a network can tell them apart.
        vessels: whether a tree of vessels enters.
    """
    box = np.asarray(box_mm, float)
    length = float(box.min())
    radii = box * rng.uniform(0.30, 0.36, 3)
    crowd = 2 / max(organs, 2)  # many organs are small, so their centres vary less
    seeds = organ_centres(organs) * radii + rng.normal(0, 0.03 * length * crowd, (organs, 3))
    return Anatomy(
        radii_mm=radii,
        seeds=seeds,
        reach=rng.normal(0.04, 0.01, organs) * length * crowd * (-1.0) ** np.arange(organs),
        bend=Waves.draw(rng, length * 0.8, length * 0.04, outputs=3),
        folds=Waves.draw(rng, max(length / 5, 6 * finest_mm), max(length / 45, 0.8 * finest_mm), outputs=3),
        cleft=Waves.draw(rng, length * 0.5, 1.0),
        cleft_mm=0.75 * finest_mm * crowd**0.5,
        vessels=tuple(draw_tree(rng, radii, max(0.95 * finest_mm, length / 40))) if vessels else (),
    )


def organ_centres(organs: int) -> np.ndarray:
    """(organs, 3) places in the unit ball, the same for every subject: on a spiral from foot to head."""
    if organs == 1:
        return np.zeros((1, 3))
    height = 1 - 2 * (np.arange(organs) + 0.5) / organs
    # two organs lie side by side, a little above one another, as liver and kidney do
    turn = GOLDEN * np.arange(organs) if organs > 2 else np.array([0.0, np.pi])
    ring = np.sqrt(1 - height**2)
    return 0.6 * np.stack([height * 0.6, ring * np.sin(turn + 0.5), ring * np.cos(turn + 0.5)], 1)
