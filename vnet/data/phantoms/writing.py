"""Phantoms written as a Decathlon folder; a function of their kind, their count and a seed, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

from vnet.core.errors import InputError
from vnet.data.affines import file_affine
from vnet.data.phantoms.kinds import PhantomKind, SheetKind
from vnet.data.phantoms.organs import make_phantom, make_sheet
from vnet.data.volumes import write_nifti


def write_phantoms(
    root: Path | str, count: int = 24, seed: int = 0, *, kind: PhantomKind | SheetKind | None = None
) -> None:
    """Write `count` labelled phantoms as a Decathlon folder; a function of the arguments, bit for bit.

    The folder appears when it is complete.

    Args:
        root: must not exist, or be empty.
        count: cases.
        seed: of everything random.
        kind: of organs or sheets; None for organs of the default kind.

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
    """Write properties.csv: numbers of each case, by which reports group the cases."""
    names = list(next(iter(of_cases.values())))
    lines = [",".join(["case", *names])]
    lines += [",".join([case, *(f"{row[name]:g}" for name in names)]) for case, row in of_cases.items()]
    (root / "properties.csv").write_text("\n".join(lines) + "\n")


def phantom_name(number: int) -> str:
    """Case name of phantom `number`, from 0."""
    return f"phantom_{number + 1:03d}"


def describe(count: int, kind: PhantomKind | SheetKind) -> dict[str, object]:
    """The content of dataset.json."""
    names = [phantom_name(number) for number in range(count)]
    sheets = isinstance(kind, SheetKind)
    about = "sheets of known thickness" if sheets else "organs that touch, vessels, noise, bias field"
    labels = {str(value): name for value, name in enumerate(kind.structures)}
    return {
        "name": "Phantoms",
        "description": f"Synthetic volumes: {about}",
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
    """Write image and label of one phantom; every fourth phantom of organs lies oblique."""
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
