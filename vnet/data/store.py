"""Preprocessed cases: in memory while they fit, else in .npy files of the cache folder, named by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from vnet.core.distributed import rank_info
from vnet.core.errors import InputError, RunFault
from vnet.core.files import naming_path
from vnet.core.hardware import memory_limit_bytes
from vnet.data.dataset import Case, fingerprint, require_unchanged
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import read_image, read_label

FORMAT = 2  # of the kept arrays
LOCATIONS_PER_CLASS = 4096
PARTS = ("image", "label", "class_locations")


@dataclass(frozen=True)
class PreparedCase:
    """A case on the working grid.

    Attributes:
        image: (C, D, H, W) float32, normalised.
        label: (D, H, W) uint8 or uint16.
        class_locations: (n, 4) int32, (label value, z, y, x) of up to 4096 voxels of each structure, spread evenly.
    """

    image: np.ndarray
    label: np.ndarray
    class_locations: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.label.nbytes + self.class_locations.nbytes


class CaseStore:
    """Prepared cases by number.

    Args:
        cases: labelled.
        preprocessing: how they are prepared.
        cache: folder for the arrays; None keeps them in memory only.
        ignore: label value that is no structure.
        memory_bytes: what may be kept in memory (default: a quarter of it, shared by the processes of this machine);
            further cases are mapped from their files, so that a patch reads its own part only. Without a folder the
            case that was used longest ago makes room.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        preprocessing: Preprocessing,
        *,
        cache: Path | str | None,
        ignore: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        unlabelled = [case.name for case in cases if case.label is None]
        if unlabelled or not cases:
            raise ValueError(f"cases must be labelled and at least one, got {unlabelled or 'none'}")
        self.cases, self.preprocessing, self.ignore = tuple(cases), preprocessing, ignore
        self.folder = None if cache is None else Path(cache) / "volumes"
        self.budget = (
            memory_limit_bytes() // (4 * rank_info().local_world_size) if memory_bytes is None else memory_bytes
        )
        self.fingerprints = [fingerprint(case) for case in self.cases]
        self.kept: OrderedDict[int, PreparedCase] = OrderedDict()
        self.keys: dict[int, str] = {}
        self.lock = Lock()

    def __getitem__(self, number: int) -> PreparedCase:
        """The case, prepared.

        Raises:
            RunFault: its files vanished or changed since the store was made, or cannot be read.
        """
        with self.lock:
            if number in self.kept:
                self.kept.move_to_end(number)
                return self.kept[number]
            prepared = self.fetch(number)
            if not isinstance(prepared.image, np.memmap):
                self.keep(number, prepared)
            return prepared

    def keep(self, number: int, prepared: PreparedCase) -> None:
        """Hold a case in memory; the cases used longest ago make room."""
        self.kept[number] = prepared
        while len(self.kept) > 1 and sum(one.nbytes for one in self.kept.values()) > self.budget:
            self.kept.popitem(last=False)

    def fetch(self, number: int) -> PreparedCase:
        """A case from the cache folder, or prepared from its files."""
        case = self.cases[number]
        require_unchanged(case, self.fingerprints[number])
        if self.folder is None:
            return self.prepare(case)
        # the key reads every byte of the files; they are unchanged, so once is enough
        if number not in self.keys:
            self.keys[number] = self.key(case)
        stem = self.folder / self.keys[number]
        room = self.budget - sum(one.nbytes for one in self.kept.values())
        prepared = load_parts(stem, room)
        if prepared is None:
            prepared = self.prepare(case)
            save_parts(stem, prepared)
            if prepared.nbytes > room:
                prepared = load_parts(stem, room) or prepared
        return prepared

    def key(self, case: Case) -> str:
        """Name of a case in the cache folder: hash of its files' bytes and of the preprocessing."""
        rules = [FORMAT, self.preprocessing.to_dict(), self.ignore]
        digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
        for path in case.files:
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise RunFault(f"case {case.name}: {path}: {error.strerror}; restore it and continue") from None
        return digest.hexdigest()[:32]

    def prepare(self, case: Case) -> PreparedCase:
        """A case read from its files and put on the working grid."""
        assert case.label is not None
        try:
            volume = read_image(case.images)
            label = read_label(case.label, volume)
        except InputError as error:
            raise RunFault([f"case {case.name}: {fault}" for fault in error.faults]) from None
        marked = self.preprocessing.apply_label(label)
        return PreparedCase(self.preprocessing.apply(volume), marked, locate_classes(marked, self.ignore))


def locate_classes(label: np.ndarray, ignore: int | None) -> np.ndarray:
    """(n, 4) int32 of `PreparedCase.class_locations`; (0, 4) without foreground."""
    rows = [np.zeros((0, 4), np.int32)]
    for value in np.unique(label):
        if value == 0 or value == ignore:
            continue
        flat = np.flatnonzero(label == value)
        spread = flat[np.linspace(0, len(flat) - 1, min(len(flat), LOCATIONS_PER_CLASS)).round().astype(int)]
        index = np.stack(np.unravel_index(spread, label.shape), 1)
        rows.append(np.column_stack([np.full(len(index), value), index]).astype(np.int32))
    return np.concatenate(rows)


def save_parts(stem: Path, prepared: PreparedCase) -> None:
    """Write the arrays of a case as STEM_image.npy, ...; each file is written beside and renamed."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        temporary = stem.with_name(f".{stem.name}_{part}.{os.getpid()}.{rank_info().rank}.part")
        temporary.unlink(missing_ok=True)
        try:
            with naming_path(temporary), temporary.open("xb") as file:
                np.save(file, getattr(prepared, part), allow_pickle=False)
            temporary.replace(stem.with_name(f"{stem.name}_{part}.npy"))
        finally:
            temporary.unlink(missing_ok=True)


def load_parts(stem: Path, budget: int) -> PreparedCase | None:
    """Kept arrays, mapped from disk when larger than `budget`; None where they are missing or damaged."""
    files = [stem.with_name(f"{stem.name}_{part}.npy") for part in PARTS]
    try:
        mapped = sum(file.stat().st_size for file in files) > budget
        arrays = [np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False) for file in files]
    except (OSError, ValueError, EOFError):
        return None
    image, label, class_locations = arrays
    fits = image.ndim == 4 and image.shape[1:] == label.shape and class_locations.ndim == 2
    return PreparedCase(image, label, class_locations) if fits and image.dtype == np.float32 else None
