"""Damaged and hostile files: refused by name, before memory is taken."""

import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnet.core.errors import InputError
from vnet.data.nifti import read_header
from vnet.data.volumes import read_image, read_label

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
    refuse(tmp_path / f"scan{ending}", gzip.compress(content) if ending == ".nii.gz" else content, message)


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
        ("scan.nii.gz", gzip.compress(nifti_bytes())[:-30], "truncated or damaged gzip"),
        ("scan.nii.gz", gzip.compress(nifti_bytes())[:-6], "truncated or damaged gzip"),
        ("scan.nii.gz", gzip.compress(nifti_bytes()[:-10]), "truncated: 10 bytes of its voxels are missing"),
        ("scan.nii", nifti_bytes()[:-10], "truncated"),
        ("scan.nii", nifti_bytes()[:200], "truncated within its header"),
        ("scan.nii.gz", b"plain text, not gzip", "truncated or damaged gzip"),
        ("scan.nii", b"some words of a text" * 40, "not a NIfTI file"),
    ],
)
def test_damaged_files_are_refused(name, content, message, tmp_path):
    refuse(tmp_path / name, content, message)


def test_a_damaged_checksum_is_noticed(tmp_path):
    packed = bytearray(gzip.compress(nifti_bytes()))
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
    path.write_bytes(gzip.compress(bytes(raw), 1) if packed else bytes(raw))
    for read in (lambda: read_image([path]), lambda: read_label(path)):
        try:
            volume = read()
        except InputError:
            continue
        assert np.isfinite(volume.array).all()
        assert min(volume.spacing_mm) > 0
