"""Phantoms: labelled volumes worth training on, made from a seed and written as a Decathlon folder.

Organs touch along a folded face with a thin cleft, vessels about two voxels wide branch into them. Volumes differ in
size, spacing, orientation, gain and bias field; edges are partial volumes of finer voxels; noise is Rician (MR) or
Gaussian (CT). A coarse grid loses folds, cleft and vessels: that is where a point head has work to do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from vnet.core.errors import InputError
from vnet.data.phantoms.anatomy import AIR, FIRST_ORGAN, TISSUE, Waves, draw_anatomy
from vnet.data.phantoms.sheets import SheetKind, make_sheet
from vnet.data.writing import write_nifti

ORIENTATIONS = ("RAS", "LPS", "RAS", "SRA", "LAS", "PIR")
FINE_VOXELS = 2**22  # rendered at once
MODALITIES = ("MRI", "CT")
# Air, tissue, first organ, vessel; MR in units of the gain, CT in Hounsfield units.
MR = ((0.04, 0.36, 0.62, 1.1), (0.04, 0.7, 0.45, 0.2))
CT = ((-1000.0, -80.0, 70.0, 210.0),)


@dataclass(frozen=True, kw_only=True)
class PhantomKind:
    """What phantoms are made.

    Attributes:
        size: voxels (z, y, x), about; each volume differs by up to 12 %.
        spacing_mm: (z, y, x), about; a third of the volumes have slices a fifth thicker, and fewer.
        organs: 1 or more.
        vessels: whether vessels are drawn and labelled.
        modality: MRI or CT.
        channels: images per case.
        orientations: of the files' axes, taken in turn; every fourth file also lies oblique.
        noise: standard deviation in units of the contrast between tissue and organ.
        fineness: finer voxels per voxel and axis in rendering.
        vary: False makes every volume of exactly this size and spacing.
        ignore: share of the organ surfaces' voxels marked with an ignore label, 0 for none.
    """

    size: tuple[int, int, int] = (40, 42, 40)
    spacing_mm: tuple[float, float, float] = (1.25, 1.0, 1.0)
    organs: int = 2
    vessels: bool = True
    modality: str = "MRI"
    channels: int = 1
    orientations: tuple[str, ...] = ORIENTATIONS
    noise: float = 0.22
    fineness: int = 2
    vary: bool = True
    ignore: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            *([] if min(self.size) >= 8 else [f"size must be 8 voxels or more an axis, got {self.size}"]),
            *([] if min(self.spacing_mm) > 0 else [f"spacing_mm must be positive, got {self.spacing_mm}"]),
            *([] if 1 <= self.organs <= 200 else [f"organs must lie in 1 to 200, got {self.organs}"]),
            *([] if self.modality in MODALITIES else [f"modality must be one of {MODALITIES}, got {self.modality!r}"]),
            *([] if self.channels >= 1 else [f"channels must be 1 or more, got {self.channels}"]),
            *([] if 1 <= self.fineness <= 4 else [f"fineness must lie in 1 to 4, got {self.fineness}"]),
            *([] if self.noise >= 0 else [f"noise must be 0 or more, got {self.noise}"]),
            *([] if 0 <= self.ignore <= 1 else [f"ignore must lie in [0, 1], got {self.ignore}"]),
            *(
                f"orientations must name three axes as RAS, got {one!r}"
                for one in self.orientations
                if not is_axes(one)
            ),
            *([] if self.orientations else ["orientations must name at least one, got none"]),
        ]
        if faults:
            raise InputError(faults)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the label values."""
        known = ("liver", "kidney")
        names = known[: self.organs] if self.organs <= 2 else tuple(f"organ {i + 1:02d}" for i in range(self.organs))
        return ("background", *names, *(["vessel"] if self.vessels else []))


def is_axes(text: str) -> bool:
    return len(text) == 3 and sum(any(c in text for c in pair) for pair in ("LR", "AP", "SI")) == 3


