"""Every rule that refuses: what is wrong, the command, the line it ends with, the exit code. One list, read by
`test_refusals.py`; `python -m tests.errors.refusals` writes docs/errors.md from it.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import RUN, SIZE, describe, lps_affine, read_volume, set_header, write_series, write_volume

CHECK = "vnet data check data"
TRAIN = "vnet train --config tiny.yaml --data.root data"
GO_ON = f"{TRAIN} --arm pointrend_s2"
PREDICT = f"vnet predict {RUN} --input data/imagesTr --output out"
DICOM = f"vnet predict {RUN} --input scans --output out"
EVALUATE = f"vnet evaluate {RUN}"
COMPARE = "vnet compare runs/tiny"
CASES = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm\n"
IMAGE, LABEL = "data/imagesTr/b.nii.gz", "data/labelsTr/b.nii.gz"


@dataclass(frozen=True)
class Refusal:
    """A rule.

    Attributes:
        what: is wrong, as the table says it.
        command: run in the folder that `write_world` makes.
        message: the first line on stderr; `...` stands for anything.
        plant: makes it wrong; in the working folder.
        code: exit code.
        lines: on stderr.
        needs: the extra without which another line is printed.
    """

    what: str
    command: str
    message: str
    plant: Callable[[], Any] = lambda: None
    code: int = 2
    lines: int = 1
    needs: str = ""


def config(text: str) -> Callable[[], Any]:
    """tiny.yaml becomes this."""
    return lambda: Path("tiny.yaml").write_text(text)


def header(**fields: Any) -> Callable[[], Any]:
    return lambda: set_header(IMAGE, **fields)


def description(**changes: Any) -> Callable[[], Any]:
    return lambda: describe(**changes)


def first_case(**changes: Any) -> Callable[[], Any]:
    """The first entry of `training` becomes this."""
    return lambda: describe(training=[changes])


def text(path: str | Path, content: str | bytes) -> Callable[[], Any]:
    """A file of this content, in a folder that is made when missing."""

    def write() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def voxels(
    path: str, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None
) -> Callable[[], Any]:
    return lambda: write_volume(Path(path), change(read_volume(path).copy()), affine)


def put(value: float, dtype: type = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    """The first voxel becomes `value`."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[0, 0, 0] = value
        return array

    return change


def packed(change: Callable[[bytes], bytes]) -> Callable[[], Any]:
    return lambda: Path(IMAGE).write_bytes(change(Path(IMAGE).read_bytes()))


class Bomb:
    """Pickled, it would leave a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def pickled_code() -> None:
    import torch

    torch.save({"format": 1, "model": {}, "extra": Bomb()}, RUN / "checkpoints/last.ckpt")


def other_network() -> None:
    """The checkpoint of another width, in the place of the run's own."""
    import torch

    path = RUN / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)
    name = sorted(state["model"])[0]
    state["model"][name] = state["model"][name][..., None]
    torch.save(state, path)


def unfinished(*names: str) -> Callable[[], Any]:
    """The run lacks these files."""

    def remove() -> None:
        for name in names:
            (RUN / name).unlink()

    return remove


def in_training() -> None:
    """The run has not reached its last step yet."""
    path = RUN / "run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in info.items() if key != "steps"}))


