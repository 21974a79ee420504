"""Remarks on files that are read all the same: what their headers say, or leave out, and how that was understood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnet.core.errors import printable

NAMED = 5


@dataclass(frozen=True)
class Remark:
    """One remark on one file.

    Attributes:
        file: folder and name, as `imagesTr/a.nii.gz`.
        topic: a word for the table of `data check`.
        text: what holds for every file with this remark.
        detail: what is the file's own, may be empty.
        warning: whether training and prediction print it too, because the figures depend on it.
    """

    file: str
    topic: str
    text: str
    detail: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Finding:
    """Something unusual that is not wrong: a topic, what it is and where, and whether it is a warning."""

    topic: str
    what: str
    warning: bool = False


def short_path(path: Path) -> str:
    """Folder and name of a file."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def name_some(names: Sequence[str]) -> str:
    """`a, b and 3 more`."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def group_remarks(remarks: Iterable[Remark]) -> list[Finding]:
    """A finding for each remark that files share, naming the first of them; in the order of their first file."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for remark in remarks:
        named = f"{remark.file} ({remark.detail})" if remark.detail else remark.file
        groups.setdefault((remark.topic, remark.text, remark.warning), []).append(named)
    return [
        Finding(topic, f"{name_some(files)}: {text}", warning=warning)
        for (topic, text, warning), files in groups.items()
    ]


def print_findings(findings: Iterable[Finding], *, notes: bool = False) -> None:
    """Print warnings, and with `notes` the other findings too, on stdout, a line each."""
    for finding in findings:
        if finding.warning or notes:
            print(f"{'warning' if finding.warning else 'note'}: {printable(finding.what)}", flush=True)
