"""Files written whole, tables among them, and locks between processes that write to the same folder.

A crash leaves the old file or the new one. Writing never follows a link.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from vnet.core.errors import InputError

PART = ".part"  # ends the names of files that are being written


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: what is written there is renamed to `path`, or removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    temporary.unlink(missing_ok=True)
    try:
        with naming_path(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # frees its bytes on a full disk


def write_bytes(path: Path, data: bytes) -> None:
    """Write a temporary file beside `path`, flush it to disk and rename it to `path`."""
    with whole_file(path) as temporary, temporary.open("xb") as file:  # x: a link of that name is not followed
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def plain_name(name: str) -> str:
    """A name as part of a file's name: letters, digits, dashes and dots stay, all else becomes `_`."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


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


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows of equal keys as CSV; see `cell` for the form of values.

    Args:
        columns: the header of a table without rows.
    """
    rows = list(rows)
    write_text(path, table_text(rows, list(rows[0]) if rows else columns))


def table_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The text of a CSV table; a row without a column has an empty cell there. Empty text without columns."""
    text = StringIO()
    if columns:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def cell(value: object) -> object:
    """A value as a CSV cell: None is an empty cell, booleans are `true` and `false`, floats have six decimals."""
    if isinstance(value, bool):
        return str(value).lower()
    # six decimals: a thousandth of a metric's noise, and files whose differences stay short
    return f"{value:.6f}" if isinstance(value, float) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, [] where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


RUN_LOCK = "lock.json"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems, such as some network ones


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold `path` as a lock: of the processes that enter with the same path one is inside at a time, others wait.

    The system releases the lock of a process that dies. The file is removed on leaving.
    """
    descriptor = open_locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def open_locked(path: Path) -> int:
    """A descriptor of the file at `path`, made where it is missing and locked; closing it releases the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with naming_path(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
        # the process that held the lock may have removed the file meanwhile: then this is the lock of no path
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


class Holder(NamedTuple):
    """The process that holds the lock of a run.

    Attributes:
        started: when the process started, in clock ticks since the machine did; empty where the system does not say.
            Numbers of processes are used again, the pair of number and start is not.
    """

    host: str
    process: int
    started: str

    @classmethod
    def here(cls) -> Holder:
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()) or "")

    def is_running(self) -> bool:
        """Whether the process, of this machine, still runs."""
        found = process_start(self.process)
        return found is not None and found == self.started


class RunLock:
    """The lock of a run folder: a file that names its holder, so that a second start can say who it is.

    A file that a killed process left behind does not count: its process is gone. Of a process on another machine that
    cannot be known, so its lock counts until the file is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RUN_LOCK

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InputError: another process holds it.
        """
        descriptor = open_locked(self.path)
        try:
            holder = read_holder(self.path)
            if holder is not None and (reason := self._refusal(holder)):
                raise InputError(f"{self.path.parent}: in use by process {holder.process}{reason}")
            self.path.write_text(json.dumps(Holder.here()._asdict()), encoding="utf-8")
        finally:
            os.close(descriptor)

    def _refusal(self, holder: Holder) -> str:
        """The rest of the sentence that says who holds the lock; empty where the holder is gone."""
        if holder.host != socket.gethostname():
            return f" on {holder.host}; if it does not run there any more, remove {self.path}"
        return ", which makes this run; wait for it to end, or stop it" if holder.is_running() else ""

    def release(self) -> None:
        """Give the lock back; nothing is done where this process does not hold it."""
        if self.path.parent.is_dir():
            descriptor = open_locked(self.path)
            try:
                if read_holder(self.path) in (Holder.here(), None):
                    self.path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def read_holder(path: Path) -> Holder | None:
    """The holder that a lock file names, None where it is empty or torn: its process was killed while writing."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def process_start(process: int) -> str | None:
    """When a process of this machine started, empty where the system does not say, None where there is none."""
    try:
        # after the name in brackets: the state, then 18 more fields, then the start
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return "" if _exists(process) else None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