def write_phantoms(
    root: Path | str, count: int = 24, seed: int = 0, *, kind: PhantomKind | SheetKind | None = None
) -> None:
    """Write `count` labelled phantoms as a Decathlon folder; a function of the arguments, bit for bit.

    The folder appears when it is complete.

    Args:
        root: must not exist, or be empty.
        count: cases.
        seed: of everything random.
        kind: what phantoms; None for the default.

    Raises:
        InputError: the folder exists and holds something, or `count` or `seed` is out of range.
    """
    root, kind = Path(root), kind or PhantomKind()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: is there already; name a new folder or remove it")
    if count < 1 or seed < 0:
        raise InputError(f"phantoms: count must be 1 or more and seed 0 or more, got {count} and {seed}")
    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            list(pool.map(lambda number: write_phantom(part, number, seed, kind), range(count)))
        if isinstance(kind, SheetKind):
            write_properties(part, {phantom_name(n): kind.properties(n) for n in range(count)})
        (part / "dataset.json").write_text(json.dumps(describe(count, kind), indent=1) + "\n")
        part.replace(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_properties(root: Path, of_cases: Mapping[str, Mapping[str, float]]) -> None:
    """properties.csv: numbers by case, by which reports group the cases."""
    names = list(next(iter(of_cases.values())))
    lines = [",".join(["case", *names])]
    lines += [",".join([case, *(f"{row[name]:g}" for name in names)]) for case, row in of_cases.items()]
    (root / "properties.csv").write_text("\n".join(lines) + "\n")


def phantom_name(number: int) -> str:
    return f"phantom_{number + 1:03d}"


def describe(count: int, kind: PhantomKind | SheetKind) -> dict[str, object]:
    """dataset.json of phantoms."""
    names = [phantom_name(number) for number in range(count)]
    sheets = isinstance(kind, SheetKind)
    about = "sheets of known thickness" if sheets else "organs that touch, vessels, noise, bias field"
    labels = {str(value): name for value, name in enumerate(kind.structures)}
    return {
        "name": "Phantoms",
        "description": f"Made volumes: {about}",
        "licence": "CC0",
        "tensorImageSize": "3D" if kind.channels == 1 else "4D",
        "modality": {str(c): kind.modality for c in range(kind.channels)},
        "labels": labels | ({str(len(labels)): "ignore"} if kind.ignore else {}),
        "numTraining": count,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": [],
    }


def write_phantom(root: Path, number: int, seed: int, kind: PhantomKind | SheetKind) -> None:
    if isinstance(kind, SheetKind):
        image, label, spacing = make_sheet(number, seed, kind)
    else:
        image, label, spacing = make_phantom(number, seed, kind)
    axes = kind.orientations[number % len(kind.orientations)]
    oblique = 8.0 if number % 4 == 3 and not isinstance(kind, SheetKind) else 0.0
    affine = file_affine(label.shape, spacing, axes, oblique_degrees=oblique)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    for folder, voxels in (("imagesTr", image), ("labelsTr", label[None])):
        turned = np.stack([apply_orientation(one.transpose(), turn) for one in voxels], -1)
        write_nifti(
            root / folder / f"{phantom_name(number)}.nii.gz", turned[..., 0] if len(voxels) == 1 else turned, affine
        )


def file_affine(size: Sequence[int], spacing_mm: Sequence[float], axes: str, oblique_degrees: float) -> np.ndarray:
    """(4, 4) of a file whose axes run along `axes`, its volume's middle at the origin."""
    angle = np.deg2rad(oblique_degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(spacing_mm)[::-1]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(size)[::-1] - 1) / 2)
    turned = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    back: np.ndarray = affine @ inv_ornt_aff(turned, tuple(size)[::-1])
    return back


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
    paint = Paint.draw(rng, kind, box)
    image, label = np.empty((kind.channels, *size), np.int16), np.empty(size, np.uint8)
    fine = spacing / kind.fineness
    lines = [(np.arange(n * kind.fineness) + 0.5) * f - b / 2 for n, f, b in zip(size, fine, box, strict=True)]
    slab = max(1, FINE_VOXELS // (kind.fineness**3 * size[1] * size[2]))
    for first in range(0, size[0], slab):
        here = slice(first, min(first + slab, size[0]))
        part = lines[0][here.start * kind.fineness : here.stop * kind.fineness]
        axes = np.ix_(*(line.astype(np.float32) for line in (part, *lines[1:])))
        shares = shares_of(anatomy.materials(axes), kind.fineness, FIRST_ORGAN + kind.organs + kind.vessels)
        coarse = [axis.reshape(-1, kind.fineness).mean(1, dtype=np.float64) for axis in (part, *lines[1:])]
        grid = np.ix_(*(line.astype(np.float32) for line in coarse))
        image[:, here] = paint(rng, shares, grid)
        label[here] = np.maximum(shares[TISSUE:].argmax(0).astype(np.uint8), 0)
        if kind.ignore:
            doubt = (shares.max(0) < 0.75) & (label[here] > 0) & (rng.random(label[here].shape) < kind.ignore)
            label[here][doubt] = len(kind.structures)
    return image, label, tuple(float(s) for s in spacing)


def shares_of(material: np.ndarray, fineness: int, count: int) -> np.ndarray:
    """(materials, d, h, w) float32: how much of each voxel is of which material."""
    d, h, w = (n // fineness for n in material.shape)
    blocks = material.reshape(d, fineness, h, fineness, w, fineness)
    return np.stack([(blocks == value).mean((1, 3, 5), dtype=np.float32) for value in range(count)])


@dataclass(frozen=True)
class Paint:
    """Intensities of one subject.

    Attributes:
        values: (channels, materials).
        texture: fine variation of tissue, in units of the contrast.
        bias: logarithm of the coil's sensitivity; None for CT.
        gain: what intensity 1 is stored as.
        noise: standard deviation.
    """

    values: np.ndarray
    texture: Waves
    bias: Waves | None
    gain: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: PhantomKind, box_mm: np.ndarray) -> Paint:
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
        """(C, d, h, w) int16 from shares of materials (materials, d, h, w) at the open grid `axes` in mm."""
        texture = self.texture(axes)[0] * (1 - shares[AIR])
        bias = 1.0 if self.bias is None else np.exp(self.bias(axes)[0])
        images = []
        for values in self.values.astype(np.float32):
            signal = (np.tensordot(values, shares, 1) + texture) * bias
            noisy = signal + self.noise * rng.standard_normal(signal.shape, np.float32)
            if self.bias is not None:  # the modulus of a complex signal: Rician
                noisy = np.hypot(noisy, self.noise * rng.standard_normal(signal.shape, np.float32))
            images.append(np.clip(np.rint(noisy * self.gain), -32768, 32767).astype(np.int16))
        return np.stack(images)


def material_values(table: Sequence[float], kind: PhantomKind) -> list[float]:
    """Intensities of air, tissue, organs and vessel; neighbouring organs differ by about half the contrast."""
    air, tissue, organ, vessel = table
    step = (organ - tissue) * 0.55
    organs = [organ + step * (i % 2) - 0.2 * step * (i % 3) * (kind.organs > 2) for i in range(kind.organs)]
    return [air, tissue, *organs, *([vessel] if kind.vessels else [])]
