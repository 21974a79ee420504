"""The first layer of a head at points between voxels, computed on the voxels around them.

Interpolation is linear, and so is a layer before its ReLU. So the layer of interpolated windows is the interpolation of
the layer of the voxels' own windows: a convolution, evaluated at the voxels around the points, each once. On a finer
grid many points share a voxel, and each reads 8 rows of the layer's width in place of windows of every channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend._kernels.threads import traced
from pointrend.head import PointHead
from pointrend.reading import read_window

ARITHMETIC = (torch.float32, torch.bfloat16, torch.float16)
VALUES_AT_ONCE = 1 << 20  # values of windows that are in memory at once


def works_by_voxel(head: nn.Module, maps: Mapping[str, Tensor], points: Tensor, coarse: Tensor) -> bool:
    """Whether `logits_by_voxel` gives the logits of this head: on the CPU, no gradient wanted, no tracing.

    A subclass of `PointHead` may do something before the first layer, and a code of the position is not linear in it.
    """
    if type(head) is not PointHead or head.frequencies or not (maps and coarse.numel()):
        return False
    if torch.is_grad_enabled() or traced():
        return False
    exact = head.logits.weight.dtype == points.dtype == coarse.dtype == torch.float32
    return exact and all(t.device.type == "cpu" and t.dtype in ARITHMETIC for t in (points, coarse, *maps.values()))


def logits_by_voxel(
    head: PointHead,
    maps: Mapping[str, Tensor],
    windows: Mapping[str, int],
    points: Tensor,
    coarse: Tensor,
    grid: Sequence[int] | None,
) -> Tensor:
    """(B, K, N) logits of a head at points, in float32 whatever the arithmetic asked for; see `works_by_voxel`.

    Args:
        maps: (B, C, *spatial) by name, what the head reads.
        windows: voxels per axis of each map's window.
        points: (B, N, ndim) in the unit cube.
        coarse: (B, K, N) coarse logits at the points.
        grid: as for `read_window`.
    """
    with torch.autocast("cpu", enabled=False):
        exact = {name: volume.float() for name, volume in maps.items()}
        return head.after_first_layer(first_layer(head.fine_weights, exact, windows, points, grid), coarse)


def first_layer(
    weights: Tensor, maps: Mapping[str, Tensor], windows: Mapping[str, int], points: Tensor, grid: Sequence[int] | None
) -> Tensor:
    """A linear layer of windows around points, for checked float32 CPU tensors that want no gradient.

    Args:
        weights: (values, width), for the windows of all maps in their order, channel by channel.
        maps: (B, C, *spatial) by name.
        windows: voxels per axis of each map's window.
        points: (B, N, ndim) in the unit cube, N at least 1.
        grid: as for `read_window`.

    Returns:
        (B, N, width), without a bias.
    """
    out = torch.zeros(*points.shape[:2], weights.shape[1])
    ndim, channels = points.shape[2], {name: volume.shape[1] for name, volume in maps.items()}
    parts = dict(zip(maps, weights.split([n * windows[name] ** ndim for name, n in channels.items()]), strict=True))
    for size in dict.fromkeys(volume.shape[2:] for volume in maps.values()):
        names = [name for name, volume in maps.items() if volume.shape[2:] == size]
        of_size, reach = torch.cat([parts[name] for name in names]), [windows[name] for name in names]
        on_voxels = grid is not None and tuple(grid) == tuple(size)
        for sample, some in enumerate(points.detach()):
            volumes = [maps[name][sample, None] for name in names]
            if on_voxels or not _add_by_voxel(of_size, volumes, reach, some, out[sample]):
                at_once = VALUES_AT_ONCE // len(of_size) + 1
                for rows, few in zip(out[sample].split(at_once), some.split(at_once), strict=True):
                    values = [read_window(v, few[None], n, grid)[0] for v, n in zip(volumes, reach, strict=True)]
                    rows.addmm_(torch.cat(values).T, of_size)
    return out


def _add_by_voxel(
    weights: Tensor, volumes: Sequence[Tensor], windows: Sequence[int], points: Tensor, out: Tensor
) -> bool:
    """Add the layer of volumes (1, C, *spatial) of one size at points (N, ndim) to `out` (N, width).

    Returns:
        False, with nothing done, where the voxels around the points are not fewer than the points.
    """
    from pointrend._kernels.first_layer import find_corners, interpolate_rows
    from pointrend._kernels.reading import as_3d, read_windows

    size = volumes[0].shape[2:]
    shape, _ = as_3d(size, 1)
    places = np.ascontiguousarray(F.pad(points, (3 - len(size), 0), value=0.5).numpy())
    corners = find_corners(places, shape)
    if corners is None:
        return False
    at_once = VALUES_AT_ONCE // len(weights) + 1
    table, index = torch.empty(len(corners.index), weights.shape[1]), torch.from_numpy(corners.index)
    for rows, voxels in zip(table.split(at_once), index.split(at_once), strict=True):
        values = [read_windows(v, voxels[None], n, border=1)[0] for v, n in zip(volumes, windows, strict=True)]
        torch.mm(torch.cat(values).T, weights, out=rows)
    interpolate_rows(table, corners, places, shape, out)
    return True
