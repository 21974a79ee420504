"""DICOM: a series read as a volume through dcm2niix, and labels written as a DICOM segmentation.

dcm2niix gives the voxels. Where they lie is taken from the slices' own headers, because dcm2niix writes another step
between slices where the gantry was tilted.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff

from vnet.core.errors import InputError
from vnet.data.affines import Grid, affine_fault, axis_cosine, grid_fault, relative_orientation
from vnet.data.colours import structure_colours
from vnet.data.header_affine import SHEARED, Finding, name_some
from vnet.data.nifti import read_header, read_voxels
from vnet.data.volumes import Volume, volume_from_array

MISSING = "pip install 'pointrend[dicom]'"
PREAMBLE_BYTES = 132  # the last four of them are DICM
TAGS = ["SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "Rows", "Columns", "SamplesPerPixel"]
TAGS += ["NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]
TURNED = 1e-3  # between direction cosines of two slices: headers round them to a few digits
UNEVEN = 0.05  # of the step between slices: more is a missing slice
TILTED = 1e-3  # cosine between the normal of the slices and the step between them
TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's axes run left, back, up


@dataclass(frozen=True)
class Series:
    """The slices of one volume.

    Attributes:
        folder: that holds them.
        files: a slice each, in the order of their places.
        grid: (column, row, slice) indices to mm (RAS).
    """

    folder: Path
    files: tuple[Path, ...]
    grid: Grid

    def findings(self) -> list[Finding]:
        """A warning where the slices lie askew of the step between them."""
        if axis_cosine(self.grid.affine) <= TILTED:
            return []
        return [Finding("shear", f"{self.folder}: {SHEARED}", warning=True)]


def dicom_files(folder: Path) -> list[Path]:
    """The files of a folder that are DICOM by their first bytes, sorted by name; hidden files are left out."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as stream:
                if stream.read(PREAMBLE_BYTES)[128:] == b"DICM":
                    found.append(path)
    return found


def find_dcm2niix() -> str | None:
    """The program that comes with the package dcm2niix, else the one on the PATH."""
    if find_spec("dcm2niix"):
        import dcm2niix

        return str(dcm2niix.bin)
    return shutil.which("dcm2niix")


def open_series(folder: Path, files: Sequence[Path]) -> Series:
    """The one series among the DICOM files of a folder, checked to be one volume. No voxel is read.

    Raises:
        InputError: packages are missing, several series, no image, or slices that make no volume: of several sizes or
            orientations, at one place, or at uneven steps.
    """
    if find_spec("pydicom") is None or find_dcm2niix() is None:
        raise InputError(
            f"{folder}: DICOM is read with pydicom and dcm2niix, which this Python lacks: {MISSING}, or convert the "
            "series to NIfTI"
        )
    groups: dict[str, dict[Path, Any]] = defaultdict(dict)
    for file in files:
        header = read_slice_header(file)
        if "Rows" in header and header.get("Modality") != "SEG":
            groups[str(header.get("SeriesInstanceUID", ""))][file] = header
    if not groups:
        raise InputError(f"{folder}: none of its {len(files)} DICOM files is an image; name the folder of a series")
    if len(groups) > 1:
        named = name_some([describe_series(group) for group in groups.values()])
        raise InputError(f"{folder}: holds {len(groups)} series: {named}; give the one to label a folder of its own")
    (headers,) = groups.values()
    refuse_mixed(folder, headers)
    order, affine = slice_affine(folder, headers)
    header = headers[order[0]]
    return Series(folder, tuple(order), Grid(affine, (int(header.Columns), int(header.Rows), len(order))))


def read_slice_header(file: Path) -> Any:
    """pydicom's data set of a slice with `TAGS` alone."""
    import pydicom

    try:
        with silenced():
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
    except Exception as error:  # a damaged file can raise nearly anything there
        raise InputError(f"{file}: damaged DICOM ({error}); copy it again") from None


