"""Devices, threads and memory of this process."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from vnet.core.config.keys import is_device_name
from vnet.core.distributed import available_cores
from vnet.core.errors import InputError

Task = TypeVar("Task")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU where torch can use one, else the CPU.

    Args:
        name: `auto`, `cpu`, `cuda` (the first GPU) or `cuda:N`.

    Raises:
        InputError: no such name, or no such GPU here.
    """
    if not is_device_name(name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name.partition(":")[2] or 0)
    if not count:
        raise InputError(f"--device {name}: torch can use no GPU here; take --device auto or cpu")
    if number >= count:
        raise InputError(f"--device {name}: the GPUs here are cuda:0 to cuda:{count - 1}; name one of them")
    return torch.device("cuda", number)


def describe_device(device: torch.device) -> str:
    """The device for a log: the CPU with the threads of torch, a GPU with its model."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' * (threads != 1)})"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """A context of mixed precision for `bf16-mixed` and `16-mixed`; a context without effect for `32-true`."""
    kind = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


def set_threads(threads: int) -> None:
    """Set the CPU threads of torch and numba.

    Args:
        threads: 0 takes every core that this process may use (`available_cores`).
    """
    import numba

    count = threads or available_cores()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def each_on_one_thread(work: Callable[[Task], None], tasks: Iterable[Task]) -> None:
    """Call work(task) for every task: as many at a time as torch has threads, each with one thread of its own.

    For many small tasks: two threads within each small operation wait for each other more than they work. Where torch
    has one thread, the caller's thread does all.

    Args:
        tasks: taken as threads become free.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for task in tasks:
            work(task)
        return
    waiting: deque[Future[None]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for task in tasks:
                    waiting.append(pool.submit(work, task))
                    if len(waiting) > threads:
                        waiting.popleft().result()
                for future in waiting:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what has not begun
                raise
    finally:
        torch.set_num_threads(threads)  # the number of the workers is otherwise that of all later threads


def memory_limit_bytes() -> int:
    """Memory that this process may take: that of the machine, or less where a container or `ulimit -v` says so."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue  # the file is missing or holds "max"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min(limits if soft == resource.RLIM_INFINITY else [*limits, soft])


def peak_memory_mib() -> float:
    """Highest memory of this process so far in MiB: on the GPU where it uses one, else resident memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        # not getrusage: it starts from the peak of the parent process, where that one was larger
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, else KiB


def reset_peak_memory(*, release: bool = True) -> bool:
    """Restart `peak_memory_mib` from the memory held now; False where the system cannot (a CPU other than on Linux).

    Args:
        release: give freed memory back to the system first. Memory touched next is then fresh, which is slower.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        if release:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor instead of returning each large block to the system.

    The system clears fresh pages when they are first touched: the sum of two 96^3 volumes of 16 channels takes 22 ms
    in fresh memory and 3 ms in kept memory (AMD EPYC). Without glibc this function has no effect.
    Training calls it. Prediction does not, because its effect on the peak memory of large volumes is not measured.
    """
    if library := _glibc():
        library.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        library.mallopt(M_TRIM_THRESHOLD, -1)  # never


def share_freed_memory() -> None:
    """Make glibc keep one heap for all threads to come: what one thread frees serves the others.

    Prediction calls it: refinement has two tiles in work, and takes 35 to 60 MiB more with a heap for each thread.
    """
    if library := _glibc():
        library.mallopt(M_ARENA_MAX, 1)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None
