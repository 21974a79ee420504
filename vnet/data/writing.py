"""Labels and maps written as NIfTI on the grid of the image they belong to, whole or not at all."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from vnet.core.errors import InputError
from vnet.data.affines import canonical
from vnet.data.volumes import Volume


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