def both(*deeds: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: [deed() for deed in deeds]


def elsewhere(run: Path) -> None:
    """The run's folder is a link to another."""
    run.parent.mkdir(parents=True, exist_ok=True)
    Path("elsewhere").mkdir()
    run.symlink_to(Path("elsewhere").resolve())


def scans(*slices: int) -> Callable[[], Any]:
    """A DICOM series of these slices in `scans/`, beside what is there."""
    return lambda: write_series(Path("scans"), np.zeros((7, 6, 5)), lps_affine(), order=slices)


def same_channels_other_names() -> None:
    describe(labels={"0": "background", "1": "left", "2": "right"})


def two_channels() -> None:
    for path in Path("data/imagesTr").iterdir():
        array = read_volume(str(path))
        write_volume(path, np.stack([array, array], -1))
    describe(modality={"0": "T1", "1": "T2"})


def mirrored_qform() -> None:
    """The image has a qform too, whose first axis runs the other way."""
    set_header(IMAGE, qform_code=1, quatern_b=0, quatern_c=1, quatern_d=0, pixdim=[-1, 1, 1, 1, 0, 0, 0, 0])


def wide_voxels() -> None:
    """Case b has voxels of 600 mm, as of a header in micron that says mm."""
    for path in (IMAGE, LABEL):
        set_header(path, srow_x=[600, 0, 0, 0], srow_y=[0, 600, 0, 0], srow_z=[0, 0, 600, 0])


def no_foreground() -> None:
    for path in Path("data/labelsTr").iterdir():
        write_volume(path, np.zeros(SIZE, np.uint8))


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss is infinite."""
    from vnet.training.optimizer import update_weights

    def poisoned(optimizer: object, loss: Any, *rest: Any, **kwargs: Any) -> Any:
        return update_weights(optimizer, loss * float("inf"), *rest, **kwargs)

    monkeypatch.setattr("vnet.training.trainer.update_weights", poisoned)


CONFIG = [
    Refusal("a misspelt key", "vnet train --data.fol 1", "command line: unknown key data.fol; did you mean data.fold?"),
    Refusal(
        "a misspelt key in the file",
        TRAIN,
        "tiny.yaml: unknown key network.widht; did you mean network.width?",
        config("network: {widht: 8}"),
    ),
    Refusal(
        "a misspelt key of an arm",
        TRAIN,
        "tiny.yaml: study.arms.mine: unknown key network.widht; did you mean network.width?",
        config("study: {arms: {mine: {network: {widht: 8}}}}"),
    ),
    Refusal("a key without value", "vnet train --training.steps", "command line: ..."),
    Refusal(
        "a device of another name in training",
        f"{TRAIN} --device gpu",
        "tiny.yaml: device must be auto, cpu, cuda or cuda:N, got gpu",
    ),
    Refusal(
        "a GPU for a training where there is none",
        f"{TRAIN} --device cuda",
        "--device cuda: torch can use no GPU here; take --device auto or cpu",
    ),
    Refusal(
        "null where a key must have a value",
        "vnet train --config tiny.yaml",
        "tiny.yaml: seed must have a value, got null; leave the key out for its default",
        config("seed: null\n"),
    ),
    Refusal(
        "text where a number is due",
        f"{TRAIN} --training.steps many",
        "command line: training.steps must be int, got many",
    ),
    Refusal(
        "a fraction where a whole number is due",
        TRAIN,
        "tiny.yaml: training.steps must be int, got 1.5",
        config("training: {steps: 1.5}"),
    ),
    Refusal(
        "a value out of range",
        f"{TRAIN} --points.importance_ratio 1.5",
        "tiny.yaml: points.importance_ratio must lie in [0, 1], got 1.5",
    ),
    Refusal("a file that is no YAML", TRAIN, "tiny.yaml: not valid YAML: ...", config("a: [")),
    Refusal(
        "a YAML tag that runs code",
        TRAIN,
        "tiny.yaml: not valid YAML: could not determine a constructor for the tag ...",
        config("name: !!python/object/apply:os.system ['touch harmed']"),
    ),
    Refusal(
        "no such config",
        "vnet train --config none.yaml",
        "none.yaml: cannot be read (No such file or directory); name an existing config file",
    ),
    Refusal(
        "an unknown arm",
        f"{TRAIN} --arm pointrend",
        "tiny.yaml: unknown arm pointrend; it is one of coarse_s2, ..., or a name under study.arms",
    ),
    Refusal(
        "an arm that sets what the study sets",
        TRAIN,
        "tiny.yaml: study.arms.mine cannot set seed: the study itself sets it",
        config("study: {arms: {mine: {seed: 3}}}"),
    ),
    Refusal(
        "a comparison of an arm that is none",
        "vnet experiment --config tiny.yaml",
        "tiny.yaml: study.comparisons must be `A - B` of the arms ..., got dense - nobody",
        config("study: {comparisons: [dense - nobody]}"),
    ),
    Refusal(
        "a key that tells a study's arms apart, given to all",
        "vnet experiment --config tiny.yaml --points.num_points 9",
        "command line: points.num_points would be given to every arm, but dense would be another network with it; "
        "write it into the config file, which the arms' own keys follow",
    ),
    Refusal(
        "an equivalence margin below 0",
        "vnet experiment --study.equivalence_margin -1",
        "command line: study.equivalence_margin must be 0 or more, got -1.0",
    ),
    Refusal(
        "an equivalence margin without a reason",
        "vnet experiment --study.equivalence_margin 1",
        "command line: study.equivalence_margin must have a study.equivalence_reason, got 1.0",
    ),
    Refusal(
        "a name that leaves run_root", f"{TRAIN} --name ../x", "tiny.yaml: name must be a plain folder name, got '../x'"
    ),
    Refusal(
        "an output stride that no stage has",
        f"{TRAIN} --network.output_stride 3",
        "tiny.yaml: network.output_stride must be the stride of a decoder stage, one of ..., got 3",
    ),
    Refusal(
        "a patch too small to normalise",
        f"{TRAIN} --training.patch [4,4,4]",
        "tiny.yaml: training.patch must leave more than one voxel to normalise at the deepest stage ..., got [4, 4, 4]",
    ),
    Refusal(
        "a stage that the network has not",
        f"{TRAIN} --points.features [encoder9]",
        "tiny.yaml: points.features must name stages of ..., got encoder9",
    ),
    Refusal(
        "a network larger than memory",
        f"{TRAIN} --network.width 500000",
        "network.width: the network needs about ... GiB of memory and this machine has ...; lower network.width",
    ),
    Refusal(
        "a checkpoint to start from that is not there",
        f"{TRAIN} --training.init_from none.ckpt",
        "training.init_from: none.ckpt: no such checkpoint; correct the path",
    ),
    Refusal(
        "mirroring along an axis that does not exist",
        f"{TRAIN} --inference.mirror [w]",
        "tiny.yaml: inference.mirror must name axes of z, y, x, each once, got ['w']",
    ),
    Refusal(
        "a code without a meaning",
        f"{TRAIN} --inference.codes '{{near: [1, SCT]}}'",
        "tiny.yaml: inference.codes.near must be [value, scheme, meaning] of at most 16, 16 and 64 characters, or six "
        "with those of the category, got [1, 'SCT']",
    ),
    Refusal(
        "no data set",
        "vnet train",
        "data.root: no data set named; add --data.root FOLDER (Decathlon or nnU-Net raw layout)",
    ),
    Refusal(
        "a fold that does not exist",
        f"{TRAIN} --data.fold 7",
        "data.fold: fold 7 does not exist; this data set has folds 0 to 4, and all",
    ),
    Refusal(
        "a table of subjects that is not there",
        f"{TRAIN} --data.groups none.csv",
        "data.groups: none.csv cannot be read (No such file or directory); name a CSV file of case,subject",
    ),
    Refusal(
        "a table of subjects with other columns",
        f"{TRAIN} --data.groups groups.csv",
        "data.groups: groups.csv must have the columns case and subject, got 'name'",
        text(Path("groups.csv"), "name\na\n"),
    ),
    Refusal(
        "a case without a subject",
        f"{TRAIN} --data.groups groups.csv",
        "data.groups: names no subject of case 'b' and 3 more; add a row case,subject for each",
        text(Path("groups.csv"), "case,subject\na,1\n"),
    ),
    Refusal(
        "a thin stage behind a full decoder",
        f"{TRAIN} --network.thin_stage 4",
        "tiny.yaml: network.thin_stage must be 0 where the decoder reaches full resolution or the stem is "
        "space_to_depth, got 4",
    ),
    Refusal(
        "a share of no voxel",
        f"{TRAIN} --training.top_k_share 0",
        "tiny.yaml: training.top_k_share must lie in (0, 1], got 0.0",
    ),
]

DATA_SET = [
    Refusal(
        "no such data set",
        "vnet data check nowhere",
        "nowhere: no such folder; name the folder that holds dataset.json",
    ),
    Refusal(
        "no dataset.json",
        "vnet data check data/imagesTr",
        "data/imagesTr/dataset.json: no such file; name a folder in the Decathlon or nnU-Net raw layout",
    ),
    Refusal(
        "a dataset.json that is no JSON",
        CHECK,
        "data/dataset.json: not JSON (...); correct it",
        text("data/dataset.json", "{"),
    ),
    Refusal(
        "no labels",
        CHECK,
        "dataset.json: labels must map label values to names, got None; add them",
        description(labels=None),
    ),
    Refusal(
        "label values with a gap",
        CHECK,
        "dataset.json: labels must be 0 (background), 1, 2, ... without gaps, got [0, 1, 3]; renumber them",
        description(labels={"0": "background", "1": "near", "3": "far"}),
    ),
    Refusal(
        "a region in place of a label value",
        CHECK,
        "dataset.json: labels: value of 'far' must be a whole number, got [1, 2]; regions are not read: give each "
        "voxel one structure's value",
        description(labels={"background": 0, "near": 1, "far": [1, 2]}),
    ),
    Refusal(
        "no channels",
        CHECK,
        'dataset.json: modality (or channel_names) must map channel numbers to names, as {"0": "MRI"}, got None; '
        "add it",
        description(modality=None),
    ),
    Refusal(
        "channels with a gap",
        CHECK,
        'dataset.json: modality (or channel_names) must number its channels "0", "1", ..., got ...; correct it',
        description(modality={"0": "T1", "2": "T2"}),
    ),
    Refusal(
        "an absolute path",
        CHECK,
        "dataset.json: training[0].image: path leaves the data set, got '/etc/a.nii.gz'; write it relative to "
        "dataset.json, without ..",
        first_case(image="/etc/a.nii.gz"),
    ),
    Refusal(
        "a path that climbs out",
        CHECK,
        "dataset.json: training[0].label: path leaves the data set, got '../../a.nii.gz'; write it relative to "
        "dataset.json, without ..",
        first_case(image="imagesTr/a.nii.gz", label="../../a.nii.gz"),
    ),
    Refusal(
        "a volume that is no NIfTI by its name",
        CHECK,
        "dataset.json: training[0].image: must end in .nii.gz or .nii, got 'imagesTr/a.mha'; convert the volume",
        first_case(image="imagesTr/a.mha"),
    ),
    Refusal(
        "a case listed twice",
        CHECK,
        "case a: named twice in dataset.json; give each case its own file name",
        description(training=[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2),
    ),
    Refusal(
        "a file that is not there",
        CHECK,
        "case b: imagesTr/b.nii.gz is not there; restore the file or take the case out",
        lambda: Path(IMAGE).unlink(),
    ),
    Refusal(
        "a label without its image, nnU-Net's layout",
        CHECK,
        "case e: imagesTr/e_0000.nii.gz is not there; restore the file or take the case out",
        both(
            description(training=None),
            lambda: [Path(f"data/imagesTr/{n}.nii.gz").rename(f"data/imagesTr/{n}_0000.nii.gz") for n in "abcd"],
            lambda: Path("data/imagesTr/e.nii.gz").unlink(),
        ),
    ),
    Refusal(
        "an image twice, nnU-Net's layout",
        CHECK,
        "case b: its image consists of b.nii.gz, b_0000.nii.gz where one file is due; take b_0000.nii.gz out",
        both(
            description(training=None),
            lambda: Path("data/imagesTr/b_0000.nii.gz").write_bytes(Path(IMAGE).read_bytes()),
        ),
    ),
    Refusal(
        "a volume of another format, nnU-Net's layout",
        CHECK,
        "dataset.json: file_ending must be one of ('.nii.gz', '.nii'), got '.mha'; convert the volumes",
        description(training=None, file_ending=".mha"),
    ),
    Refusal(
        "no cases",
        CHECK,
        "data: no training cases found; list them in dataset.json or fill imagesTr and labelsTr",
        description(training=[]),
    ),
    Refusal(
        "a splits file of unknown cases",
        CHECK,
        "data/splits.json: fold 0 val names 'z', not a labelled case of the data set; correct it",
        text("data/splits.json", '{"folds": [{"train": ["a"], "val": ["z"]}]}'),
    ),
    Refusal(
        "a case on both sides of a fold",
        CHECK,
        "data/splits.json: fold 0 has 'a' in both train and val; a case may be in one only",
        text("data/splits.json", '{"folds": [{"train": ["a", "b"], "val": ["a"]}]}'),
    ),
    Refusal(
        "a fold without validation cases",
        CHECK,
        "data.fold: fold 0 has no case to validate on; add labelled cases, mend the splits file, or use all",
        text("data/splits.json", '{"folds": [{"train": ["a", "b"], "val": []}]}'),
    ),
    Refusal(
        "no labelled structure in any case",
        CHECK,
        "data: no case holds a labelled structure; add labels with foreground",
        no_foreground,
    ),
]

VOLUMES = [
    Refusal(
        "a truncated gzip stream",
        CHECK,
        f"case b: {IMAGE}: truncated or damaged gzip (...); copy or download it again",
        packed(lambda raw: raw[:-40]),
    ),
    Refusal(
        "missing voxels",
        CHECK,
        f"case b: {IMAGE}: truncated: 10 bytes of its voxels are missing; copy or download it again",
        packed(lambda raw: gzip.compress(gzip.decompress(raw)[:-10])),
    ),
    Refusal(
        "no NIfTI",
        CHECK,
        f"case b: {IMAGE}: not a NIfTI file (.nii, .nii.gz); convert the volume",
        packed(lambda raw: gzip.compress(b"words " * 90)),
    ),
    Refusal(
        "a web page in the place of a volume",
        CHECK,
        f"case b: {IMAGE}: is a web page and not a volume (a download that failed?); download it again",
        packed(lambda raw: b"<!DOCTYPE html><html>" * 40),
    ),
    Refusal(
        "an empty file",
        CHECK,
        f"case b: {IMAGE}: is empty (0 bytes); copy or download it again",
        packed(lambda raw: b""),
    ),
    Refusal(
        "a Git LFS pointer",
        CHECK,
        f"case b: {IMAGE}: is a Git LFS pointer and not the volume; fetch it with git lfs pull",
        packed(lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ),
    Refusal(
        "a DICOM file",
        CHECK,
        f"case b: {IMAGE}: is a DICOM file; convert the series with dcm2niix",
        packed(lambda raw: bytes(128) + b"DICM" + bytes(500)),
    ),
    Refusal(
        "a plain NIfTI named .gz",
        CHECK,
        f"case b: {IMAGE}: is not packed with gzip but named so; rename it to b.nii",
        packed(gzip.decompress),
    ),
    Refusal(
        "a gzip file named .nii",
        CHECK,
        "case b: data/imagesTr/b.nii: is packed with gzip but not named so; rename it to b.nii.gz",
        both(
            lambda: Path(IMAGE).rename("data/imagesTr/b.nii"),
            description(
                training=[
                    {"image": f"imagesTr/{name}.nii{'' if name == 'b' else '.gz'}", "label": f"labelsTr/{name}.nii.gz"}
                    for name in "abcde"
                ]
            ),
        ),
    ),
    Refusal(
        "a volume packed twice",
        CHECK,
        f"case b: {IMAGE}: is packed with gzip twice; unpack it once",
        packed(gzip.compress),
    ),
    Refusal(
        "a spacing of 0",
        CHECK,
        f"case b: {IMAGE}: the affine is singular (spacing (0.0, 1.0, 1.0) mm); mend the header (spacing above 0, "
        "axes apart)",
        header(sform_code=0, qform_code=0, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]),
    ),
    Refusal(
        "five axes",
        CHECK,
        f"case b: {IMAGE}: 5-D (shape (9, 10, 3, 2, 2)) where 3-D, or 4-D with channels, is due",
        header(dim=[5, 9, 10, 3, 2, 2, 1, 1]),
    ),
    Refusal(
        "a NaN in the image",
        CHECK,
        f"case b: {IMAGE}: 1 voxels are NaN or infinite; replace them by the background's intensity",
        voxels(IMAGE, put(np.nan)),
    ),
    Refusal(
        "more channels than dataset.json names",
        CHECK,
        "case b: the image is 4-D where 3-D is due: 2 channels where dataset.json names 1 (MRI); correct one of the "
        "two",
        voxels(IMAGE, lambda array: np.stack([array, array], -1)),
    ),
    Refusal(
        "a label on another grid",
        CHECK,
        f"case b: {LABEL}: shape (9, 10, 11) differs from (9, 10, 12) of its image; resample the label to the image's "
        "grid",
        voxels(LABEL, lambda array: array[:, :, :-1]),
    ),
    Refusal(
        "a label of another place",
        CHECK,
        f"case b: {LABEL}: affine differs from that of its image, corners lie 10 mm apart; resample the label to the "
        "image's grid",
        voxels(LABEL, lambda array: array, np.diag([1.0, 2.0, 1.0, 1.0])),
    ),
    Refusal(
        "a label of fractions",
        CHECK,
        f"case b: {LABEL}: 1 voxels hold label values that are not whole; resample with nearest neighbour",
        voxels(LABEL, put(0.5)),
    ),
    Refusal(
        "a NaN in a label",
        CHECK,
        f"case b: {LABEL}: the label holds NaN or infinite voxels; write whole label values",
        voxels(LABEL, put(np.nan)),
    ),
    Refusal(
        "a negative label value",
        CHECK,
        f"case b: {LABEL}: label values must lie in 0 to 65535, got -1 to 2; renumber them",
        voxels(LABEL, put(-1, np.int16)),
    ),
    Refusal(
        "a label value that dataset.json does not name",
        CHECK,
        "case b: 1 voxels of the label hold 7, outside the classes 0 to 2 of dataset.json; name these values there or "
        "mend the label",
        voxels(LABEL, put(7, np.uint8)),
    ),
    Refusal(
        "a sform mirrored against the qform",
        CHECK,
        f"case b: {IMAGE}: sform (RAS) and qform (LAS) disagree by a flip; find out which is right and clear the "
        "other's code",
        mirrored_qform,
    ),
    Refusal(
        "orientation codes in some files only",
        CHECK,
        "data: 2 of 10 files have no orientation in the header (qform_code and sform_code are 0) and may be mirrored "
        "against the others; set it or take these cases out: imagesTr/b.nii.gz, labelsTr/b.nii.gz",
        lambda: [set_header(path, sform_code=0, qform_code=0) for path in (IMAGE, LABEL)],
    ),
    Refusal(
        "a label without orientation codes",
        CHECK,
        f"case b: {LABEL}: has no orientation in its header (qform_code, sform_code) where its image has one; copy the "
        "header of the file that has one, if both hold the same places",
        lambda: set_header(LABEL, sform_code=0, qform_code=0),
    ),
    Refusal(
        "a spacing whose working grid exceeds memory",
        CHECK,
        f"case b: {IMAGE}: (12, 10, 9) voxels of (600.0, 600.0, 600.0) mm become (7200, 6000, 5400) at the working "
        "spacing of (1.0, 1.0, 1.0) mm (z, y, x), 3.48e+03 GiB where memory holds ...; mend the spacing in the header, "
        "crop the volume, or train with a larger data.spacing_mm",
        wide_voxels,
    ),
    Refusal(
        "a NaN, met by a training: nothing is begun",
        f"{TRAIN} --name other",
        f"case b: {IMAGE}: 1 voxels are NaN or infinite; replace them by the background's intensity",
        voxels(IMAGE, put(np.nan)),
    ),
]

RUNS = [
    Refusal(
        "a study without data: no run is begun",
        "vnet experiment --config tiny.yaml --data.root nowhere",
        "nowhere: no such folder; name the folder that holds dataset.json",
    ),
    Refusal(
        "curves of runs that are not there",
        "vnet tensorboard nowhere",
        "nowhere: no such folder; name a folder of runs, as vnet experiment makes them",
    ),
    Refusal(
        "a run folder with another experiment",
        f"{GO_ON} --training.learning_rate 0.1",
        f"{RUN}: holds another experiment (training.learning_rate 0.1, there 0.003); give this one another name or "
        "run_root, or remove that folder",
    ),
    Refusal(
        "a run whose data changed",
        GO_ON,
        f"{RUN}: holds another experiment (other data); give this one another name or run_root, or remove that folder",
        voxels(IMAGE, put(50)),
    ),
    Refusal(
        "a run that another machine makes",
        GO_ON,
        f"{RUN}: in use by process 4711 on elsewhere; if it does not run there any more, remove {RUN}/lock.json",
        lambda: (
            (RUN / "cases.csv").unlink(),
            (RUN / "lock.json").write_text('{"host": "elsewhere", "process": 4711, "started": "1"}'),
        ),
    ),
    Refusal(
        "a run folder with foreign files",
        f"{TRAIN} --name other",
        "runs/other/dense/fold0_seed0: holds files but no run.json of this project; name another run_root or name",
        text("runs/other/dense/fold0_seed0/thesis.txt", "mine"),
    ),
    Refusal(
        "a file in the place of the run folder",
        f"{TRAIN} --name other",
        "runs/other/dense/fold0_seed0: a file stands where a folder is needed; name another folder",
        text("runs/other/dense/fold0_seed0", "mine"),
    ),
    Refusal(
        "a file in the place of run_root",
        f"{TRAIN} --run_root tiny.yaml",
        "tiny.yaml/cache: a file stands where a folder is needed; name another folder",
    ),
    Refusal(
        "a link in the place of the run folder",
        f"{TRAIN} --name other",
        "runs/other/dense/fold0_seed0: is a link, which writing does not follow; put a folder or file there",
        lambda: elsewhere(Path("runs/other/dense/fold0_seed0")),
    ),
    Refusal(
        "a link in the place of a run's file",
        GO_ON,
        f"{RUN}/log.txt: is a link, which writing does not follow; put a folder or file there",
        both(
            unfinished("cases.csv", "log.txt"),
            text("mine.txt", "mine"),
            lambda: (RUN / "log.txt").symlink_to(Path("mine.txt").resolve()),
        ),
    ),
    Refusal(
        "a checkpoint that would run code",
        PREDICT,
        f"{RUN}/checkpoints/last.ckpt: not a checkpoint of this project (holds more than tensors and plain values); "
        "train again or restore it",
        pickled_code,
    ),
    Refusal(
        "a pickle in the place of a checkpoint",
        PREDICT,
        f"{RUN}/checkpoints/last.ckpt: not a checkpoint of this project (...); train again or restore it",
        text(RUN / "checkpoints/last.ckpt", pickle.dumps(Bomb())),
    ),
    Refusal(
        "a torn checkpoint",
        GO_ON,
        f"{RUN}/checkpoints/last.ckpt: not a checkpoint of this project (torn or foreign); train again or restore it",
        both(
            unfinished("cases.csv"),
            lambda: os.truncate(RUN / "checkpoints/last.ckpt", 5000),
        ),
    ),
    Refusal(
        "a checkpoint of another network",
        PREDICT,
        f"{RUN}/checkpoints/last.ckpt: checkpoint of another network: ... is ... there and ... in the config; use the "
        "config that it was trained with",
        other_network,
    ),
    Refusal(
        "no checkpoint",
        PREDICT,
        f"{RUN}/checkpoints/last.ckpt: no such checkpoint; train the run first, or name another with --checkpoint",
        unfinished("checkpoints/last.ckpt"),
    ),
    Refusal(
        "no run",
        "vnet evaluate data",
        "data: not a run (no config.yaml and run.json); name a folder RUN_ROOT/NAME/ARM/foldF_seedS",
    ),
    Refusal("a run whose config is damaged", PREDICT, f"{RUN}/config.yaml: ...", text(RUN / "config.yaml", "a: [")),
    Refusal(
        "an evaluation before the training has ended",
        EVALUATE,
        f"{RUN}: its training has not ended; run the training command again",
        lambda: (RUN / "run.json").write_text(
            json.dumps({k: v for k, v in json.loads((RUN / "run.json").read_text()).items() if k != "steps"})
        ),
    ),
    Refusal(
        "an evaluation on other structures",
        EVALUATE,
        "data: structures ['background', 'left', 'right'], the network knows ['background', 'near', 'far']; make the "
        "labels in dataset.json agree",
        same_channels_other_names,
    ),
    Refusal(
        "an evaluation on other channels",
        EVALUATE,
        "data: 2 channels, the network reads 1; name a data set of the same kind",
        two_channels,
    ),
    Refusal("no input", f"vnet predict {RUN} --input none --output out", "--input none: no such file or folder"),
    Refusal(
        "an input without volumes",
        f"vnet predict {RUN} --input data --output out",
        "--input data: no NIfTI file (.nii.gz or .nii) there",
    ),
    Refusal(
        "labels in the place of their images",
        f"vnet predict {RUN} --input data/imagesTr --output data/imagesTr",
        "--output data/imagesTr: a.nii.gz there is the image itself; name another folder",
    ),
    Refusal(
        "an image with other channels",
        f"vnet predict {RUN} --input {IMAGE} --output out",
        f"{IMAGE}: 2 channels, the network reads 1",
        voxels(IMAGE, lambda array: np.stack([array, array], -1)),
    ),
    Refusal(
        "an image whose working grid exceeds memory",
        PREDICT,
        f"{IMAGE}: (12, 10, 9) voxels of (600.0, 600.0, 600.0) mm become (7200, 6000, 5400) at the working spacing of "
        "(1.0, 1.0, 1.0) mm (z, y, x), ...",
        wide_voxels,
        code=3,
    ),
    Refusal(
        "an image without orientation codes among others that have them",
        PREDICT,
        f"{IMAGE}: no orientation in the header (qform_code and sform_code are 0) where other files have one: it may "
        "be mirrored against them; copy the orientation from the original",
        header(sform_code=0, qform_code=0),
        code=3,
    ),
    Refusal(
        "an image of another format",
        f"vnet predict {RUN} --input scan.mha --output out",
        "--input scan.mha: MetaImage is not read; convert it to NIfTI",
        text("scan.mha", "ObjectType = Image"),
    ),
    Refusal(
        "one file of a DICOM series",
        f"vnet predict {RUN} --input scans/1.dcm --output out",
        "--input scans/1.dcm: DICOM is not read; name the folder of its series",
        text("scans/1.dcm", bytes(128) + b"DICM"),
    ),
    Refusal(
        "DICOM files that are no images",
        DICOM,
        "scans: none of its 1 DICOM files is an image; name the folder of a series",
        text("scans/IM0001", bytes(128) + b"DICM"),
        needs="dicom",
    ),
    Refusal(
        "several DICOM series in a folder",
        DICOM,
        'scans: holds 2 series: number 3 "thin" CT (5 files), number 3 "thin" CT (3 files); give the one to label a '
        "folder of its own",
        both(scans(0, 1, 2, 3, 4), scans(0, 1, 2)),
        needs="dicom",
    ),
    Refusal(
        "a DICOM series without one of its slices",
        DICOM,
        "scans: its slices lie 5 to 10 mm apart (one is missing?); copy the whole series, or resample it to even steps",
        scans(0, 1, 3, 4),
        needs="dicom",
    ),
    Refusal(
        "a DICOM segmentation of NIfTI images",
        f"{PREDICT} --save dicom_seg",
        "--save dicom_seg: data/imagesTr holds NIfTI files, which name no patient and study; name the folder of a "
        "DICOM series, or save seg_nrrd",
    ),
    Refusal(
        "the code of a structure that there is not",
        f"{PREDICT} --inference.codes '{{heart: [80891009, SCT, Heart]}}'",
        "inference.codes: heart is no structure; they are near, far",
    ),
    Refusal(
        "another table in the place of the volumes",
        PREDICT,
        "out/volumes.csv: is another table (its columns: name, age); name another folder",
        text("out/volumes.csv", "name,age\nx,3\n"),
    ),
    Refusal(
        "a damaged image among sound ones: they are labelled, it is named",
        PREDICT,
        f"{IMAGE}: truncated or damaged gzip (...); copy or download it again",
        packed(lambda raw: raw[:-40]),
        code=3,
    ),
    Refusal(
        "a GPU where there is none",
        f"{PREDICT} --device cuda:1",
        "--device cuda:1: torch can use no GPU here; take --device auto or cpu",
    ),
    Refusal(
        "a device of another name",
        f"{EVALUATE} --device gpu",
        "--device must be auto, cpu, cuda or cuda:N, got gpu",
    ),
    Refusal(
        "a file in the place of the output folder",
        f"vnet predict {RUN} --input data/imagesTr --output tiny.yaml",
        "tiny.yaml: a file stands where a folder is needed; name another folder",
    ),
    Refusal(
        "a model that does not come with the project",
        "vnet predict --model hippo --input data/imagesTr --output out",
        "--model hippo: no such model; it is one of hippocampus",
    ),
    Refusal(
        "a run beside a model",
        f"vnet predict {RUN} --model hippocampus --input data/imagesTr --output out",
        f"command line: {RUN}: --model stands in place of RUN; leave one of the two out",
    ),
    Refusal(
        "a bundle in a folder that holds files",
        f"vnet export {RUN} data",
        "data: is there and not an empty folder; name another for the bundle",
    ),
    Refusal(
        "a bundle of a training that has not ended",
        f"vnet export {RUN} bundle",
        f"{RUN}: its training has not ended; run the training command again",
        in_training,
    ),
    Refusal(
        "a bundle without its config",
        "vnet predict bundle --input data/imagesTr --output out",
        "bundle/configs/metadata.json: holds no config under vnet; export the bundle with vnet export",
        text("bundle/configs/metadata.json", "{}"),
    ),
    Refusal(
        "a table that lacks columns",
        COMPARE,
        f"{RUN}/cases.csv: lacks the columns ...; is it a cases.csv of this project?",
        text(RUN / "cases.csv", "arm,fold\ndense,0\n"),
    ),
    Refusal(
        "a margin without a reason",
        f"{COMPARE} --margin 1",
        "the margin of 1 Dice needs a reason, which is printed; give --margin-reason",
    ),
    Refusal(
        "label files under an arm's name",
        f"{COMPARE} --predictions pointrend_s2 data/labelsTr",
        "--predictions pointrend_s2: must be a name that no arm of the study has; choose another",
    ),
    Refusal(
        "no folder of label files",
        f"{COMPARE} --predictions other none",
        "--predictions other: none is no folder; name one that holds CASE.nii.gz",
    ),
    Refusal(
        "label files of no scored case",
        f"{COMPARE} --predictions other empty",
        "empty: holds no NIfTI file, no case of the study; name the files a.nii.gz and so on",
        lambda: Path("empty").mkdir(),
    ),
    Refusal(
        "label files on another grid",
        f"{COMPARE} --predictions other others",
        "others/a.nii.gz: ...; resample the label to the image's grid",
        lambda: write_volume(Path("others/a.nii.gz"), np.zeros((9, 10, 11), np.uint8)),
    ),
    Refusal(
        "label files and no data set with the truth",
        f"{COMPARE} --predictions other data/labelsTr --data none",
        "none: no such folder; name the folder that holds dataset.json",
    ),
    Refusal(
        "a Dice above 1",
        COMPARE,
        f"{RUN}/cases.csv: column dice must lie in [0, 1], got 1.5; run the evaluation again",
        text(RUN / "cases.csv", f"{CASES}dense,0,0,b,organ,false,1.5,1,1,1\n"),
    ),
    Refusal(
        "rows that disagree on what is in a case",
        COMPARE,
        "case b, structure organ: absent in the truth by one row (blank) and overlapping by another (Dice 0.5); ...",
        text(RUN / "cases.csv", f"{CASES}dense,0,0,b,organ,false,.5,1,1,1\nwide,0,0,b,organ,false,,,,\n"),
    ),
    Refusal(
        "phantoms over a data set", "vnet data phantoms data", "data: is there already; name a new folder or remove it"
    ),
    Refusal("a plan without memory", "vnet data plan data --memory_mib 0", "--memory_mib must be positive, got 0.0"),
]

GROUPS = {"Config": CONFIG, "Data set": DATA_SET, "Volumes": VOLUMES, "Runs, checkpoints and commands": RUNS}


PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """# Errors

Each row is a test (`tests/errors`): the command prints this line on stderr, without a traceback, ends with exit code 2
(or the one in brackets) and leaves every file as it was. `...` stands for text that depends on the machine or is long.
`python -m tests.errors.refusals` writes this page.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for group, rules in GROUPS.items():
        parts += [f"## {group}\n", "| what is wrong | command | error: |", "|---|---|---|"]
        exits = {rule.what: f" (exit {rule.code})" if rule.code != 2 else "" for rule in rules}
        parts += [f"| {rule.what} | {code(rule.command)} | {code(rule.message)}{exits[rule.what]} |" for rule in rules]
        parts.append("")
    return "\n".join(parts)


def code(words: str) -> str:
    """Markdown code in a table's cell."""
    shown = words.replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
