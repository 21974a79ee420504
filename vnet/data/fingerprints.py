"""Size and modification time of a case's files: whether they are still those that were checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vnet.core.errors import RunFault
from vnet.data.dataset import Case

Fingerprint = list[tuple[int, int]]  # (bytes, modification time in ns) of each file of a case


def fingerprint(case: Case) -> Fingerprint:
    """Size and modification time of each file of a case.

    Raises:
        RunFault: a file is missing.
    """
    try:
        stats = [path.stat() for path in case.files]
    except OSError as error:
        raise RunFault(f"case {case.name}: {error.filename} vanished; restore it and continue") from None
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def require_unchanged(case: Case, before: Fingerprint) -> None:
    """Raise `RunFault` where a file of the case is missing or its fingerprint differs from `before`."""
    if fingerprint(case) != before:
        raise RunFault(f"case {case.name}: its files changed during the run; restore them and continue")


def unchanged(cases: Sequence[Case], before: Mapping[str, Fingerprint]) -> Iterator[Case]:
    """Yield the cases; the files of each are compared with `before` just before it is yielded.

    Args:
        before: case name -> fingerprint at the start of the run.

    Raises:
        RunFault: a file of a case is missing or changed.
    """
    for case in cases:
        require_unchanged(case, before[case.name])
        yield case
