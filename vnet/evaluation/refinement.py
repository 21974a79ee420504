"""What refinement did to the voxels it touched: fixed, broken, unchanged; by distance to the surface and by margin.

Distances are from a voxel's centre to that of the nearest voxel on the other side of the true surface, so
that both sides count alike and a voxel next to the surface has the distance of one voxel.

`Density` is the share of training points by that distance, against the share of all voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet.evaluation.metrics import Labels, Row
from vnet.evaluation.surfaces import Mask, Steps, nearest_tree, positions_mm, surface_voxels

# upper edges of the bins, each edge in the bin below it
DISTANCE_EDGES_MM = (1.0, 2.0, 3.0, 5.0, 10.0, np.inf)
MARGIN_EDGES = (0.25, 0.5, 1.0, 2.0, 4.0, np.inf)
ALL = "all structures"
COUNTS = ("fixed", "broken", "unchanged", "wrong_before")


def refinement_rows(
    truth: Labels,
    before: Labels,
    after: Labels,
    index: NDArray[np.integer[Any]],
    uncertainty: NDArray[np.floating[Any]],
    spacing_mm: Steps,
    structures: Sequence[str],
    ignore: int | None = None,
) -> list[Row]:
    """Count the refined voxels of one case.

    A voxel is *fixed* when it was wrong before and is right after, *broken* when the other way round, and
    *unchanged* otherwise (a wrong label that became another wrong one too). For a structure, right and wrong
    are about belonging to it, and voxels that are outside of it in truth, before and after are not counted;
    the rows named `ALL` compare labels, and count every refined voxel once.

    Args:
        truth, before, after: (D, H, W), whole numbers; labels before and after refinement.
        index: (n,), flat indices of the refined voxels; n may be 0.
        uncertainty: (n,), second best minus best logit of the unrefined output (0 or less).
        spacing_mm: (z, y, x), or the matrix of `vnet.evaluation.surfaces.Steps`.
        structures: K names, index = label value, the first is the background.
        ignore: label value of `truth` whose voxels are not counted.

    Returns:
        A row a structure, `ALL` included, and non-empty pair of bins: `structure`, `distance_upto_mm` and
        `margin_upto` (upper edges, the last infinite; a structure without a surface is infinitely far), and
        the four `COUNTS` of voxels; `wrong_before` includes the fixed ones.

    Raises:
        ValueError: shapes disagree, or `index` and `uncertainty` differ in length.
    """
    if not truth.shape == before.shape == after.shape:
        shapes = truth.shape, before.shape, after.shape
        raise ValueError(f"truth, before and after must agree in shape, got {shapes}")
    if index.shape != uncertainty.shape or index.ndim != 1:
        raise ValueError(f"index and uncertainty must both be (n,), got {index.shape} and {uncertainty.shape}")
    true_at, before_at, after_at = (np.ravel(labels)[index] for labels in (truth, before, after))
    kept = true_at != ignore if ignore is not None else np.ones(len(index), bool)
    places = np.stack(np.unravel_index(index, truth.shape), axis=1)
    margin_bin = np.searchsorted(MARGIN_EDGES, -uncertainty)
    nearest_mm = np.full(len(index), np.inf)
    rows: list[Row] = []
    for label, structure in enumerate(structures[1:], start=1):
        distance_mm = distance_across_mm(truth == label, places, spacing_mm)
        nearest_mm = np.minimum(nearest_mm, distance_mm)
        involved = kept & ((true_at == label) | (before_at == label) | (after_at == label))
        right = (before_at == label) == (true_at == label), (after_at == label) == (true_at == label)
        rows += _count(structure, involved, right, distance_mm, margin_bin)
    return rows + _count(ALL, kept, (before_at == true_at, after_at == true_at), nearest_mm, margin_bin)


def calibration_counts(
    truth: Labels,
    before: Labels,
    index: NDArray[np.integer[Any]],
    uncertainty: NDArray[np.floating[Any]],
    ignore: int | None = None,
) -> NDArray[np.float64]:
    """By bin of the margin: refined voxels, those that were wrong before, and those that the margin let expect.

    A margin m (best minus second-best logit) gives the second-best class a chance of 1 / (1 + e^m) against the best.
    Arguments as in `refinement_rows`.

    Returns:
        (len(MARGIN_EDGES), 3).
    """
    true_at, before_at = (np.ravel(labels)[index] for labels in (truth, before))
    kept = np.ones(len(index), bool) if ignore is None else true_at != ignore
    margin = -uncertainty[kept].astype(np.float64)
    bins = np.searchsorted(MARGIN_EDGES, margin)
    weights = (np.ones(len(margin)), (before_at != true_at)[kept].astype(float), 1 / (1 + np.exp(margin)))
    return np.stack([np.bincount(bins, weight, len(MARGIN_EDGES)) for weight in weights], axis=1)


def distance_across_mm(mask: Mask, places: NDArray[np.integer[Any]], spacing_mm: Steps) -> NDArray[np.float64]:
    """From each voxel to the nearest one that `mask` tells from it, in mm.

    Args:
        mask: (D, H, W).
        places: (n, 3), voxel indices.
        spacing_mm: (z, y, x), or the matrix of `vnet.evaluation.surfaces.Steps`.

    Returns:
        (n,); infinite beyond the last finite edge of `DISTANCE_EDGES_MM`, and where nothing lies on the other
        side.
    """
    distance_mm = np.full(len(places), np.inf)
    if not mask.any():
        return distance_mm
    # what lies across the surface is in the bounding box or one voxel around it
    filled = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    first = np.array([max(rows[0] - 1, 0) for rows in filled])
    box = tuple(slice(start, rows[-1] + 2) for start, rows in zip(first, filled, strict=True))
    inside = mask[tuple(places.T)]
    for mine, other in ((inside, ~mask[box]), (~inside, mask[box])):
        surface = np.argwhere(surface_voxels(other)) + first
        if len(surface) and mine.any():
            limit_mm = DISTANCE_EDGES_MM[-2] * 1.001
            queried = positions_mm(places[mine], spacing_mm)
            tree = nearest_tree(positions_mm(surface, spacing_mm))
            distance_mm[mine] = tree.query(queried, distance_upper_bound=limit_mm)[0]
    return distance_mm


def _count(
    structure: str,
    involved: Mask,
    right: tuple[Mask, Mask],
    distance_mm: NDArray[np.float64],
    margin_bin: NDArray[np.integer[Any]],
) -> list[Row]:
    before, after = right
    # 0.7 * 10 is a little more than 7
    distance_bin = np.searchsorted(DISTANCE_EDGES_MM, distance_mm * (1 - 1e-9))
    margins = len(MARGIN_EDGES)
    code = distance_bin * margins + margin_bin
    kinds = (~before & after, before & ~after, before == after, ~before)
    size = len(DISTANCE_EDGES_MM) * margins
    counts = np.stack([np.bincount(code[involved & kind], minlength=size) for kind in kinds], axis=1)
    return [
        {
            "structure": structure,
            "distance_upto_mm": float(DISTANCE_EDGES_MM[cell // margins]),
            "margin_upto": float(MARGIN_EDGES[cell % margins]),
        }
        | {name: int(n) for name, n in zip(COUNTS, counts[cell], strict=True)}
        for cell in np.flatnonzero(counts[:, :3].any(1))
    ]


SAMPLED_VOX = 8192  # of a volume's voxels, to know how far from a surface they lie


@dataclass(frozen=True)
class Density:
    """Shares within each of `DISTANCE_EDGES_MM` of the nearest true surface, so the last is 1.

    Attributes:
        points: of the training points, (edges,).
        voxels: of the volume's voxels, (edges,), as if points were drawn uniformly.
    """

    points: NDArray[np.float64]
    voxels: NDArray[np.float64]

    def ratio(self, edge: int) -> float | None:
        """How much denser the points are within an edge than uniform ones; None where no voxel lies there."""
        return float(self.points[edge] / self.voxels[edge]) if self.voxels[edge] else None


def point_density(
    labels: Labels, index: NDArray[np.integer[Any]], spacing_mm: Sequence[float], classes: int
) -> Density:
    """Density of points in one labelled volume.

    Args:
        labels: (D, H, W), whole numbers.
        index: (N,), flat indices, at least one.
        spacing_mm: (z, y, x).
        classes: K; every structure from 1 to K - 1 has a surface.
    """
    # a generator of its own: what is logged takes no random number from what is trained
    everywhere = np.random.default_rng(0).integers(labels.size, size=SAMPLED_VOX)
    return Density(*(shares_within(labels, flat, spacing_mm, classes) for flat in (index, everywhere)))


def shares_within(
    labels: Labels, index: NDArray[np.integer[Any]], spacing_mm: Sequence[float], classes: int
) -> NDArray[np.float64]:
    """Share of the voxels `index` within each of `DISTANCE_EDGES_MM` of the nearest surface of any structure."""
    places = np.stack(np.unravel_index(index, labels.shape), axis=1)
    nearest_mm = np.full(len(index), np.inf)
    for label in range(1, classes):
        nearest_mm = np.minimum(nearest_mm, distance_across_mm(labels == label, places, spacing_mm))
    # 0.7 * 10 is a little more than 7
    return np.array([np.mean(nearest_mm * (1 - 1e-9) <= edge) for edge in DISTANCE_EDGES_MM])
