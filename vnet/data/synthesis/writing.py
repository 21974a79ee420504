"""A data set of synthetic images, written from a folder of label maps as a Decathlon folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from vnet.core.errors import InputError, printable
from vnet.core.progress import ProgressBar
from vnet.data.case_files import list_folder
from vnet.data.folds import kfold_folds
from vnet.data.nifti import stem
from vnet.data.synthesis.image_model import (
    ImageModel,
    LabelValue,
    Table,
    freesurfer_table,
    read_table,
    structure_names,
    unknown_values,
)
from vnet.data.volumes import read_label, write_nifti

MARGIN = 4  # voxels around the structures
FOLDS = 4
FREESURFER = "freesurfer"


def synthesize_dataset(
    labels: Path | str,
    root: Path | str,
    *,
    model: ImageModel | None = None,
    seed: int = 0,
    table: Path | str | None = None,
    name: str = "Synthetic brains",
) -> int:
    """Write an image and a label for each label map, cropped to the structures, and return the number of cases.

    The same arguments write the same voxels. The folder appears when it is complete. It holds `dataset.json`,
    `imagesTr`, `labelsTr`, `splits.json` (four folds, fewer for fewer cases) and the licence that lies beside the maps.

    Args:
        labels: folder of label maps, or one that holds a folder `labels` of them.
        root: must not exist, or be empty.
        model: how images are drawn; None for the default.
        seed: of everything random; the numbers of a case depend on the seed and its name alone.
        table: JSON file of what the values mean, or `freesurfer`; None takes labels.json of the folder where there is
            one that can be read.
        name: of the data set.

    Raises:
        InputError: the folder exists and holds something; a label map or table that cannot be read.
    """
    labels, root, model = Path(labels), Path(root), model or ImageModel()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: is there already; name a new folder or remove it")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    maps = list_folder(labels / "labels" if (labels / "labels").is_dir() else labels).volumes
    if not maps:
        raise InputError(f"{labels}: no label maps (.nii.gz or .nii) there; name the folder that holds them")
    meanings = choose_table(labels, table)
    part = root.with_name(f".{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool, ProgressBar("drawing images", len(maps)) as bar:
            for done in pool.map(lambda path: write_case(part, path, meanings, model, seed), maps):
                bar.advance(done)
        names = [stem(path) for path in maps]
        (part / "dataset.json").write_text(json.dumps(describe(name, names, meanings, model, seed), indent=1) + "\n")
        (part / "splits.json").write_text(json.dumps(split(names), indent=1) + "\n")
        for licence in sorted(labels.glob("LICEN[CS]E*")):
            shutil.copyfile(licence, part / licence.name)
        part.replace(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(maps)


def choose_table(labels: Path, table: Path | str | None) -> dict[int, LabelValue]:
    """The table that is named, else labels.json of the folder, else FreeSurfer's.

    A labels.json that contradicts itself is passed over with a warning where all maps have FreeSurfer's values.

    Raises:
        InputError: a table that is named cannot be read or contradicts itself.
    """
    beside = labels / "labels.json"
    if str(table) == FREESURFER or (table is None and not beside.is_file()):
        return freesurfer_table()
    if table is not None:
        return read_table(Path(table))
    try:
        return read_table(beside)
    except InputError as error:
        print(f"warning: {printable(str(error))}; the values are read as FreeSurfer's numbers", flush=True)
        return freesurfer_table()


def write_case(root: Path, path: Path, table: Table, model: ImageModel, seed: int) -> str:
    """Write image and label of one map; returns the case's name."""
    name = stem(path)
    volume = read_label(path)
    if unknown := unknown_values(table, np.unique(volume.array).tolist()):
        raise InputError(f"{path}: values {unknown} are not in the table; add them")
    structures = sorted({meaning.structure for meaning in table.values()})
    number = np.zeros(max(table) + 1, np.uint8 if len(structures) < 256 else np.uint16)
    for value, meaning in table.items():
        number[value] = structures.index(meaning.structure)
    label = number[volume.array]
    if not label.any():
        raise InputError(f"{path}: holds no structure; take it out")
    box = brain_box(label, structure_names(table))
    image = model.draw(volume.array[box], table, volume.spacing_mm, np.random.default_rng([seed, *name.encode()]))
    affine = volume.canonical_affine()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in reversed(box)]
    for folder, voxels in (("imagesTr", image), ("labelsTr", label[box])):
        write_nifti(root / folder / f"{name}.nii.gz", np.ascontiguousarray(voxels.transpose()), affine)
    return name


def brain_box(label: np.ndarray, names: Sequence[str]) -> tuple[slice, ...]:
    """The box of the structures and a margin; fluid outside of the brain, which reaches down the neck, is left out."""
    inside = label > 0
    if "csf" in names and (brain := inside & (label != names.index("csf"))).any():
        inside = brain
    lines = [np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    return tuple(slice(max(int(line[0]) - MARGIN, 0), int(line[-1]) + 1 + MARGIN) for line in lines)


def describe(name: str, cases: Sequence[str], table: Table, model: ImageModel, seed: int) -> dict[str, object]:
    """The content of dataset.json."""
    return {
        "name": name,
        "description": f"Images drawn from label maps by SynthSeg's generative model: {asdict(model)}, seed {seed}",
        "reference": "Billot et al., SynthSeg, Medical Image Analysis 2023, arXiv 2107.09559",
        "licence": "that of the label maps, whose LICENSE file lies here where they have one",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): structure for value, structure in enumerate(structure_names(table))},
        "numTraining": len(cases),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": [],
    }


def split(cases: Sequence[str]) -> dict[str, object]:
    """The content of splits.json: four folds, or as many as there are cases, drawn as `vnet.data.folds` draws five."""
    folds = kfold_folds(sorted(cases), min(FOLDS, len(cases)))
    return {"folds": [{"train": list(fold.train), "val": list(fold.val)} for fold in folds]}
