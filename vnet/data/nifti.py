"""NIfTI files read without trust: the header is judged before memory is taken for what it claims.

nibabel parses the header; the bytes are read here, because nibabel allocates what a header or its extensions claim,
and reads a gzip stream to wherever it leads.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from vnet.core.errors import InputError
from vnet.core.hardware import memory_limit_bytes
from vnet.data.affines import Grid
from vnet.data.header_affine import Remark, is_coded, read_affine, short_path

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


MAGIC = {348: (nib.Nifti1Header, b"n+1\0", 344), 540: (nib.Nifti2Header, b"n+2\0", 4)}
TRAILING_BYTES = 2**16  # padding that tools leave after the voxels
DEFLATE_RATIO = 1032  # deflate cannot expand further
LARGEST_OFFSET = 2**62
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)

EXTENSIONS = "header extensions are skipped"
EXTENSION_BYTES = 2**20  # extensions above this size are remarked on
VECTOR_FILE = "vectors (5-D: x, y, z, 1, channels) are read as channels"


@dataclass(frozen=True)
class FileHeader:
    """The judged header of a NIfTI file.

    Attributes:
        path: of the file.
        header: nibabel's header.
        shape: the file's three axes, or four where the fourth (channels) is longer than 1.
        affine: (4, 4), the file's own voxel indices to mm.
        remarks: what the header leaves open and how it was understood.
    """

    path: Path
    header: Any
    shape: tuple[int, ...]
    affine: np.ndarray
    remarks: tuple[Remark, ...] = ()

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        x, y, z = self.shape[:3]
        return Grid(self.affine, (x, y, z), is_coded(self.remarks))

    @property
    def channels(self) -> int:
        return self.shape[3] if len(self.shape) > 3 else 1


def is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked by its ending; an error in reading becomes one line of InputError."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file; name a NIfTI volume")  # a pipe would be waited on for ever
    try:
        with path.open("rb") as raw:
            if fault := file_fault(path, raw.read(FIRST_BYTES)):
                raise InputError(f"{path}: {fault}")
            raw.seek(0)
            if not is_gzip(path):
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream  # type: ignore[misc]
    except DAMAGE as error:
        raise InputError(f"{path}: truncated or damaged gzip ({error}); copy or download it again") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; restore it or correct the name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def read_header(path: Path) -> FileHeader:
    """The header of a NIfTI file, judged; no voxel is read.

    Raises:
        InputError: not NIfTI, an axis of length 0, more voxels than memory or than the file can hold, values that
            are not real numbers, an affine that is not invertible, a sform flipped against the qform.
    """
    with opened(path) as stream:
        header = parse_header(path, stream.read(FIRST_BYTES))
    shape, is_vector = read_shape(path, header)
    refuse_strange(path, header)
    refuse_unbounded(path, header, shape)
    affine, remarks = read_affine(path, header, shape)
    if (extensions := int(header["vox_offset"]) - header.sizeof_hdr) > EXTENSION_BYTES:
        remarks += (Remark(short_path(path), "header", EXTENSIONS, f"{extensions / 2**20:.1f} MiB"),)
    if is_vector:
        remarks += (Remark(short_path(path), "channels", VECTOR_FILE),)
    return FileHeader(path, header, shape, affine, remarks)


def parse_header(path: Path, block: bytes) -> Any:
    """nibabel's header of the first 540 bytes of a file."""
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")} & MAGIC.keys()
    if not sizes:
        raise InputError(f"{path}: {content_fault(block) or 'not a NIfTI file (.nii, .nii.gz); convert the volume'}")
    kind, magic, place = MAGIC[sizes.pop()]
    size = kind.sizeof_hdr
    if len(block) < size:
        raise InputError(f"{path}: truncated within its header; copy or download it again")
    if block[place : place + 4] != magic:
        raise InputError(f"{path}: not a single-file NIfTI (its magic is {block[place : place + 4]!r}); convert it")
    try:
        # four zero bytes: no extensions, which nibabel would read unbounded
        return kind.from_fileobj(io.BytesIO(block[:size] + bytes(4)), check=False)
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: damaged header ({error}); convert the volume again") from None


