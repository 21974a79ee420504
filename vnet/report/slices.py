"""Three planes of a case, cut out of its volumes: all that a picture of it needs.

Volumes are (D, H, W) in the canonical orientation of `vnet.data`: z towards the head, y to the front, x to the right
of the patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet.evaluation.metrics import Labels
from vnet.evaluation.surfaces import Mask

Volume = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]

LABEL_NAMES = ("truth", "unrefined", "refined")
CROPPED_VOX = 128  # a longer axis is cut to the structures


@dataclass(frozen=True)
class Slices:
    """Three planes of a case: all that its picture needs, small whatever the size of the volume.

    Attributes:
        image: a (rows, columns) uint8 plane across z, y, x; rows go up.
        labels: name to three planes of label values.
        cuts: slice number of each plane.
        spacing_mm: (z, y, x).
    """

    image: tuple[Picture, ...]
    labels: Mapping[str, tuple[Labels, ...]]
    cuts: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def cut_slices(
    image: Volume, labels: Mapping[str, Labels], spacing_mm: Sequence[float], structure: int | None = None
) -> Slices:
    """The planes where the chosen structure of the first label volume is largest, or the middle where it is empty.

    Args:
        image: (D, H, W), shown from its 1st to its 99th percentile.
        labels: name ("truth", "unrefined", "refined") to (D, H, W) whole numbers.
        spacing_mm: (z, y, x).
        structure: label value to cut through; None takes all of the foreground.

    Raises:
        ValueError: no labels, an unknown name, or shapes that disagree.
    """
    if not labels or not set(labels) <= set(LABEL_NAMES):
        raise ValueError(f"labels must be named among {list(LABEL_NAMES)}, got {list(labels)}")
    for name, volume in labels.items():
        if volume.shape != image.shape:
            raise ValueError(f"{name} must have the shape of the image {image.shape}, got {volume.shape}")
    first = next(iter(labels.values()))
    cuts = largest_slices(first > 0 if structure is None else first == structure)
    sample = image[tuple(slice(None, None, max(n // 64, 1)) for n in image.shape)]
    low, high = np.percentile(sample, (1, 99))
    grey = [np.clip((plane - low) * (255 / max(high - low, 1e-6)), 0, 255) for plane in planes_of(image, cuts)]
    cut = {name: planes_of(volume, cuts) for name, volume in labels.items()}
    windows = [_window([planes[axis] for planes in cut.values()]) for axis in range(3)]
    return Slices(
        tuple(np.asarray(plane, np.uint8)[window] for plane, window in zip(grey, windows, strict=True)),
        {
            name: tuple(plane[window].copy() for plane, window in zip(planes, windows, strict=True))
            for name, planes in cut.items()
        },
        cuts,
        tuple(map(float, spacing_mm)),
    )


def largest_slices(mask: Mask) -> tuple[int, ...]:
    """Per axis, the first slice that holds most voxels of `mask`; the middle one where it is empty."""
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    others = [tuple(other for other in range(mask.ndim) if other != axis) for axis in range(mask.ndim)]
    return tuple(int(np.count_nonzero(mask, axis=rest).argmax()) for rest in others)


def planes_of(volume: NDArray[Any], cuts: Sequence[int]) -> tuple[NDArray[Any], ...]:
    return tuple(np.take(volume, cut, axis) for axis, cut in enumerate(cuts))


def _window(planes: Sequence[Labels]) -> tuple[slice, slice]:
    """Where the structures of a plane lie, with 16 voxels around, along its axes that are long."""
    found = np.logical_or.reduce([plane > 0 for plane in planes])
    spans = []
    for axis, n in enumerate(found.shape):
        filled = np.flatnonzero(found.any(1 - axis))
        whole = n <= CROPPED_VOX or not len(filled)
        spans.append(slice(0, n) if whole else slice(max(filled[0] - 16, 0), filled[-1] + 17))
    return spans[0], spans[1]