@contextmanager
def silenced() -> Iterator[None]:
    """Inside, pydicom and highdicom do not print that a header strays from the standard, as many do."""
    for name in ("pydicom", "highdicom"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def describe_series(headers: Mapping[Path, Any]) -> str:
    """`number 3 "thin" CT (120 files)`."""
    first = next(iter(headers.values()))
    words = [f"number {first.SeriesNumber}"] if first.get("SeriesNumber") is not None else []
    words += [f'"{first.SeriesDescription}"'] if first.get("SeriesDescription") else []
    words += [str(first.Modality)] if first.get("Modality") else []
    return " ".join([*words, f"({len(headers)} file{'s' * (len(headers) != 1)})"])


def refuse_mixed(folder: Path, headers: Mapping[Path, Any]) -> None:
    """Refuse slices that cannot lie on one grid, by their headers."""
    for file, header in headers.items():
        missing = [tag for tag in TAGS[-3:] if not header.get(tag)]
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise InputError(f"{file}: has several frames in a file, which is not read; convert it with dcm2niix")
        if missing:
            raise InputError(f"{file}: has no {missing[0]}, so it is no slice of a volume; take it out of the folder")
        if int(header.get("SamplesPerPixel") or 1) != 1:
            raise InputError(f"{file}: is a colour image; take it out of the folder")
    traits: dict[str, list[tuple[float, ...]]] = {
        "size": [(int(header.Rows), int(header.Columns)) for header in headers.values()],
        "pixel spacing": [tuple(map(float, header.PixelSpacing)) for header in headers.values()],
        "orientation": [tuple(map(float, header.ImageOrientationPatient)) for header in headers.values()],
    }
    for trait, values in traits.items():
        first = values[0]
        other = next((value for value in values if np.abs(np.subtract(value, first)).max() > TURNED), None)
        if other is not None:
            raise InputError(
                f"{folder}: its slices differ in {trait}: {_numbers(first)} and {_numbers(other)} (a localizer among "
                "them?); keep the slices of one volume"
            )


def _numbers(values: Sequence[float]) -> str:
    return "x".join(f"{value:.4g}" for value in values)


def slice_affine(folder: Path, headers: Mapping[Path, Any]) -> tuple[list[Path], np.ndarray]:
    """(files along the normal, (4, 4) from (column, row, slice) to mm in RAS) of slices of one size and orientation."""
    files = list(headers)
    header = headers[files[0]]
    along_row, along_column = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
    down_mm, across_mm = map(float, header.PixelSpacing)
    normal = np.cross(along_row, along_column)
    places = np.array([headers[file].ImagePositionPatient for file in files], float)
    order = np.argsort(places @ normal, kind="stable")
    places = places[order]
    if len(files) < 2:
        raise InputError(f"{folder}: holds one slice, {files[0].name}; copy the whole series")
    steps = np.diff(places @ normal)
    step = (places[-1] - places[0]) / (len(files) - 1)
    length = float(np.linalg.norm(step))
    if steps.min() <= UNEVEN * np.median(steps):
        first, second = (files[order[int(steps.argmin()) + i]].name for i in (0, 1))
        raise InputError(
            f"{folder}: {first} and {second} lie at one place (time points, echoes or copies?); keep one volume"
        )
    even = places[0] + np.arange(len(files))[:, None] * step
    if np.linalg.norm(places - even, axis=1).max() > UNEVEN * length:
        raise InputError(
            f"{folder}: its slices lie {steps.min():.4g} to {steps.max():.4g} mm apart (one is missing?); copy the "
            "whole series, or resample it to even steps"
        )
    affine = np.eye(4)
    affine[:3] = TO_RAS @ np.stack([along_row * across_mm, along_column * down_mm, step, places[0]], axis=1)
    if fault := affine_fault(affine):
        raise InputError(f"{folder}: the slices' affine is {fault}; export the series again")
    return [files[i] for i in order], affine


def read_series(series: Series) -> Volume:
    """The image of a series as `vnet.data.volumes.read_image` gives one, on dcm2niix's axes.

    Raises:
        InputError: dcm2niix fails, or gives other voxels than the slices' headers tell of.
    """
    program = find_dcm2niix()
    if program is None:
        raise InputError(f"{series.folder}: dcm2niix is missing; {MISSING}")
    with tempfile.TemporaryDirectory(prefix="series_") as folder:
        source, target = Path(folder, "slices"), Path(folder, "volume")
        source.mkdir()
        target.mkdir()
        for number, file in enumerate(series.files):  # the slices of the series alone, whatever else lies beside them
            (source / f"{number:06d}").symlink_to(file.resolve())
        words = ["-b", "n", "-z", "n", "-m", "y", "-g", "i", "-f", "volume", "-o", str(target), str(source)]
        done = subprocess.run([program, *words], capture_output=True, text=True, errors="replace")
        # beside a volume with a tilt or uneven steps lies another that is resampled
        found = [path for path in sorted(target.glob("*.nii")) if "_Tilt" not in path.name and "_Eq" not in path.name]
        if len(found) != 1:
            told = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "rror" in line]
            reason = told[-1].strip() if told else f"it gave {len(found)} volumes"
            raise InputError(f"{series.folder}: dcm2niix did not make a volume of it ({reason}); export it again")
        converted = read_header(found[0])
        turn = relative_orientation(converted.affine, series.grid.affine)
        if fault := places_fault(converted.grid, series.grid):
            raise InputError(f"{series.folder}: dcm2niix and the slices' headers disagree: {fault}; convert it by hand")
        affine = series.grid.affine @ np.linalg.inv(inv_ornt_aff(turn, converted.grid.shape))
        try:
            return volume_from_array(read_voxels(converted), affine)
        except ValueError as error:
            raise InputError(f"{series.folder}: {error}; export the series again") from None


