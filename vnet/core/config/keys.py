"""The keys of a config, dotted such as `network.width`: fields, names, built-in arms, and the hash that names a run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from vnet.core.errors import InputError

T = TypeVar("T")


def key(default: T, *, hash_default: object) -> T:
    """A dataclass field with a default and its frozen `hash_default`.

    The hash of a run leaves out every key that has its `hash_default` (see `vnet.core.config.keys`), so:

    - A new key takes as `hash_default` the value that describes what was done before the key existed. Hashes of
      finished runs then stay as they are.
    - A changed default leaves `hash_default` alone. A config that relied on the old default then gets another hash,
      because it now computes something else; a config that names the value keeps its hash.

    A `hash_default` is never edited once a run has been finished with it.
    """
    return field(default=default, metadata={"hash_default": hash_default})


def key_made(make: Callable[[], T], *, hash_default: object) -> T:
    """As `key`, for a default that must be made anew for each config (a dict)."""
    return field(default_factory=make, metadata={"hash_default": hash_default})


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise `InputError` with "KEY must RULE, got VALUE" unless `condition` holds."""
    if not condition:
        raise InputError(f"{key} must {rule}, got {value}")


def is_device_name(name: str) -> bool:
    """Whether `name` is auto, cpu, cuda or cuda:N."""
    return re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name) is not None


def is_folder_name(name: str) -> bool:
    """Whether `name` is one printable path component that does not leave its parent folder."""
    return bool(name) and name.isprintable() and Path(name).name == name and name not in (".", "..")


def is_code(entry: object) -> bool:
    """Whether a config's entry is a coded concept of DICOM (value, scheme, meaning), or two: type and category."""
    if not isinstance(entry, list | tuple) or len(entry) not in (3, 6):
        return False
    if not all(isinstance(word, str | int) and not isinstance(word, bool) for word in entry):
        return False
    lengths = (16, 16, 64) * 2  # of the standard's value types
    return all(
        0 < len(word.strip()) <= most and word.isprintable() and not set(word) & set("\\^~|")
        for word, most in zip(map(str, entry), lengths, strict=False)
    )


# The small body: one convolution a stage, two in the deepest ones. The other keys of the network stay.
SMALL_BODY: dict[str, Any] = {"down": [1, 1, 2, 2, 2], "up": [1, 1, 1, 1]}

# An arm sets the stride at which the decoder stops, and whether there is a head.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "dense": {"network": {"output_stride": 1}, "points": {"num_points": 0}},
    "coarse_s2": {"network": {"output_stride": 2}, "points": {"num_points": 0}},
    "coarse_s4": {"network": {"output_stride": 4}, "points": {"num_points": 0}},
    "pointrend_s1": {"network": {"output_stride": 1}},
    "pointrend_s2": {"network": {"output_stride": 2}},
    "pointrend_s4": {"network": {"output_stride": 4}},
    "lean_dense": {"network": {"output_stride": 1, **SMALL_BODY}, "points": {"num_points": 0}},
    "lean_coarse_s4": {"network": {"output_stride": 4, **SMALL_BODY}, "points": {"num_points": 0}},
    "lean_s2": {"network": {"output_stride": 2, **SMALL_BODY}},
    "lean_s4": {"network": {"output_stride": 4, **SMALL_BODY}},
    # nothing at full resolution but the head, which reads 5x5x5 voxels of the image through a convolution
    "points_only_s4": {
        "network": {"output_stride": 4, "stem": "space_to_depth", **SMALL_BODY},
        "points": {"features": ["encoder2", "decoder"], "window": 5, "image_convolution": 8},
    },
}

# The arms of a study whose config names none.
STUDY_ARMS = ("dense", "coarse_s2", "coarse_s4", "pointrend_s1", "pointrend_s2", "pointrend_s4")


Axes = tuple[int, int, int]


def per_axis(value: int | Sequence[int]) -> Axes:
    """(z, y, x) of one number for all three axes, or of three numbers."""
    z, y, x = (value,) * 3 if isinstance(value, int) else tuple(value)
    return z, y, x


