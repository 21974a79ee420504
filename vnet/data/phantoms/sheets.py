"""Phantoms of sheets: one curved sheet of known thickness under known noise, with exact labels.

In organs thickness, contrast and noise vary together; here thickness and noise are set, a pair a volume. The numbers of
each volume are written as properties.csv beside the data set.
"""

from __future__ import annotations

import numpy as np

from vnet.data.phantoms.anatomy import Waves
from vnet.data.phantoms.kinds import SheetKind

FINENESS = 3  # finer voxels per voxel and axis in rendering


def make_sheet(number: int, seed: int, kind: SheetKind) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One sheet: a plane through the middle, turned and bent at random, cut to a disc.

    A voxel belongs to the sheet when more than half of it does; the image is the sheet's share of each voxel, plus a
    slow change of the surroundings and Gaussian noise.

    Returns:
        image (1, D, H, W) int16, label (D, H, W) uint8, spacing (z, y, x) in mm.
    """
    rng = np.random.default_rng([seed, number, 1])
    own = kind.properties(number)
    length = float(min(kind.size))
    lines = [((np.arange(n * FINENESS) + 0.5) / FINENESS - n / 2).astype(np.float32) for n in kind.size]
    axes = np.ix_(*lines)
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    middle = rng.uniform(-0.06, 0.06, 3) * length
    bent = Waves.draw(rng, length / 2, length / 20)(axes)[0]
    height = sum(np.float32(n) * (axis - np.float32(m)) for n, axis, m in zip(normal, axes, middle, strict=True)) + bent
    slope = np.sqrt(sum(np.square(part) for part in np.gradient(height, 1 / FINENESS)))
    within = sum(np.square(axis - np.float32(m)) for axis, m in zip(axes, middle, strict=True)) < (0.4 * length) ** 2
    sheet = (np.abs(height) <= own["thickness_vox"] / 2 * slope) & within
    d, h, w = kind.size
    share = sheet.reshape(d, FINENESS, h, FINENESS, w, FINENESS).mean((1, 3, 5), dtype=np.float32)
    coarse = np.ix_(*(line.reshape(-1, FINENESS).mean(1) for line in lines))
    signal = share + Waves.draw(rng, length, 0.25)(coarse)[0]
    noisy = signal + own["noise"] * rng.standard_normal(signal.shape, np.float32)
    return np.rint(noisy * 1000).astype(np.int16)[None], (share > 0.5).astype(np.uint8), (1.0, 1.0, 1.0)
