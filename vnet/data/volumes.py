"""NIfTI volumes in canonical order, and labels written back as the input lies.

Canonical: the axes nearest to RAS, transposed to (z, y, x), so that index 0 is the foot, back and left end. Turning
is lossless (axes swapped and flipped, nothing interpolated). A header is judged before memory is taken for what it
claims; `vnet.data.nifti` does the reading.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from vnet.core.errors import InputError
from vnet.data.affines import (
    GRID_TOLERANCE,
    affine_fault,
    axis_codes,
    canonical,
    canonical_affine,
    corner_distance_mm,
    spacing_zyx,
    voxel_to_mm,
)
from vnet.data.nifti import read_header, read_voxels


@dataclass(frozen=True)
class Volume:
    """Voxels in canonical order with what is needed to go back.

    Attributes:
        array: (C, D, H, W) float32 image, or (D, H, W) uint8 or uint16 label.
        spacing_mm: (z, y, x).
        affine: (4, 4) of the file: its own voxel indices to mm.
        shape: the file's three axes.
        header: the file's header, None for arrays in memory.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    shape: tuple[int, int, int]
    header: Any = field(default=None, repr=False)

    @property
    def orientation(self) -> str:
        """Direction of the file's axes, as RAS or LPS."""
        return axis_codes(self.affine)

    def restore(self, labels: np.ndarray) -> np.ndarray:
        """Canonical (D, H, W) labels in the order of the file's own axes."""
        if labels.shape != self.array.shape[-3:]:
            raise ValueError(f"labels must be {self.array.shape[-3:]}, got {labels.shape}")
        back = ornt_transform(axcodes2ornt(("R", "A", "S")), io_orientation(self.affine))
        return np.ascontiguousarray(apply_orientation(labels.transpose(), back))

    def canonical_affine(self) -> np.ndarray:
        """(4, 4) from canonical (x, y, z) voxel indices to mm."""
        return canonical_affine(self.affine, self.shape)

    @property
    def voxel_to_mm(self) -> np.ndarray:
        """(3, 3) matrix M: an offset of v = (z, y, x) voxels has the length |M v| in mm, sheared grids included."""
        return voxel_to_mm(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml, by the determinant of the affine."""
        return float(abs(np.linalg.det(self.voxel_to_mm))) / 1000


def read_image(paths: Sequence[Path | str]) -> Volume:
    """An image as float32, from one file per channel or one 3-D or 4-D file.

    Returns:
        Volume whose array is (C, D, H, W).

    Raises:
        InputError: a file that is missing, damaged or hostile, NaN or infinite voxels, channels on different grids.
    """
    channels: list[np.ndarray] = []
    first: Volume | None = None
    for path in map(Path, paths):
        header, shape, affine = read_header(path)
        here = Volume(np.empty(0), spacing_zyx(affine), affine, (shape[0], shape[1], shape[2]), header)
        if first is not None and (fault := grid_fault(here, first, "channel 0")):
            raise InputError(f"{path}: {fault}; resample the channels to one grid")
        first = first or here
        voxels = read_voxels(path, header, shape)
        four = voxels.reshape(*shape[:3], -1)
        channels += [as_float(canonical(four[..., c], affine), path) for c in range(four.shape[-1])]
    if first is None:
        raise ValueError("paths must name at least one file, got none")
    array = channels[0][None] if len(channels) == 1 else np.stack(channels)
    return Volume(array, first.spacing_mm, first.affine, first.shape, first.header)


def as_float(voxels: np.ndarray, path: Path) -> np.ndarray:
    """Contiguous float32, refused where a voxel is NaN, infinite, or beyond float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.ascontiguousarray(voxels, np.float32)
        finite = np.isfinite(array.min()) and np.isfinite(array.max())
    if not finite:
        bad = array.size - int(np.isfinite(array).sum())
        raise InputError(f"{path}: {bad} voxels are NaN or infinite; replace them by the background's intensity")
    return array


def read_label(path: Path | str) -> Volume:
    """A label volume.

    Returns:
        Volume whose array is (D, H, W) uint8, or uint16 where a value exceeds 255.

    Raises:
        InputError: as `read_image`; 4-D, values that are not whole or do not lie in 0 to 65535.
    """
    path = Path(path)
    header, shape, affine = read_header(path)
    if len(shape) > 3:
        raise InputError(f"{path}: the label is {len(shape)}-D {shape} where 3-D is due; keep one 3-D volume")
    voxels = read_voxels(path, header, shape)
    array = np.ascontiguousarray(canonical(as_whole(voxels, path), affine))
    return Volume(array, spacing_zyx(affine), affine, (shape[0], shape[1], shape[2]), header)


def as_whole(voxels: np.ndarray, path: Path) -> np.ndarray:
    """uint8 or uint16 labels, refused where that would change a value."""
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path}: the label holds NaN or infinite voxels; write whole label values")
    if low < 0 or high >= 2**16:
        raise InputError(f"{path}: label values must lie in 0 to 65535, got {low} to {high}; renumber them")
    whole = voxels.astype(np.uint8 if high < 256 else np.uint16)
    if voxels.dtype.kind == "f" and (bad := int((whole != voxels).sum())):
        raise InputError(f"{path}: {bad} voxels hold label values that are not whole; resample with nearest neighbour")
    return whole