def read_shape(path: Path, header: Any) -> tuple[tuple[int, ...], bool]:
    """(axes of a volume: three, or four with several channels; whether channels are stored as 5-D vectors)."""
    count = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : count + 1]]
    if not 1 <= count <= 7 or any(n < 0 for n in sizes):
        raise InputError(f"{path}: damaged header (dim {[int(n) for n in header['dim']]}); convert the volume again")
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    sizes += [1] * (3 - len(sizes))
    if 0 in sizes:
        raise InputError(f"{path}: an axis has length 0 (shape {tuple(sizes)}); write the volume again")
    is_vector = len(sizes) == 5 and sizes[3] == 1  # ITK writes channels along the fifth axis, after time
    if is_vector:
        del sizes[3]
    if len(sizes) > 4:
        raise InputError(f"{path}: {len(sizes)}-D (shape {tuple(sizes)}) where 3-D, or 4-D with channels, is due")
    return tuple(sizes), is_vector


def refuse_strange(path: Path, header: Any) -> None:
    """Refuse voxels that are not real numbers of at most 8 bytes."""
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        raise InputError(f"{path}: damaged header (datatype {int(header['datatype'])}); convert the volume") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = "RGB" if dtype.fields else dtype.name
        raise InputError(f"{path}: voxels of type {name} are not read; convert them to integers or floats")


def refuse_unbounded(path: Path, header: Any, shape: tuple[int, ...]) -> None:
    """Refuse a header whose claim exceeds memory or what its file can hold."""
    voxels = int(np.prod([float(n) for n in shape]))
    size = header.get_data_dtype().itemsize
    limit = memory_limit_bytes()
    if voxels * (size + 4) > limit:  # as stored, and as float32
        raise InputError(
            f"{path}: the header claims {voxels:.3g} voxels {shape}, more than memory holds ({limit / 2**30:.1f} GiB); "
            "mend the header or crop the volume"
        )
    offset = float(header["vox_offset"])
    if not 0 <= offset <= LARGEST_OFFSET:
        raise InputError(f"{path}: damaged header (voxels said to start at byte {offset:g}); convert the volume again")
    held = path.stat().st_size * (DEFLATE_RATIO if is_gzip(path) else 1)
    if offset + voxels * size > held:
        raise InputError(
            f"{path}: truncated: the header claims {voxels * size} bytes of voxels, the file cannot hold them; "
            "copy or download it again"
        )


def read_voxels(file: FileHeader) -> np.ndarray:
    """The voxels of a file in its own axes, with slope and intercept applied.

    Raises:
        InputError: fewer or many more bytes than the header says, a damaged stream, a slope that is not finite.
    """
    path, header, shape = file.path, file.header, file.shape
    dtype = header.get_data_dtype()
    try:
        voxels: np.ndarray = np.empty(int(np.prod(shape)), dtype)
    except MemoryError:
        raise InputError(f"{path}: not enough memory for its voxels {shape}; crop the volume") from None
    with opened(path) as stream:
        # seek, not read: extensions of any size are skipped without memory for them, in a gzip stream too
        stream.seek(max(int(header["vox_offset"]), header.sizeof_hdr + 4))
        missing = fill(stream, voxels.view(np.uint8).data)
        rest = len(stream.read(TRAILING_BYTES + 1))
    if missing:
        raise InputError(f"{path}: truncated: {missing} bytes of its voxels are missing; copy or download it again")
    if rest > TRAILING_BYTES:
        raise InputError(f"{path}: holds more data than its header claims; write the volume again")
    slope, intercept = read_scaling(path, header)
    array = voxels.reshape(shape, order="F")
    if (slope, intercept) == (1.0, 0.0):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array * np.float64(slope) + intercept if dtype.itemsize > 2 else scale_small(array, slope, intercept)


def scale_small(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """8- and 16-bit voxels scaled in float32: half the memory, and images are kept as float32 anyway."""
    scaled = array.astype(np.float32, order="F")
    scaled *= np.float32(slope)
    scaled += np.float32(intercept)
    return scaled


def fill(stream: IO[bytes], buffer: memoryview) -> int:
    """Read until `buffer` is full; returns the bytes that were missing."""
    done = 0
    while done < len(buffer):
        got = stream.readinto(buffer[done : done + 2**24])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    return len(buffer) - done


def read_scaling(path: Path, header: Any) -> tuple[float, float]:
    """(slope, intercept); a slope of 0 means none, as the standard says."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or (np.isnan(slope) and np.isnan(intercept)):
        return 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise InputError(f"{path}: slope {slope} and intercept {intercept} must be finite; mend the header")
    return slope, intercept
