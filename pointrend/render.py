"""Labels at any resolution from coarse logits, without the tensor of classes x fine voxels in between.

Segmentation as rendering (Kirillov et al., PointRend, CVPR 2020): linear interpolation is convex, so a cell whose
corners share their best class holds that class everywhere, and only cells cut by a surface are interpolated, for the
classes that can win there. Where most cells are cut (noise), a streaming dense loop is used.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointrend.coordinates import check_extent, interpolation_table

BLOCK_BYTES = 1_500_000  # of running values a block of rows may hold: they stay in the second-level cache
BLOCKS_PER_THREAD = 3  # so that a thread with little surface takes over from one with much
SAMPLED_ROWS = 32  # rows of cells looked at before choosing the loop


@overload
def render_labels(
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool = ...,
    *,
    extent: Sequence[float] | None = ...,
    threads: int | None = ...,
) -> Tensor: ...
@overload
def render_labels(
    logits: NDArray[Any],
    size: Sequence[int],
    align_corners: bool = ...,
    *,
    extent: Sequence[float] | None = ...,
    threads: int | None = ...,
) -> NDArray[Any]: ...
def render_labels(
    logits: Tensor | NDArray[Any],
    size: Sequence[int],
    align_corners: bool = False,
    *,
    extent: Sequence[float] | None = None,
    threads: int | None = None,
) -> Tensor | NDArray[Any]:
    """The most likely class of every voxel of a grid, from logits on another grid.

    Equals `interpolate(logits, size, mode="trilinear" or "bilinear", align_corners).argmax(1)` up to float32 ties;
    an exact tie goes to the lower class. Needs the output and some 10 MB, or two coarse planes of all classes.

    Args:
        logits: (B, K, D, H, W) or (B, K, H, W), finite, K from 1 to 65536; float16, bfloat16 (tensors), float32 or
            float64 (rounded to float32). Tensors of any strides; arrays of any strides, memory-mapped too.
        size: voxels of the target per spatial axis, smaller or larger than the source.
        align_corners: as in `torch.nn.functional.interpolate`.
        extent: the share of the source, from its origin, that the target fills, per axis in (0, 1]: for logits of a
            volume that was padded at the end of its axes. None is all of it.
        threads: threads on the CPU; None takes torch's number.

    Returns:
        (B, *size) of the kind and device of `logits`; uint8 up to 256 classes, else uint16. Empty if B is 0.

    Raises:
        TypeError: logits that are no floating-point tensor or array, sizes that are no whole numbers.
        ValueError: wrong rank or size, an empty axis, no class or too many, NaN or infinite logits, `extent`
            together with `align_corners`.
    """
    target, ndim = _checked(logits, size)
    shares = check_extent(extent, ndim)
    source_size = tuple(logits.shape[2:])
    axes = [
        _Axis.between(source, voxels, align_corners, share)
        for source, voxels, share in zip(source_size, target, shares, strict=True)
    ]
    workers = torch.get_num_threads() if threads is None else _whole("threads", threads)
    if isinstance(logits, Tensor) and logits.device.type != "cpu":
        return _render_on_device(logits.detach(), axes)
    array = _as_array(logits)
    if ndim == 2:  # a volume of one plane
        array = array[:, :, None]
        axes.insert(0, _Axis.between(1, 1, False, 1.0))
    labels = _render(_Source(array), axes, workers).reshape(len(array), *target)
    return torch.from_numpy(labels) if isinstance(logits, Tensor) else labels


def _checked(logits: Tensor | NDArray[Any], size: Sequence[int]) -> tuple[tuple[int, ...], int]:
    if isinstance(logits, Tensor):
        known = logits.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    elif isinstance(logits, np.ndarray):
        known = logits.dtype.kind == "f" and logits.itemsize <= 8
    else:
        raise TypeError(f"logits must be a tensor or an array, got {type(logits).__name__}")
    if not known:
        raise TypeError(f"logits must be float16, bfloat16, float32 or float64, got {logits.dtype}")
    if logits.ndim not in (4, 5):
        raise ValueError(f"logits must be (B, K, D, H, W) or (B, K, H, W), got {tuple(logits.shape)}")
    if 0 in logits.shape[2:] or not 1 <= logits.shape[1] <= 65536:
        raise ValueError(f"logits must have 1 to 65536 classes and no empty spatial axis, got {tuple(logits.shape)}")
    ndim = logits.ndim - 2
    if len(size) != ndim:
        raise ValueError(f"size must be {ndim} whole numbers for logits {tuple(logits.shape)}, got {tuple(size)}")
    return tuple(_whole("size", voxels) for voxels in size), ndim


def _whole(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be whole, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _as_array(logits: Tensor | NDArray[Any]) -> NDArray[Any]:
    """The same memory as a numpy array; bfloat16, which numpy lacks, as uint16."""
    if isinstance(logits, np.ndarray):
        return logits
    logits = logits.detach().resolve_neg()
    if logits.dtype == torch.bfloat16:
        return logits.view(torch.uint16).numpy()
    return logits.numpy()


def _check_finite(finite: bool) -> None:
    if not finite:
        raise ValueError("logits must be finite (in float32), got NaN or infinity")


@dataclass(frozen=True)
class _Axis:
    """Linear interpolation along one axis, grouped by cell: targets starts[i]:starts[i + 1] lie in cell i."""

    lower: NDArray[np.int32]
    upper: NDArray[np.int32]
    weight: NDArray[np.float32]
    starts: NDArray[np.int32]

    @classmethod
    def between(cls, source: int, target: int, align_corners: bool, extent: float) -> _Axis:
        lower, upper, weight = interpolation_table(source, target, align_corners=align_corners, extent=extent)
        starts = np.searchsorted(lower, np.arange(source + 1)).astype(np.int32)
        return cls(lower, upper, weight, starts)

    @property
    def source(self) -> int:
        return len(self.starts) - 1

    @property
    def target(self) -> int:
        return len(self.lower)


class _Source:
    """Planes of (B, K, D, H, W) logits as flat float32: in place where they are, else converted one at a time."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.batch, self.classes, self.depth, self.height, self.width = array.shape
        in_place = array.dtype == np.dtype("=f4") and array.flags.c_contiguous and array.flags.aligned
        self.flat = _read_only(array.reshape(-1)) if in_place else None

    def block(self, item: int, slabs: range, first: int, last: int) -> _Block:
        """Rows first:last of the planes around some slabs of one batch item."""
        return _Block(self, item, slabs, first, last)

    def copy(self, item: int, plane: int, rows: slice, out: NDArray[np.float32]) -> None:
        """Convert rows of one plane into `out` (K, rows, W)."""
        values = self.array[item, :, plane, rows]
        if values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
            bits = out.view(np.uint32)
            np.copyto(bits, values)
            np.left_shift(bits, 16, out=bits)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # refused below, with the reason
                np.copyto(out, values, casting="same_kind")


