"""Data sets of a few small volumes, written with nibabel and json alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

SHAPE = (5, 6, 7)  # x, y, z in the file


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write (X, Y, Z[, C]) voxels as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine, dtype=voxels.dtype).to_filename(path)
    return path


@pytest.fixture(name="save")
def save_fixture() -> Callable[..., Path]:
    return save


@pytest.fixture
def decathlon(tmp_path: Path) -> Callable[..., Path]:
    """Write a Decathlon folder of `count` random cases with a cube of each of two structures."""

    def write(count: int = 6, *, shape: tuple[int, ...] = SHAPE, modal: str = "MRI", **changes: Any) -> Path:
        root = tmp_path / "task"
        rng = np.random.default_rng(0)
        names = [f"case_{number:02d}" for number in range(count)]
        for name in names:
            label = np.zeros(shape[:3], np.uint8)
            label[1:3, 1:3, 1:3], label[3:5, 3:5, 3:5] = 1, 2
            image = rng.normal(100, 20, shape).astype(np.float32)
            save(root / f"imagesTr/{name}.nii.gz", image)
            save(root / f"labelsTr/{name}.nii.gz", label)
        channels = shape[3] if len(shape) > 3 else 1
        text = {
            "name": "Task",
            "modality": {str(c): modal for c in range(channels)},
            "labels": {"0": "background", "1": "near", "2": "far"},
            "training": [
                {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in reversed(names)
            ],
        }
        (root / "dataset.json").write_text(json.dumps(text | changes))
        return root

    return write
