"""Lower bounds of the margin (best minus second-best logit) inside the cells of a coarse grid.

First half of the search for uncertain voxels. A *cell* is the box between 8 neighbouring coarse voxels, its
*corners*. Volumes are float32, spatial axes (D, H, W) flattened to V; 2D is 3D of depth 1.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def rank_classes(logits: NDArray, start: int, stop: int, ranked: NDArray, classes: NDArray) -> None:
    """Write the three highest logits of voxels [start, stop) and the classes of the first two; ties to the lower class.

    Args:
        logits: (K, V).
        ranked: (3, V) float32, written.
        classes: (2, V) uint16, written.
    """
    for v in range(start, stop):
        ranked[0, v] = logits[0, v]
        ranked[1, v] = -np.inf
        ranked[2, v] = -np.inf
        classes[0, v] = 0
    for k in range(1, logits.shape[0]):
        for v in range(start, stop):
            value = logits[k, v]
            if value > ranked[2, v]:
                if value > ranked[0, v]:
                    ranked[2, v], ranked[1, v], ranked[0, v] = ranked[1, v], ranked[0, v], value
                    classes[1, v], classes[0, v] = classes[0, v], k
                elif value > ranked[1, v]:
                    ranked[2, v], ranked[1, v] = ranked[1, v], value
                    classes[1, v] = k
                else:
                    ranked[2, v] = value


@numba.njit(cache=True, nogil=True)
def bound_cells(
    ranked: NDArray,
    classes: NDArray,
    starts: NDArray,
    depth: int,
    height: int,
    width: int,
    slack: float,
    first: int,
    last: int,
    bounds: NDArray,
) -> None:
    """Write lower bounds of the margins inside the cells of planes [first, last).

    Where the corners agree on the best class, the interpolated margin is at least the smallest of the corners;
    elsewhere the bound is 0. A cell that holds no target voxel has an infinite bound.

    Args:
        ranked, classes: from `rank_classes`.
        starts: (3, longest axis + 1), the first target voxel of each cell, per axis.
        slack: taken off the bounds: what float32 interpolation may err.
        bounds: (V,) float32, written; a cell has the index of its lowest corner.
    """
    for z in range(first, last):
        below = width * height if z + 1 < depth else 0
        for y in range(height):
            down = width if y + 1 < height else 0
            empty_row = starts[0, z] == starts[0, z + 1] or starts[1, y] == starts[1, y + 1]
            for x in range(width):
                cell = (z * height + y) * width + x
                right = 1 if x + 1 < width else 0
                if empty_row or starts[2, x] == starts[2, x + 1]:
                    bounds[cell] = np.inf
                    continue
                lowest = np.float32(np.inf)
                for corner in range(8):
                    at = cell + (corner >> 2) * below + ((corner >> 1) & 1) * down + (corner & 1) * right
                    if classes[0, at] != classes[0, cell]:
                        lowest = np.float32(0)
                        break
                    lowest = min(lowest, ranked[0, at] - ranked[1, at])
                bounds[cell] = max(lowest - np.float32(slack), np.float32(0))