class _Block:
    """A block of rows of one batch item, two neighbouring planes at a time."""

    def __init__(self, source: _Source, item: int, slabs: range, first: int, last: int) -> None:
        self.source, self.item, self.slabs, self.rows = source, item, slabs, slice(first, last)
        self.count = (last - first) * source.width
        if source.flat is not None:
            self.flat = source.flat
            plane = source.height * source.width
            self.stride = source.depth * plane
            start = item * source.classes * self.stride + first * source.width
            self.starts = start + plane * np.arange(source.depth)
        else:
            self.planes = np.empty((2, source.classes, last - first, source.width), np.float32)
            self.flat = _read_only(self.planes.reshape(-1))
            self.stride = self.count
            self.starts = np.arange(source.depth) % 2 * source.classes * self.count
        self.bits = _read_only(self.flat.view(np.int32))

    def readable(self) -> Iterator[tuple[int, int, int]]:
        """Ranges of slabs whose planes are readable at once, all of them in place, else one after the other; last, the
        slab that the block begins with."""
        first, last, depth = self.slabs.start, self.slabs.stop, self.source.depth
        if self.source.flat is not None:
            yield first, last, first
            return
        self.source.copy(self.item, first, self.rows, self.planes[first % 2])
        for lower in self.slabs:
            if lower + 1 < depth:
                self.source.copy(self.item, lower + 1, self.rows, self.planes[(lower + 1) % 2])
            yield lower, lower + 1, first


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    # always read-only, so that the kernels compile for one kind of array only
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


def _render(source: _Source, axes: list[_Axis], threads: int) -> NDArray[Any]:
    dtype = np.uint8 if source.classes <= 256 else np.uint16
    labels = np.empty((source.batch, *(axis.target for axis in axes)), dtype)
    by_surface = source.batch > 0 and _pays_by_surface(source, axes)

    def run(task: _Task) -> None:
        block = source.block(task.item, task.slabs, task.first, min(task.last + 1, source.height))
        _render_block(block, (task.first, task.last, source.height), axes, by_surface, labels[task.item])

    _each(run, _tasks(source, threads), threads)
    return labels


class _Task(NamedTuple):
    """Some slabs of cells, and of those the rows first:last, of one batch item."""

    item: int
    slabs: range
    first: int
    last: int


