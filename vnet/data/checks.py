"""Every voxel of a data set read once: what would stop a training, all at once, and what each case is like.

Facts of each case are kept in the cache folder with the fingerprint of its files; a later start reads the headers
alone, and the voxels only of cases that changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vnet.core.errors import InputError
from vnet.core.files import write_text
from vnet.core.progress import Bar
from vnet.data.dataset import Case, Dataset
from vnet.data.fingerprints import Fingerprint, fingerprint
from vnet.data.nifti import memory_limit_bytes, read_header
from vnet.data.volumes import Volume, grid_fault, read_image, read_label

FORMAT = 2  # of the kept facts
QUANTILES = tuple(i / 200 for i in range(201))  # 0.5 % apart: nnU-Net clips CT at 0.5 and 99.5 %
SHOWN_VALUES = 5
READING_BYTES = 12  # per voxel and channel: as stored and in float32, foreground in float64


@dataclass(frozen=True)
class Intensities:
    """Foreground intensities of one channel of a case: mean, standard deviation, values at `QUANTILES`."""

    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class CaseFacts:
    """What one case holds.

    Attributes:
        shape: (D, H, W), canonical.
        spacing_mm: (z, y, x).
        orientation: of the file's axes, as LPS.
        channels: of the image.
        labels: label value -> voxels; empty for a case without a label.
        foreground: one per channel; empty where there is no foreground.
        constant: channels that hold one value only.
        image_hash, label_hash: of voxels and grid in canonical order, so that turned copies are equal.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    channels: int
    labels: dict[int, int]
    foreground: tuple[Intensities, ...]
    constant: tuple[int, ...]
    image_hash: str
    label_hash: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CaseFacts:
        """The inverse of `to_dict`, also after a round through JSON."""
        return cls(
            shape=tuple(plain["shape"]),
            spacing_mm=tuple(plain["spacing_mm"]),
            orientation=str(plain["orientation"]),
            channels=int(plain["channels"]),
            labels={int(value): int(count) for value, count in plain["labels"].items()},
            foreground=tuple(
                Intensities(float(one["mean"]), float(one["std"]), tuple(one["quantiles"]))
                for one in plain["foreground"]
            ),
            constant=tuple(plain["constant"]),
            image_hash=str(plain["image_hash"]),
            label_hash=str(plain["label_hash"]),
        )


@dataclass(frozen=True)
class CheckResult:
    """What the check of a data set without faults found.

    Attributes:
        content_hash: of voxels, grids, names, structures, modalities and folds; not of where or how files lie.
        facts: case name -> facts.
        fingerprints: case name -> size and time of its files before they were read.
    """

    content_hash: str
    facts: dict[str, CaseFacts]
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)


def check_dataset(dataset: Dataset, cache: Path | str | None, progress: bool = True) -> CheckResult:
    """Read every voxel (the first time) and judge the data set.

    Args:
        cache: folder that keeps the facts; None keeps nothing and reads everything.
        progress: show a bar on stdout.

    Raises:
        InputError: every fault of the data set, one line each.
    """
    fingerprints = {case.name: fingerprint(case) for case in dataset.cases}
    facts, faults = examine(dataset, cache, progress=progress)
    if faults:
        raise InputError(faults)
    return CheckResult(content_hash(dataset, facts), facts, fingerprints)


def examine(
    dataset: Dataset, cache: Path | str | None = None, progress: bool = True
) -> tuple[dict[str, CaseFacts], list[str]]:
    """Facts of the cases without fault, and all faults, those of `open_dataset` first."""
    place = None if cache is None else kept_file(dataset, Path(cache))
    kept = load_kept(place)
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
        faults[name] += rule_faults(dataset, name, fact)
    sound = {name: (fingerprints[name], fact) for name, fact in facts.items() if not faults[name]}
    if place is not None and unread and sound:
        save_kept(place, sound)
    listed = [fault for case in dataset.cases for fault in faults[case.name]]
    listed = [*dataset.faults, *listed]
    if not listed and not any(foreground_voxels(dataset, fact) for fact in facts.values()):
        listed = [f"{dataset.root}: no case holds a labelled structure; add labels with foreground"]
    return {case.name: facts[case.name] for case in dataset.cases if case.name in sound}, listed


