"""Files in, label files out: which files make a case, what is passed over, and what is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vnet.core.distributed import gather, launch_fabric, rank_info, shard, unshard
from vnet.core.errors import InputError, raise_case_faults
from vnet.core.hardware import set_threads
from vnet.core.progress import ProgressBar
from vnet.data.case_files import FolderListing, group_channels, list_folder
from vnet.data.header_affine import NO_CODES_MIXED, Finding, Remark, group_remarks, is_coded, print_findings
from vnet.data.nifti import FIRST_BYTES, content_fault, conversion, foreign_format, read_header
from vnet.data.volumes import Volume, read_image, write_labels, write_scaled
from vnet.inference.prediction import Prediction
from vnet.inference.predictor import Predictor

SNIFFED_FILES = 20  # of a folder without volumes, to tell what it holds


@dataclass(frozen=True)
class Inputs:
    """What --input names.

    Attributes:
        cases: case name -> the files of its image.
        faults: of cases that cannot be predicted; the others are.
        findings: files that are passed over, and warnings on headers.
    """

    cases: dict[str, tuple[Path, ...]]
    faults: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())


def list_inputs(path: Path, channels: int) -> Inputs:
    """Cases of a NIfTI file or of a folder of them, grouped as `vnet.data.case_files.group_channels` says.

    Raises:
        InputError: nothing there that can be read.
    """
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder")
    listing = list_folder(path) if path.is_dir() else FolderListing((path,))
    if path.is_file() and (kind := foreign_format(path.name)):
        raise InputError(f"--input {path}: {kind} is not read; {conversion(kind)}")
    findings = listing.findings("--input")
    if not listing.volumes:
        more = "".join(f"; {finding.what}" for finding in findings) or sniff(path)
        raise InputError(f"--input {path}: no NIfTI file (.nii.gz or .nii) there{more}")
    groups = group_channels(listing.volumes, channels)
    faults = [
        f"--input {path}: case {name} consists of {', '.join(file.name for file in files)}; the network reads "
        f"{channels} channels: one file, or {name}_0000 to {name}_{channels - 1:04d}"
        for name, files in (*groups.doubled.items(), *groups.incomplete.items())
    ]
    remarks = dict(header_remarks(file for files in groups.cases.values() for file in files))
    uncoded = {file for file, found in remarks.items() if not is_coded(found)}
    refused = uncoded if len(uncoded) < len(remarks) else set()
    faults += [f"{file}: {NO_CODES_MIXED}" for file in sorted(refused)]
    cases = {name: files for name, files in groups.cases.items() if refused.isdisjoint(files)}
    headers = group_remarks(remark for file, found in remarks.items() if file not in refused for remark in found)
    return Inputs(cases, tuple(faults), (*findings, *headers))


def header_remarks(files: Iterable[Path]) -> Iterator[tuple[Path, tuple[Remark, ...]]]:
    """Remarks on each file by its header; files that cannot be read are left to the reading of their case."""
    for file in files:
        try:
            yield file, read_header(file).remarks
        except InputError:
            continue


def sniff(folder: Path) -> str:
    """What the files of a folder without volumes are, by their first bytes; empty where they are nothing known."""
    files = sorted(file for file in folder.iterdir() if file.is_file())[:SNIFFED_FILES]
    for file in files:
        with file.open("rb") as stream:
            if fault := content_fault(stream.read(FIRST_BYTES)):
                return f"; {file.name} {fault}"
    return ""


# what can be saved of a case: the end of the file's name
SAVED = {"labels": "", "uncertainty": "_uncertainty", "probabilities": "_probabilities"}


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

    Args:
        save: any of `SAVED`.

    Returns:
        The files written, with the image's affine and header: NAME.nii.gz, NAME_uncertainty.nii.gz (1 where two
        classes tie, 0 where one is sure; a byte a voxel) and NAME_probabilities.nii.gz (4-D, 16 bits a voxel and
        class, along the structures).

    Raises:
        RunFault: some images could not be labelled; the others are.
        InputError: no image could be labelled, or the arguments are at fault.
    """
    source, output = Path(source), Path(output)
    if rank_info().world_size > 1:
        device = str(launch_fabric(device=device or "auto").device)
    predictor = Predictor(runs, checkpoint=checkpoint, overrides=overrides, device=device)
    set_threads(predictor.config.threads)
    channels = predictor.in_channels
    inputs = list_inputs(source, channels)
    print_findings(inputs.findings, notes=True)
    cases = inputs.cases
    targets = {name: {kind: output / f"{name}{SAVED[kind]}.nii.gz" for kind in save} for name in cases}
    refuse_overwriting(cases, targets, output)
    output.mkdir(parents=True, exist_ok=True)
    written: list[list[Path]] = []
    faults: list[str] = []
    mine = shard(list(cases.items()))
    with ProgressBar("predicting", len(mine)) as bar:
        for name, files in mine:
            try:
                predict_case(predictor, files, targets[name])
                written.append(list(targets[name].values()))
            except InputError as error:
                faults += error.faults
                written.append([])
            bar.advance(name)
    groups = unshard(gather(written))
    done = sum(map(bool, groups))
    count = len(cases) + len(inputs.faults)
    print(f"labelled {done} of {count} image{'s' * (count != 1)}", flush=True)
    raise_case_faults([*inputs.faults, *unshard(gather(faults))], done=done)
    return [path for group in groups for path in group]


def predict_case(predictor: Predictor, files: Sequence[Path], targets: Mapping[str, Path]) -> None:
    """Label one image and write what is to be saved.

    Args:
        files: of its channels.
        targets: one of `SAVED` -> file.

    Raises:
        InputError: the image cannot be read, or has other channels than the network reads.
    """
    volume = read_image(files)
    if len(volume.array) != predictor.in_channels:
        raise InputError(f"{files[0]}: {len(volume.array)} channels, the network reads {predictor.in_channels}")
    prediction = predictor.predict(volume, keep_logits="probabilities" in targets)
    for kind, target in targets.items():
        write_prediction(target, kind, prediction, volume)


def write_prediction(path: Path, kind: str, prediction: Prediction, like: Volume) -> None:
    """One of `SAVED` of a case."""
    if kind == "labels":
        write_labels(path, prediction.labels, like)
    elif kind == "uncertainty":
        whole = prediction.uncertainty_volume()
        write_scaled(path, [(0, len(whole), whole[None])], like, dtype=np.uint8, channels=1)
    else:
        largest = np.iinfo(np.uint16).max
        slabs = (
            (first, last, np.rint(part * largest).astype(np.uint16))
            for first, last, part in prediction.probability_slabs()
        )
        write_scaled(path, slabs, like, dtype=np.uint16, channels=len(prediction.coarse))


def refuse_overwriting(cases: dict[str, tuple[Path, ...]], targets: dict[str, dict[str, Path]], output: Path) -> None:
    """What is written must not take the place of a scan, nor of what is written of another."""
    scans = {file.resolve() for files in cases.values() for file in files}
    seen: set[Path] = set()
    for target in (path for paths in targets.values() for path in paths.values()):
        if target.resolve() in scans:
            raise InputError(f"--output {output}: {target.name} there is the image itself; name another folder")
        if target in seen:
            raise InputError(f"--save: two cases would be written to {target.name}; rename one of the images")
        seen.add(target)
