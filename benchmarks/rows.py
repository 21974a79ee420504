"""What the benchmarks share: rows, and the choice of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vnet.errors import InputError

Row = dict[str, Any]


def chosen_names(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted names in the order of the known ones; none wanted is all of them.

    Raises:
        InputError: a name that is not known.
    """
    strange = [name for name in wanted if name not in known]
    if strange:
        raise InputError([f"--case {name}: no such row; one of {'; '.join(known)}" for name in strange])
    return [name for name in known if not wanted or name in wanted]