def read_cases(cases: list[Case], progress: bool) -> Iterator[tuple[Case, CaseFacts | None, list[str]]]:
    """Facts or faults of each case, several at a time, in the order they end."""
    if not cases:
        return
    with ThreadPoolExecutor(readers(cases)) as pool:
        waiting = {pool.submit(read_case, case): case for case in cases}
        try:
            with Bar("checking volumes", len(cases)) if progress else nullcontext() as bar:
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
    """By the header, 0 where it cannot be read: that is told when the case is."""
    try:
        return math.prod(read_header(path)[1])
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
        label = None if case.label is None else read_label(case.label)
    except InputError as error:
        faults += error.faults
    if image is not None and label is not None and (fault := grid_fault(label, image, "its image")):
        faults.append(f"{case.label}: {fault}; resample the label to the image's grid")
    if image is None or faults:
        return None, [f"case {case.name}: {fault}" for fault in faults]
    return describe(image, label), []


def describe(image: Volume, label: Volume | None) -> CaseFacts:
    """Facts of a case in memory."""
    values, counts = (
        (np.zeros(0, int), np.zeros(0, int)) if label is None else np.unique(label.array, return_counts=True)
    )
    inside = None if label is None else label.array > 0
    shown = () if inside is None or not inside.any() else tuple(intensities(one[inside]) for one in image.array)
    d, h, w = image.array.shape[1:]
    return CaseFacts(
        shape=(d, h, w),
        spacing_mm=image.spacing_mm,
        orientation=image.orientation,
        channels=len(image.array),
        labels=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        foreground=shown,
        constant=tuple(c for c, one in enumerate(image.array) if one.min() == one.max()),
        image_hash=volume_hash(image),
        label_hash="" if label is None else volume_hash(label),
    )


def intensities(values: np.ndarray) -> Intensities:
    wide = values.astype(np.float64)
    quantiles = tuple(float(f"{q:.6g}") for q in np.quantile(wide, QUANTILES))
    return Intensities(float(wide.mean()), float(wide.std()), quantiles)


def volume_hash(volume: Volume) -> str:
    """SHA-256 of canonical voxels and grid, the grid to a thousandth of a mm."""
    digest = hashlib.sha256(f"{volume.array.dtype} {volume.array.shape}".encode())
    digest.update((np.round(volume.canonical_affine(), 3) + 0.0).tobytes())  # + 0.0: no negative zeros
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def rule_faults(dataset: Dataset, name: str, fact: CaseFacts) -> list[str]:
    """What dataset.json and a case's facts disagree on."""
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


def header_faults(case: Case) -> list[str]:
    """Faults that show without reading voxels, for cases whose files have not changed since they were read."""
    faults = []
    for path in case.files:
        try:
            read_header(path)
        except InputError as error:
            faults += [f"case {case.name}: {fault}" for fault in error.faults]
    return faults


def foreground_voxels(dataset: Dataset, fact: CaseFacts) -> int:
    return sum(count for value, count in fact.labels.items() if value > 0 and value != dataset.ignore)


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


def kept_file(dataset: Dataset, cache: Path) -> Path:
    """Where the facts of a data set are kept: one file per folder and list of files."""
    key = json.dumps([str(dataset.root.resolve()), [[str(path) for path in case.files] for case in dataset.cases]])
    return cache / f"checked_{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def load_kept(place: Path | None) -> dict[str, tuple[Fingerprint, CaseFacts]]:
    """Facts of an earlier start; none where the file is missing, damaged or of another format."""
    try:
        plain = json.loads(place.read_text()) if place is not None else {}
        if plain.get("format") != FORMAT:
            return {}
        return {
            name: ([(size, time) for size, time in entry["fingerprint"]], CaseFacts.from_dict(entry["facts"]))
            for name, entry in plain["cases"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_kept(place: Path, sound: Mapping[str, tuple[Fingerprint, CaseFacts]]) -> None:
    cases = {name: {"fingerprint": files, "facts": fact.to_dict()} for name, (files, fact) in sound.items()}
    write_text(place, json.dumps({"format": FORMAT, "cases": cases}))
