"""Data set folders: the Medical Segmentation Decathlon's layout and nnU-Net's raw layout, read without trust.

Nothing a `dataset.json` says is followed out of the data set's folder; links that lie inside it are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vnet.core.errors import InputError

T = TypeVar("T")

ENDINGS = (".nii.gz", ".nii")
JSON_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Case:
    """One subject: an image file per channel (or one 4-D file), and its label where there is one."""

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
    """

    root: Path
    name: str
    structures: tuple[str, ...]
    modalities: tuple[str, ...]
    ignore: int | None
    cases: tuple[Case, ...]
    faults: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.label is not None)


def open_dataset(root: Path | str) -> Dataset:
    """Read `dataset.json` of a Decathlon folder, or of nnU-Net's raw layout, and find its training cases.

    No volume is read: pass the result to `vnet.data.checks.check_dataset` before use, which also raises the
    `faults` found here.

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
    found, faults = find_cases(root, text, len(modalities))
    if not found and not faults:
        faults = [f"{root}: no training cases found; list them in dataset.json or fill imagesTr and labelsTr"]
    if not found:
        raise InputError(faults)
    cases = tuple(sorted(found, key=lambda case: case.name))
    return Dataset(root, name, structures, modalities, ignore, cases, tuple(faults), read_source(text))


def read_source(text: Mapping[str, Any]) -> dict[str, str]:
    """`reference` and `licence` (in either spelling) where they are plain lines."""
    found = {"reference": text.get("reference"), "licence": text.get("licence", text.get("license"))}
    return {key: value for key, value in found.items() if isinstance(value, str) and is_plain(value)}


def read_description(root: Path) -> dict[str, Any]:
    """`dataset.json` as a dictionary."""
    path = root / "dataset.json"
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name the folder that holds dataset.json")
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a folder in the Decathlon or nnU-Net raw layout")
    if path.stat().st_size > JSON_BYTES:
        raise InputError(f"{path}: larger than {JSON_BYTES >> 20} MiB, which no list of cases is; mend it")
    return read_json(path, dict, "an object")


def read_json(path: Path, kind: type[T], noun: str) -> T:
    """JSON of the given kind from a file, or one line saying why not."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error) or 'nested too deeply'}); correct it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: must hold {noun}, got {type(value).__name__}; correct it")
    return value


def is_plain(name: object) -> bool:
    """One printable, non-empty line: fit for a file name, a table and a terminal."""
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and len(name) <= 200


def read_labels(labels: object) -> tuple[tuple[str, ...], int | None, list[str]]:
    """(structures, ignore, faults) of `labels`: value -> name (Decathlon) or name -> value (nnU-Net)."""
    where = "dataset.json: labels"
    if not isinstance(labels, Mapping) or not labels:
        return (), None, [f"{where} must map label values to names, got {labels!r:.80}; add them"]
    by_value: dict[int, str] = {}
    faults = []
    for key, entry in labels.items():
        value, name = (key, entry) if isinstance(entry, str) and not isinstance(key, int) else (entry, key)
        number = whole_number(value)
        if number is None:
            faults.append(
                f"{where}: value of {name!r:.80} must be a whole number, got {value!r:.80}; regions are not read: give "
                "each voxel one structure's value"
            )
        elif not is_plain(name):
            faults.append(f"{where}: the name of {number} must be one printable line, got {name!r:.80}; correct it")
        elif number in by_value:
            faults.append(f"{where}: value {number} is given twice; correct it")
        elif name in by_value.values():
            faults.append(f"{where}: name {name!r} is given twice; correct it")
        else:
            by_value[number] = name
    if faults:
        return (), None, faults
    ignore = next((value for value, name in by_value.items() if name.lower() == "ignore" and value), None)
    structures = [by_value[value] for value in sorted(by_value) if value != ignore]
    values = [value for value in sorted(by_value) if value != ignore]
    if values != list(range(len(values))) or len(values) < 2:
        faults = [f"{where} must be 0 (background), 1, 2, ... without gaps, got {values}; renumber them"]
    return tuple(structures), ignore, faults


def whole_number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16 else None


def read_modalities(channels: object) -> tuple[tuple[str, ...], list[str]]:
    """(names, faults) of `modality` or `channel_names`: {"0": "MRI", ...}."""
    where = "dataset.json: modality (or channel_names)"
    if not isinstance(channels, Mapping) or not channels:
        return (), [f'{where} must map channel numbers to names, as {{"0": "MRI"}}, got {channels!r:.80}; add it']
    expected = {str(number) for number in range(len(channels))}
    if set(map(str, channels)) != expected or not all(is_plain(name) for name in channels.values()):
        return (), [f'{where} must number its channels "0", "1", ..., got {dict(channels)!r:.120}; correct it']
    by_number = {int(key): name for key, name in channels.items()}
    return tuple(by_number[number] for number in range(len(by_number))), []


def find_cases(root: Path, text: dict[str, Any], channels: int) -> tuple[list[Case], list[str]]:
    """(cases, faults) of the layout that `text` describes."""
    if isinstance(text.get("training"), list):
        listed = [decathlon_case(root, entry, number) for number, entry in enumerate(text["training"])]
    elif "training" in text:
        return [], [f"dataset.json: training must be a list of cases, got {text['training']!r:.80}; correct it"]
    else:
        ending = text.get("file_ending", ".nii.gz")
        if ending not in ENDINGS:
            return [], [f"dataset.json: file_ending must be one of {ENDINGS}, got {ending!r:.80}; convert the volumes"]
        listed = nnunet_cases(root, ending, channels)
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
        fault = path_fault(text)
        if fault:
            faults.append(f"{where}.{key}: {fault}")
        else:
            paths[key] = root / PurePosixPath(text)
    if faults:
        return None, faults
    return Case(stem(paths["image"]), (paths["image"],), paths.get("label")), []


def path_fault(text: object) -> str | None:
    """Why a path of dataset.json is refused, if it is."""
    if not isinstance(text, str) or not is_plain(PurePosixPath(text).name) or not text.isprintable():
        return f"file name must be printable, got {text!r:.120}; rename the file"
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or ":" in path.parts[0]:
        return f"path leaves the data set, got {text!r:.200}; write it relative to dataset.json, without .."
    if not path.name.endswith(ENDINGS):
        return f"must end in .nii.gz or .nii, got {text!r:.120}; convert the volume"
    return None


def stem(path: Path) -> str:
    """Case name of a file: its name without the ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def nnunet_cases(root: Path, ending: str, channels: int) -> list[tuple[Case | None, list[str]]]:
    """Cases of imagesTr/NAME_0000.nii.gz and labelsTr/NAME.nii.gz."""
    names, faults = set(), []
    last = f"_0000{ending}"
    folder = root / "imagesTr"
    for file in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
        if file.startswith(".") or not file.endswith(ending):
            continue
        name = file.removesuffix(ending)[:-5]
        if not is_plain(file):
            faults.append(f"{folder}: file name must be printable, got {file!r:.120}; rename the file")
        elif file.endswith(last):
            names.add(name)
    result: list[tuple[Case | None, list[str]]] = [(None, [fault]) for fault in faults]
    for name in sorted(names):
        images = tuple(root / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(channels))
        result.append((Case(name, images, root / "labelsTr" / f"{name}{ending}"), []))
    return result


def missing_files(root: Path, case: Case, exists: Callable[[Path], bool] = os.path.isfile) -> list[str]:
    """A line for each file of the case that is not there."""
    return [
        f"case {case.name}: {path.relative_to(root)} is not there; restore the file or take the case out"
        for path in case.files
        if not exists(path)
    ]
