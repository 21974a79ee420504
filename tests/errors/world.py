"""A small data set, config and trained run in a working folder, and `vnet` run in it as from a shell."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from vnet.commands.exit_codes import run_and_exit
from vnet.commands.main import main

NAMES = "abcde"
SIZE = (9, 10, 12)  # x, y, z in the file
CONFIG = {
    "network": {"width": 2, "kernel": 3, "norm": "instance", "down": [1, 1, 1], "up": [1, 1], "strides": [[2] * 3] * 2},
    "points": {"num_points": 64},
    "training": {"steps": 2, "batch": 2, "patch": [12, 12, 12], "validate_every": 0, "checkpoint_every": 1},
    "study": {"arms": {"dense": {}, "pointrend_s2": {}}},
    "threads": 1,
}
RUN = Path("runs/tiny/pointrend_s2/fold0_seed0")


def write_world(folder: Path) -> None:
    """`data/` with five cases of two structures, and `tiny.yaml`."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        label = np.zeros(SIZE, np.uint8)
        label[2:5, 2:6, 2:7], label[5:8, 5:9, 6:11] = 1, 2
        image = (rng.normal(100, 5, SIZE) + 40 * label).astype(np.float32)
        write_volume(folder / f"data/imagesTr/{name}.nii.gz", image)
        write_volume(folder / f"data/labelsTr/{name}.nii.gz", label)
    description = {
        "name": "World",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "near", "2": "far"},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in NAMES],
    }
    (folder / "data/dataset.json").write_text(json.dumps(description))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine, dtype=voxels.dtype).to_filename(path)


def read_volume(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def describe(**changes: Any) -> None:
    """Change keys of data/dataset.json; None takes one away."""
    path = Path("data/dataset.json")
    text = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in text.items() if value is not None}))


def set_header(path: str, **fields: Any) -> None:
    """Overwrite header fields of a .nii.gz, whatever they claim."""
    raw = bytearray(gzip.decompress(Path(path).read_bytes()))
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name][0] = value
    Path(path).write_bytes(gzip.compress(bytes(raw)))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size < 2**26
    }


def run_vnet(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `vnet COMMAND WORDS` in this process, ended as the shell sees it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_and_exit(main, [command, *words])
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err
