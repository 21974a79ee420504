"""Whether the files of a case are still those that were checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vnet.core.errors import RunFault
from vnet.data.dataset import Case


def stamp(case: Case) -> list[tuple[int, int]]:
    """Size and time of each file of a case.

    Raises:
        RunFault: one is not there.
    """
    try:
        stats = [path.stat() for path in case.files]
    except OSError as error:
        raise RunFault(f"case {case.name}: {error.filename} vanished; restore it and continue") from None
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def require_unchanged(case: Case, before: list[tuple[int, int]]) -> None:
    """Raises `RunFault` where a file of the case vanished or is not as it was."""
    if stamp(case) != before:
        raise RunFault(f"case {case.name}: its files changed during the run; restore them and continue")


def unchanged(cases: Sequence[Case], before: Mapping[str, list[tuple[int, int]]]) -> Iterator[Case]:
    """The cases, each looked at just before it is used.

    Args:
        before: `stamp` of each case by name, when the run began.
    """
    for case in cases:
        require_unchanged(case, before[case.name])
        yield case
