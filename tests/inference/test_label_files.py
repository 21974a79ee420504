"""Files in, label files out: which files become which case, and names and colours of the structures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import RUN, read_volume, run_vnet
from vnet.core.errors import InputError
from vnet.core.files import read_table
from vnet.data.affines import file_affine
from vnet.data.case_files import list_inputs
from vnet.data.colours import OKABE_ITO, as_seen, itksnap_labels, slicer_colour_table, structure_colours
from vnet.data.dataset import open_dataset
from vnet.data.dicom import structure_concepts
from vnet.data.volumes import Volume, read_image, volume_from_array
from vnet.inference.label_files import add_volumes, predict_files, volume_rows, write_seg_nrrd

SHAPE = (5, 4, 3)


def folder_of(folder: Path, *names: str, channels: int = 1) -> Path:
    """Volumes of these names; a name that ends in four digits and a star holds `channels` channels."""
    folder.mkdir(parents=True)
    for name in names:
        voxels = np.zeros((*SHAPE, channels) if name.endswith("*") else SHAPE, np.float32)
        path = folder / name.removesuffix("*")
        if path.name.lower().endswith((".nii", ".nii.gz")):
            path.write_bytes(packed(path, nib.Nifti1Image(voxels, np.eye(4)).to_bytes()))
        else:
            path.write_bytes(b"other")
    return folder


def packed(path: Path, content: bytes) -> bytes:
    import gzip

    return gzip.compress(content) if path.name.lower().endswith(".gz") else content


@pytest.mark.parametrize(
    ("channels", "files", "cases"),
    [
        (1, ["a_0000.nii.gz", "b_0000.nii"], ["a", "b"]),  # nnU-Net's imagesTs
        (1, ["a_0000.nii.gz", "a_0001.nii.gz"], ["a_0000", "a_0001"]),  # a series of scans
        (1, ["a.nii.gz", "b_0000.nii.gz", "notes.txt"], ["a", "b"]),  # an image of nnU-Net's without its ending
        (1, ["BRATS_0001.nii.gz", "BRATS_0012.nii.gz"], ["BRATS_0001", "BRATS_0012"]),
        (1, ["A.NII.GZ", "b.Nii"], ["A", "b"]),
        (2, ["a_0000.nii", "a_0001.nii", "b.nii.gz*"], ["a", "b"]),
        (4, ["BRATS_0001.nii.gz*", "BRATS_0002.nii.gz*"], ["BRATS_0001", "BRATS_0002"]),
        (4, ["B_0000.nii*", "B_0001.nii*", "B_0002.nii*", "B_0003.nii*"], [f"B_000{n}" for n in range(4)]),
        (2, ["B_0000.nii", "B_0001.nii", "B_0002.nii*"], ["B", "B_0002"]),
    ],
)
def test_files_are_gathered_to_cases(channels: int, files: list[str], cases: list[str], tmp_path: Path) -> None:
    inputs = list_inputs(folder_of(tmp_path / "in", *files, channels=channels), channels)
    assert sorted(inputs.cases) == cases
    assert inputs.faults == ()
    for found in inputs.cases.values():
        assert len(read_image(found).array) == channels
    volumes = [name.removesuffix("*") for name in files if "txt" not in name]
    assert sorted(file.name for found in inputs.cases.values() for file in found) == sorted(volumes)


@pytest.mark.parametrize(
    ("channels", "files"),
    [
        (1, ["a.nii", "a.nii.gz"]),
        (1, ["a_0000.nii", "a_0000.nii.gz"]),
        (1, ["a.nii", "a_0000.nii"]),
        (2, ["a_0000.nii"]),
        (2, ["a_0001.nii", "a_0002.nii"]),
        (2, ["a_0000.nii", "a_0001.nii", "a_0002.nii"]),
    ],
)
def test_channel_files_that_are_not_due_cost_that_case_alone(channels: int, files: list[str], tmp_path: Path) -> None:
    sound = [f"sound_{channel:04d}.nii" for channel in range(channels)]
    inputs = list_inputs(folder_of(tmp_path / "in", *files, *sound), channels)
    assert list(inputs.cases) == ["sound"]
    (fault,) = inputs.faults
    assert fault.startswith(f"--input {tmp_path / 'in'}: case a consists of {files[0]}")
    assert f"; the network reads {channels} channels: one file, or a_0000 to a_000{channels - 1}" in fault


def test_a_damaged_file_of_four_digits_is_a_case_so_that_reading_names_its_fault(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", "B_0001.nii*", channels=4)
    (folder / "B_0002.nii").write_bytes(b"")
    inputs = list_inputs(folder, 4)
    assert sorted(inputs.cases) == ["B_0001", "B_0002"]
    assert inputs.faults == ()


def test_files_that_are_passed_over_are_named_and_hidden_ones_counted(tmp_path: Path) -> None:
    names = ["a.nii", "b.mha", "c.MHA", "d.nrrd", "e.dcm", "notes.txt", "scan.png", "._a.nii", "._b.nii.gz"]
    inputs = list_inputs(folder_of(tmp_path / "in", *names), 1)
    assert list(inputs.cases) == ["a"]
    assert inputs.faults == ()
    assert [(finding.warning, finding.what) for finding in inputs.findings] == [
        (True, "--input: b.mha, c.MHA: MetaImage is not read; convert it to NIfTI"),
        (True, "--input: d.nrrd: NRRD is not read; convert it to NIfTI"),
        (True, "--input: e.dcm: DICOM is not read; convert the series with dcm2niix"),
        (False, "--input: 2 hidden files are passed over (._a.nii)"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scan.mha", b"ObjectType = Image", r"in: no NIfTI file .* there; --input: scan.mha: MetaImage is not read"),
        pytest.param(
            "IM0001",
            bytes(128) + b"DICM",
            "in: none of its 1 DICOM files is an image; name the folder of a series",
            marks=pytest.mark.dicom,
        ),
        ("notes.txt", b"words", r"no NIfTI file \(.nii.gz or .nii\) there$"),
        ("._a.nii", b"", "1 hidden file is passed over"),
    ],
)
def test_a_folder_without_volumes_says_what_it_holds(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list_inputs(tmp_path / "in", 1)


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan.mha").write_bytes(b"ObjectType = Image")
    with pytest.raises(InputError, match=r"--input .*scan.mha: MetaImage is not read; convert it to NIfTI"):
        list_inputs(tmp_path / "scan.mha", 1)


def uncode(path: Path) -> None:
    image = nib.load(path)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    image.to_filename(path)


def test_inputs_without_orientation_codes(tmp_path: Path) -> None:
    """All without: a warning. Some without: theirs is the fault, the others are predicted."""
    folder = folder_of(tmp_path / "in", "a.nii", "b.nii", "c.nii")
    uncode(folder / "b.nii")
    inputs = list_inputs(folder, 1)
    assert list(inputs.cases) == ["a", "c"]
    assert inputs.findings == ()
    (fault,) = inputs.faults
    assert fault.startswith(f"{folder / 'b.nii'}: no orientation in the header (qform_code and sform_code are 0) where")
    uncode(folder / "a.nii")
    uncode(folder / "c.nii")
    inputs = list_inputs(folder, 1)
    assert list(inputs.cases) == ["a", "b", "c"]
    assert inputs.faults == ()
    (finding,) = inputs.findings
    assert finding.warning
    assert finding.what.startswith("in/a.nii, in/b.nii, in/c.nii: no orientation in the header")


def test_what_is_trained_on_can_be_predicted(tmp_path: Path) -> None:
    """imagesTr of both layouts gives prediction the cases that training has."""
    root = tmp_path / "task"
    names = ["BRATS_0001.nii.gz", "BRATS_0002.nii.gz"]
    folder_of(root / "imagesTr", *(f"{name}*" for name in names), channels=2)
    folder_of(root / "labelsTr", *names)
    text = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "tumour"},
        "training": [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names],
    }
    for changes in ({}, {"training": None, "file_ending": ".nii.gz"}):
        described = {key: value for key, value in (text | changes).items() if value is not None}
        (root / "dataset.json").write_text(json.dumps(described))
        dataset = open_dataset(root)
        assert dataset.faults == ()
        assert {case.name: case.images for case in dataset.cases} == list_inputs(root / "imagesTr", 2).cases


# --- names and colours -----------------------------------------------------------------------------------------------

NAMES = ("background", "left kidney", 'the "other" one', "vessel")


@pytest.mark.parametrize(("count", "least"), [(2, 0.2), (7, 0.07), (25, 0.05), (118, 0.015)])
def test_colours_differ_in_every_kind_of_sight(count: int, least: float) -> None:
    """0.02 in Oklab is about the smallest difference that is seen."""
    seen = as_seen(structure_colours(count))
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1)
    assert apart[:, ~np.eye(count, dtype=bool)].min() > least


def test_a_label_has_one_colour_however_many_there_are() -> None:
    many = structure_colours(1000)
    assert many[: len(OKABE_ITO)] == OKABE_ITO == structure_colours(7)
    assert structure_colours(3) == many[:3]
    assert structure_colours(0) == ()
    distinct = list(dict.fromkeys(many))
    assert len(distinct) > 500
    assert many[len(distinct) :] == many[: 1000 - len(distinct)]  # then they repeat


def test_perceived_colours_are_those_of_a_library() -> None:
    """White is (1, 0, 0) in Oklab, red (0.628, 0.225, 0.126) by its author's table; grey is grey in every sight."""
    normal, *blind = as_seen([(255, 255, 255), (255, 0, 0), (119, 119, 119)])
    np.testing.assert_allclose(normal[:2], [[1, 0, 0], [0.628, 0.225, 0.126]], atol=1e-3)
    for sight in blind:
        np.testing.assert_allclose(sight[[0, 2]], normal[[0, 2]], atol=1e-3)


