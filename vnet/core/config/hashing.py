"""The hash that names a run: its config without what does not change the result, and the content of its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vnet.core.config.keys import flatten, schema_fields

# Keys that say where files lie, what computes, or what a study compares; none changes what a run computes.
LEFT_OUT = ("run_root", "threads", "device", "study", "data.root", "data.cache")


def hash_defaults(schema: type) -> dict[str, Any]:
    """Dotted key to `hash_default`, as plain JSON values, of every key that the hash may count.

    Raises:
        TypeError: a field without `hash_default`.
    """
    found = {}
    for key, item, _ in schema_fields(schema):
        if "hash_default" not in item.metadata:
            raise TypeError(f"{schema.__name__}: {key} has no hash_default; see vnet.core.config.fields.key")
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
