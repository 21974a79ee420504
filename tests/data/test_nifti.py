"""NIfTI files: damaged and hostile ones are refused by name, unusual ones are read as SimpleITK reads them."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

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
from vnet.data.nifti import foreign_format, read_header, stem
from vnet.data.volumes import read_image, read_label, volume_from_array, write_labels

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