def test_slicer_table_and_itksnap_labels_name_each_value() -> None:
    rows = [line.split() for line in slicer_colour_table(NAMES).splitlines() if not line.startswith("#")]
    assert [(int(row[0]), row[1]) for row in rows] == [
        (0, "background"),
        (1, "left_kidney"),
        (2, 'the_"other"_one'),
        (3, "vessel"),
    ]
    assert [tuple(map(int, row[2:])) for row in rows[1:]] == [(*colour, 255) for colour in OKABE_ITO[:3]]
    lines = [line for line in itksnap_labels(NAMES).splitlines() if not line.startswith("#")]
    named = [re.fullmatch(r'\s*((?:\d+\s+){7})"(.*)"', line) for line in lines]
    assert [row[2] for row in named if row] == ["Clear Label", "left kidney", "the 'other' one", "vessel"]
    numbers = [list(map(int, row[1].split())) for row in named if row]
    assert numbers == [[0] * 7, *([value, *OKABE_ITO[value - 1], 1, 1, 1] for value in (1, 2, 3))]


# --- what is written -------------------------------------------------------------------------------------------------


def volume_of(shape: tuple[int, int, int], axes: str = "LPS") -> Volume:
    """An image of zeros, oblique, of 0.7 x 0.8 x 5 mm."""
    affine = file_affine(shape[::-1], (5.0, 0.8, 0.7), axes, 20.0)
    turned = [shape[next(i for i, pair in enumerate(("LR", "PA", "SI")) if letter in pair)] for letter in axes]
    return volume_from_array(np.zeros(turned, np.float32), affine)


