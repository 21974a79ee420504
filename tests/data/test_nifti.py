"""NIfTI files: damage is refused by name, unusual ones are read as SimpleITK reads them; headers worked by hand."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vnet.core.errors import InputError
from vnet.data.affines import (
    axis_codes,
    axis_cosine,
    canonical_steps,
    corner_distance_mm,
    is_turned,
    relative_orientation,
    spacing_zyx,
    voxel_to_mm,
)
from vnet.data.case_files import list_inputs
from vnet.data.checks import check_dataset, examine
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import find_warnings, report_dataset
from vnet.data.nifti import foreign_format, read_header, stem
from vnet.data.volumes import read_image, read_label, volume_from_array, write_labels
from vnet.evaluation.metrics import case_metrics

VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3)


def nifti_bytes(**fields):
    """A NIfTI-1 file of VOXELS with header fields overwritten, whatever they claim."""
    image = nib.Nifti1Image(VOXELS, np.diag([1.0, 2.0, 3.0, 1.0]))
    raw = bytearray(image.to_bytes())
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name][0] = value
    return bytes(raw)


def refuse(path, content, message):
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as caught:
            read_image([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(caught.value.faults) == 1
    assert str(path) in caught.value.faults[0]
    assert peak < 64 * 2**20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 10000, 10000, 10000, 1, 1, 1, 1]}, r"the header claims 1e\+12 voxels .* more than memory holds"),
        ({"dim": [3, 500, 500, 100, 1, 1, 1, 1]}, r"truncated: the header claims 50000000 bytes of voxels"),
        ({"dim": [3, 5, 0, 3, 1, 1, 1, 1]}, r"an axis has length 0 \(shape \(5, 0, 3\)\)"),
        ({"dim": [3, 5, -4, 3, 1, 1, 1, 1]}, r"damaged header \(dim"),
        ({"dim": [9, 5, 4, 3, 1, 1, 1, 1]}, r"damaged header \(dim"),
        ({"dim": [5, 5, 4, 3, 2, 2, 1, 1]}, r"5-D \(shape \(5, 4, 3, 2, 2\)\) where 3-D"),
        ({"datatype": 128, "bitpix": 24}, r"voxels of type .* are not read"),
        ({"datatype": 32, "bitpix": 64}, r"voxels of type complex64 are not read"),
        ({"datatype": 9999}, r"damaged header|not read"),
        ({"vox_offset": 1e30}, r"voxels said to start at byte 1e\+30"),
        ({"vox_offset": np.nan}, r"voxels said to start at byte nan"),
        ({"magic": b"ni1"}, r"not a single-file NIfTI"),
        ({"srow_x": [0, 0, 0, 0]}, r"the affine is singular"),
        ({"srow_y": [1, 0, 0, 0]}, r"the affine is singular"),
        ({"srow_x": [np.nan, 0, 0, 0]}, r"the affine is not finite"),
        ({"scl_slope": 2.0, "scl_inter": np.inf}, r"slope 2.0 and intercept inf must be finite"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_headers_that_lie_are_refused_before_memory_is_taken(fields, message, ending, tmp_path):
    content = nifti_bytes(**fields)
    refuse(tmp_path / f"scan{ending}", gzip.compress(content, mtime=0) if ending == ".nii.gz" else content, message)


def test_a_spacing_of_zero_is_refused(tmp_path):
    content = nifti_bytes(sform_code=0, qform_code=0, pixdim=[1, 0, 1, 1, 0, 0, 0, 0])
    refuse(tmp_path / "scan.nii", content, r"the affine is singular \(spacing \(0.0, 1.0, 1.0\) mm\)")


def test_a_gzip_bomb_is_refused_without_being_unpacked(tmp_path):
    bomb = gzip.compress(nifti_bytes() + bytes(200 * 2**20), 9)
    assert len(bomb) < 2**20
    refuse(tmp_path / "scan.nii.gz", bomb, "holds more data than its header claims")


def test_a_claimed_extension_is_not_read(tmp_path):
    """nibabel would read the two gigabytes that the extension says it has."""
    raw = bytearray(nifti_bytes(vox_offset=2**24 - 16))
    raw[348:360] = struct.pack("<4B2i", 1, 0, 0, 0, 2**31 - 16, 6)
    refuse(tmp_path / "scan.nii", bytes(raw), "truncated")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scan.nii.gz", gzip.compress(nifti_bytes(), mtime=0)[:-30], "truncated or damaged gzip"),
        ("scan.nii.gz", gzip.compress(nifti_bytes(), mtime=0)[:-6], "truncated or damaged gzip"),
        ("scan.nii.gz", gzip.compress(nifti_bytes()[:-10], mtime=0), "truncated: 10 bytes of its voxels are missing"),
        ("scan.nii", nifti_bytes()[:-10], "truncated"),
        ("scan.nii", nifti_bytes()[:200], "truncated within its header"),
        ("scan.nii.gz", b"plain text, not gzip", "truncated or damaged gzip"),
        ("scan.nii", b"some words of a text" * 40, "not a NIfTI file"),
    ],
)
def test_damaged_files_are_refused(name, content, message, tmp_path):
    refuse(tmp_path / name, content, message)


def test_a_damaged_checksum_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(nifti_bytes(), mtime=0))
    packed[-8] ^= 1
    refuse(tmp_path / "scan.nii.gz", bytes(packed), "truncated or damaged gzip")


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.nii: no such file; restore it"):
        read_header(tmp_path / "none.nii")
    with pytest.raises(InputError, match=r"not a file; name a NIfTI volume"):
        read_header(tmp_path)


def test_names_cannot_move_the_cursor_or_break_the_line(tmp_path):
    path = tmp_path / "a\n\x1b[2Jb.nii"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert "\n" not in caught.value.report()
    assert "\x1b" not in caught.value.report()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_flipped_bytes_never_end_in_a_traceback(tmp_path_factory, data):
    raw = bytearray(nifti_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    packed = data.draw(st.booleans())
    path = tmp_path_factory.mktemp("fuzz") / ("scan.nii.gz" if packed else "scan.nii")
    path.write_bytes(gzip.compress(bytes(raw), 1, mtime=0) if packed else bytes(raw))
    for read in (lambda: read_image([path]), lambda: read_label(path)):
        try:
            volume = read()
        except InputError:
            continue
        assert np.isfinite(volume.array).all()
        assert min(volume.spacing_mm) > 0


NIFTI = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4)).to_bytes()


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.nii", b"", r"is empty \(0 bytes\); copy or download it again"),
        ("a.nii.gz", b"", r"is empty \(0 bytes\); copy or download it again"),
        ("a.nii.gz", NIFTI, "is not packed with gzip but named so; rename it to a.nii$"),
        ("A.NII.GZ", NIFTI, "is not packed with gzip but named so; rename it to A.NII$"),
        ("a.nii", gzip.compress(NIFTI, mtime=0), r"is packed with gzip but not named so; rename it to a.nii.gz$"),
        (
            "a.nii.gz",
            gzip.compress(gzip.compress(NIFTI, mtime=0), mtime=0),
            "is packed with gzip twice; unpack it once",
        ),
        (
            "a.nii.gz",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a Git LFS pointer .*; fetch it with git lfs",
        ),
        ("a.nii", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer .*; fetch it with git lfs"),
        ("a.nii.gz", b"\n <!DOCTYPE HTML><html>", r"is a web page and not a volume .*; download it again"),
        ("a.nii", b"<html><body>404</body></html>", r"is a web page and not a volume"),
        ("a.nii.gz", gzip.compress(b"<html>" * 99, mtime=0), r"is a web page and not a volume"),
        ("a.nii", bytes(128) + b"DICM" + bytes(400), "is a DICOM file; convert the series with dcm2niix"),
        ("a.nii.gz", bytes(128) + b"DICM" + bytes(400), "is a DICOM file; convert the series with dcm2niix"),
        ("a.nii", b"NRRD0004\ntype: short", "is an NRRD file; convert it to NIfTI"),
        ("a.nii", b"ObjectType = Image\nNDims = 3", "is a MetaImage file; convert it to NIfTI"),
        ("a.nii.gz", b"BZh91AY&SY", "is packed with another tool than gzip; unpack it"),
        ("a.nii.gz", b"PK\x03\x04", "is packed with another tool than gzip; unpack it"),
        ("a.nii", b"no volume at all", r"not a NIfTI file \(.nii, .nii.gz\); convert the volume"),
        ("a.nii.gz", b"no volume at all", "truncated or damaged gzip"),
    ],
)
def test_the_advice_is_that_of_the_content(name, content, advice, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=advice) as caught:
        read_header(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["A.NII", "a.Nii.gz", "A.NII.GZ"])
def test_endings_in_capitals_are_read(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(NIFTI, mtime=0) if name.lower().endswith(".gz") else NIFTI)
    assert read_label(tmp_path / name).array.shape == (3, 4, 5)
    assert stem(tmp_path / name) in ("A", "a")


def test_names_of_volumes_that_are_not_read():
    assert foreign_format("scan.MHA") == "MetaImage"
    assert foreign_format("scan.nii.bz2") == "NIfTI packed with bzip2"
    assert foreign_format("scan.dcm") == "DICOM"
    assert foreign_format("scan.nii.gz") is foreign_format("notes.txt") is foreign_format("scan.png") is None
    assert stem(Path("a.b.nii.gz")) == "a.b"
    assert stem(Path("notes.txt")) == "notes.txt"


TILT = np.deg2rad(25)


def tilted(spacing_xyz=(1.0, 1.0, 2.0)):
    """A gantry tilt: slices stay upright along x and y, the step to the next slice leans towards the front."""
    x, y, z = spacing_xyz
    affine = np.diag([x, y, z, 1.0])
    affine[:3, 2] = 0, z * np.sin(TILT), z * np.cos(TILT)
    return affine


def rotated(axes, spacing_xyz, angle):
    affine = np.eye(4)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = (turn * spacing_xyz)[:, axes]
    return affine


def test_of_axes_at_right_angles_the_matrix_is_the_spacing():
    for angle in (0.0, 0.3, 0.7):
        affine = rotated([2, 0, 1], (0.5, 2.0, 3.0), angle)
        np.testing.assert_allclose(voxel_to_mm(affine), np.diag(spacing_zyx(affine)), rtol=1e-12)
        assert (voxel_to_mm(affine) - np.diag(np.diag(voxel_to_mm(affine))) == 0).all()
    assert spacing_zyx(rotated([2, 0, 1], (0.5, 2.0, 3.0), 0.3)) == pytest.approx((3.0, 2.0, 0.5))


def test_of_a_tilted_grid_lengths_and_volume_are_those_of_the_affine():
    affine = tilted()
    matrix = voxel_to_mm(affine)
    offsets = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (2, 3, -4)])
    x, y, z = offsets[:, 2], offsets[:, 1], offsets[:, 0]
    by_hand = np.sqrt(x**2 + (y + 2 * z * np.sin(TILT)) ** 2 + (2 * z * np.cos(TILT)) ** 2)
    np.testing.assert_allclose(np.linalg.norm(offsets @ matrix.T, axis=1), by_hand)
    assert np.linalg.det(matrix) == pytest.approx(2 * np.cos(TILT))
    assert volume_from_array(np.zeros((3, 4, 5)), affine).voxel_ml == pytest.approx(0.002 * np.cos(TILT))
    assert volume_from_array(np.zeros((3, 4, 5)), np.diag([2, -3, 4, 1])).voxel_ml == pytest.approx(0.024)
    assert axis_cosine(affine) == pytest.approx(np.sin(TILT))
    assert spacing_zyx(affine) == pytest.approx((2, 1, 1))


def test_a_tilted_grid_stored_in_other_axes_has_the_same_matrix():
    affine = tilted()
    turned = affine.copy()
    turned[:3, :3] = affine[:3, [2, 0, 1]] * (-1, 1, -1)
    np.testing.assert_allclose(np.abs(voxel_to_mm(turned)), np.abs(voxel_to_mm(affine)), atol=1e-12)
    np.testing.assert_allclose(canonical_steps(turned), canonical_steps(affine), atol=1e-12)


def test_axes_are_compared_with_each_other_and_not_with_the_body():
    """Half-way between two body axes a grid and its copy with exchanged axes have other codes, or the same ones."""
    affine = rotated([0, 1, 2], (1.0, 1.0, 2.0), np.deg2rad(45))
    assert not is_turned(relative_orientation(affine, affine))
    exchanged = affine[:, [1, 0, 2, 3]]
    assert relative_orientation(exchanged, affine).tolist() == [[1, 1], [0, 1], [2, 1]]
    mirrored = affine * [-1, 1, 1, 1]
    assert relative_orientation(mirrored, affine).tolist() == [[0, -1], [1, 1], [2, 1]]
    assert axis_codes(np.diag([-1, -2, 3, 1])) == "LPS"


def test_the_distance_of_grids_is_that_of_their_farthest_corners():
    assert corner_distance_mm(np.diag([1, 1, 1.5, 1]), np.eye(4), (3, 4, 5)) == pytest.approx(2.5)


RNG = np.random.default_rng(0)
SHAPE = (5, 4, 3)  # x, y, z
SCAN = RNG.integers(0, 3, SHAPE).astype(np.uint8)


def oblique(degrees=20.0, spacing=(0.5, 2.0, 3.0), origin=(10.0, -20.0, 30.0)):
    a = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return affine


def agree(path, volume):
    """SimpleITK's voxels lie at the places, and have the values, of the volume's."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)  # (z, y, x[, c])
    four = array[..., None] if image.GetNumberOfComponentsPerPixel() == 1 else array
    if image.GetDimension() == 4:
        four = np.moveaxis(array, 0, -1)
        image = image[..., 0]
    ours = volume.array if volume.array.ndim == 4 else volume.array[None]
    back = np.stack([volume.restore(one) for one in ours], -1)  # file axes (x, y, z, c)
    np.testing.assert_allclose(four.transpose(2, 1, 0, 3), back, rtol=1e-6, atol=1e-6)
    for index in ((0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (4, 3, 2)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)  # LPS
        np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], (-x, -y, z), rtol=1e-5, atol=1e-5)


