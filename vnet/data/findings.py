"""What is unusual in a data set: not wrong, but worth a look before a training."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vnet.data.dataset import Dataset
from vnet.data.facts import CaseFacts, foreground_voxels
from vnet.data.remarks import Finding, group_remarks, name_some

SPACING_RATIO = 1.5  # to the median of an axis
SIZE_RATIO = 3.0
VOLUME_RATIO = 8.0
# names that mean CT without being the one that selects its intensity rule: "CT scan", "ct_soft", "CBCT"
NEAR_CT = re.compile(r"(^|[^a-z])(cb|pet)?cta?([^a-z]|$)|tomograph|hounsfield", re.IGNORECASE)

Facts = Mapping[str, CaseFacts]


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
