"""Sheets: made volumes that hold one curved sheet of known thickness under known noise, with exact labels.

Organs vary in everything at once; here thickness and noise are set, a pair a volume, so that what refinement brings can
be read against each. The numbers of each volume are written as properties.csv beside the data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vnet.core.errors import InputError
from vnet.data.phantoms.anatomy import Waves

FINENESS = 3  # finer voxels per voxel and axis in rendering


@dataclass(frozen=True, kw_only=True)
class SheetKind:
    """What sheets are made; every pair of a thickness and a noise comes in turn.

    Attributes:
        size: voxels (z, y, x), of 1 mm.
        thickness_vox: of the sheets, in voxels.
        noise: standard deviations in units of the contrast between sheet and surroundings.
    """

    size: tuple[int, int, int] = (32, 32, 32)
    thickness_vox: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    noise: tuple[float, ...] = (0.1, 0.3, 0.6)
    # what every data set of phantoms has
    orientations: tuple[str, ...] = ("RAS",)
    structures: tuple[str, ...] = ("background", "sheet")
    modality: str = "CT"  # no bias field
    channels: int = 1
    ignore: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            *([] if min(self.size) >= 16 else [f"size must be 16 voxels or more an axis, got {self.size}"]),
            *(f"thickness_vox must be positive, got {t}" for t in self.thickness_vox if not t > 0),
            *(f"noise must be 0 or more, got {s}" for s in self.noise if not s >= 0),
            *([] if self.thickness_vox and self.noise else ["thickness_vox and noise must hold a number each"]),
        ]
        if faults:
            raise InputError(faults)

    def properties(self, number: int) -> dict[str, float]:
        """Thickness and noise of volume `number`."""
        thickness = self.thickness_vox[number % len(self.thickness_vox)]
        return {"thickness_vox": thickness, "noise": self.noise[number // len(self.thickness_vox) % len(self.noise)]}


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
