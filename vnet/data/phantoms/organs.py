"""Phantoms of organs: rendered from a drawn anatomy, with partial volumes, intensities and noise.

Organs touch along a folded face with a thin cleft, vessels about two voxels wide branch into them. Volumes differ in
size, spacing, orientation, gain and bias field. A coarse grid loses folds, cleft and vessels.
"""

from __future__ import annotations

import numpy as np

from vnet.data.phantoms.anatomy import FIRST_ORGAN, TISSUE, draw_anatomy
from vnet.data.phantoms.intensities import IntensityModel
from vnet.data.phantoms.kinds import PhantomKind

FINE_VOXELS = 2**22  # rendered at once


def make_phantom(number: int, seed: int, kind: PhantomKind) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One phantom in canonical order.

    Returns:
        image (C, D, H, W) int16, label (D, H, W) uint8, spacing (z, y, x) in mm.
    """
    rng = np.random.default_rng([seed, number])
    size, spacing = kind.size, np.array(kind.spacing_mm)
    if kind.vary:
        thicker = rng.choice([1.0, 1.0, 1.2])
        spacing[0] *= thicker
        shares = rng.uniform(0.88, 1.12, 3) / (thicker, 1, 1)
        d, h, w = (max(8, round(n * share)) for n, share in zip(size, shares, strict=True))
        size = (d, h, w)
    box = np.array(size) * spacing
    anatomy = draw_anatomy(rng, box, float(spacing.max()), kind.organs, kind.vessels)
    model = IntensityModel.draw(rng, kind, box)
    image, label = np.empty((kind.channels, *size), np.int16), np.empty(size, np.uint8)
    fine = spacing / kind.fineness
    lines = [(np.arange(n * kind.fineness) + 0.5) * f - b / 2 for n, f, b in zip(size, fine, box, strict=True)]
    slab = max(1, FINE_VOXELS // (kind.fineness**3 * size[1] * size[2]))
    for first in range(0, size[0], slab):
        here = slice(first, min(first + slab, size[0]))
        part = lines[0][here.start * kind.fineness : here.stop * kind.fineness]
        axes = np.ix_(*(line.astype(np.float32) for line in (part, *lines[1:])))
        shares = partial_volumes(anatomy.materials(axes), kind.fineness, FIRST_ORGAN + kind.organs + kind.vessels)
        coarse = [axis.reshape(-1, kind.fineness).mean(1, dtype=np.float64) for axis in (part, *lines[1:])]
        grid = np.ix_(*(line.astype(np.float32) for line in coarse))
        image[:, here] = model(rng, shares, grid)
        label[here] = np.maximum(shares[TISSUE:].argmax(0).astype(np.uint8), 0)
        if kind.ignore:
            doubt = (shares.max(0) < 0.75) & (label[here] > 0) & (rng.random(label[here].shape) < kind.ignore)
            label[here][doubt] = len(kind.structures)
    return image, label, tuple(float(s) for s in spacing)


def partial_volumes(material: np.ndarray, fineness: int, count: int) -> np.ndarray:
    """(materials, d, h, w) float32: how much of each voxel is of which material."""
    d, h, w = (n // fineness for n in material.shape)
    blocks = material.reshape(d, fineness, h, fineness, w, fineness)
    return np.stack([(blocks == value).mean((1, 3, 5), dtype=np.float32) for value in range(count)])