def texts(volume):
    return [(remark.topic, remark.text, remark.detail) for remark in volume.remarks]


def scan_bytes(voxels, affine, **fields):
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(affine, code=fields.pop("sform_code", 0))
    image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name][0] = value
    return bytes(raw)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_qfac_of_zero_with_the_orientation_in_the_qform_alone(ending, tmp_path):
    affine = oblique()
    content = scan_bytes(SCAN, affine, pixdim=[0, 0.5, 2, 3, 0, 0, 0, 0])
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    volume = read_image([path])
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert texts(volume) == [("header", "pixdim[0] is 0 and read as 1, as the standard says", "")]
    agree(path, volume)
    write_labels(tmp_path / "out.nii.gz", volume.array[0].astype(np.uint8), volume)
    agree(tmp_path / "out.nii.gz", read_label(tmp_path / "out.nii.gz"))


def test_what_simpleitk_writes_is_read(tmp_path):
    image = sitk.GetImageFromArray(SCAN.transpose())
    image.SetSpacing((0.5, 2.0, 3.0))
    a = np.deg2rad(20)
    image.SetDirection((np.cos(a), -np.sin(a), 0, np.sin(a), np.cos(a), 0, 0, 0, 1))
    image.SetOrigin((-10, 20, 30))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    agree(tmp_path / "scan.nii.gz", read_label(tmp_path / "scan.nii.gz"))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_header_extensions_of_any_size(ending, tmp_path):
    """Twenty megabytes of comment before the voxels."""
    size = 20 * 2**20
    content = scan_bytes(SCAN, oblique(), sform_code=1, vox_offset=352 + size)
    extension = struct.pack("<4B2i", 1, 0, 0, 0, size, 6) + bytes(size - 8)
    content = content[:348] + extension + content[352:]
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(content, 1) if ending == ".nii.gz" else content)
    volume = read_image([path])
    np.testing.assert_array_equal(volume.restore(volume.array[0]), SCAN)
    assert texts(volume) == [("header", "header extensions are skipped", "20.0 MiB")]
    agree(path, volume)


