"""Images in, label files out: what is written of each case, in which format, with names and colours of structures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vnet.core.distributed import gather, launch_fabric, rank_info, shard, unshard
from vnet.core.environment import installed_version
from vnet.core.errors import InputError, raise_case_faults
from vnet.core.files import file_lock, read_table, whole_file, write_bytes, write_table, write_text
from vnet.core.hardware import set_threads, share_freed_memory
from vnet.core.progress import ProgressBar
from vnet.data.case_files import Inputs, list_inputs
from vnet.data.colours import itksnap_labels, slicer_colour_table, structure_colours
from vnet.data.dicom import MISSING, Concept, Series, read_series, structure_concepts, write_segmentation
from vnet.data.header_affine import name_some, print_findings
from vnet.data.planes import contour_picture, cut_slices
from vnet.data.volumes import Volume, read_image, write_labels, write_scaled
from vnet.inference.prediction import Prediction
from vnet.inference.predictor import Predictor

# what can be saved of a case: the end of the file's name
SAVED = {
    "labels": ".nii.gz",
    "uncertainty": "_uncertainty.nii.gz",
    "probabilities": "_probabilities.nii.gz",
    "seg_nrrd": ".seg.nrrd",
    "dicom_seg": "_seg.dcm",
    "preview": "_preview.png",
}
NEEDED = {  # packages of a format, and the extra that brings them
    "seg_nrrd": (("slicerio", "nrrd"), "pip install 'pointrend[slicer]'"),
    "dicom_seg": (("highdicom", "pydicom"), MISSING),
}
COLOUR_TABLE, ITKSNAP_LABELS, VOLUMES = "structures.ctbl", "structures_itksnap.txt", "volumes.csv"
VOLUME_COLUMNS = ("case", "structure", "voxels", "volume_ml")
LARGEST_SIDE_PX = 480  # of a plane in a preview
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"  # the list that Slicer looks codes up in


def predict_files(
    runs: str | Path | Sequence[str | Path],
    source: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "last",
    overrides: Sequence[str] = (),
    device: str | None = None,
    save: Sequence[str] = ("labels",),
) -> list[Path]:
    """Label the images in `source` with a trained run, or several averaged; the processes share the images.

    Beside the files of each case the output folder gets `volumes.csv`, a row a case and structure, and with `labels`
    the names and colours of the structures for 3D Slicer (`structures.ctbl`) and ITK-SNAP (`structures_itksnap.txt`).

    Args:
        save: any of `SAVED`.

    Returns:
        The files written of the cases, on the image's grid: NAME.nii.gz, NAME_uncertainty.nii.gz (1 where two classes
        tie, 0 where one is sure; a byte a voxel), NAME_probabilities.nii.gz (4-D, 16 bits a voxel and class, along the
        structures), NAME.seg.nrrd, NAME_seg.dcm and NAME_preview.png.

    Raises:
        RunFault: some images could not be labelled, or some files not written; the others are.
        InputError: no image could be labelled, or the arguments are at fault.
    """
    source, output = Path(source), Path(output)
    if rank_info().world_size > 1:
        device = str(launch_fabric(device=device or "auto").device)
    predictor = Predictor(runs, checkpoint=checkpoint, overrides=overrides, device=device)
    set_threads(predictor.config.threads)
    share_freed_memory()
    inputs = list_inputs(source, predictor.in_channels)
    print_findings(inputs.findings, notes=True)
    targets = {name: {kind: output / f"{name}{SAVED[kind]}" for kind in save} for name in inputs.cases}
    refuse_unwritable(inputs, save, source)
    refuse_overwriting(inputs.cases, targets, output)
    note_overwriting(targets, output)
    concepts = structure_concepts(predictor.structures, predictor.config.inference.codes)
    exporter = Exporter(predictor.structures, tuple(concepts))
    output.mkdir(parents=True, exist_ok=True)
    if "labels" in save and rank_info().rank == 0:
        write_text(output / COLOUR_TABLE, slicer_colour_table(predictor.structures))
        write_text(output / ITKSNAP_LABELS, itksnap_labels(predictor.structures))
    written: list[list[Path]] = []
    faults: list[list[str]] = []
    mine = shard(list(inputs.cases.items()))
    volumes: list[dict[str, Any]] = []
    try:
        with ProgressBar("predicting", len(mine)) as bar:
            for name, files in mine:
                try:
                    series = inputs.series.get(name)
                    volume = read_case(files, series, predictor.in_channels)
                    prediction = predictor.predict(volume, keep_logits="probabilities" in save)
                    paths, found = exporter.write(targets[name], prediction, volume, series)
                    volumes += volume_rows(name, prediction.labels, volume.voxel_ml, predictor.structures)
                except InputError as error:
                    paths, found = [], error.faults
                written.append(paths)
                faults.append(found)
                bar.advance(name)
    finally:  # also of the cases before a fault that stops the others
        add_volumes(output / VOLUMES, volumes)
    groups = unshard(gather(written))
    done = sum(map(bool, groups))
    count = len(inputs.cases) + len(inputs.faults)
    print(f"labelled {done} of {count} image{'s' * (count != 1)}", flush=True)
    case_faults = [fault for found in unshard(gather(faults)) for fault in found]
    raise_case_faults([*inputs.faults, *case_faults], done=done)
    return [path for group in groups for path in group]


def read_case(files: Sequence[Path], series: Series | None, channels: int) -> Volume:
    """The image of a case.

    Raises:
        InputError: the image cannot be read, or has other channels than the network reads.
    """
    volume = read_series(series) if series else read_image(files)
    if len(volume.array) != channels:
        raise InputError(f"{files[0]}: {len(volume.array)} channels, the network reads {channels}")
    return volume


@dataclass(frozen=True)
class Exporter:
    """Writes what is saved of a case.

    Attributes:
        structures: names by label value, the background first.
        concepts: (category, type) of each structure but the background, as DICOM codes.
    """

    structures: tuple[str, ...]
    concepts: tuple[tuple[Concept, Concept], ...]

    def write(
        self, targets: Mapping[str, Path], prediction: Prediction, volume: Volume, series: Series | None
    ) -> tuple[list[Path], list[str]]:
        """Write each file; one that fails does not cost the others.

        Args:
            targets: one of `SAVED` -> file.

        Returns:
            The files written, and a line for each that is not.
        """
        written, faults = [], []
        for kind, path in targets.items():
            try:
                self.write_one(kind, path, prediction, volume, series)
                written.append(path)
            except InputError as error:
                faults += error.faults
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                # highdicom and slicerio raise these, in one of them or another, where a header lacks what they need
                if kind not in NEEDED:
                    raise
                faults.append(
                    f"{path}: {kind} could not be written ({error}); leave it out of --save, or mend the input"
                )
        return written, faults

    def write_one(self, kind: str, path: Path, prediction: Prediction, volume: Volume, series: Series | None) -> None:
        """One of `SAVED` of a case, whole or not at all."""
        labels = prediction.labels
        if kind == "labels":
            write_labels(path, labels, volume)
        elif kind == "uncertainty":
            whole = prediction.uncertainty_volume()
            write_scaled(path, [(0, len(whole), whole[None])], volume, dtype=np.uint8, channels=1)
        elif kind == "probabilities":
            classes = len(prediction.coarse)
            write_scaled(path, whole_shares(prediction), volume, dtype=np.uint16, channels=classes)
        elif kind == "preview":
            slices = cut_slices(volume.array[0], {"prediction": labels}, volume.spacing_mm, self.structures)
            name = path.name.removesuffix(SAVED[kind])
            write_bytes(path, png(contour_picture(slices, name, LARGEST_SIDE_PX)))
        elif kind == "seg_nrrd":
            with whole_file(path) as temporary:
                write_seg_nrrd(temporary, labels, volume, self.structures, self.concepts)
        elif series:
            with whole_file(path) as temporary:
                write_segmentation(
                    temporary, labels, volume, series, self.structures, self.concepts, installed_version() or "checkout"
                )


def whole_shares(prediction: Prediction) -> Iterator[tuple[int, int, np.ndarray]]:
    """Probabilities as whole numbers of 16 bits, slab by slab."""
    largest = np.iinfo(np.uint16).max
    for first, last, part in prediction.probability_slabs():
        yield first, last, np.rint(part * largest).astype(np.uint16)


def png(picture: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    packed = BytesIO()
    Image.fromarray(picture).save(packed, "png", optimize=True)
    return packed.getvalue()


def write_seg_nrrd(
    path: Path,
    labels: np.ndarray,
    volume: Volume,
    structures: Sequence[str],
    concepts: Sequence[tuple[Concept, Concept]],
) -> None:
    """Write canonical (D, H, W) labels as a segmentation of 3D Slicer, with a name, colour and code a structure.

    Args:
        volume: whose axes and affine the file gets.
        structures: names by label value, the background first.
        concepts: (category, type) of each structure but the background.
    """
    import slicerio

    extent = [bound for n in volume.shape for bound in (0, n - 1)]
    segments = [
        {
            "id": f"Segment_{value}",
            "name": structures[value],
            "labelValue": value,
            "layer": 0,
            "color": [round(part / 255, 6) for part in colour],
            "nameAutoGenerated": False,
            "colorAutoGenerated": False,
            "extent": extent,
            "terminology": {
                "contextName": CONTEXT,
                "category": [category.scheme, category.value, category.meaning],
                "type": [kind.scheme, kind.value, kind.meaning],
            },
        }
        for value, ((category, kind), colour) in enumerate(
            zip(concepts, structure_colours(len(concepts)), strict=True), start=1
        )
    ]
    segmentation = {
        "voxels": volume.restore(labels),
        "ijkToLPS": TO_LPS @ volume.affine,
        "containedRepresentationNames": ["Binary labelmap"],
        "segments": segments,
    }
    slicerio.write_segmentation(str(path), segmentation, compression_level=1)


def volume_rows(
    case: str, labels: np.ndarray, voxel_ml: float, structures: Sequence[str]
) -> list[dict[str, str | int | float]]:
    """A row of `VOLUME_COLUMNS` for each structure of a case; one that is absent has 0."""
    count = np.zeros(len(structures), np.int64)
    for plane in labels:  # plane by plane: bincount makes 8 bytes of a voxel
        count += np.bincount(plane.ravel(), minlength=len(structures))
    return [
        {"case": case, "structure": name, "voxels": int(n), "volume_ml": float(n * voxel_ml)}
        for name, n in zip(structures[1:], count[1:], strict=True)
    ]


def add_volumes(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the rows of cases into a table of volumes, in place of what it holds of these cases."""
    if not rows:
        return
    cases = {row["case"] for row in rows}
    with file_lock(path.with_name(f".{path.name}.lock")):  # other processes add theirs
        kept = [row for row in read_table(path) if row["case"] not in cases]
        write_table(path, sorted([*kept, *rows], key=lambda row: str(row["case"])))


