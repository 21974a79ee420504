"""The images to predict: which files make a case, what is passed over, and what their headers say of space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vnet.core.errors import InputError
from vnet.data.case_files import FolderListing, group_channels, list_folder
from vnet.data.header_affine import NO_CODES_MIXED, Finding, Remark, group_remarks, is_coded
from vnet.data.nifti import FIRST_BYTES, content_fault, conversion, foreign_format, read_header

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
