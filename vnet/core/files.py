"""Files written whole: a crash leaves the old file or the new one. Writing never follows a link."""

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
    """Write a temporary file beside `path`, flush it to disk and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    temporary.unlink(missing_ok=True)
    try:
        with naming_path(path), temporary.open("xb") as file:  # x: a link of that name is not followed
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # frees its bytes on a full disk
        raise


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, for text in UTF-8."""
    write_bytes(path, text.encode())


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Put `path` into an OSError raised inside that names no file, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def is_part(path: Path) -> bool:
    """Whether `path` is a temporary file that a killed run left behind."""
    return path.name.startswith(".") and path.name.endswith(PART)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed runs left below a folder."""
    for path in folder.rglob(f".*{PART}"):
        path.unlink(missing_ok=True)


def refuse_links(folder: Path, root: Path) -> None:
    """Refuse links among the folders from `root` to `folder` and anywhere below `folder`.

    Reading follows links, writing does not.

    Raises:
        InputError: a line for each link.
    """
    way = [place for place in (folder, *folder.parents) if place != root and place.is_relative_to(root)]
    inside = [path for path in folder.rglob("*") if path.is_symlink()]
    links = [path for path in way if path.is_symlink()] + inside
    if links:
        raise InputError(
            [f"{path}: is a link, which writing does not follow; put a folder or file there" for path in links]
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where the file is missing, damaged or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
