"""The pages that the tests of the docs read: their headings, tables, blocks of code and links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LOG = ROOT / "results" / "LOG.md"


@dataclass(frozen=True, kw_only=True)
class MarkdownTable:
    """A table of a page, the HTML comment on the line before it, and its text as it stands on the page."""

    comment: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: str


def tables(text: str) -> Iterator[MarkdownTable]:
    """Every Markdown table of a page."""
    pattern = r"(?:^<!-- (?P<comment>.*) -->\n)?(?P<table>(?:^\|.*\|\n)+)"
    for found in re.finditer(pattern, text, re.MULTILINE):
        header, _, *rows = (cells(line) for line in found["table"].splitlines())
        yield MarkdownTable(comment=found["comment"] or "", header=header, rows=tuple(rows), text=found["table"])


def cells(line: str) -> tuple[str, ...]:
    """The cells of one line of a table, without the emphasis of `**`."""
    return tuple(cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code of one language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {heading!r}"
    return found[2]


def anchors(text: str) -> set[str]:
    """The fragments that links may name: headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """The targets of links and pictures that lie in this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in found if not re.match(r"https?:", target)]


def one_line(text: str) -> str:
    """A text with every run of white space as one space."""
    return " ".join(text.split())


def execute(code: str) -> dict[str, Any]:
    """The names that a block of Python leaves."""
    names: dict[str, Any] = {}
    exec(compile(code, "docs", "exec"), names)
    return names


def run_vnet(words: list[str], folder: Path) -> str:
    """The stdout of `vnet WORDS`, run in a folder by this checkout's packages; it must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vnet", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"vnet {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
