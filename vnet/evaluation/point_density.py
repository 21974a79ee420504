"""Where training points fall: their share by distance to the true surface, against that of all voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet.evaluation.metrics import Labels
from vnet.evaluation.refinement import DISTANCE_EDGES_MM, distance_across_mm

SAMPLED_VOX = 8192  # of a volume's voxels, to know how far from a surface they lie


@dataclass(frozen=True)
class Density:
    """Shares within each of `DISTANCE_EDGES_MM` of the nearest true surface, so the last is 1.

    Attributes:
        points: of the training points, (edges,).
        voxels: of the volume's voxels, (edges,), as if points were drawn uniformly.
    """

    points: NDArray[np.float64]
    voxels: NDArray[np.float64]

    def ratio(self, edge: int) -> float | None:
        """How much denser the points are within an edge than uniform ones; None where no voxel lies there."""
        return float(self.points[edge] / self.voxels[edge]) if self.voxels[edge] else None


def point_density(
    labels: Labels, index: NDArray[np.integer[Any]], spacing_mm: Sequence[float], classes: int
) -> Density:
    """Density of points in one labelled volume.

    Args:
        labels: (D, H, W), whole numbers.
        index: (N,), flat indices, at least one.
        spacing_mm: (z, y, x).
        classes: K; every structure from 1 to K - 1 has a surface.
    """
    # a generator of its own: what is logged takes no random number from what is trained
    everywhere = np.random.default_rng(0).integers(labels.size, size=SAMPLED_VOX)
    return Density(*(shares_within(labels, flat, spacing_mm, classes) for flat in (index, everywhere)))


def shares_within(
    labels: Labels, index: NDArray[np.integer[Any]], spacing_mm: Sequence[float], classes: int
) -> NDArray[np.float64]:
    """Share of the voxels `index` within each of `DISTANCE_EDGES_MM` of the nearest surface of any structure."""
    places = np.stack(np.unravel_index(index, labels.shape), axis=1)
    nearest_mm = np.full(len(index), np.inf)
    for label in range(1, classes):
        nearest_mm = np.minimum(nearest_mm, distance_across_mm(labels == label, places, spacing_mm))
    # 0.7 * 10 is a little more than 7
    return np.array([np.mean(nearest_mm * (1 - 1e-9) <= edge) for edge in DISTANCE_EDGES_MM])
