"""What each case of a data set is like: shape, spacing, label values, intensities, content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vnet.core.files import write_text
from vnet.data.dataset import Dataset, Fingerprint
from vnet.data.header_affine import Remark
from vnet.data.volumes import Volume

QUANTILES = tuple(i / 200 for i in range(201))  # 0.5 % apart: nnU-Net clips CT at 0.5 and 99.5 %


@dataclass(frozen=True)
class Intensities:
    """Foreground intensities of one channel of a case: mean, standard deviation, values at `QUANTILES`."""

    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class CaseFacts:
    """What one case holds.

    Attributes:
        shape: (D, H, W), canonical.
        spacing_mm: (z, y, x).
        voxel_ml: volume of a voxel, by the determinant of the affine.
        orientation: of the file's axes, as LPS.
        channels: of the image.
        labels: label value -> voxels; empty for a case without a label.
        surface_mm2: of the faces between voxels of different labels, as `face_area_mm2`; 0 without a label.
        foreground: one per channel; empty where there is no foreground.
        constant: channels that hold one value only.
        image_hash, label_hash: of voxels and grid in canonical order, so that turned copies are equal.
        remarks: on its files.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    channels: int
    labels: dict[int, int]
    foreground: tuple[Intensities, ...]
    constant: tuple[int, ...]
    image_hash: str
    label_hash: str
    voxel_ml: float
    surface_mm2: float = 0.0
    remarks: tuple[Remark, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CaseFacts:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(
            shape=tuple(plain["shape"]),
            spacing_mm=tuple(plain["spacing_mm"]),
            orientation=str(plain["orientation"]),
            channels=int(plain["channels"]),
            labels={int(value): int(count) for value, count in plain["labels"].items()},
            foreground=tuple(
                Intensities(float(one["mean"]), float(one["std"]), tuple(one["quantiles"]))
                for one in plain["foreground"]
            ),
            constant=tuple(plain["constant"]),
            image_hash=str(plain["image_hash"]),
            label_hash=str(plain["label_hash"]),
            voxel_ml=float(plain["voxel_ml"]),
            surface_mm2=float(plain["surface_mm2"]),
            remarks=tuple(Remark(**one) for one in plain["remarks"]),
        )


def describe(image: Volume, label: Volume | None) -> CaseFacts:
    """Facts of a case in memory."""
    values, counts = (
        (np.zeros(0, int), np.zeros(0, int)) if label is None else np.unique(label.array, return_counts=True)
    )
    inside = None if label is None else label.array > 0
    shown = () if inside is None or not inside.any() else tuple(intensities(one[inside]) for one in image.array)
    d, h, w = image.array.shape[1:]
    return CaseFacts(
        shape=(d, h, w),
        spacing_mm=image.spacing_mm,
        orientation=image.orientation,
        channels=len(image.array),
        labels=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        foreground=shown,
        constant=tuple(c for c, one in enumerate(image.array) if one.min() == one.max()),
        image_hash=volume_hash(image),
        label_hash="" if label is None else volume_hash(label),
        voxel_ml=image.voxel_ml,
        surface_mm2=0.0 if label is None else face_area_mm2(label.array, label.spacing_mm),
        remarks=image.remarks if label is None else (*image.remarks, *label.remarks),
    )


def face_area_mm2(labels: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Area of the faces between neighbouring voxels of different labels: 1.5 times a smooth surface's, on average.

    Args:
        labels: (D, H, W).
        spacing_mm: (z, y, x).
    """
    area = 0.0
    for axis, step in enumerate(spacing_mm):
        lines = np.moveaxis(labels, axis, 0)
        area += np.count_nonzero(lines[1:] != lines[:-1]) * math.prod(spacing_mm) / step
    return float(area)


def intensities(values: np.ndarray) -> Intensities:
    """Mean, standard deviation and quantiles of the foreground's values in one channel."""
    wide = values.astype(np.float64)
    quantiles = tuple(float(f"{q:.6g}") for q in np.quantile(wide, QUANTILES))
    return Intensities(float(wide.mean()), float(wide.std()), quantiles)


def volume_hash(volume: Volume) -> str:
    """SHA-256 of canonical voxels and grid, the grid to a thousandth of a mm."""
    digest = hashlib.sha256(f"{volume.array.dtype} {volume.array.shape}".encode())
    digest.update((np.round(volume.canonical_affine(), 3) + 0.0).tobytes())  # + 0.0: no negative zeros
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def foreground_voxels(dataset: Dataset, fact: CaseFacts) -> int:
    """Voxels of a case that are labelled as a structure, the ignore label left out."""
    return sum(count for value, count in fact.labels.items() if value > 0 and value != dataset.ignore)


FORMAT = 4  # of the kept facts


def kept_file(dataset: Dataset, cache: Path) -> Path:
    """Where the facts of a data set are kept: one file per folder and list of files."""
    key = json.dumps([str(dataset.root.resolve()), [[str(path) for path in case.files] for case in dataset.cases]])
    return cache / f"checked_{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def load_kept(path: Path | None) -> dict[str, tuple[Fingerprint, CaseFacts]]:
    """Facts of an earlier start; none where the file is missing, damaged or of another format."""
    try:
        plain = json.loads(path.read_text()) if path is not None else {}
        if plain.get("format") != FORMAT:
            return {}
        return {
            name: ([(size, time) for size, time in entry["fingerprint"]], CaseFacts.from_dict(entry["facts"]))
            for name, entry in plain["cases"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_kept(path: Path, sound: Mapping[str, tuple[Fingerprint, CaseFacts]]) -> None:
    """Write the facts of sound cases with the fingerprints of their files."""
    cases = {name: {"fingerprint": files, "facts": fact.to_dict()} for name, (files, fact) in sound.items()}
    write_text(path, json.dumps({"format": FORMAT, "cases": cases}))
