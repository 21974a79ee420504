"""Connected components of labels: what is left of a structure when its stray pieces are dropped."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

NEIGHBOURS = np.ones((3, 3, 3), bool)  # by face, edge or corner: a thin oblique structure is one piece


def clean_components(labels: np.ndarray, voxel_mm3: float, *, largest: bool = False, min_mm3: float = 0.0) -> None:
    """Make components of each structure background, in place.

    Args:
        labels: (D, H, W) uint8 or uint16, 0 is background.
        voxel_mm3: volume of a voxel, by the determinant of the affine.
        largest: keep of each structure the component with most voxels; of equal ones the first in array order.
        min_mm3: drop components smaller than this.
    """
    if not (largest or min_mm3):
        return
    fewest = min_mm3 / voxel_mm3 * (1 - 1e-9)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        part = labels[box]
        pieces, count = ndimage.label(part == value, structure=NEIGHBOURS)
        voxels = np.bincount(pieces.ravel(), minlength=count + 1)
        voxels[0] = 0
        dropped = voxels < fewest
        if largest:
            dropped |= np.arange(count + 1) != voxels.argmax()
        dropped[0] = False  # what is not of this structure
        part[dropped[pieces]] = 0
