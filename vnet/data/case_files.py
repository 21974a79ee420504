"""Which files of a folder make up which case: channels by the last four digits, DICOM series, and files passed over.

Training's imagesTr and prediction's --input are read by the same rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vnet.core.errors import InputError
from vnet.data.dicom import Series, dicom_files, open_series
from vnet.data.header_affine import NO_CODES_MIXED, Finding, Remark, group_remarks, is_coded, name_some
from vnet.data.nifti import FIRST_BYTES, content_fault, conversion, foreign_format, is_nifti, read_header, stem


@dataclass(frozen=True)
class FolderListing:
    """Files of a folder that look like volumes, sorted by name.

    Attributes:
        volumes: NIfTI files.
        foreign: volumes of other formats.
        hidden: NIfTI files whose names begin with a dot, as macOS leaves them (`._a.nii.gz`).
    """

    volumes: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()

    def findings(self, folder: str) -> list[Finding]:
        """What of the folder is passed over."""
        found = [
            Finding("files", f"{folder}: {name_some(names)}: {kind} is not read; {conversion(kind)}", warning=True)
            for kind, names in by_format(self.foreign).items()
        ]
        if self.hidden:
            count = len(self.hidden)
            files = "1 hidden file is" if count == 1 else f"{count} hidden files are"
            found.append(Finding("files", f"{folder}: {files} passed over ({self.hidden[0].name})"))
        return found


def by_format(files: Iterable[Path]) -> dict[str, list[str]]:
    """Format -> names of its files."""
    groups: dict[str, list[str]] = defaultdict(list)
    for file in files:
        groups[foreign_format(file.name) or ""].append(file.name)
    return groups


def list_folder(folder: Path) -> FolderListing:
    """The volumes in a folder; an empty listing where there is no such folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in files if not file.is_dir()]
    return FolderListing(
        tuple(file for file in files if is_nifti(file.name) and not file.name.startswith(".")),
        tuple(file for file in files if foreign_format(file.name) and not file.name.startswith(".")),
        tuple(file for file in files if is_nifti(file.name) and file.name.startswith(".")),
    )


def channel_number(file: Path) -> int | None:
    """0 of NAME_0000.nii.gz, None of a name without such an ending."""
    name = stem(file)
    return int(name[-4:]) if name[-5:-4] == "_" and name[-4:].isascii() and name[-4:].isdigit() else None


@dataclass(frozen=True)
class CaseGroups:
    """Files by case.

    Attributes:
        cases: case name -> its image's files: one file, or one per channel in order.
        incomplete: case name -> channel files that are not those that are due.
        doubled: case name -> the files of several images of that name.
    """

    cases: dict[str, tuple[Path, ...]]
    incomplete: dict[str, tuple[Path, ...]]
    doubled: dict[str, tuple[Path, ...]]


def group_channels(files: Sequence[Path], channels: int) -> CaseGroups:
    """Group image files to cases.

    - One channel: each file is a case. The ending _0000 is left out of its name where all names that end in four
      digits end in 0000 (nnU-Net's names; otherwise the digits are the case's number, as in BRATS_0001).
    - Several channels: NAME_0000, NAME_0001, ... are the channels of NAME. A file that holds several channels itself,
      or whose name has no such ending, is a case of its own.
    """
    numbers = {file: channel_number(file) for file in files}
    images: list[tuple[str, tuple[Path, ...]]]
    incomplete: dict[str, tuple[Path, ...]] = {}
    if channels == 1:
        strips = {number for number in numbers.values() if number is not None} == {0}
        images = [
            (stem(file)[:-5] if strips and number == 0 else stem(file), (file,)) for file, number in numbers.items()
        ]
    else:
        images = [(stem(file), (file,)) for file, number in numbers.items() if number is None]
        numbered: dict[str, list[Path]] = defaultdict(list)
        for file, number in numbers.items():
            if number is not None:
                numbered[stem(file)[:-5]].append(file)
        for name, group in numbered.items():
            alone, rest = split_group(group, channels)
            images += [(stem(file), (file,)) for file in alone]
            if [channel_number(file) for file in rest] == list(range(channels)):
                images.append((name, rest))
            elif rest:
                incomplete[name] = rest
    named: dict[str, list[tuple[Path, ...]]] = defaultdict(list)
    for name, image in images:
        named[name].append(image)
    return CaseGroups(
        {name: found[0] for name, found in named.items() if len(found) == 1},
        incomplete,
        {name: tuple(file for image in found for file in image) for name, found in named.items() if len(found) > 1},
    )


def split_group(group: Sequence[Path], channels: int) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(files that are images of their own, files that are channels) of files NAME_NNNN."""
    whole = [file for file in group if holds_channels(file)]
    rest = [file for file in group if file not in whole]
    if [channel_number(file) for file in rest] != list(range(channels)):
        # a damaged file that completes no image is named by the fault of reading it
        whole += [file for file in rest if holds_channels(file) is None]
    return tuple(whole), tuple(file for file in group if file not in whole)


def holds_channels(file: Path) -> bool | None:
    """Whether a file holds several channels by its header, None where the header cannot be read."""
    try:
        return read_header(file).channels > 1
    except InputError:
        return None


SNIFFED_FILES = 20  # of a folder without volumes, to tell what it holds


@dataclass(frozen=True)
class Inputs:
    """What --input names.

    Attributes:
        cases: case name -> the files of its image.
        series: case name -> its DICOM series, where the image is one.
        faults: of cases that cannot be predicted; the others are.
        findings: files that are passed over, and warnings on headers.
    """

    cases: dict[str, tuple[Path, ...]]
    series: dict[str, Series] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())


def list_inputs(path: Path, channels: int) -> Inputs:
    """Cases of a NIfTI file, of a folder of them (see `group_channels`), or of DICOM series (see `list_series`).

    Raises:
        InputError: nothing there that can be read.
    """
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder")
    listing = list_folder(path) if path.is_dir() else FolderListing((path,))
    if path.is_file() and (kind := foreign_format(path.name)):
        mend = "name the folder of its series" if kind == "DICOM" else conversion(kind)
        raise InputError(f"--input {path}: {kind} is not read; {mend}")
    if path.is_dir() and not listing.volumes and (inputs := list_series(path, channels)):
        return inputs
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
    return Inputs(cases, faults=tuple(faults), findings=(*findings, *headers))


def list_series(path: Path, channels: int) -> Inputs | None:
    """The series in a folder, or one in each of its folders, as cases that bear the folder's name; None of no DICOM.

    Raises:
        InputError: the folder's own files make no volume, or the network reads several channels.
    """
    folders = [path] if dicom_files(path) else sorted(folder for folder in path.iterdir() if folder.is_dir())
    found = {folder: files for folder in folders if (files := dicom_files(folder))}
    if found and channels > 1:
        raise InputError(
            f"--input {path}: a DICOM series is one channel, the network reads {channels}; convert each with dcm2niix "
            "and name them NAME_0000, NAME_0001, ..."
        )
    series: dict[str, Series] = {}
    faults: list[str] = []
    for folder, files in found.items():
        try:
            series[folder.resolve().name or "series"] = open_series(folder, files)
        except InputError as error:
            if folder == path:
                raise
            faults += error.faults
    findings = tuple(finding for one in series.values() for finding in one.findings())
    cases = {name: one.files for name, one in series.items()}
    return Inputs(cases, series, tuple(faults), findings) if found else None


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
