"""What a header says of space: values worked by hand from the affine, remarks, refusals."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from vnet.core.errors import InputError
from vnet.data.case_files import list_inputs
from vnet.data.checks import check_dataset, examine
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import find_warnings, report_dataset
from vnet.data.nifti import read_header
from vnet.data.volumes import read_image, read_label
from vnet.evaluation.metrics import case_metrics

VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
TILT = np.deg2rad(25)


def written(path, affine, *, sform=1, qform=0, qform_affine=None, unit="mm", voxels=VOXELS):
    """A file of these forms and codes."""
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(affine, code=sform)
    image.header.set_qform(affine if qform_affine is None else qform_affine, code=qform, strip_shears=True)
    image.header.set_xyzt_units(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def remarks(path):
    return [(remark.topic, remark.text, remark.detail, remark.warning) for remark in read_header(path).remarks]


def tilted():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 2] = 0, 2 * np.sin(TILT), 2 * np.cos(TILT)
    return affine


def test_without_codes_the_first_axis_runs_to_the_left(tmp_path):
    """ITK takes the identity in LPS, nibabel centres the volume; both mirror an image whose other axis was meant."""
    path = written(tmp_path / "scan.nii", np.diag([2.0, 3.0, 4.0, 1.0]), sform=0)
    by_hand = np.diag([-2.0, 3.0, 4.0, 1.0])
    by_hand[:3, 3] = 2 * 2.0, -1.5 * 3.0, -1 * 4.0  # the middle voxel at the origin
    volume = read_image([path])
    np.testing.assert_allclose(volume.affine, by_hand)
    assert volume.orientation == "LAS"
    np.testing.assert_array_equal(volume.array[0], VOXELS.transpose()[:, :, ::-1])
    ((topic, text, detail, warning),) = remarks(path)
    assert (topic, detail, warning) == ("orientation", "", True)
    assert text.startswith("no orientation in the header (qform_code and sform_code are 0): the first axis is taken to")


def test_a_qform_alone_is_no_fault(tmp_path):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    path = written(tmp_path / "scan.nii", affine, sform=0, qform=1)
    assert remarks(path) == []
    np.testing.assert_allclose(read_image([path]).affine, affine, atol=1e-6)


@pytest.mark.parametrize("mirrored", [[-1, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1]])
def test_forms_that_disagree_by_a_flip_are_refused(mirrored, tmp_path):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    path = written(tmp_path / "scan.nii", affine, qform=1, qform_affine=affine * mirrored)
    codes = nib.aff2axcodes(affine * mirrored)
    with pytest.raises(
        InputError, match=rf"scan.nii: sform \(RAS\) and qform \({''.join(codes)}\) disagree by a flip; find out which"
    ):
        read_header(path)


def test_forms_that_disagree_by_an_exchange_of_axes_are_refused(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    path = written(tmp_path / "scan.nii", affine, qform=1, qform_affine=affine[:, [1, 2, 0, 3]])
    with pytest.raises(InputError, match="disagree by a flip"):
        read_header(path)


@pytest.mark.parametrize(("shift_mm", "warned"), [(0.19, False), (0.21, True)])
def test_forms_that_disagree_by_more_than_a_tenth_of_a_voxel_are_a_warning(shift_mm, warned, tmp_path):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    other = affine.copy()
    other[0, 3] = shift_mm
    path = written(tmp_path / "scan.nii", affine, qform=1, qform_affine=other)
    expected = [("orientation", "sform and qform differ: the sform is used", "by 0.21 mm", True)] if warned else []
    assert remarks(path) == expected
    np.testing.assert_allclose(read_image([path]).affine, affine)


def test_a_rotation_between_the_forms_is_no_flip_however_thick_the_slices(tmp_path):
    """Ten degrees of thick slices look like an exchange of axes where lengths are not taken out."""
    angle = np.deg2rad(10)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine, other = np.diag([0.5, 0.5, 8.0, 1.0]), np.eye(4)
    other[:3, :3] = turn @ affine[:3, :3]
    path = written(tmp_path / "scan.nii", affine, qform=1, qform_affine=other)
    # the farthest corner is 3 slices up and 4 rows back: it moves by 24 sin 10 - ... mm along y
    along_y = abs(4 * 0.5 * (np.cos(angle) - 1) - 3 * 8 * np.sin(angle))
    assert remarks(path) == [("orientation", "sform and qform differ: the sform is used", f"by {along_y:.3g} mm", True)]


def test_a_tilted_gantry_is_read_with_a_warning_and_its_own_volume(tmp_path):
    path = written(tmp_path / "scan.nii", tilted())
    volume = read_image([path])
    assert volume.spacing_mm == pytest.approx((2, 1, 1))
    assert volume.voxel_ml == pytest.approx(0.002 * np.cos(TILT))
    ((topic, text, detail, warning),) = remarks(path)
    assert (topic, warning) == ("shear", True)
    assert text == "the axes are not at right angles (gantry tilt?): distances and volumes follow the affine"
    assert detail.startswith("25.0 degrees, ")


def test_distances_and_volumes_of_a_tilted_scan_are_those_of_the_affine(tmp_path):
    """A plate of 12.5 mm by 12.5 mm by 5 slices, against its copy one slice further on, brute force over all pairs."""
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    affine[1, 2] = 5 * np.tan(TILT)  # slices lie 5 mm apart, each further to the front
    truth, moved = np.zeros((2, 29, 29, 9), np.uint8)
    truth[2:27, 2:27, 2:7] = moved[2:27, 2:27, 3:8] = 1
    files = [written(tmp_path / f"{name}.nii", affine, voxels=one) for name, one in (("a", truth), ("b", moved))]
    image = read_image([files[0]])
    one, other = (read_label(file, image).array for file in files)
    (row,) = case_metrics(other, one, ("background", "plate"), image.voxel_to_mm, 1.0)
    edges = []
    for voxels in (moved, truth):
        inner = ndimage.binary_erosion(voxels, iterations=1)
        edges.append(np.argwhere(voxels & ~inner) @ affine[:3, :3].T)
    apart = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=2)
    brute = max(np.percentile(apart.min(axis), 95) for axis in (0, 1))
    assert row["hd95_mm"] == pytest.approx(brute)
    assert row["hd95_mm"] == pytest.approx(5.07, abs=0.005)
    assert row["truth_ml"] == row["predicted_ml"] == pytest.approx(25 * 25 * 5 * 0.5 * 0.5 * 5 / 1000)
    assert row["truth_ml"] == pytest.approx(3.906, abs=0.0005)
    # by the lengths of the columns alone they would be 5.52 mm and 4.31 ml
    assert image.spacing_mm[0] == pytest.approx(5.517, abs=0.001)
    (row,) = case_metrics(other, one, ("background", "plate"), image.spacing_mm, 1.0)
    assert (row["hd95_mm"], row["truth_ml"]) == pytest.approx((5.52, 4.31), abs=0.005)


def test_volumes_in_the_check_are_those_of_the_affine(decathlon):
    root = decathlon(2)
    for path in sorted(root.glob("*Tr/*.nii.gz")):
        written(path, tilted(), voxels=np.asarray(nib.load(path).dataobj).copy())
    report = report_dataset(root, progress=False)
    assert [finding.topic for finding in report.findings] == ["shear"]
    volume = 8 * 0.002 * np.cos(TILT)
    assert f"near: in 2 cases, median {volume:.3g} ml, from {volume:.3g} to {volume:.3g}" in list(report.summary())


def test_rounding_of_an_oblique_affine_is_no_shear(tmp_path):
    angle = np.deg2rad(33)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.round(affine, 4)
    assert remarks(written(tmp_path / "scan.nii", affine)) == []


@pytest.mark.parametrize(("unit", "name", "factor"), [("micron", "micron", 1e-3), ("meter", "metre", 1e3)])
@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
def test_lengths_are_converted_to_mm(unit, name, factor, sform, qform, tmp_path):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 5, -6, 7
    path = written(tmp_path / "scan.nii", affine, sform=sform, qform=qform, unit=unit)
    volume = read_image([path])
    np.testing.assert_allclose(volume.affine[:3], affine[:3] * factor, rtol=1e-6)
    assert volume.spacing_mm == pytest.approx((4 * factor, 3 * factor, 2 * factor))
    assert volume.voxel_ml == pytest.approx(24 * factor**3 / 1000)
    assert remarks(path) == [("units", f"lengths are given in {name} and read as mm", "", True)]


# --- rules on data sets ---


def rewrite(root, names, **forms):
    for name in names:
        for folder in ("imagesTr", "labelsTr"):
            path = root / folder / f"{name}.nii.gz"
            written(path, np.eye(4), voxels=np.asarray(nib.load(path).dataobj).copy(), **forms)


def test_all_files_without_codes_are_a_warning_in_the_check_and_in_training(decathlon):
    root = decathlon(2)
    rewrite(root, ["case_00", "case_01"], sform=0)
    dataset = open_dataset(root)
    (finding,) = find_warnings(dataset, check_dataset(dataset, None, progress=False).facts)
    assert finding.topic == "orientation"
    files = "imagesTr/case_00.nii.gz, labelsTr/case_00.nii.gz, imagesTr/case_01.nii.gz, labelsTr/case_01.nii.gz"
    assert finding.what.startswith(f"{files}: no orientation in the header")
    assert finding in report_dataset(root, progress=False).findings


def test_some_files_without_codes_are_refused_and_named(decathlon, tmp_path):
    root = decathlon(3)
    rewrite(root, ["case_01"], sform=0)
    fault = (
        f"{root}: 2 of 6 files have no orientation in the header (qform_code and sform_code are 0) and may be mirrored "
        "against the others; set it or take these cases out: imagesTr/case_01.nii.gz, labelsTr/case_01.nii.gz"
    )
    for _ in range(2):  # the second time from the kept facts
        assert examine(open_dataset(root), tmp_path / "cache", progress=False).faults == (fault,)


def test_a_label_without_codes_is_not_told_to_be_resampled(decathlon):
    root = decathlon(2)
    path = root / "labelsTr/case_01.nii.gz"
    written(path, np.eye(4), voxels=np.asarray(nib.load(path).dataobj).copy(), sform=0)
    (fault,) = examine(open_dataset(root), progress=False).faults
    assert fault == (
        f"case case_01: {path}: has no orientation in its header (qform_code, sform_code) where its image has one; "
        "copy the header of the file that has one, if both hold the same places"
    )


def test_warnings_of_many_files_are_one_line(decathlon):
    root = decathlon(7)
    rewrite(root, [f"case_{number:02d}" for number in range(7)], unit="micron")
    dataset = open_dataset(root)
    (finding,) = find_warnings(dataset, check_dataset(dataset, None, progress=False).facts)
    assert finding.what.endswith(" and 9 more: lengths are given in micron and read as mm")


def test_training_prints_warnings_on_stdout(decathlon, capsys, tmp_path):
    from vnet.core.config import load_config
    from vnet.data.prepared import prepare_data

    root = decathlon(5)
    rewrite(root, [f"case_{number:02d}" for number in range(5)], unit="micron")
    text = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(text | {"modality": {"0": "CT scan"}}))
    config = load_config(["--data.root", str(root), "--run_root", str(tmp_path / "runs"), "--name", "x"])
    prepared = prepare_data(config, progress=False)
    assert prepared.preprocessing.spacing_mm == (0.001, 0.001, 0.001)
    shown = capsys.readouterr()
    assert shown.err == ""
    first, second = shown.out.splitlines()
    assert first.startswith("warning: imagesTr/case_00.nii.gz, labelsTr/case_00.nii.gz, ")
    assert second.startswith("warning: channel 0 is called 'CT scan': the intensity rule of CT is used for the name CT")


def test_prediction_has_the_same_warnings_as_the_check(tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    shifted = affine + 0.3 * np.eye(4)[[3, 3, 3, 3]] * [[1], [0], [0], [0]]
    written(tmp_path / "in/a.nii", tilted())
    written(tmp_path / "in/b.nii", affine, unit="meter")
    written(tmp_path / "in/c.nii", affine, qform=1, qform_affine=shifted)
    written(tmp_path / "in/d.nii", affine)
    inputs = list_inputs(tmp_path / "in", 1)
    assert list(inputs.cases) == ["a", "b", "c", "d"]
    assert all(finding.warning for finding in inputs.findings)
    said = dict(finding.what.split(": ", 1) for finding in inputs.findings)
    tilt, *others = said
    assert tilt.startswith("in/a.nii (25.0 degrees, ")
    assert others == ["in/b.nii", "in/c.nii (by 0.3 mm)"]


def test_a_training_with_a_working_grid_beyond_memory_is_refused(decathlon, tmp_path):
    from vnet.core.config import load_config
    from vnet.data.prepared import prepare_data

    root = decathlon(5)
    rewrite(root, ["case_03"], unit="meter")
    config = load_config(["--data.root", str(root), "--run_root", str(tmp_path / "runs"), "--name", "x"])
    with pytest.raises(
        InputError, match=r"^case case_03: .*/imagesTr/case_03.nii.gz: \(7, 6, 5\) voxels of \(1000.0, 1000"
    ):
        prepare_data(config, progress=False)


def test_a_labels_grid_may_be_in_other_units_than_its_image(tmp_path):
    image = read_image([written(tmp_path / "scan.nii", np.diag([2.0, 3.0, 4.0, 1.0]))])
    label = read_label(written(tmp_path / "label.nii", np.diag([2e3, 3e3, 4e3, 1.0]), unit="micron"), image)
    np.testing.assert_array_equal(label.array, image.array[0])