@pytest.mark.parametrize(("slope", "intercept"), [(0.0035, 0.0), (0.007, 0.0), (0.0035, -0.5)])
def test_whole_labels_that_went_through_scaled_integers(slope, intercept, tmp_path):
    stored = np.rint((SCAN - intercept) / slope).astype(np.int16)
    image = nib.Nifti1Image(stored, oblique())
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(tmp_path / "label.nii.gz")
    near = np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    assert 0 < np.abs(near - SCAN).max() < 0.01
    label = read_label(tmp_path / "label.nii.gz")
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.restore(label.array), SCAN)
    ((topic, text, detail),) = texts(label)
    assert (topic, text) == ("label", "label values are rounded to whole numbers")
    assert float(detail.removeprefix("by up to ")) == pytest.approx(np.abs(near - SCAN).max(), rel=0.05)
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "label.nii.gz")))
    np.testing.assert_array_equal(np.rint(read).transpose(), label.restore(label.array))


@pytest.mark.parametrize("value", [0.996, 1.00002, 2.9999999, -0.004, 65535.004])
def test_labels_within_a_hundredth_of_whole_numbers_are_rounded(value, tmp_path):
    voxels = np.zeros(SHAPE)
    voxels[1, 2, 1] = value
    nib.Nifti1Image(voxels, oblique()).to_filename(tmp_path / "label.nii")
    assert read_label(tmp_path / "label.nii").array[1, 2, 1] == round(value)


