"""Boundary points of a mask: `getpoint` against both algorithms of 2020 and a careful numpy version.

The two of 2020 are written anew from their description. `original` cuts a window out of the mask for each candidate.
`improved` first fills a table with the spread of every element's window, one element after the other, and looks
candidates up in it. Their windows are as in 2020: 2 r wide and off centre. `filters` makes the table with scipy's
minimum and maximum filters and looks up all candidates at once. All draw k=1 point per element with beta=0.95 and a
radius of 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pointrend import getpoint
from scripts.benchmarks.harness import Row, take_turns

BETA, RADIUS = 0.95, 1


def blob_mask(*shape: int) -> NDArray[np.uint8]:
    """A mask of a lobed blob that fills about a third of the image at any resolution."""
    axes = np.meshgrid(*[(np.arange(n) + 0.5) / n * 2 - 1 for n in shape], indexing="ij", sparse=True)
    angle = np.arctan2(axes[-2], axes[-1])
    radius = np.sqrt(sum(axis**2 for axis in axes))
    return (radius < 0.62 + 0.12 * np.sin(5 * angle) + 0.05 * np.sin(13 * angle + 1)).astype(np.uint8)


RANDOM = np.random.default_rng(0)


def draw(mask: NDArray[Any], share: float) -> NDArray[np.float64]:
    rows, columns = mask.shape
    return RANDOM.uniform((0, 0), (rows - 1, columns - 1), (int(share * mask.size), 2))


def original(mask: NDArray[Any]) -> list[Any]:
    padded = np.pad(mask, RADIUS, "edge")
    kept = []
    for point in draw(mask, BETA):
        row, column = int(point[0] + 0.5), int(point[1] + 0.5)
        window = padded[row : row + 2 * RADIUS, column : column + 2 * RADIUS]
        if window.max() != window.min():
            kept.append(point)
    return kept + list(draw(mask, 1 - BETA))


def improved(mask: NDArray[Any]) -> list[Any]:
    padded = np.pad(mask, RADIUS, "edge")
    spread = np.zeros(mask.shape)
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            window = padded[row : row + 2 * RADIUS, column : column + 2 * RADIUS]
            spread[row, column] = window.max() - window.min()
    kept = [point for point in draw(mask, BETA) if spread[int(point[0]), int(point[1])] > 0]
    return kept + list(draw(mask, 1 - BETA))


def filters(mask: NDArray[Any]) -> NDArray[np.float64]:
    width = 2 * RADIUS + 1
    mixed = ndimage.maximum_filter(mask, width) != ndimage.minimum_filter(mask, width)
    points = draw(mask, BETA)
    rows, columns = points.astype(np.int64).T
    return np.concatenate((points[mixed[rows, columns]], draw(mask, 1 - BETA)))


def measure(side: int, *, turns: int) -> Row:
    """One row: medians over the turns, in which every side is called once."""
    mask = blob_mask(side, side)
    sides: dict[str, Callable[[], Any]] = {
        "original": lambda: original(mask),
        "improved": lambda: improved(mask),
        "filters": lambda: filters(mask),
        "getpoint": lambda: getpoint(mask, 1, BETA, nearest_neighbor=RADIUS),
    }
    seconds = {name: statistics.median(values) for name, values in take_turns(sides, turns).items()}
    return {
        "mask": f"{side}x{side}",
        "points": side * side,
        **{f"{name}_s": value for name, value in seconds.items()},
        "faster_than_filters": round(seconds["filters"] / seconds["getpoint"], 1),
        "faster_than_improved": round(seconds["improved"] / seconds["getpoint"], 1),
        "faster_than_original": round(seconds["original"] / seconds["getpoint"], 1),
    }


def measure_volume(side: int, *, density: float, radius: int, turns: int) -> Row:
    mask = blob_mask(side, side, side)
    seconds = take_turns({"getpoint": lambda: getpoint(mask, density, BETA, nearest_neighbor=radius)}, turns)[
        "getpoint"
    ]
    points = int(density * mask.size)
    return {"mask": f"{side}x{side}x{side}", "points": points, "getpoint_s": statistics.median(seconds)}


def run(quick: bool = False) -> list[Row]:
    """Rows of the table: masks of 196 to 196 000 elements, then volumes with k=0.01 and a radius of 3."""
    turns = 3 if quick else 11
    rows = [measure(side, turns=turns) for side in (14, 44, 140, 443)]
    sizes = (128,) if quick else (128, 256, 512)
    return rows + [measure_volume(side, density=0.01, radius=3, turns=turns) for side in sizes]
