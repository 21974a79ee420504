"""Dotted keys such as `network.width`: those of the schema, and nested values flattened and merged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from vnet.core.errors import InputError

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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; `study.arms` stays whole, because its keys are names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "study.arms":
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
