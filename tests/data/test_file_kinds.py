"""Advice by a file's first bytes and name."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vnet.core.errors import InputError
from vnet.data.file_kinds import foreign_format, stem
from vnet.data.nifti import read_header
from vnet.data.volumes import read_label

NIFTI = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4)).to_bytes()


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.nii", b"", r"is empty \(0 bytes\); copy or download it again"),
        ("a.nii.gz", b"", r"is empty \(0 bytes\); copy or download it again"),
        ("a.nii.gz", NIFTI, "is not packed with gzip but named so; rename it to a.nii$"),
        ("A.NII.GZ", NIFTI, "is not packed with gzip but named so; rename it to A.NII$"),
        ("a.nii", gzip.compress(NIFTI), r"is packed with gzip but not named so; rename it to a.nii.gz$"),
        ("a.nii.gz", gzip.compress(gzip.compress(NIFTI)), "is packed with gzip twice; unpack it once"),
        (
            "a.nii.gz",
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a Git LFS pointer .*; fetch it with git lfs",
        ),
        ("a.nii", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer .*; fetch it with git lfs"),
        ("a.nii.gz", b"\n <!DOCTYPE HTML><html>", r"is a web page and not a volume .*; download it again"),
        ("a.nii", b"<html><body>404</body></html>", r"is a web page and not a volume"),
        ("a.nii.gz", gzip.compress(b"<html>" * 99), r"is a web page and not a volume"),
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
    (tmp_path / name).write_bytes(gzip.compress(NIFTI) if name.lower().endswith(".gz") else NIFTI)
    assert read_label(tmp_path / name).array.shape == (3, 4, 5)
    assert stem(tmp_path / name) in ("A", "a")


def test_names_of_volumes_that_are_not_read():
    assert foreign_format("scan.MHA") == "MetaImage"
    assert foreign_format("scan.nii.bz2") == "NIfTI packed with bzip2"
    assert foreign_format("scan.dcm") == "DICOM"
    assert foreign_format("scan.nii.gz") is foreign_format("notes.txt") is foreign_format("scan.png") is None
    assert stem(Path("a.b.nii.gz")) == "a.b"
    assert stem(Path("notes.txt")) == "notes.txt"