def places_fault(grid: Grid, due: Grid) -> str | None:
    """How a converted grid differs from that of the headers; under a tilt the voxels' order alone counts."""
    if axis_cosine(due.affine) <= TILTED:
        fault = grid_fault(grid, due, "the headers")
        return fault.what if fault else None
    turn = relative_orientation(grid.affine, due.affine)
    shape = tuple(grid.shape[axis] for axis in np.argsort(turn[:, 0]))
    in_plane = np.allclose(voxel_sizes(grid.affine)[np.argsort(turn[:, 0])][:2], voxel_sizes(due.affine)[:2], rtol=1e-3)
    return None if shape == due.shape and in_plane else f"shape {shape} differs from {due.shape} of the headers"


class Concept(NamedTuple):
    """A coded concept of DICOM: code value, coding scheme designator, code meaning."""

    value: str
    scheme: str
    meaning: str


TISSUE = Concept("85756007", "SCT", "Tissue")  # what 3D Slicer calls a segment of which nothing is known
ANATOMY = Concept("123037004", "SCT", "Anatomical Structure")


def structure_concepts(structures: Sequence[str], codes: Mapping[str, Any]) -> list[tuple[Concept, Concept]]:
    """(category, type) of each structure but the background.

    Args:
        structures: names by label value, the background first.
        codes: of the config (`inference.codes`): name to [value, scheme, meaning] of the type; three more give the
            category, which is else an anatomical structure. A structure without codes is tissue.

    Raises:
        InputError: codes of a structure that is not among `structures`.
    """
    if unknown := [name for name in codes if name not in structures[1:]]:
        raise InputError(f"inference.codes: {unknown[0]} is no structure; they are {', '.join(structures[1:])}")
    concepts = []
    for name in structures[1:]:
        words = [str(word) for word in codes.get(name, ())]
        kind = Concept(*words[:3]) if words else TISSUE
        category = Concept(*words[3:]) if len(words) > 3 else ANATOMY if words else TISSUE
        concepts.append((category, kind))
    return concepts


def write_segmentation(
    path: Path,
    labels: np.ndarray,
    volume: Volume,
    series: Series,
    structures: Sequence[str],
    concepts: Sequence[tuple[Concept, Concept]],
    version: str,
) -> None:
    """Write labels as a DICOM segmentation of a series: a binary frame a slice and structure, empty ones left out.

    Args:
        path: of the file.
        labels: (D, H, W) canonical, on the grid of `volume`.
        volume: of `read_series(series)`.
        structures: names by label value, the background first.
        concepts: (category, type) of each structure but the background.
        version: of the software, for the record.

    Raises:
        InputError: a header that lacks what a segmentation must repeat (patient, study, frame of reference).
    """
    import highdicom
    import pydicom

    turn = relative_orientation(volume.affine, series.grid.affine)
    frames = np.ascontiguousarray(apply_orientation(volume.restore(labels), turn).transpose())
    with silenced():
        sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
        if not frames.any():  # a segmentation must have a frame: an empty one a structure, of the first slice
            sources, frames = sources[:1], frames[:1]
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=describe_segments(structures, concepts, version),
            series_instance_uid=highdicom.UID(),
            series_number=1000 + int(sources[0].get("SeriesNumber") or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="pointrend",
            manufacturer_model_name="vnet predict",
            software_versions=version,
            device_serial_number="0",
            series_description="Labels by vnet predict",
            omit_empty_frames=bool(frames.any()),
        )
        segmentation.save_as(path)


def describe_segments(
    structures: Sequence[str], concepts: Sequence[tuple[Concept, Concept]], version: str
) -> list[Any]:
    """highdicom's description of each structure but the background: name, codes, colour, and what made it."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="pointrend", version=version, family=codes.cid7162.ArtificialIntelligence
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=value,
            segment_label=structures[value][:64],
            segmented_property_category=highdicom.sr.CodedConcept(*category),
            segmented_property_type=highdicom.sr.CodedConcept(*kind),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*colour),
        )
        for value, ((category, kind), colour) in enumerate(
            zip(concepts, structure_colours(len(concepts)), strict=True), start=1
        )
    ]
