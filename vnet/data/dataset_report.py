"""The report of `data check`: what a data set holds, what is wrong and what is unusual in it."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vnet.core.config import Axes
from vnet.core.errors import InputError, printable
from vnet.data.checks import examine
from vnet.data.dataset import Dataset, open_dataset
from vnet.data.facts import CaseFacts, foreground_voxels
from vnet.data.folds import select_fold
from vnet.data.header_affine import Finding, group_remarks, name_some
from vnet.data.preprocessing import Preprocessing, describe_rule, grid_faults, plan_preprocessing, working_size

SPACING_RATIO = 1.5  # to the median of an axis
SIZE_RATIO = 3.0
VOLUME_RATIO = 8.0
# names that mean CT without being the one that selects its intensity rule: "CT scan", "ct_soft", "CBCT"
NEAR_CT = re.compile(r"(^|[^a-z])(cb|pet)?cta?([^a-z]|$)|tomograph|hounsfield", re.IGNORECASE)

Facts = Mapping[str, CaseFacts]
Spacing = tuple[float, float, float]


def find_unusual(dataset: Dataset, facts: Facts) -> list[Finding]:
    """Everything unusual, warnings included; [] for a data set of one kind."""
    if not facts:
        return list(dataset.findings)
    rules = (spacings, sizes, orientations, labels, volumes, duplicates, constants)
    unusual = [Finding(*found) for rule in rules for found in rule(dataset, facts)]
    notes = group_remarks(remark for fact in facts.values() for remark in fact.remarks if not remark.warning)
    return [*find_warnings(dataset, facts), *(one for one in dataset.findings if not one.warning), *notes, *unusual]


def find_warnings(dataset: Dataset, facts: Facts) -> list[Finding]:
    """What training and prediction print too: cases may be missing, or figures rest on an assumption."""
    remarks = [remark for fact in facts.values() for remark in fact.remarks if remark.warning]
    return [*(one for one in dataset.findings if one.warning), *group_remarks(remarks), *modalities(dataset)]


def modalities(dataset: Dataset) -> Iterator[Finding]:
    """Channels whose name means CT but does not select its intensity rule."""
    for number, name in enumerate(dataset.modalities):
        if name.lower() != "ct" and NEAR_CT.search(name):
            yield Finding(
                "intensity",
                f"channel {number} is called {name!r}: the intensity rule of CT is used for the name CT alone, this "
                "channel gets z-scores; call it CT in dataset.json if it holds Hounsfield units",
                warning=True,
            )


def spacings(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Cases whose spacing is far from the median."""
    median = np.median([fact.spacing_mm for fact in facts.values()], 0)
    for name, fact in facts.items():
        if (np.abs(np.log(np.array(fact.spacing_mm) / median)) > np.log(SPACING_RATIO)).any():
            yield "spacing", f"{name}: {shown(fact.spacing_mm)} mm (z, y, x); the median is {shown(median)}"


