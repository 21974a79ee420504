"""Data set folders: the Medical Segmentation Decathlon's layout and nnU-Net's raw layout, read without trust.

Nothing a `dataset.json` says is followed out of the data set's folder; links that lie inside it are.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vnet.core.config import Config
from vnet.core.errors import InputError, RunFault
from vnet.data.case_files import FolderListing, group_channels, list_folder
from vnet.data.description import (
    inner_path,
    is_plain,
    path_fault,
    read_description,
    read_labels,
    read_modalities,
    read_source,
)
from vnet.data.header_affine import Finding, name_some
from vnet.data.nifti import ENDINGS, stem

FOLDERS = ("imagesTr", "labelsTr")


@dataclass(frozen=True)
class Case:
    """One subject: an image file per channel (or one file of all channels), and its label where there is one."""

    name: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Dataset:
    """What a data set's folder holds.

    Attributes:
        root: the folder.
        name: as in dataset.json.
        structures: names; the index is the label value, 0 is the background.
        modalities: one name per channel.
        ignore: label value that is neither learnt nor scored.
        cases: sorted by name; cases whose files are missing are left out.
        faults: what is wrong with cases left out; `vnet.data.checks.check_dataset` reports these with its own.
        source: `reference` and `licence`, as far as dataset.json names them.
        findings: files that are passed over, and what of dataset.json was read in another way than it says.
    """

    root: Path
    name: str
    structures: tuple[str, ...]
    modalities: tuple[str, ...]
    ignore: int | None
    cases: tuple[Case, ...]
    faults: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def labelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.label is not None)


@dataclass(frozen=True)
class FoundCases:
    """Cases of a layout, sound or not.

    Attributes:
        cases: (case, faults); the case is None where its entry cannot be read.
        findings: see `Dataset.findings`.
    """

    cases: Sequence[tuple[Case | None, list[str]]]
    findings: Sequence[Finding] = ()


def open_dataset(root: Path | str) -> Dataset:
    """Read `dataset.json` of a Decathlon folder, or of nnU-Net's raw layout, and find its training cases.

    No voxel is read: pass the result to `vnet.data.checks.check_dataset` before use, which also raises the `faults`
    found here.

    Raises:
        InputError: the folder or dataset.json cannot be used at all; one line a fault.
    """
    root = Path(root)
    text = read_description(root)
    structures, ignore, faults = read_labels(text.get("labels"))
    modalities, more = read_modalities(text.get("channel_names", text.get("modality")))
    name = text.get("name", root.name)
    if not is_plain(name):
        more.append(f"dataset.json: name must be one printable line, got {name!r:.80}; correct it")
    if faults or more:
        raise InputError(faults + more)
    found = find_cases(root, text, len(modalities))
    cases, faults = sort_out(root, found.cases)
    if not cases:
        none = f"{root}: no training cases found; list them in dataset.json or fill imagesTr and labelsTr"
        foreign = [finding.what for name in FOLDERS for finding in list_folder(root / name).findings(name)]
        raise InputError(faults or "; ".join([none, *foreign]))
    return Dataset(
        root,
        name,
        structures,
        modalities,
        ignore,
        tuple(sorted(cases, key=lambda case: case.name)),
        tuple(faults),
        read_source(text),
        tuple(found.findings),
    )


def require_dataset(config: Config) -> Path:
    """The folder of the data set of `config`, which is there, or is to be filled with phantoms. Reads no voxel.

    Raises:
        InputError: no data set is named, or none lies there.
    """
    if not config.data.root:
        raise InputError("data.root: no data set named; add --data.root FOLDER (Decathlon or nnU-Net raw layout)")
    root = Path(config.data.root)
    if root.exists() or not config.data.phantoms:
        open_dataset(root)
    return root


def sort_out(root: Path, listed: Iterable[tuple[Case | None, list[str]]]) -> tuple[list[Case], list[str]]:
    """(sound cases, faults): of cases of one name the first counts, files must be there."""
    cases, faults, names = [], [], set()
    for case, more in listed:
        if case is not None and case.name in names:
            more = [f"case {case.name}: named twice in dataset.json; give each case its own file name"]
        if case is not None and not more:
            more = missing_files(root, case)
        if case is not None and not more:
            cases.append(case)
        names |= {case.name} if case is not None else set()
        faults += more
    return cases, faults


def missing_files(root: Path, case: Case, exists: Callable[[Path], bool] = os.path.isfile) -> list[str]:
    """A line for each file of the case that is not there."""
    return [
        f"case {case.name}: {path.relative_to(root)} is not there; restore the file or take the case out"
        for path in case.files
        if not exists(path)
    ]


def find_cases(root: Path, text: dict[str, Any], channels: int) -> FoundCases:
    """The cases of the layout that `text` describes.

    Raises:
        InputError: a layout that cannot be read.
    """
    listings = {name: list_folder(root / name) for name in FOLDERS}
    passed_over = [finding for name, listing in listings.items() for finding in listing.findings(name)]
    if "training" not in text:
        ending = text.get("file_ending", ENDINGS[0])
        if not isinstance(ending, str) or ending.lower() not in ENDINGS:
            raise InputError(
                f"dataset.json: file_ending must be one of {ENDINGS}, got {ending!r:.80}; convert the volumes"
            )
        return FoundCases(nnunet_cases(root, listings, ending, channels), passed_over)
    if not isinstance(text["training"], list):
        raise InputError(f"dataset.json: training must be a list of cases, got {text['training']!r:.80}; correct it")
    cases = [decathlon_case(root, entry, number) for number, entry in enumerate(text["training"])]
    files = {file for case, _ in cases if case is not None for file in case.files}
    findings = unlisted_files(listings, files)
    if any("\\" in str(part) for entry in text["training"] if isinstance(entry, Mapping) for part in entry.values()):
        findings.append(Finding("dataset.json", "backslashes in paths are read as slashes"))
    return FoundCases(cases, [*findings, *passed_over])


def unlisted_files(listings: Mapping[str, FolderListing], files: set[Path]) -> list[Finding]:
    """Volumes in the folders of a data set that its dataset.json does not list."""
    found = []
    for folder, listing in listings.items():
        names = [file.name for file in listing.volumes if file not in files]
        if names:
            what = f"{folder}: {len(names)} not listed in dataset.json and not used: {name_some(names)}"
            found.append(Finding("files", what, warning=True))
    return found


def decathlon_case(root: Path, entry: object, number: int) -> tuple[Case | None, list[str]]:
    """An entry of `training`: {"image": path, "label": path}."""
    where = f"dataset.json: training[{number}]"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
        return None, [f'{where} must be {{"image": path, "label": path}}, got {entry!r:.80}; correct it']
    paths, faults = {}, []
    for key in ("image", "label"):
        text = entry.get(key)
        if text is None:
            continue
        if fault := path_fault(text):
            faults.append(f"{where}.{key}: {fault}")
        else:
            paths[key] = root / inner_path(text)
    if faults:
        return None, faults
    return Case(stem(paths["image"]), (paths["image"],), paths.get("label")), []


def nnunet_cases(
    root: Path, listings: Mapping[str, FolderListing], ending: str, channels: int
) -> list[tuple[Case | None, list[str]]]:
    """Cases of imagesTr/NAME_0000.nii.gz, ... and labelsTr/NAME.nii.gz; a file in one of the two folders is a case."""
    result: list[tuple[Case | None, list[str]]] = []
    plain: dict[str, list[Path]] = {}
    for name, listing in listings.items():
        plain[name] = [file for file in listing.volumes if is_plain(file.name)]
        result += [
            (None, [f"{root / name}: file name must be printable, got {file.name!r:.120}; rename the file"])
            for file in listing.volumes
            if not is_plain(file.name)
        ]
    groups = group_channels(plain["imagesTr"], channels)
    labels: dict[str, list[Path]] = defaultdict(list)
    for file in plain["labelsTr"]:
        labels[stem(file)].append(file)
    for name in sorted({*groups.cases, *groups.incomplete, *groups.doubled, *labels}):
        label = labels.get(name, [root / "labelsTr" / f"{name}{ending}"])
        due = tuple(root / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(channels))
        faults = []
        files = groups.doubled.get(name) or groups.incomplete.get(name, ())
        if wrong := [file for file in files if name in groups.doubled or file not in due]:
            wanted = "one file is" if channels == 1 else f"one file, or {due[0].name} to {due[-1].name}, is"
            faults.append(
                f"case {name}: its image consists of {', '.join(file.name for file in files)} where {wanted} due; "
                f"take {wrong[-1].name} out"
            )
        if len(label) > 1:
            faults.append(f"case {name}: several labels, {', '.join(file.name for file in label)}; keep one")
        result.append((Case(name, groups.cases.get(name, due), label[0]), faults))
    return result


Fingerprint = list[tuple[int, int]]  # (bytes, modification time in ns) of each file of a case


def fingerprint(case: Case) -> Fingerprint:
    """Size and modification time of each file of a case.

    Raises:
        RunFault: a file is missing.
    """
    try:
        stats = [path.stat() for path in case.files]
    except OSError as error:
        raise RunFault(f"case {case.name}: {error.filename} vanished; restore it and continue") from None
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def require_unchanged(case: Case, before: Fingerprint) -> None:
    """Raise `RunFault` where a file of the case is missing or its fingerprint differs from `before`."""
    if fingerprint(case) != before:
        raise RunFault(f"case {case.name}: its files changed during the run; restore them and continue")


def unchanged(cases: Sequence[Case], before: Mapping[str, Fingerprint]) -> Iterator[Case]:
    """Yield the cases; the files of each are compared with `before` just before it is yielded.

    Args:
        before: case name -> fingerprint at the start of the run.

    Raises:
        RunFault: a file of a case is missing or changed.
    """
    for case in cases:
        require_unchanged(case, before[case.name])
        yield case
