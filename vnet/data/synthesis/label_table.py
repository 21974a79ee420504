"""What the values of a label map mean: the structure to segment and the tissue whose intensities they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnet.core.errors import InputError
from vnet.data.description import is_plain, read_json, whole_number


@dataclass(frozen=True)
class LabelValue:
    """One value of the label maps.

    Attributes:
        structure: number of the structure to segment; 0 is background.
        name: of the structure.
        tissue: values of one tissue share an intensity distribution.
    """

    structure: int
    name: str
    tissue: str


Table = Mapping[int, LabelValue]

# FreeSurfer's numbering: structure -> (name, tissue). Structures of the left side; those of the right side follow.
MIDDLE = {
    14: ("3rd ventricle", "ventricle"),
    15: ("4th ventricle", "ventricle"),
    16: ("brain-stem", "brain-stem"),
    24: ("csf", "csf"),
}
SIDES = {
    (2, 41): ("cerebral white matter", "white matter"),
    (3, 42): ("cerebral cortex", "cortex"),
    (4, 43): ("lateral ventricle", "ventricle"),
    (5, 44): ("inferior lateral ventricle", "ventricle"),
    (7, 46): ("cerebellum white matter", "white matter"),
    (8, 47): ("cerebellum cortex", "cerebellum cortex"),
    (10, 49): ("thalamus", "thalamus"),
    (11, 50): ("caudate", "caudate"),
    (12, 51): ("putamen", "putamen"),
    (13, 52): ("pallidum", "pallidum"),
    (17, 53): ("hippocampus", "hippocampus"),
    (18, 54): ("amygdala", "amygdala"),
    (26, 58): ("accumbens area", "accumbens"),
    (28, 60): ("ventral DC", "ventral DC"),
}
# Values that are part of another structure, or of none: lesions, choroid plexus, vessels.
PARTS = {
    (25, 57): ((2, 41), "lesion"),
    (136, 163): ((4, 43), "choroid plexus"),
    (137, 164): ((5, 44), "choroid plexus"),
    (30, 62): ((0, 0), "vessel"),
}
OUTSIDE = (72, 85, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)  # optic chiasm, skull, skin, eyes, ...


def freesurfer_table() -> dict[int, LabelValue]:
    """The values of the label maps published with SynthSeg, in FreeSurfer's numbering; both sides share tissues."""
    table = {0: LabelValue(0, "background", "air")}
    table |= {value: LabelValue(value, name, tissue) for value, (name, tissue) in MIDDLE.items()}
    for values, (name, tissue) in SIDES.items():
        for value, side in zip(values, ("left", "right"), strict=True):
            table[value] = LabelValue(value, f"{side} {name}", tissue)
    for values, (structures, tissue) in PARTS.items():
        for value, structure in zip(values, structures, strict=True):
            table[value] = LabelValue(structure, table[structure].name, tissue)
    return table | {value: LabelValue(0, "background", f"outside {value}") for value in OUTSIDE}


def read_table(path: Path) -> dict[int, LabelValue]:
    """A table from JSON: a list of {"value": 3, "structure": 3, "name": "left cerebral cortex", "tissue": "cortex"}.

    Raises:
        InputError: entries that cannot be read, structures of several names, or columns that are shifted against each
            other, so that values carry the names of their neighbours.
    """
    entries = read_json(path, list, "a list of label values")
    table: dict[int, LabelValue] = {}
    faults = []
    for number, entry in enumerate(entries):
        found = read_entry(entry)
        if found is None or found[0] in table:
            faults.append(
                f'{path}: entry {number} must be {{"value", "structure", "name", "tissue"}} with a value of its own, '
                f"got {entry!r:.120}; correct it"
            )
        else:
            table[found[0]] = found[1]
    if faults:
        raise InputError(faults)
    if fault := table_fault(table):
        raise InputError(f"{path}: {fault}")
    return table


def read_entry(entry: Any) -> tuple[int, LabelValue] | None:
    """(value, meaning) of an entry of a table, None where it is not one."""
    if not isinstance(entry, Mapping):
        return None
    value, structure = (whole_number(entry.get(key)) for key in ("value", "structure"))
    name, tissue = entry.get("name"), entry.get("tissue")
    if value is None or structure is None or not is_plain(name) or not isinstance(tissue, str | int):
        return None
    return value, LabelValue(structure, str(name), str(tissue))


def table_fault(table: Table) -> str | None:
    """What a table contradicts itself in, None where it does not."""
    names: dict[int, str] = {}
    for meaning in table.values():
        if names.setdefault(meaning.structure, meaning.name) != meaning.name:
            return (
                f"structure {meaning.structure} has the names {names[meaning.structure]} and {meaning.name}; keep one"
            )
    # a structure has the number of one of its own values, so a value that is another structure's number is misplaced
    shifted = [value for value in table if value in names and table[value].structure != value]
    if shifted:
        value = shifted[0]
        return (
            f"{len(shifted)} values are numbers of structures that they do not belong to (value {value} is of "
            f"structure {table[value].structure}, but there is a structure {value}): the columns are shifted; correct "
            "them"
        )
    return None


def structure_names(table: Table) -> tuple[str, ...]:
    """Names of the structures in the order of their numbers, background first; the index is the new label value."""
    names = {meaning.structure: meaning.name for meaning in table.values() if meaning.structure}
    return ("background", *(names[structure] for structure in sorted(names)))


def unknown_values(table: Table, values: Iterable[int]) -> list[int]:
    """The values that the table does not hold."""
    return sorted(set(values) - table.keys())