def _tasks(source: _Source, threads: int) -> list[_Task]:
    """Blocks whose running values stay in cache, several for each thread.

    Threads share by planes first: blocks of rows would write to the same pages of the labels, and each page is zeroed
    at its first use while the other thread waits. A plane between two tasks is ranked twice.
    """
    rows = max(4, min(source.height, BLOCK_BYTES // (40 * source.width)))
    wanted = threads * BLOCKS_PER_THREAD if threads > 1 else 1
    by_rows = source.batch * math.ceil(source.height / rows)
    parts = max(1, min(source.depth, math.ceil(wanted / max(by_rows, 1))))
    if parts * by_rows < wanted:
        rows = max(4, min(rows, math.ceil(source.batch * parts * source.height / wanted)))
    edges = [source.depth * part // parts for part in range(parts + 1)]
    return [
        _Task(item, range(start, stop), first, min(first + rows, source.height))
        for item in range(source.batch)
        for start, stop in pairwise(edges)
        for first in range(0, source.height, rows)
    ]


Task = TypeVar("Task")


def _each(run: Callable[[Task], None], tasks: Sequence[Task], threads: int) -> None:
    if threads == 1 or len(tasks) <= 1:
        for task in tasks:
            run(task)
        return
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        for _ in pool.map(run, tasks):
            pass


def _render_block(
    block: _Block, rows: tuple[int, int, int], axes: list[_Axis], by_surface: bool, out: NDArray[Any]
) -> None:
    from pointrend._kernels.dense import dense_slabs
    from pointrend._kernels.planes import LARGEST_FINITE, Planes, Tables
    from pointrend._kernels.surface import surface_slabs

    ranked = block.count if by_surface else 0
    planes = Planes(
        block.flat,
        np.empty(2, np.int64),
        block.stride,
        block.source.classes,
        np.empty((2, 3, ranked), np.float32),
        np.empty((2, 2, ranked), np.int32),
    )
    z, y, x = axes
    tables = Tables(z.starts, z.weight, y.starts, y.weight, x.starts, x.weight)
    loop = surface_slabs if by_surface else dense_slabs
    for slabs in block.readable():
        _check_finite(int(loop(planes, block.bits, block.starts, slabs, rows, tables, out)) <= LARGEST_FINITE)


def _pays_by_surface(source: _Source, axes: list[_Axis]) -> bool:
    """Whether looking for surfaces is cheaper than the dense loop, judged by a sample of the cells.

    The costs are nanoseconds of one core (2.5 GHz, AVX-512); only their proportions matter.
    """
    voxels = math.prod(axis.target for axis in axes) / (source.depth * source.height * source.width)
    if voxels <= 1:  # by the number of cells: fewer targets than corners to rank
        return False
    pairs, others, candidates, searches = _survey(source)
    surface = 0.4 * source.classes + 0.2 * voxels + pairs * (100 + 2 * voxels)
    surface += others * 250 + candidates * (40 + 2 * voxels) + searches * 15 * source.classes
    return bool(surface < voxels * (0.6 * source.classes + 1.5))


def _survey(source: _Source) -> NDArray[np.float64]:
    """What `survey` counts, per cell, in rows of cells spread over the logits."""
    from pointrend._kernels.planes import Planes, top_three
    from pointrend._kernels.surface import survey

    depths, heights, width = max(source.depth - 1, 1), max(source.height - 1, 1), source.width
    count = max(1, min(SAMPLED_ROWS, depths * heights // 50))
    rows = np.zeros((2, source.classes, 2, width), np.float32)
    flat = _read_only(rows.reshape(-1))
    planes = Planes(
        flat,
        np.array([0, rows[0].size]),
        2 * width,
        source.classes,
        np.empty((2, 3, 2 * width), np.float32),
        np.empty((2, 2, 2 * width), np.int32),
    )
    total = np.zeros(4)
    for sample in range(count):
        # golden-ratio steps reach all depths and heights without a random number
        z, y = int((sample + 0.5) / count * depths), int((sample * 0.6180339887 + 0.5) % 1 * heights)
        for slot, plane in enumerate((z, min(z + 1, source.depth - 1))):
            source.copy(sample % source.batch, plane, slice(y, y + 1), rows[slot, :, :1])
            last = min(y + 1, source.height - 1)
            source.copy(sample % source.batch, plane, slice(last, last + 1), rows[slot, :, 1:])
            top = planes.values[slot], planes.labels[slot]
            top_three(flat, flat.view(np.int32), planes.offsets[slot], 2 * width, source.classes, *top)
        total += survey(planes, width)
    return total / (count * max(width - 1, 1))


def _render_on_device(logits: Tensor, axes: list[_Axis]) -> Tensor:
    """The dense way in torch, a few target planes at a time, for devices without compiled loops."""
    _check_finite(bool(torch.isfinite(logits).all()))
    size = [axis.target for axis in axes]
    labels = torch.empty(
        (len(logits), *size), dtype=torch.uint8 if logits.shape[1] <= 256 else torch.uint16, device=logits.device
    )
    planes = max(1, 2**26 // (logits.shape[1] * math.prod(size[1:])))
    for item in range(len(logits)):
        for first in range(0, size[0], planes):
            part = logits[item]
            for dim, axis in enumerate(axes, start=1):
                chunk = slice(first, first + planes) if dim == 1 else slice(None)
                part = _interpolated(part, dim, axis, chunk)
            labels[item, first : first + planes] = part.argmax(0).to(labels.dtype)
    return labels


def _interpolated(values: Tensor, dim: int, axis: _Axis, chunk: slice) -> Tensor:
    def along(table: NDArray[Any]) -> Tensor:
        return torch.from_numpy(table[chunk]).to(values.device)

    weight = along(axis.weight).reshape(-1, *[1] * (values.ndim - dim - 1))
    lower = values.index_select(dim, along(axis.lower)).float()
    return lower.lerp_(values.index_select(dim, along(axis.upper)).float(), weight)
