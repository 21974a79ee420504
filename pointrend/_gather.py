"""Linear interpolation at points on the CPU: the compiled loop, divided over threads.

Torch's `grid_sample` divides a batch over threads, never the points of one volume, and takes twice as long.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pointrend._gather_kernels import interpolate_points

# Below this many values a second thread costs more than it brings.
VALUES_PER_THREAD = 1 << 16


def interpolate(volume: Tensor, points: Tensor) -> Tensor:
    """As `pointrend.sampling.sample_at`, for checked CPU tensors: (B, C, *spatial) at (B, N, ndim) gives (B, C, N)."""
    if volume.ndim == 4:  # 2D is 3D of depth 1
        volume, points = volume[:, :, None], F.pad(points, (1, 0), value=0.5)
    shape = np.array(volume.shape[2:])
    values = volume.detach().float().contiguous().flatten(2).numpy()
    places = points.detach().float().contiguous().numpy()
    out = torch.empty(*values.shape[:2], places.shape[1])
    for one, at, into in zip(values, places, out.numpy(), strict=True):
        _divide(one, shape, at, into)
    return out.to(volume.dtype)


def _divide(
    volume: NDArray[np.float32], shape: NDArray[np.int64], points: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Each thread takes its share of the points; the values are the same however many there are."""
    threads = min(torch.get_num_threads(), out.size // VALUES_PER_THREAD)
    if threads < 2:
        interpolate_points(volume, shape, points, 0, len(points), out)
        return
    edges = [len(points) * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda a, b: interpolate_points(volume, shape, points, a, b, out), edges[:-1], edges[1:]))