@pytest.mark.parametrize("value", [0.98, 1.0101, -0.011])
def test_labels_further_off_are_refused(value, tmp_path):
    voxels = np.zeros(SHAPE)
    voxels[1, 2, 1] = value
    nib.Nifti1Image(voxels, oblique()).to_filename(tmp_path / "label.nii")
    with pytest.raises(InputError, match="not whole; resample with nearest|must lie in 0 to 65535"):
        read_label(tmp_path / "label.nii")


@pytest.mark.parametrize("degrees", [0.0, 20.0, 45.0, 70.0])
@pytest.mark.parametrize("axes", [[(0, -1), (1, -1), (2, 1)], [(2, 1), (0, -1), (1, 1)], [(1, 1), (0, 1), (2, -1)]])
def test_a_label_in_other_axes_on_its_images_grid(axes, degrees, tmp_path):
    """At 45 degrees image and label may each be nearest to other axes of the body."""
    image = nib.Nifti1Image(RNG.normal(size=SHAPE).astype(np.float32), oblique(degrees))
    label = nib.Nifti1Image(SCAN, oblique(degrees)).as_reoriented(np.array(axes))
    image.to_filename(tmp_path / "scan.nii")
    label.to_filename(tmp_path / "label.nii")
    volume = read_image([tmp_path / "scan.nii"])
    read = read_label(tmp_path / "label.nii", volume)
    np.testing.assert_array_equal(volume.restore(read.array), SCAN)
    ((topic, text, detail),) = texts(read)
    assert (topic, text) == ("orientation", "stored along other axes than its image, on the same grid: turned")
    if degrees != 45:  # there either code is right
        assert detail == f"{''.join(nib.aff2axcodes(label.affine))}, the other {volume.orientation}"
    agree(tmp_path / "label.nii", read_label(tmp_path / "label.nii"))
    # SimpleITK, asked at the places of the image's voxels, finds the same labels
    theirs = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "label.nii")),
        sitk.ReadImage(str(tmp_path / "scan.nii")),
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs).transpose(), SCAN)


