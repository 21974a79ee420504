"""Phantoms rendered: organs from a drawn anatomy, or one curved sheet of known thickness, with exact labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vnet.data.phantoms.anatomy import AIR, FIRST_ORGAN, TISSUE, Waves, draw_anatomy
from vnet.data.phantoms.kinds import PhantomKind, SheetKind

# Air, tissue, first organ, vessel; MR in units of the gain, CT in Hounsfield units.
MR = ((0.04, 0.36, 0.62, 1.1), (0.04, 0.7, 0.45, 0.2))
CT = ((-1000.0, -80.0, 70.0, 210.0),)


@dataclass(frozen=True)
class IntensityModel:
    """How the materials of one subject look.

    Attributes:
        values: (channels, materials) mean intensities.
        texture: fine variation of everything but air, in units of the values.
        bias: logarithm of the bias field (the coil's sensitivity); None for CT.
        gain: the stored value of intensity 1.
        noise: standard deviation, in units of the values.
    """

    values: np.ndarray
    texture: Waves
    bias: Waves | None
    gain: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: PhantomKind, box_mm: np.ndarray) -> IntensityModel:
        """A random subject's contrasts, texture, bias field and gain, for a field of view of `box_mm` (z, y, x)."""
        tables = CT if kind.modality == "CT" else MR
        values = np.array([material_values(tables[c % len(tables)], kind) for c in range(kind.channels)])
        contrast = float(np.abs(values[0, FIRST_ORGAN] - values[0, TISSUE]))
        values += rng.normal(0, 0.05 * contrast, values.shape)
        length = float(box_mm.min())
        return cls(
            values=values,
            texture=Waves.draw(rng, length / 4, 0.12 * contrast),
            bias=None if kind.modality == "CT" else Waves.draw(rng, 2 * length, 0.2),
            gain=1.0 if kind.modality == "CT" else float(np.exp(rng.uniform(np.log(150), np.log(6000)))),
            noise=kind.noise * contrast,
        )

    def __call__(self, rng: np.random.Generator, shares: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
        """(C, d, h, w) int16 from partial volumes (materials, d, h, w) on the open grid `axes` of z, y, x in mm."""
        texture = self.texture(axes)[0] * (1 - shares[AIR])
        bias = 1.0 if self.bias is None else np.exp(self.bias(axes)[0])
        images = []
        for values in self.values.astype(np.float32):
            signal = (np.tensordot(values, shares, 1) + texture) * bias
            noisy = signal + self.noise * rng.standard_normal(signal.shape, np.float32)
            if self.bias is not None:  # the modulus of a complex signal with Gaussian noise is Rician
                noisy = np.hypot(noisy, self.noise * rng.standard_normal(signal.shape, np.float32))
            images.append(np.clip(np.rint(noisy * self.gain), -32768, 32767).astype(np.int16))
        return np.stack(images)


def material_values(table: Sequence[float], kind: PhantomKind) -> list[float]:
    """Intensities of air, tissue, organs and vessel; neighbouring organs differ by about half the contrast."""
    air, tissue, organ, vessel = table
    step = (organ - tissue) * 0.55
    organs = [organ + step * (i % 2) - 0.2 * step * (i % 3) * (kind.organs > 2) for i in range(kind.organs)]
    return [air, tissue, *organs, *([vessel] if kind.vessels else [])]


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