def refuse_unwritable(inputs: Inputs, save: Iterable[str], source: Path) -> None:
    """Refuse formats whose packages are missing, or that need a series as --input, before anything is predicted."""
    if "dicom_seg" in save and len(inputs.series) < len(inputs.cases):
        raise InputError(
            f"--save dicom_seg: {source} holds NIfTI files, which name no patient and study; name the folder of a "
            "DICOM series, or save seg_nrrd"
        )
    for kind in save:
        packages, install = NEEDED.get(kind, ((), ""))
        if missing := [name for name in packages if find_spec(name) is None]:
            raise InputError(f"--save {kind}: this Python lacks {' and '.join(missing)}: {install}")


def note_overwriting(targets: Mapping[str, Mapping[str, Path]], output: Path) -> None:
    """Print which files of an earlier prediction are about to be replaced."""
    there = [path.name for paths in targets.values() for path in paths.values() if path.exists()]
    if there:
        print(f"overwriting {len(there)} file{'s' * (len(there) != 1)} in {output}: {name_some(there)}", flush=True)


def refuse_overwriting(
    cases: Mapping[str, tuple[Path, ...]], targets: Mapping[str, Mapping[str, Path]], output: Path
) -> None:
    """What is written must not take the place of a scan, nor of what is written of another, nor of a user's table."""
    scans = {file.resolve() for files in cases.values() for file in files}
    seen: set[Path] = set()
    for target in (path for paths in targets.values() for path in paths.values()):
        if target.resolve() in scans:
            raise InputError(f"--output {output}: {target.name} there is the image itself; name another folder")
        if target in seen:
            raise InputError(f"--save: two cases would be written to {target.name}; rename one of the images")
        seen.add(target)
    rows = read_table(output / VOLUMES)
    if rows and tuple(rows[0]) != VOLUME_COLUMNS:
        columns = ", ".join(map(str, rows[0]))
        raise InputError(f"{output / VOLUMES}: is another table (its columns: {columns}); name another folder")
