"""Small data sets, DICOM series, configs that train in seconds, and run folders of made-up numbers.

A world is a data set, a config and a trained run in a working folder; `run_vnet` runs `vnet` in it as from a shell.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from vnet.commands.main import main, run_and_exit
from vnet.data.phantoms import PhantomKind, write_phantoms

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


TINY = {
    "network": {
        "width": 4,
        "kernel": 3,
        "norm": "instance",
        "down": [1, 1, 1],
        "up": [1, 1],
        "strides": [[2, 2, 2]] * 2,
    },
    "points": {"num_points": 128},
    "training": {"steps": 6, "batch": 2, "patch": [16, 24, 32], "validate_every": 3, "checkpoint_every": 2},
    "study": {"arms": {"dense": {}, "pointrend_s2": {}}},
}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small labelled volumes in a Decathlon folder; tests that change it copy it first."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, 6, seed=3, kind=PhantomKind(size=(20, 24, 28)))
    return root


@pytest.fixture
def own_phantoms(phantoms: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(phantoms, tmp_path / "own"))


@pytest.fixture
def tiny(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a command line that trains for six steps, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    places = ["--data.root", str(phantoms), "--study.results_root", str(tmp_path / "results")]
    return ["--config", str(file), *places, "--threads", "1"]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set, a config and a trained run; tests take a copy of it."""
    from vnet.core.config import load_config
    from vnet.training.run import train_run

    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        train_run(load_config(["--config", "tiny.yaml", "--data.root", "data", "--arm", "pointrend_s2"]))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `template` as the working folder."""
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


ARMS = {"dense": 0.0, "coarse_s2": -0.02, "pointrend_s2": 0.001, "coarse_s4": -0.06, "pointrend_s4": -0.015}
COSTS = {"dense": 0.41, "coarse_s2": 0.20, "pointrend_s2": 0.22, "coarse_s4": 0.16, "pointrend_s4": 0.19}
NAMED = {"comparisons": ["pointrend_s2 - coarse_s2", "pointrend_s4 - coarse_s4", "pointrend_s2 - dense"]}
HEADER = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm,band_dice,truth_ml,thinness"


def write_run(root: Path, arm: str, *, fold=0, seed=0, cases=12, offset=None, study=None, spread=0.01) -> Path:
    """One run: structure `organ` near .9 and `vessel` near .7, each plus the arm's offset."""
    folder = root / arm / f"fold{fold}_seed{seed}"
    folder.mkdir(parents=True)
    offset = ARMS[arm] if offset is None else offset
    shared = np.random.default_rng(fold)
    own = np.random.default_rng([fold, seed, *arm.encode()])
    lines = [HEADER]
    versions = [("false", 0.02), ("true", 0.0)] if arm.startswith("pointrend") else [("false", 0.0)]
    for case in range(cases):
        difficulty = 0.03 * shared.normal(size=2)
        noise = spread * own.normal(size=2)
        for refined, loss in versions:
            for k, (structure, base) in enumerate((("organ", 0.9), ("vessel", 0.7))):
                dice = np.clip(base + offset - loss + difficulty[k] + noise[k], 0, 1)
                values = ",".join(
                    f"{v:.6f}"
                    for v in (dice, dice, 10 * (1 - dice), 2 * (1 - dice), dice, 2.0 - k + case / 9, 0.3 + 0.6 * k)
                )
                lines.append(f"{arm},{fold},{seed},case_{fold}_{case:02d},{structure},{refined},{values}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    info = {
        "config_hash": f"{arm}{fold}{seed}",
        "data_hash": "d",
        "data_set": "Phantoms",
        "commit": "abc123",
        "python": "3.11.2",
        "packages": {"torch": "2.13.0"},
        "seconds_per_step": COSTS.get(arm, 0.3),
        "seconds_per_case": 0.5,
        "peak_memory_mib": 900.0,
        "parameters": 1_000_000,
        "multiply_adds": int(30e9 * COSTS.get(arm, 0.3)),
    }
    (folder / "run.json").write_text(json.dumps(info))
    config = {"name": root.name, "arm": arm, "data": {"root": "/home/someone/Phantoms"}}
    config |= {"metrics": {"tolerance_mm": 1.0}, "study": study or {}}
    (folder / "config.yaml").write_text(json.dumps(config))
    if len(versions) == 2:
        rows = ["case,structure,distance_upto_mm,margin_upto,fixed,broken,unchanged,wrong_before"]
        rows += [
            f"case_{fold}_00,{structure},{mm},{margin},{30 - 5 * i},{10 - 3 * j},100,{60 - 10 * j}"
            for structure in ("organ", "vessel", "all structures")
            for i, mm in enumerate(("1.000000", "2.000000", "inf"))
            for j, margin in enumerate(("0.250000", "0.500000", "inf"))
        ]
        (folder / "refinement.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """`write_run`, as a fixture."""
    return write_run


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    """Two arms on one fold: what is enough to lay a report out."""
    for arm in ("dense", "pointrend_s2"):
        write_run(tmp_path / "toy", arm, cases=4, study=NAMED)
    return tmp_path / "toy"


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five arms on two folds, not to be changed."""
    root = tmp_path_factory.mktemp("study") / "toy"
    for arm in ARMS:
        for fold in (0, 1):
            write_run(root, arm, fold=fold, study=NAMED)
    picture = root / "pointrend_s2" / "fold0_seed0" / "pictures" / "worst_case.png"
    picture.parent.mkdir()
    picture.write_bytes(b"not decoded here")
    return root


SERIES_SPACING_MM = (0.7, 0.7, 5.0)  # of a DICOM series: across columns, down rows, between slices


def oblique(z: float = 0.3, x: float = 0.2) -> np.ndarray:
    """A rotation by angles about z and x, in radian."""
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    return np.array(about_z) @ np.array(about_x)


def lps_affine(turn: np.ndarray | None = None, *, tilt: float = 0.0) -> np.ndarray:
    """(4, 4) from (column, row, slice) to mm in DICOM's axes; a tilt moves each slice against the one below it."""
    affine = np.eye(4)
    affine[:3, :3] = (oblique() if turn is None else turn) @ np.diag(SERIES_SPACING_MM)
    affine[:3, 2] += tilt * affine[:3, 1] / SERIES_SPACING_MM[1] * SERIES_SPACING_MM[2]
    affine[:3, 3] = [10.0, -20.0, 30.0]
    return affine


def write_series(
    folder: Path, voxels: np.ndarray, affine: np.ndarray, *, order: Sequence[int] | None = None, **changes: Any
) -> Path:
    """A CT series of one file a slice, as the standard says, by pydicom alone.

    Args:
        voxels: (columns, rows, slices).
        affine: (4, 4) to mm in DICOM's axes.
        order: slices in the order of their file names and instance numbers.
        changes: attributes of every file; None takes one away.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    across, down, _ = np.linalg.norm(affine[:3, :3], axis=0)
    shared = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    shared |= dict.fromkeys(("PatientBirthDate", "AccessionNumber", "ReferringPhysicianName"), "")
    shared |= {"PatientName": "Phantom^A", "PatientID": "1", "PatientSex": "O", "StudyID": "1", "Modality": "CT"}
    shared |= {"StudyDate": "20200101", "StudyTime": "120000", "SeriesNumber": 3, "SeriesDescription": "thin"}
    shared |= {"Manufacturer": "Maker", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "RescaleSlope": "1"}
    shared |= {"RescaleIntercept": "-1024", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}
    shared |= {"PixelRepresentation": 1, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    shared |= {"Rows": voxels.shape[1], "Columns": voxels.shape[0], "SliceThickness": "5"}
    shared |= {"PositionReferenceIndicator": "", "PixelSpacing": [f"{down:.6f}", f"{across:.6f}"]}
    cosines = [*(affine[:3, 0] / across), *(affine[:3, 1] / down)]
    shared |= {"ImageOrientationPatient": [f"{value:.9f}" for value in cosines]}
    before = len(list(folder.iterdir()))
    for place, k in enumerate(range(voxels.shape[2]) if order is None else order):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
        header.InstanceNumber = place + 1
        header.ImagePositionPatient = [f"{value:.6f}" for value in (affine @ [0, 0, k, 1])[:3]]
        header.PixelData = np.ascontiguousarray(voxels[:, :, k].T.astype(np.int16)).tobytes()
        for name, value in (shared | changes).items():
            if value is not None:
                setattr(header, name, value)
        header.save_as(folder / f"IM{before + place:04d}", enforce_file_format=True)
    return folder
