"""Files that are whole or not there, whatever happens while they are written; links are never written through."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vnet.core.errors import InputError

PART = ".part"  # ends the names of files that are being written


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename: at `path` lies the old file or the new one, never a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    temporary.unlink(missing_ok=True)
    try:
        with naming(path), temporary.open("xb") as file:  # x: a link of that name is not followed
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk its bytes are needed
        raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses inside is said of `path` where it names no file (a full disk never does)."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_part(path: Path) -> bool:
    """A file that a killed run had begun to write."""
    return path.name.startswith(".") and path.name.endswith(PART)


def sweep(folder: Path) -> None:
    """Remove what a killed run had begun to write."""
    for path in folder.rglob(f".*{PART}"):
        path.unlink(missing_ok=True)


def refuse_links(folder: Path, root: Path) -> None:
    """Refuse links on the way from `root` to `folder` and in it: reading follows links, writing does not.

    Raises:
        InputError: the links, a line each.
    """
    way = [place for place in (folder, *folder.parents) if place != root and place.is_relative_to(root)]
    inside = [path for path in folder.rglob("*") if path.is_symlink()]
    links = [path for path in way if path.is_symlink()] + inside
    if links:
        raise InputError(
            [f"{path}: is a link, which writing does not follow; put a folder or file there" for path in links]
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where the file is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
