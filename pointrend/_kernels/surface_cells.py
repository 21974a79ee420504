"""Cells that a surface cuts: which classes may be best somewhere inside, and the labels of the voxels inside."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pointrend._kernels.logit_planes import Planes, compiled, mix

ROUNDING = np.float32(4e-6)  # times |logit| + 1: an upper bound of the rounding error of float32 interpolation


class Cell(NamedTuple):
    """Scratch for one cell; its 8 corners are in row-major order, z slowest."""

    at: NDArray[np.int64]  # (8,) where class 0 of a corner lies in `Planes.flat`
    values: NDArray[np.float32]  # (3, 8) best three logits
    labels: NDArray[np.int32]  # (2, 8) best two classes
    candidates: NDArray[np.int32]  # (K + 17,) classes that may be best inside; 16 corner classes and one being tested
    corners: NDArray[np.float32]  # (K + 17, 8) logits of the candidates
    references: NDArray[np.float32]  # (9, 8) logits of the corners' best classes and, last, their mean
    lead: NDArray[np.float32]  # (8,) scratch


@compiled
def new_cell(classes: int) -> Cell:
    return Cell(
        np.empty(8, np.int64),
        np.empty((3, 8), np.float32),
        np.empty((2, 8), np.int32),
        np.empty(classes + 17, np.int32),
        np.empty((classes + 17, 8), np.float32),
        np.empty((9, 8), np.float32),
        np.empty(8, np.float32),
    )


@compiled
def gather(planes: Planes, slots: tuple[int, int], places: tuple[int, int, int, int], cell: Cell) -> None:
    """Fill a cell from the ranked planes; `places` are (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1) in each plane."""
    for corner in range(8):
        slot, place = slots[corner >> 2], places[corner & 3]
        cell.at[corner] = planes.offsets[slot] + place
        for rank in range(3):
            cell.values[rank, corner] = planes.values[slot, rank, place]
        for rank in range(2):
            cell.labels[rank, corner] = planes.labels[slot, rank, place]


@compiled
def _lead_at(
    values: NDArray[np.float32], labels: NDArray[np.int32], place: int, lower: int, upper: int
) -> tuple[np.float32, bool]:
    """Logit of `upper` minus that of `lower` at one corner, and whether these two are its best two (else no lead)."""
    winner, runner = labels[0, place], labels[1, place]
    lead = values[0, place] - values[1, place]
    known = ((winner == lower) & (runner == upper)) | ((winner == upper) & (runner == lower))
    return (lead if winner == upper else -lead), known


@compiled
def pair_lead(
    low: tuple[NDArray[np.float32], NDArray[np.int32]],
    high: tuple[NDArray[np.float32], NDArray[np.int32]],
    places: tuple[int, int, int, int],
    lower: int,
    upper: int,
    lead: NDArray[np.float32],
) -> bool:
    """Write the lead (8,) of `upper` over `lower`; whether these are the best two classes at all corners.

    Then no other class can be best inside: interpolation is a convex mix of the corners.
    """
    values0, labels0 = low
    values1, labels1 = high
    p0, p1, p2, p3 = places
    lead[0], known0 = _lead_at(values0, labels0, p0, lower, upper)
    lead[1], known1 = _lead_at(values0, labels0, p1, lower, upper)
    lead[2], known2 = _lead_at(values0, labels0, p2, lower, upper)
    lead[3], known3 = _lead_at(values0, labels0, p3, lower, upper)
    lead[4], known4 = _lead_at(values1, labels1, p0, lower, upper)
    lead[5], known5 = _lead_at(values1, labels1, p1, lower, upper)
    lead[6], known6 = _lead_at(values1, labels1, p2, lower, upper)
    lead[7], known7 = _lead_at(values1, labels1, p3, lower, upper)
    return known0 & known1 & known2 & known3 & known4 & known5 & known6 & known7


@compiled
def _out_of_reach(values: NDArray[np.float32], references: NDArray[np.float32], number: int, margin: float) -> bool:
    """Whether `values` (8,) of a class lie below one of the references at all corners.

    Such a class is best nowhere inside: a reference is a class or a mean of classes, so the maximum over classes is at
    least the reference everywhere inside.
    """
    for reference in range(number):
        corner = 0
        while corner < 8 and values[corner] + margin < references[reference, corner]:
            corner += 1
        if corner == 8:
            return True
    return False


@compiled
def _add(candidates: NDArray[np.int32], number: int, label: int) -> int:
    """Append a class to the first `number` candidates unless it is among them; the new number."""
    for i in range(number):
        if candidates[i] == label:
            return number
    candidates[number] = label
    return number + 1


@compiled
def _read(planes: Planes, cell: Cell, index: int, label: int) -> None:
    """Write the corner logits of a class to cell.corners[index]."""
    for corner in range(8):
        cell.corners[index, corner] = planes.flat[cell.at[corner] + label * planes.stride]


@compiled
def _search(planes: Planes, cell: Cell, number: int, references: int, margin: float) -> int:
    """Append the classes that may be best inside and are not among the first `number` candidates; the new number."""
    known = number
    for label in range(planes.classes):
        _read(planes, cell, number, label)
        if not _out_of_reach(cell.corners[number], cell.references, references, margin):
            listed = False
            for i in range(known):
                listed = listed or cell.candidates[i] == label
            if not listed:
                cell.candidates[number] = label
                number += 1
    return number


@compiled
def _keep(cell: Cell, winners: int, number: int, margin: float) -> int:
    """Drop candidates that are best nowhere inside and sort the others, so that ties go to the lower class."""
    candidates, corners = cell.candidates, cell.corners
    kept = 0
    for i in range(number):
        if i >= winners and _out_of_reach(corners[i], cell.references, winners + 1, margin):
            continue
        label, place = candidates[i], kept
        for corner in range(8):
            cell.lead[corner] = corners[i, corner]
        while place > 0 and candidates[place - 1] > label:
            candidates[place] = candidates[place - 1]
            for corner in range(8):
                corners[place, corner] = corners[place - 1, corner]
            place -= 1
        candidates[place] = label
        for corner in range(8):
            corners[place, corner] = cell.lead[corner]
        kept += 1
    return kept


@compiled
def find_candidates(planes: Planes, cell: Cell) -> tuple[int, bool]:
    """Write the classes that may be best inside a cell to `cell.candidates`, ascending, their logits to `cell.corners`.

    Returns:
        The number of candidates, and whether all classes had to be searched.
    """
    number, margin = 0, np.float32(0)
    for corner in range(8):
        number = _add(cell.candidates, number, cell.labels[0, corner])
        margin = max(margin, abs(cell.values[0, corner]))
    margin = ROUNDING * (margin + 1)
    winners = number
    for corner in range(8):
        number = _add(cell.candidates, number, cell.labels[1, corner])
    for i in range(number):
        _read(planes, cell, i, cell.candidates[i])
    share = np.float32(1) / np.float32(winners)
    for corner in range(8):
        mean = np.float32(0)
        for i in range(winners):
            value = cell.corners[i, corner]
            cell.references[i, corner] = value
            mean += value * share
        cell.references[winners, corner] = mean
    # the third best logits bound every class that is among the best two at no corner
    search = number < planes.classes and not _out_of_reach(cell.values[2], cell.references, winners + 1, margin)
    if search:
        number = _search(planes, cell, number, winners + 1, margin)
    return _keep(cell, winners, number, margin), search


@compiled
def pair_labels(
    lead: NDArray[np.float32],
    lower: int,
    upper: int,
    out: NDArray,
    weight_z: NDArray[np.float32],
    weight_y: NDArray[np.float32],
    weight_x: NDArray[np.float32],
) -> None:
    """Write the labels of a cell with two candidates to `out`; `lead` (8,) is that of `upper` at the corners."""
    for z in range(out.shape[0]):
        w = weight_z[z]
        a0, a1 = mix(lead[0], lead[4], w), mix(lead[1], lead[5], w)
        b0, b1 = mix(lead[2], lead[6], w), mix(lead[3], lead[7], w)
        for y in range(out.shape[1]):
            left, right = mix(a0, b0, weight_y[y]), mix(a1, b1, weight_y[y])
            for x in range(out.shape[2]):
                out[z, y, x] = upper if mix(left, right, weight_x[x]) > 0 else lower


@compiled
def many_labels(
    corners: NDArray[np.float32],
    candidates: NDArray[np.int32],
    best: NDArray[np.float32],
    out: NDArray,
    weight_z: NDArray[np.float32],
    weight_y: NDArray[np.float32],
    weight_x: NDArray[np.float32],
) -> None:
    """Write the labels of a cell with n candidates (ascending) to `out`; `corners` (n, 8) are their logits."""
    for z in range(out.shape[0]):
        w = weight_z[z]
        for y in range(out.shape[1]):
            v = weight_y[y]
            for i in range(len(candidates)):
                c = corners[i]
                left = mix(mix(c[0], c[4], w), mix(c[2], c[6], w), v)
                right = mix(mix(c[1], c[5], w), mix(c[3], c[7], w), v)
                for x in range(out.shape[2]):
                    value = mix(left, right, weight_x[x])
                    if i == 0 or value > best[x]:
                        best[x] = value
                        out[z, y, x] = candidates[i]
