"""What a model costs: multiply-adds, parameters, peak memory."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vnet.model import Segmenter
from vnet.processes import cores

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def count_multiply_adds(model: Segmenter, image: Tensor) -> int:
    """Multiply-adds of a forward pass, the head at its training points included (convolutions and matrix products;
    interpolation is not counted).

    Args:
        image: (1, C, D, H, W).
    """
    training = model.training
    image = image.expand(2, *image.shape[1:])  # of a lone sample, `vnet.layers` may convolve overlapping halves
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        coarse, features = model.network(image)
        if model.head is not None:
            points = torch.rand(2, model.points.train_points, image.ndim - 2, device=image.device)
            at_points = coarse.new_zeros(2, coarse.shape[1], points.shape[1])
            model.head.predict_points(points, at_points, model.head_features(features), image)
    model.train(training)
    return int(counter.get_total_flops()) // 4  # two operations each, two samples


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def peak_memory_mib() -> float:
    """Highest memory of this process so far: of the accelerator where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":  # getrusage would tell the peak of the process that started this one, if it was larger
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def reset_peak_memory() -> bool:
    """Start `peak_memory_mib` anew from what is held now; False where this system cannot (CPU, other than Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what training freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def set_threads(threads: int) -> None:
    """CPU threads of torch and numba; 0 takes every core, or this process's part of them."""
    import numba

    count = threads or cores()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor, where it would give each large one back to the system at once.

    Fresh pages are cleared as they are first touched: the sum of two 96^3 volumes of 16 channels takes 22 ms in fresh
    memory and 3 ms in kept memory (AMD EPYC). Does nothing where the C library is another.
    Training asks for it, prediction does not: there, what it does to the peak memory of a large volume is not measured.
    """
    import ctypes

    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        library.mallopt(M_TRIM_THRESHOLD, -1)  # never