def sizes(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Cases whose size is far from the median, or a single slice."""
    median = np.median([fact.shape for fact in facts.values()], 0)
    for name, fact in facts.items():
        if (np.abs(np.log(np.array(fact.shape) / median)) > np.log(SIZE_RATIO)).any():
            yield "size", f"{name}: {fact.shape} voxels (z, y, x); the median is {shown(median)}"
        elif min(fact.shape) == 1:
            yield "size", f"{name}: a single slice, {fact.shape} voxels (z, y, x)"


def orientations(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Files stored along different axes."""
    kinds = Counter(fact.orientation for fact in facts.values())
    if len(kinds) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield "orientation", f"files differ: {counts}; each is turned to RAS by its header when read"


def labels(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Cases without label, empty labels, structures absent in some cases."""
    unlabelled = [name for name, fact in facts.items() if not fact.labels]
    if unlabelled:
        yield "label", f"no label: {name_some(unlabelled)}; not used in training"
    marked = {name: fact for name, fact in facts.items() if fact.labels}
    empty = [name for name, fact in marked.items() if not foreground_voxels(dataset, fact)]
    if empty:
        yield "label", f"empty, background only: {name_some(empty)}"
    for value, structure in list(enumerate(dataset.structures))[1:]:
        absent = [name for name, fact in marked.items() if name not in empty and not fact.labels.get(value)]
        if absent:
            everywhere = len(absent) + len(empty) == len(marked)
            yield "label", f"{structure} is absent in {'every case' if everywhere else name_some(absent)}"


def volumes(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Structures whose volume is far from the median."""
    for structure, per_case in structure_volumes(dataset, facts).items():
        median = float(np.median(list(per_case.values())))
        for name, volume in per_case.items():
            if abs(np.log(volume / median)) > np.log(VOLUME_RATIO):
                yield "volume", f"{name}: {structure} is {volume:.3g} ml; the median is {median:.3g}"


def duplicates(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Cases with the same image."""
    same: dict[str, list[str]] = defaultdict(list)
    for name, fact in facts.items():
        same[fact.image_hash].append(name)
    for names in same.values():
        if len(names) > 1:
            yield "duplicate", f"{name_some(names)} hold the same image; they may fall on both sides of a fold"


def constants(dataset: Dataset, facts: Facts) -> Iterator[tuple[str, str]]:
    """Channels that hold one value only."""
    for name, fact in facts.items():
        for channel in fact.constant:
            yield "intensity", f"{name}: channel {channel} ({dataset.modalities[channel]}) holds one value only"


def structure_volumes(dataset: Dataset, facts: Facts) -> dict[str, dict[str, float]]:
    """Volume in ml of each structure in the cases that hold it; structures in no case are left out."""
    result: dict[str, dict[str, float]] = {}
    for value, structure in list(enumerate(dataset.structures))[1:]:
        per_case = {name: fact.labels[value] * fact.voxel_ml for name, fact in facts.items() if fact.labels.get(value)}
        if per_case:
            result[structure] = per_case
    return result


def shown(values: Sequence[float] | np.ndarray) -> str:
    """Numbers to four digits, in parentheses."""
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


@dataclass(frozen=True)
class DatasetReport:
    """A data set read once: what it holds, what is wrong, what is unusual."""

    dataset: Dataset
    facts: Facts
    faults: tuple[str, ...]
    findings: tuple[Finding, ...]
    preprocessing: Preprocessing | None = None

    def print(self, console: Console | None = None) -> None:
        """The summary and the table, on stdout."""
        # off a terminal wide enough that a finding stays on one line for whoever searches the output
        console = console or (Console() if sys.stdout.isatty() else Console(width=400))
        for line in self.summary():
            console.print(line, markup=False, highlight=False)
        if not self.faults and not self.findings:
            console.print("nothing wrong, nothing unusual", markup=False)
            return
        table = Table("", "about", "what")
        for fault in self.faults:
            table.add_row("wrong", *(Text(printable(part)) for part in split_fault(fault)), style="red")
        for finding in self.findings:
            table.add_row("unusual", Text(finding.topic), Text(printable(finding.what)))
        console.print(table)

    def summary(self) -> Iterator[str]:
        """Counts, sizes, spacings, the intensity rule of each channel, and the volume of each structure."""
        channels = self.dataset.modalities
        yield f"{self.dataset.name}: {len(self.facts)} cases read, channels {', '.join(channels)}"
        if self.facts:
            for noun, values in (
                ("voxels", [fact.shape for fact in self.facts.values()]),
                ("spacing mm", [fact.spacing_mm for fact in self.facts.values()]),
            ):
                low, middle, high = (
                    shown(part) for part in (np.min(values, 0), np.median(values, 0), np.max(values, 0))
                )
                yield f"{noun} (z, y, x): median {middle}, from {low} to {high}"
        if self.preprocessing is not None:
            yield from map(describe_rule, range(len(channels)), self.dataset.modalities, self.preprocessing.channels)
        for structure, per_case in structure_volumes(self.dataset, self.facts).items():
            ml = list(per_case.values())
            yield (
                f"{structure}: in {len(ml)} cases, median {np.median(ml):.3g} ml, from {min(ml):.3g} to {max(ml):.3g}"
            )


def split_fault(fault: str) -> tuple[str, str]:
    """(case, rest) of a fault line that names a case, else what it is about."""
    head, _, rest = fault.partition(": ")
    return (head.removeprefix("case "), rest) if head.startswith("case ") else ("data set", fault)


def report_dataset(root: Path | str, *, progress: bool = True) -> DatasetReport:
    """Read every voxel of a data set, keep nothing.

    Raises:
        InputError: dataset.json cannot be used at all.
    """
    dataset = open_dataset(root)
    checked = examine(dataset, None, progress=progress)
    faults = list(checked.faults)
    try:
        # a case with a faulty file is still a case of the splits file
        select_fold(dataset, 0)
    except InputError as error:
        faults += [] if dataset.faults else error.faults
    preprocessing = plan_preprocessing(dataset, checked) if checked.facts else None
    if preprocessing is not None:
        faults += grid_faults(dataset, checked.facts, preprocessing)
    findings = find_unusual(dataset, checked.facts)
    return DatasetReport(dataset, checked.facts, tuple(faults), tuple(findings), preprocessing)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a plan rests on: the labelled cases of a data set.

    Attributes:
        root, name: of the data set.
        shapes: (D, H, W) of each case.
        spacings_mm: (z, y, x) of each case.
        training: cases that train fold 0.
        modalities: a name a channel.
        classes: K, the background included.
        surface_per_mm: mm^2 of faces between different labels for each mm^3 of the image, median of the cases.
        ignore: label value that is neither learnt nor scored.
    """

    root: str
    name: str
    shapes: tuple[Axes, ...]
    spacings_mm: tuple[Spacing, ...]
    training: int
    modalities: tuple[str, ...]
    classes: int
    surface_per_mm: float
    ignore: int | None = None

    def median_size(self, spacing_mm: Spacing) -> Axes:
        """Median voxels (D, H, W) of the cases on grids of that spacing."""
        sizes = [working_size(*case, spacing_mm) for case in zip(self.shapes, self.spacings_mm, strict=True)]
        d, h, w = (round(float(n)) for n in np.median(sizes, 0))
        return d, h, w


def survey_dataset(dataset: Dataset, facts: Facts) -> Survey:
    """The survey of a checked data set.

    Raises:
        InputError: it has no fold 0 to train on.
    """
    marked = [facts[case.name] for case in dataset.labelled]
    return Survey(
        root=str(dataset.root),
        name=dataset.name,
        shapes=tuple(fact.shape for fact in marked),
        spacings_mm=tuple(fact.spacing_mm for fact in marked),
        training=len(select_fold(dataset, 0).train),
        modalities=dataset.modalities,
        classes=len(dataset.structures),
        surface_per_mm=float(np.median([f.surface_mm2 / (1000 * f.voxel_ml * math.prod(f.shape)) for f in marked])),
        ignore=dataset.ignore,
    )