def cumulative_strides(strides: Sequence[Sequence[int]]) -> list[Axes]:
    """Stride of each stage relative to the image, starting with (1, 1, 1) of the first stage.

    Args:
        strides: (z, y, x) between one stage and the next.
    """
    total = [(1, 1, 1)]
    for step in strides:
        z, y, x = (a * b for a, b in zip(total[-1], step, strict=True))
        total.append((z, y, x))
    return total


# Keys of earlier versions and their names of today.
RENAMED = {
    "points.train_points": "points.num_points",
    "points.oversample": "points.oversample_ratio",
    "points.importance": "points.importance_ratio",
    "points.test_share": "points.refine_fraction",
    "points.margin": "points.max_margin",
    "study.margin": "study.equivalence_margin",
}


def schema_fields(schema: type, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """(dotted key, dataclass field, type) of every leaf of a schema, in the schema's order."""
    types = get_type_hints(schema)
    for item in fields(schema):
        kind = types[item.name]
        if isinstance(kind, type) and is_dataclass(kind):
            yield from schema_fields(kind, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, kind


def known_keys(schema: type) -> list[str]:
    """Every dotted key of a schema."""
    return [key for key, _, _ in schema_fields(schema)]


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse dotted keys that are not among the known ones.

    Raises:
        InputError: a line for each such key, with its name of today where it was renamed, else the nearest known key.
    """
    known = list(known)
    faults = []
    for key in keys:
        if key in known:
            continue
        if key in RENAMED:
            faults.append(f"{where}: unknown key {key}; it is called {RENAMED[key]} now")
            continue
        near = get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else "see --help for the keys"
        faults.append(f"{where}: unknown key {key}; {hint}")
    if faults:
        raise InputError(faults)


KEYED_BY_NAME = ("study.arms", "inference.codes")  # their keys are names that a user gives, not keys of the schema


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; `KEYED_BY_NAME` stay whole."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in KEYED_BY_NAME:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in place of its own; `arms` is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(below, Mapping) and key != "arms"
        merged[key] = merge(below, value) if nested else value  # type: ignore[arg-type]
    return merged


# Keys that say where files lie, what computes, what a study compares, or what label files are called; none changes
# what a run computes.
LEFT_OUT = ("run_root", "threads", "device", "study", "data.root", "data.cache", "inference.codes")


def hash_defaults(schema: type) -> dict[str, Any]:
    """Dotted key to `hash_default`, as plain JSON values, of every key that the hash may count.

    Raises:
        TypeError: a field without `hash_default`.
    """
    found = {}
    for key, item, _ in schema_fields(schema):
        if "hash_default" not in item.metadata:
            raise TypeError(f"{schema.__name__}: {key} has no hash_default; see vnet.core.config.keys.key")
        found[key] = json.loads(json.dumps(item.metadata["hash_default"]))
    return found


def counted_keys(flat: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """The dotted keys and values that a hash counts: none of `LEFT_OUT`, none that has its `hash_default`."""
    defaults = hash_defaults(schema)
    return {
        key: value
        for key, value in flat.items()
        if not any(key == place or key.startswith(f"{place}.") for place in LEFT_OUT)
        and not (key in defaults and value == defaults[key])
    }


def config_hash(nested: Mapping[str, Any], schema: type, data_hash: str) -> str:
    """16 hex digits of a resolved config and the content hash of its data set.

    Args:
        nested: every key of the schema, as plain JSON values.
    """
    counted = counted_keys(flatten(nested), schema)
    text = json.dumps({"config": counted, "data": data_hash}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing_keys(nested: Mapping[str, Any], other: Mapping[str, Any], schema: type) -> dict[str, tuple[Any, Any]]:
    """Counted keys in which two resolved configs differ, with both values; a key that is missing has its
    `hash_default`."""
    defaults = hash_defaults(schema)
    one, two = (defaults | counted_keys(flatten(values), schema) for values in (nested, other))
    return {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}
