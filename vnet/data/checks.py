"""Every voxel of a data set read once: what would stop a training, all at once, and what each case is like.

Facts of each case are kept in the cache folder with the fingerprint of its files; a later start reads the headers
alone, and the voxels only of cases that changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vnet.core.errors import InputError
from vnet.core.hardware import memory_limit_bytes
from vnet.core.progress import ProgressBar
from vnet.data.dataset import Case, Dataset, Fingerprint, fingerprint
from vnet.data.facts import CaseFacts, describe, foreground_voxels, kept_file, load_kept, save_kept
from vnet.data.header_affine import is_coded, name_some
from vnet.data.nifti import read_header
from vnet.data.volumes import read_image, read_label

SHOWN_VALUES = 5
READING_BYTES = 12  # per voxel and channel: as stored and in float32, foreground in float64


@dataclass(frozen=True)
class CheckResult:
    """What the check of a data set found.

    Attributes:
        content_hash: of voxels, grids, names, structures, modalities and folds of the cases without fault; not of
            where or how files lie.
        facts: case name -> facts, of the cases without fault.
        fingerprints: case name -> size and time of its files before they were read.
        faults: what would stop a training, a line each.
    """

    content_hash: str
    facts: dict[str, CaseFacts]
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


def check_dataset(dataset: Dataset, cache: Path | str | None, progress: bool = True) -> CheckResult:
    """Read every voxel (the first time) and judge the data set.

    Args:
        cache: folder that keeps the facts; None keeps nothing and reads everything.
        progress: show a bar on stdout.

    Raises:
        InputError: every fault of the data set, one line each.
    """
    checked = examine(dataset, cache, progress=progress)
    if checked.faults:
        raise InputError(checked.faults)
    return checked


def examine(dataset: Dataset, cache: Path | str | None = None, progress: bool = True) -> CheckResult:
    """Facts of the cases without fault, and all faults, those of `open_dataset` first. Arguments as `check_dataset`."""
    path = None if cache is None else kept_file(dataset, Path(cache))
    kept = load_kept(path)
    fingerprints = {case.name: fingerprint(case) for case in dataset.cases}
    facts: dict[str, CaseFacts] = {}
    faults: dict[str, list[str]] = {}
    unread = []
    for case in dataset.cases:
        entry = kept.get(case.name)
        if entry is not None and entry[0] == fingerprints[case.name]:
            facts[case.name], faults[case.name] = entry[1], header_faults(case)
        else:
            unread.append(case)
    for case, fact, more in read_cases(unread, progress):
        faults[case.name] = more
        if fact is not None:
            facts[case.name] = fact
    for name, fact in facts.items():
        faults[name] += case_faults(dataset, name, fact)
    mixed, uncoded = code_faults(dataset, facts)
    left_out = {*uncoded, *(name for name, more in faults.items() if more)}
    sound = {case.name: facts[case.name] for case in dataset.cases if case.name in facts.keys() - left_out}
    if path is not None and unread and sound:
        save_kept(path, {name: (fingerprints[name], fact) for name, fact in sound.items()})
    listed = [*dataset.faults, *(fault for case in dataset.cases for fault in faults[case.name])]
    listed += mixed
    if not listed and not any(foreground_voxels(dataset, fact) for fact in facts.values()):
        listed = [f"{dataset.root}: no case holds a labelled structure; add labels with foreground"]
    return CheckResult(content_hash(dataset, sound), sound, fingerprints, tuple(listed))


def read_cases(cases: list[Case], progress: bool) -> Iterator[tuple[Case, CaseFacts | None, list[str]]]:
    """Facts or faults of each case, several at a time, in the order they end."""
    if not cases:
        return
    with ThreadPoolExecutor(readers(cases)) as pool:
        waiting = {pool.submit(read_case, case): case for case in cases}
        try:
            with ProgressBar("checking volumes", len(cases)) if progress else nullcontext() as bar:
                for done in as_completed(waiting):
                    yield waiting[done], *done.result()
                    if bar is not None:
                        bar.advance()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def readers(cases: list[Case]) -> int:
    """How many cases are read at once: as many as half of the memory holds, were all as large as the largest."""
    largest = max(sum(map(claimed_voxels, case.images)) for case in cases)
    room = memory_limit_bytes() // 2 // max(READING_BYTES * largest, 1)
    return max(1, min(os.cpu_count() or 1, 8, room))


def claimed_voxels(path: Path) -> int:
    """Voxels by the header, 0 where it cannot be read: reading the case reports that."""
    try:
        return math.prod(read_header(path).shape)
    except InputError:
        return 0


def read_case(case: Case) -> tuple[CaseFacts | None, list[str]]:
    """(facts, faults) of one case, every voxel read; facts are None where a file cannot be read."""
    faults: list[str] = []
    image = label = None
    try:
        image = read_image(case.images)
    except InputError as error:
        faults += error.faults
    try:
        label = None if case.label is None else read_label(case.label, image)
    except InputError as error:
        faults += error.faults
    if image is None or faults:
        return None, [f"case {case.name}: {fault}" for fault in faults]
    return describe(image, label), []


def case_faults(dataset: Dataset, name: str, fact: CaseFacts) -> list[str]:
    """Where dataset.json and a case's facts disagree."""
    faults = []
    if fact.channels != len(dataset.modalities):
        due = f"{len(dataset.modalities)} ({', '.join(dataset.modalities)})"
        what = "is 4-D where 3-D is due:" if len(dataset.modalities) == 1 else "has"
        faults.append(
            f"case {name}: the image {what} {fact.channels} channels where dataset.json names {due}; "
            "correct one of the two"
        )
    known = {*range(len(dataset.structures)), dataset.ignore}
    strange = sorted(value for value in fact.labels if value not in known)
    if strange:
        shown = ", ".join(map(str, strange[:SHOWN_VALUES])) + (", ..." if len(strange) > SHOWN_VALUES else "")
        count = sum(fact.labels[value] for value in strange)
        faults.append(
            f"case {name}: {count} voxels of the label hold {shown}, outside the classes 0 to "
            f"{len(dataset.structures) - 1} of dataset.json; name these values there or mend the label"
        )
    return faults


