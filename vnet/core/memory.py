"""Memory that this process may take."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def memory_limit_bytes() -> int:
    """Memory this process may take: the machine's, or what a container or `ulimit -v` leaves of it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue  # not there, or "max"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])
