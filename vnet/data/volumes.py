"""NIfTI volumes read in canonical order.

Canonical: the axes nearest to RAS, transposed to (z, y, x), so that index 0 is the foot, back and left end. Turning
is lossless (axes swapped and flipped, nothing interpolated). Several files of one case, channels or a label, may be
stored along different axes as long as their voxels are the same places.
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
    Grid,
    affine_fault,
    axis_codes,
    canonical,
    canonical_affine,
    grid_fault,
    is_turned,
    relative_orientation,
    spacing_zyx,
    voxel_to_mm,
)
from vnet.data.header_affine import Remark, is_coded, short_path
from vnet.data.nifti import FileHeader, read_header, read_voxels

WHOLE_TOLERANCE = 0.01  # labels that went through scaled integers or float32 are this near to whole numbers
ROUNDED = "label values are rounded to whole numbers"
OTHER_AXES = "stored along other axes than its image, on the same grid: turned"


@dataclass(frozen=True)
class Volume:
    """Voxels in canonical order with what is needed to go back.

    Attributes:
        array: (C, D, H, W) float32 image, or (D, H, W) uint8 or uint16 label.
        spacing_mm: (z, y, x).
        affine: (4, 4) of the file: its own voxel indices to mm.
        shape: the file's three axes.
        header: the file's header, None for arrays in memory.
        path: of the (first) file, None for arrays in memory.
        remarks: on the files that were read.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    shape: tuple[int, int, int]
    header: Any = field(default=None, repr=False)
    path: Path | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def orientation(self) -> str:
        """Direction of the file's axes, as RAS or LPS."""
        return axis_codes(self.affine)

    @property
    def voxel_to_mm(self) -> np.ndarray:
        """(3, 3) matrix M: an offset of v = (z, y, x) voxels has the length |M v| in mm, sheared grids included."""
        return voxel_to_mm(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml, by the determinant of the affine."""
        return float(abs(np.linalg.det(self.voxel_to_mm))) / 1000

    @property
    def grid(self) -> Grid:
        """Where the file's voxels lie."""
        return Grid(self.affine, self.shape, is_coded(self.remarks))

    def restore(self, labels: np.ndarray) -> np.ndarray:
        """Canonical (D, H, W) labels in the order of the file's own axes."""
        if labels.shape != self.array.shape[-3:]:
            raise ValueError(f"labels must be {self.array.shape[-3:]}, got {labels.shape}")
        back = ornt_transform(axcodes2ornt(("R", "A", "S")), io_orientation(self.affine))
        return np.ascontiguousarray(apply_orientation(labels.transpose(), back))

    def canonical_affine(self) -> np.ndarray:
        """(4, 4) from canonical (x, y, z) voxel indices to mm."""
        return canonical_affine(self.affine, self.shape)


def read_image(paths: Sequence[Path | str]) -> Volume:
    """An image as float32, from one file per channel or one file of all channels.

    Returns:
        Volume whose array is (C, D, H, W), on the axes of the first file.

    Raises:
        InputError: a file that is missing, damaged or hostile, NaN or infinite voxels, channels on different grids.
    """
    channels: list[np.ndarray] = []
    remarks: list[Remark] = []
    first: FileHeader | None = None
    for path in map(Path, paths):
        file = read_header(path)
        first = first or file
        views, more = read_on_grid(file, first.grid, "channel 0", "resample the channels to one grid")
        remarks += [*file.remarks, *more]
        channels += [as_float(view, path) for view in views]
    if first is None:
        raise ValueError("paths must name at least one file, got none")
    array = channels[0][None] if len(channels) == 1 else np.stack(channels)
    return Volume(
        array, spacing_zyx(first.affine), first.affine, first.grid.shape, first.header, first.path, tuple(remarks)
    )


def read_label(path: Path | str, like: Volume | None = None) -> Volume:
    """A label volume.

    Args:
        like: the image; the label must lie on its grid and comes in its canonical order. None takes the label alone.

    Returns:
        Volume whose array is (D, H, W) uint8, or uint16 where a value exceeds 255.

    Raises:
        InputError: as `read_image`; 4-D, values that are not whole or do not lie in 0 to 65535, another grid.
    """
    file = read_header(Path(path))
    if len(file.shape) > 3:
        raise InputError(f"{path}: the label is {len(file.shape)}-D {file.shape} where 3-D is due; keep one 3-D volume")
    grid = file.grid if like is None else like.grid
    (voxels,), more = read_on_grid(file, grid, "its image", "resample the label to the image's grid")
    whole, rounded = as_whole(voxels, file.path)
    array, remarks = np.ascontiguousarray(whole), (*file.remarks, *more, *rounded)
    header = file.header if like is None else like.header  # of the file whose axes the array goes back to
    return Volume(array, spacing_zyx(grid.affine), grid.affine, grid.shape, header, file.path, remarks)


def read_on_grid(file: FileHeader, grid: Grid, whose: str, mend: str) -> tuple[list[np.ndarray], list[Remark]]:
    """((D, H, W) views of the file's channels in the canonical order of `grid`, remarks).

    Raises:
        InputError: the voxels do not lie on `grid`; `mend` is the advice. Damaged voxels.
    """
    if fault := grid_fault(file.grid, grid, whose):
        raise InputError(f"{file.path}: {fault.what}; {fault.mend or mend}")
    turn = relative_orientation(file.affine, grid.affine)
    remarks = []
    if is_turned(turn):
        codes = f"{axis_codes(file.affine)}, the other {axis_codes(grid.affine)}"
        remarks.append(Remark(short_path(file.path), "orientation", OTHER_AXES, codes))
    voxels = read_voxels(file).reshape(*file.grid.shape, -1)
    channels = [canonical(apply_orientation(voxels[..., c], turn), grid.affine) for c in range(voxels.shape[-1])]
    return channels, remarks


def as_float(voxels: np.ndarray, path: Path) -> np.ndarray:
    """Contiguous float32, refused where a voxel is NaN, infinite, or beyond float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.ascontiguousarray(voxels, np.float32)
        finite = np.isfinite(array.min()) and np.isfinite(array.max())
    if not finite:
        bad = array.size - int(np.isfinite(array).sum())
        raise InputError(f"{path}: {bad} voxels are NaN or infinite; replace them by the background's intensity")
    return array


def as_whole(voxels: np.ndarray, path: Path) -> tuple[np.ndarray, tuple[Remark, ...]]:
    """(uint8 or uint16 labels, a remark where values were rounded); refused beyond `WHOLE_TOLERANCE`."""
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path}: the label holds NaN or infinite voxels; write whole label values")
    if low < -WHOLE_TOLERANCE or high > 2**16 - 1 + WHOLE_TOLERANCE:
        raise InputError(f"{path}: label values must lie in 0 to 65535, got {low} to {high}; renumber them")
    dtype = np.uint8 if high < 255.5 else np.uint16
    if voxels.dtype.kind != "f":
        return voxels.astype(dtype), ()
    rounded = np.rint(voxels)
    apart = np.abs(voxels - rounded)
    if bad := int((apart > WHOLE_TOLERANCE).sum()):
        raise InputError(f"{path}: {bad} voxels hold label values that are not whole; resample with nearest neighbour")
    most = float(apart.max())
    remarks = (Remark(short_path(path), "label", ROUNDED, f"by up to {most:.2g}"),) if most > 0 else ()
    return rounded.astype(dtype), remarks


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
