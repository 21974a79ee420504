"""Mirrored tiles: sets of axes, and where volumes and boxes lie when they are mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from vnet.core.config import Axes
from vnet.inference.tiling import Box

Mirror = tuple[int, ...]  # spatial axes, 0 to 2


def mirror_sets(axes: Sequence[str]) -> list[Mirror]:
    """Every set of the named axes, as numbers: () first, 2^n in all."""
    numbers = ["zyx".index(axis) for axis in axes]
    return [some for n in range(len(numbers) + 1) for some in combinations(numbers, n)]


def mirrored(volume: Tensor, mirror: Mirror) -> Tensor:
    """(C, D, H, W) mirrored along spatial axes."""
    return volume.flip([axis + 1 for axis in mirror]) if mirror else volume


def mirrored_box(box: Box, tile: Axes, mirror: Mirror) -> Box:
    """Where a box of a tile lies in the mirrored tile."""
    z, y, x = (
        slice(n - part.stop, n - part.start) if axis in mirror else part
        for axis, (part, n) in enumerate(zip(box, tile, strict=True))
    )
    return z, y, x