@pytest.mark.slicer
@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR"])
def test_a_slicer_segmentation_holds_places_names_colours_and_codes(axes: str, tmp_path: Path) -> None:
    """By pynrrd alone: space directions and origin in LPS, and the fields that Slicer documents."""
    import nrrd

    volume = volume_of((5, 4, 3), axes)
    labels = np.random.default_rng(0).integers(0, 4, volume.array.shape[1:]).astype(np.uint8)
    concepts = structure_concepts(NAMES, {"vessel": [59820001, "SCT", "Blood vessel"]})
    write_seg_nrrd(tmp_path / "a.seg.nrrd", labels, volume, NAMES, concepts)
    voxels, header = nrrd.read(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(voxels, volume.restore(labels))
    assert header["space"] == "left-posterior-superior"
    to_lps = np.diag([-1.0, -1.0, 1.0])
    np.testing.assert_allclose(header["space directions"], (to_lps @ volume.affine[:3, :3]).T, atol=1e-6)
    np.testing.assert_allclose(header["space origin"], to_lps @ volume.affine[:3, 3], atol=1e-6)
    for number, name in enumerate(NAMES[1:]):
        assert header[f"Segment{number}_Name"] == name
        assert header[f"Segment{number}_LabelValue"] == str(number + 1)
        colour = [float(part) for part in header[f"Segment{number}_Color"].split()]
        np.testing.assert_allclose(colour, np.array(OKABE_ITO[number]) / 255, atol=1e-6)
    assert "~SCT^85756007^Tissue~SCT^85756007^Tissue~" in header["Segment0_Tags"]
    assert "~SCT^123037004^Anatomical Structure~SCT^59820001^Blood vessel~" in header["Segment2_Tags"]
    assert header["Segment0_Extent"] == " ".join(f"0 {n - 1}" for n in volume.shape)


def test_volumes_are_voxels_times_their_size() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[0, :2], labels[2, 3, 4] = 1, 3
    rows = volume_rows("a", labels, 0.002, NAMES)
    assert [tuple(row.values()) for row in rows] == [
        ("a", "left kidney", 10, 0.02),
        ("a", 'the "other" one', 0, 0.0),
        ("a", "vessel", 1, 0.002),
    ]


def test_the_table_of_volumes_keeps_other_cases(tmp_path: Path) -> None:
    path = tmp_path / "volumes.csv"
    for case, voxels in (("b", 1), ("a", 2), ("b", 3)):
        add_volumes(path, [{"case": case, "structure": "x, y", "voxels": voxels, "volume_ml": voxels / 8}])
    assert path.read_text().splitlines() == [
        "case,structure,voxels,volume_ml",
        'a,"x, y",2,0.250000',
        'b,"x, y",3,0.375000',
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["volumes.csv"]


def test_a_prediction_writes_tables_of_names_colours_and_volumes(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(RUN), "--input", "data/imagesTr", "--output", "out", "--preview"]
    code, out, err = run_vnet("predict", words, capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "wrote 10 files to out"
    cases = [f"{name}{ending}" for name in "abcde" for ending in (".nii.gz", "_preview.png")]
    tables = ["structures.ctbl", "structures_itksnap.txt", "volumes.csv"]
    assert sorted(file.name for file in Path("out").iterdir()) == sorted([*cases, *tables])
    assert "1 near 230 159 0 255" in Path("out/structures.ctbl").read_text().splitlines()
    assert '"far"' in Path("out/structures_itksnap.txt").read_text()
    rows = read_table(Path("out/volumes.csv"))
    labels = read_volume("out/c.nii.gz")
    found = {row["structure"]: int(row["voxels"]) for row in rows if row["case"] == "c"}
    assert found == {"near": int((labels == 1).sum()), "far": int((labels == 2).sum())}
    picture = np.asarray(Image.open("out/c_preview.png").convert("RGB"))
    for value in set(np.unique(labels)) - {0}:
        assert (picture == OKABE_ITO[value - 1]).all(-1).any()
    Path("out/volumes.csv").write_text("name,age\nx,3\n")
    code, _, err = run_vnet("predict", words, capsys)
    assert code == 2
    assert err == "error: out/volumes.csv: is another table (its columns: name, age); name another folder\n"


def test_a_format_whose_package_is_missing_is_refused_before_anything_is_predicted(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vnet.inference.label_files.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--save seg_nrrd: this Python lacks .*: pip install 'pointrend\[slicer\]'$"):
        predict_files(RUN, "data/imagesTr", "out", save=("seg_nrrd",))
    assert not Path("out").exists()