def test_a_channel_in_other_axes_on_the_first_ones_grid(tmp_path):
    one, two = (nib.Nifti1Image(RNG.normal(size=SHAPE).astype(np.float32), oblique()) for _ in range(2))
    one.to_filename(tmp_path / "a_0000.nii")
    two.as_reoriented(np.array([(2, 1), (0, -1), (1, 1)])).to_filename(tmp_path / "a_0001.nii")
    volume = read_image([tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"])
    for channel, image in enumerate((one, two)):
        np.testing.assert_array_equal(volume.restore(volume.array[channel]), image.get_fdata(dtype=np.float32))


def test_a_label_on_another_grid_is_told_to_be_resampled(tmp_path):
    nib.Nifti1Image(SCAN, oblique()).to_filename(tmp_path / "scan.nii")
    nib.Nifti1Image(SCAN, oblique(spacing=(0.5, 2.0, 3.5))).to_filename(tmp_path / "label.nii")
    with pytest.raises(InputError, match="affine differs from that of its image, corners lie .*; resample the label"):
        read_label(tmp_path / "label.nii", read_image([tmp_path / "scan.nii"]))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_vector_files_of_itk(ending, tmp_path):
    """x, y, z, 1, c: what SimpleITK writes of an image with several components."""
    voxels = RNG.normal(size=(*SHAPE, 2)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing((0.5, 2.0, 3.0))
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, str(path))
    assert nib.load(path).shape == (*SHAPE, 1, 2)
    volume = read_image([path])
    np.testing.assert_array_equal(volume.restore(volume.array[1]), voxels[..., 1])
    assert [text for text in texts(volume) if text[0] == "channels"] == [
        ("channels", "vectors (5-D: x, y, z, 1, channels) are read as channels", "")
    ]
    agree(path, volume)
    assert read_header(path).channels == 2


def test_four_dimensional_files_hold_channels_along_the_last_axis(tmp_path):
    voxels = RNG.normal(size=(*SHAPE, 2)).astype(np.float32)
    nib.Nifti1Image(voxels, oblique()).to_filename(tmp_path / "BRATS_0001.nii.gz")
    agree(tmp_path / "BRATS_0001.nii.gz", read_image([tmp_path / "BRATS_0001.nii.gz"]))


@pytest.mark.parametrize("unit", ["micron", "meter", "mm", "unknown"])
def test_units_are_those_of_simpleitk(unit, tmp_path):
    image = nib.Nifti1Image(SCAN, None)
    image.header.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), code=1)
    image.header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), code=1)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "scan.nii")
    spacing = sitk.ReadImage(str(tmp_path / "scan.nii")).GetSpacing()
    assert read_image([tmp_path / "scan.nii"]).spacing_mm[::-1] == pytest.approx(spacing)


def test_a_sheared_file_is_read_here_and_refused_by_simpleitk(tmp_path):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.deg2rad(25))
    image = nib.Nifti1Image(SCAN, None)
    image.header.set_sform(affine, code=1)
    image.to_filename(tmp_path / "scan.nii")
    with pytest.raises(RuntimeError, match=r"orthonormal|orthogonal"):
        sitk.ReadImage(str(tmp_path / "scan.nii"))
    np.testing.assert_allclose(read_image([tmp_path / "scan.nii"]).affine, affine)


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
