"""Fields of the schema: a default, a frozen value for the hash, and checks of values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import TypeVar

from vnet.core.errors import InputError

T = TypeVar("T")


def key(default: T, *, hash_default: object) -> T:
    """A dataclass field with a default and its frozen `hash_default`.

    The hash of a run leaves out every key that has its `hash_default` (see `vnet.core.config.hashing`), so:

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
