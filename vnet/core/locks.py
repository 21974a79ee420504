"""Locks between processes that write to the same folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vnet.core.files import naming


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
        with naming(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # the process that held the lock may have removed the file meanwhile: then this is the lock of no path
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
