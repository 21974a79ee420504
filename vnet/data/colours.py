"""Colours of structures: one a label value, the same in label files, pictures and 3-D views.

The first seven are Okabe and Ito's, told apart in every common kind of colour blindness. Each further colour is the one
that lies farthest from all before it, in whichever of normal, red-blind and green-blind sight it is nearest. A label
value therefore has the same colour however many structures there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (204, 121, 167),
)
LEVELS = 9  # of red, green and blue among the further colours
LIGHTNESS = (0.5, 0.95)  # of the further colours: they are seen on black and on white

# Machado, Oliveira, Fernandes 2009: linear RGB as seen without red and without green cones
RED_BLIND = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
GREEN_BLIND = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
# Ottosson 2020: linear RGB to cone responses, and their cube roots to Oklab
CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
CONES += [[0.0883024619, 0.2817188376, 0.6299787005]]
OKLAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
OKLAB += [[0.0259040371, 0.7827717662, -0.8086757660]]


def structure_colours(count: int) -> tuple[Colour, ...]:
    """Colours of the label values 1 to `count`; they repeat where every distinct colour is taken (some hundreds)."""
    known = OKABE_ITO if count <= len(OKABE_ITO) else _all_colours()
    return tuple(known[number % len(known)] for number in range(count))


@lru_cache
def _all_colours() -> tuple[Colour, ...]:
    levels = np.rint(np.linspace(0, 255, LEVELS)).astype(int)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = as_seen(grid)[0, :, 0]
    candidates = grid[(lightness >= LIGHTNESS[0]) & (lightness <= LIGHTNESS[1])]
    seen = as_seen(candidates)
    chosen = list(OKABE_ITO)
    apart = np.min([_distances(seen, as_seen([colour])) for colour in chosen], axis=0)
    while apart.max() > 0:
        best = int(apart.argmax())
        red, green, blue = candidates[best].tolist()
        chosen.append((red, green, blue))
        apart = np.minimum(apart, _distances(seen, seen[:, best : best + 1]))
    return tuple(chosen)


def as_seen(colours: Sequence[Colour] | NDArray[np.integer]) -> NDArray[np.floating]:
    """Oklab values (3, N, 3) of N colours in normal, red-blind and green-blind sight; distances there are perceived."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    sights = [np.clip(linear @ np.transpose(sight), 0, 1) for sight in (np.eye(3), RED_BLIND, GREEN_BLIND)]
    return np.cbrt(np.stack(sights) @ np.transpose(CONES)) @ np.transpose(OKLAB)


def _distances(seen: NDArray[np.floating], one: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) distance of each colour from one, in the sight in which it is least."""
    least: NDArray[np.floating] = np.sqrt(((seen - one) ** 2).sum(-1)).min(0)
    return least


def slicer_colour_table(structures: Sequence[str]) -> str:
    """The text of a colour table (.ctbl) of 3D Slicer.

    Args:
        structures: names by label value, the background first.
    """
    rows = [(0, "background", (0, 0, 0), 0)]
    rows += [
        (value, structures[value], colour, 255)
        for value, colour in enumerate(structure_colours(len(structures) - 1), start=1)
    ]
    # columns are parted by spaces: Slicer itself writes names with underscores and shows them with spaces
    lines = [f"{value} {'_'.join(name.split())} {r} {g} {b} {alpha}" for value, name, (r, g, b), alpha in rows]
    return "\n".join(["# Color table file", f"# {len(rows)} values", *lines, ""])


def itksnap_labels(structures: Sequence[str]) -> str:
    """The text of a label description file of ITK-SNAP.

    Args:
        structures: names by label value, the background first.
    """
    frame = "#" * 48
    head = [frame, "# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL", frame]
    rows = ['    0     0    0    0        0  0  0    "Clear Label"']
    for value, (red, green, blue) in enumerate(structure_colours(len(structures) - 1), start=1):
        name = structures[value].replace('"', "'")
        rows.append(f'{value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{name}"')
    return "\n".join([*head, *rows, ""])
