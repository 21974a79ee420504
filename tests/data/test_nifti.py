"""Damaged and hostile files: refused by name, before memory is taken."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
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
from vnet.data.volumes import read_image, read_label, volume_from_array

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