def grid_fault(one: Volume, other: Volume, whose: str = "the other") -> str | None:
    """How a volume's grid differs from another, None where they are the same."""
    if one.shape != other.shape:
        return f"shape {one.shape} differs from {other.shape} of {whose}"
    apart = corner_distance_mm(one.affine, other.affine, one.shape)
    if apart > GRID_TOLERANCE * min(one.spacing_mm):
        return f"affine differs from that of {whose}, corners lie {apart:.3g} mm apart"
    return None


def volume_from_array(image: np.ndarray, affine: np.ndarray) -> Volume:
    """A volume of an image in memory.

    Args:
        image: (X, Y, Z) or (X, Y, Z, C) real numbers, axes as nibabel gives them.
        affine: (4, 4) voxel to mm.

    Raises:
        ValueError: other shapes, an empty axis, an affine that is not invertible, NaN or infinite voxels.
    """
    image, affine = np.asarray(image), np.asarray(affine, np.float64)
    if image.ndim not in (3, 4) or 0 in image.shape or image.dtype.kind not in "iufb":
        raise ValueError(f"image must be real (X, Y, Z) or (X, Y, Z, C), got {image.dtype} {image.shape}")
    if fault := affine_fault(affine):
        raise ValueError(f"affine must be invertible (4, 4), got {fault}")
    x, y, z = image.shape[:3]
    four = image.reshape(x, y, z, -1)
    array = np.stack([canonical(four[..., c], affine) for c in range(four.shape[-1])]).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("image must be finite, got NaN or infinite voxels")
    return Volume(array, spacing_zyx(affine), affine, (x, y, z))


def write_labels(path: Path | str, labels: np.ndarray, like: Volume) -> None:
    """Write canonical (D, H, W) labels with the axes, affine and header of `like`.

    The file appears whole or not at all: it is written beside and renamed.

    Raises:
        ValueError: labels of another shape or not of whole numbers.
        InputError: a file name that is not .nii or .nii.gz.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: labels are written as .nii or .nii.gz; choose such a name")
    if labels.dtype.kind not in "ui":
        raise ValueError(f"labels must be of an integer type, got {labels.dtype}")
    write_nifti(path, like.restore(labels), like.affine, like.header)


def write_scaled(
    path: Path | str, slabs: Iterable[tuple[int, int, np.ndarray]], like: Volume, *, dtype: type, channels: int
) -> None:
    """Write whole numbers that stand for shares of their type's largest value: readers see 0 to 1.

    Nothing but a slab is held in memory; beside the file an uncompressed one lies while it is written.

    Args:
        slabs: first, last, (channels, last - first, H, W) of `dtype`, planes of the canonical volume.
        like: gives axes, affine and header.
        dtype: unsigned.
        channels: the length of a fourth axis; 1 writes three.

    Raises:
        InputError: a file name that is not .nii or .nii.gz.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: maps are written as .nii or .nii.gz; choose such a name")
    shape = like.shape if channels == 1 else (*like.shape, channels)
    header = scaled_header(like, shape, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing_", dir=path.parent) as folder:
        plain = Path(folder) / "plain.nii"
        with plain.open("wb") as file:
            header.write_to(file)
            file.truncate(int(header["vox_offset"]) + int(np.prod(shape)) * header.get_data_dtype().itemsize)
        place = int(header["vox_offset"])
        voxels = np.memmap(plain, header.get_data_dtype(), "r+", offset=place, shape=(*like.shape, channels), order="F")
        views = [canonical(voxels[..., channel], like.affine) for channel in range(channels)]
        for first, last, slab in slabs:
            for view, values in zip(views, slab, strict=True):
                view[first:last] = values
        voxels.flush()
        done = plain
        if path.name.endswith(".gz"):
            done = Path(folder) / "packed.nii.gz"
            with plain.open("rb") as source, gzip.open(done, "wb", compresslevel=1) as target:
                shutil.copyfileobj(source, target, 2**20)
        done.chmod(0o666 & ~current_umask())
        done.replace(path)


def scaled_header(like: Volume, shape: Sequence[int], dtype: type) -> Any:
    """A single-file header with the grid of `like` and the slope that maps the largest value of `dtype` to 1."""
    if like.header is None:
        header = nib.Nifti1Header()
        header.set_xyzt_units("mm")
        header.set_data_shape(shape)
        header.set_sform(like.affine, 2)
        header.set_qform(like.affine, 0)
    else:
        header = like.header.copy()
        header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1 / np.iinfo(dtype).max, 0)
    header["cal_min"], header["cal_max"] = 0, 1
    header["vox_offset"] = header.sizeof_hdr + 4  # four zero bytes: no extension
    return header


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, header: Any = None) -> None:
    """Write (X, Y, Z[, C]) voxels under a temporary name, then rename."""
    if header is None:
        image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        image.header.set_xyzt_units("mm")
    else:
        header = header.copy()
        header.set_data_dtype(voxels.dtype)
        header["cal_min"] = header["cal_max"] = 0
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        # no affine given: the header's own sform and qform stay as they are, bit for bit
        image = kind(voxels, None, header)
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".writing_", suffix=ending, dir=path.parent)
    os.close(handle)
    try:
        image.to_filename(temporary)
        Path(temporary).chmod(0o666 & ~current_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