def code_faults(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> tuple[list[str], list[str]]:
    """(a line, cases) where some files have orientation codes and some have none: they may lie mirrored to each other.

    Empty where all files have codes, or none has.
    """
    cases = [name for name, fact in facts.items() if not is_coded(fact.remarks)]
    files = [remark.file for name in cases for remark in facts[name].remarks if not is_coded([remark])]
    total = sum(len(case.files) for case in dataset.cases if case.name in facts)
    if len(files) in (0, total):
        return [], []
    line = (
        f"{dataset.root}: {len(files)} of {total} files have no orientation in the header (qform_code and sform_code "
        f"are 0) and may be mirrored against the others; set it or take these cases out: {name_some(files)}"
    )
    return [line], cases


def header_faults(case: Case) -> list[str]:
    """Faults that show without reading voxels, for cases whose files have not changed since they were read."""
    faults = []
    for path in case.files:
        try:
            read_header(path)
        except InputError as error:
            faults += [f"case {case.name}: {fault}" for fault in error.faults]
    return faults


def content_hash(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> str:
    """SHA-256 of what a training could see of a data set."""
    content: dict[str, Any] = {
        "structures": dataset.structures,
        "modalities": dataset.modalities,
        "ignore": dataset.ignore,
        "cases": {name: [fact.image_hash, fact.label_hash] for name, fact in sorted(facts.items())},
    }
    for file in ("splits.json", "splits_final.json"):
        if (dataset.root / file).is_file():
            content[file] = hashlib.sha256((dataset.root / file).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seen_cases(facts: Mapping[str, CaseFacts], image_hashes: Collection[str]) -> list[str]:
    """Names of the cases whose image has one of the given content hashes, as those a run was trained on.

    Args:
        image_hashes: `CaseFacts.image_hash` of the other cases; they are the same for turned and renamed copies.
    """
    known = set(image_hashes)
    return [name for name, fact in facts.items() if fact.image_hash in known]
