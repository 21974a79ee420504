"""`dataset.json` read without trust: names, label values, channels and the paths of the cases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vnet.core.errors import InputError
from vnet.data.nifti import is_nifti

T = TypeVar("T")

JSON_BYTES = 64 * 2**20


def read_description(root: Path) -> dict[str, Any]:
    """`dataset.json` of a data set's folder as a dictionary.

    Raises:
        InputError: no such folder or file, or no JSON object in it.
    """
    path = root / "dataset.json"
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name the folder that holds dataset.json")
    if not path.is_file():
        raise InputError(f"{path}: no such file; name a folder in the Decathlon or nnU-Net raw layout")
    if path.stat().st_size > JSON_BYTES:
        raise InputError(f"{path}: larger than {JSON_BYTES >> 20} MiB, which no list of cases is; mend it")
    return read_json(path, dict, "an object")


def read_json(path: Path, kind: type[T], noun: str) -> T:
    """JSON of the given kind from a file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not JSON in UTF-8 ({error}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error) or 'nested too deeply'}); correct it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: must hold {noun}, got {type(value).__name__}; correct it")
    return value


def is_plain(name: object) -> bool:
    """Whether a name is one printable, non-empty line: fit for a file name, a table and a terminal."""
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and len(name) <= 200


def read_labels(labels: object) -> tuple[tuple[str, ...], int | None, list[str]]:
    """(structures, ignore, faults) of `labels`: value -> name (Decathlon) or name -> value (nnU-Net).

    Values may be numbers or text. Where keys and values both read as numbers the keys are the values.
    """
    where = "dataset.json: labels"
    if not isinstance(labels, Mapping) or not labels:
        return (), None, [f"{where} must map label values to names, got {labels!r:.80}; add them"]
    keys_are_values = all(whole_number(key) is not None for key in labels)
    values_are_values = not keys_are_values and all(whole_number(entry) is not None for entry in labels.values())
    by_value: dict[int, str] = {}
    faults = []
    for key, entry in labels.items():
        decathlon = not values_are_values and isinstance(entry, str)
        value, name = (key, entry) if decathlon else (entry, key)
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
    return order_structures(by_value)


def order_structures(by_value: Mapping[int, str]) -> tuple[tuple[str, ...], int | None, list[str]]:
    """(structures by label value, ignore, faults); a structure named `ignore` above 0 is the ignore label."""
    ignore = next((value for value, name in by_value.items() if name.lower() == "ignore" and value), None)
    values = [value for value in sorted(by_value) if value != ignore]
    faults = []
    if values != list(range(len(values))) or len(values) < 2:
        faults = [f"dataset.json: labels must be 0 (background), 1, 2, ... without gaps, got {values}; renumber them"]
    return tuple(by_value[value] for value in values), ignore, faults


def whole_number(value: object) -> int | None:
    """A label value given as a number or as text, None for anything else."""
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


def read_source(text: Mapping[str, Any]) -> dict[str, str]:
    """`reference` and `licence` (in either spelling) where they are plain lines."""
    found = {"reference": text.get("reference"), "licence": text.get("licence", text.get("license"))}
    return {key: value for key, value in found.items() if isinstance(value, str) and is_plain(value)}


def inner_path(text: str) -> PurePosixPath:
    """A path of dataset.json; backslashes, as Windows writes them, separate folders too."""
    return PurePosixPath(text.replace("\\", "/"))


def path_fault(text: object) -> str | None:
    """Why a path of dataset.json is refused, None where it is read."""
    if not isinstance(text, str) or not text.isprintable() or not is_plain(inner_path(text).name):
        return f"file name must be printable, got {text!r:.120}; rename the file"
    path = inner_path(text)
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return f"path leaves the data set, got {text!r:.200}; write it relative to dataset.json, without .."
    if not is_nifti(path.name):
        return f"must end in .nii.gz or .nii, got {text!r:.120}; convert the volume"
    return None
