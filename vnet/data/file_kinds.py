"""What a file is, by its name and by its first bytes, and what to do with one that is no NIfTI volume."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".nii.gz", ".nii")  # read, in upper and lower case
FIRST_BYTES = 540  # of a file, enough to tell its kind: the length of a NIfTI-2 header

# other formats of volumes, by the ending of the file's name
FOREIGN_ENDINGS = {
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mgz": "FreeSurfer MGH",
    ".mgh": "FreeSurfer MGH",
    ".hdr": "Analyze or a NIfTI pair",
    ".img": "Analyze or a NIfTI pair",
    ".mnc": "MINC",
    ".dcm": "DICOM",
    ".ima": "DICOM",
    ".dicom": "DICOM",
    ".gipl": "GIPL",
    ".vtk": "VTK",
    ".nii.bz2": "NIfTI packed with bzip2",
    ".nii.xz": "NIfTI packed with xz",
    ".nii.zst": "NIfTI packed with zstd",
    ".nii.zip": "NIfTI packed with zip",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".npy": "NumPy",
    ".npz": "NumPy",
}
DCM2NIIX = "convert the series with dcm2niix"


def is_nifti(name: str) -> bool:
    """Whether a file's name ends in .nii.gz or .nii, in upper or lower case."""
    return name.lower().endswith(ENDINGS)


def foreign_format(name: str) -> str | None:
    """The format of a volume that is not read, by its file's name; None for other files."""
    lower = name.lower()
    return next((kind for ending, kind in FOREIGN_ENDINGS.items() if lower.endswith(ending)), None)


def conversion(kind: str) -> str:
    """What makes a NIfTI volume of another format."""
    return DCM2NIIX if kind == "DICOM" else "convert it to NIfTI"


def stem(path: Path) -> str:
    """Case name of a file: its name without the ending."""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def file_fault(path: Path, first: bytes) -> str | None:
    """What a file is in place of what its name says, with advice; None where the first bytes say nothing of the kind.

    Args:
        first: the first bytes of the file as it lies on disk, at least `FIRST_BYTES` of them where it is as long.
    """
    packed = path.name.lower().endswith(".gz")
    if not first:
        return "is empty (0 bytes); copy or download it again"
    if first.startswith(b"\x1f\x8b"):
        return None if packed else f"is packed with gzip but not named so; rename it to {path.name}.gz"
    if is_nifti_header(first):
        return f"is not packed with gzip but named so; rename it to {path.name[:-3]}" if packed else None
    return content_fault(first)


def content_fault(first: bytes) -> str | None:
    """What bytes that should be a NIfTI header are, with advice; None where they are nothing that is known."""
    text = first.lstrip().lower()
    if first.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the volume; fetch it with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "is a web page and not a volume (a download that failed?); download it again"
    if first[128:132] == b"DICM":
        return f"is a DICOM file; {DCM2NIIX}"
    if first.startswith(b"\x1f\x8b"):
        return "is packed with gzip twice; unpack it once"
    if first.startswith(b"NRRD000"):
        return "is an NRRD file; convert it to NIfTI"
    if text.startswith((b"objecttype", b"ndims")):
        return "is a MetaImage file; convert it to NIfTI"
    if first.startswith((b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is packed with another tool than gzip; unpack it"
    return None


def is_nifti_header(first: bytes) -> bool:
    """Whether bytes begin with the header size of NIfTI-1 or NIfTI-2 in either byte order."""
    return bool({int.from_bytes(first[:4], "little"), int.from_bytes(first[:4], "big")} & {348, 540})
