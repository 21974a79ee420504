"""Numbers per axis, always in array order (z, y, x)."""

from __future__ import annotations

from collections.abc import Sequence

Axes = tuple[int, int, int]


def per_axis(value: int | Sequence[int]) -> Axes:
    """(z, y, x) of one number for all three axes, or of three numbers."""
    z, y, x = (value,) * 3 if isinstance(value, int) else tuple(value)
    return z, y, x


def cumulative_strides(strides: Sequence[Sequence[int]]) -> list[Axes]:
    """Stride of each stage relative to the image, starting with (1, 1, 1) of the first stage.

    Args:
        strides: (z, y, x) between one stage and the next.
    """
    total = [(1, 1, 1)]
    for step in strides:
        z, y, x = (a * b for a, b in zip(total[-1], step, strict=True))
        total.append((z, y, x))
    return total
