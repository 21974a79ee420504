"""Locks between processes that write to the same folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vnet.core.errors import InputError
from vnet.core.files import naming_path

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
