"""What refinement changed in a case: where one plane holds most changed voxels, drawn without and with the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vnet.data.colours import Colour
from vnet.data.planes import Labels, Mask, Picture, compose, displayed, grey_planes, outline, tint
from vnet.evaluation.scores import CaseScores, PredictedCase

WINDOW_VOX = 32  # side of the window, in voxels of the finer of its two axes
PANEL_PX = 384  # 12 a voxel of an isotropic window
TRUTH: Colour = (240, 228, 66)
PREDICTION: Colour = (86, 180, 233)
WRONG: Colour = (213, 94, 0)
TITLES = {"best": "largest gain", "median": "median gain", "worst": "smallest gain, or loss"}


@dataclass(frozen=True)
class Change:
    """What the picture of a case's change needs; small whatever the size of the volume.

    Attributes:
        before, after: mean Dice over its structures, without and with refinement; NaN where every structure is absent.
        image: (rows, columns) uint8, a window of a plane along the axes of the volume.
        truth, unrefined, refined: (rows, columns) label values; voxels that are not counted have the truth's in all.
        axis: that the plane is across; 0 is axial, 1 coronal, 2 sagittal.
        cut: slice number of the plane.
        spacing_mm: (z, y, x) of the volume.
    """

    before: float
    after: float
    image: Picture
    truth: Labels
    unrefined: Labels
    refined: Labels
    axis: int
    cut: int
    spacing_mm: tuple[float, ...]

    @property
    def gain(self) -> float:
        return self.after - self.before

    def draw(self, rank: str, case: str) -> Picture:
        """The window without and with the head, wrong voxels as a tint, under a title.

        Args:
            rank: of `TITLES`.
        """
        place = partial(displayed, spacing_mm=self.spacing_mm, axis=self.axis, size_px=PANEL_PX, upright=True)
        grey = np.repeat(place(self.image)[..., None], 3, axis=2)
        panels = [drawn_errors(grey, place(self.truth), place(labels)) for labels in (self.unrefined, self.refined)]
        title = f"{TITLES[rank]}: {case}, Dice {self.before:.3f} without, {self.after:.3f} with the head"
        fixed, broken = counts_of(self.truth, self.unrefined, self.refined)
        notes = [f"{fixed} voxels fixed, {broken} broken"]
        names = ["without the head", "with the head"]
        legend = {"truth": TRUTH, "prediction": PREDICTION, "wrong": WRONG}
        return compose([[p] for p in panels], names, [self.cut], title, legend, notes, upright=True, axes=[self.axis])


def find_change(predicted: PredictedCase, scores: CaseScores, ignore: int | None = None) -> Change | None:
    """The window of a case in which refinement changed most voxels; None without a head, or where it changed none.

    Args:
        ignore: label value of the truth whose voxels are not counted.
    """
    prediction, truth = predicted.prediction, predicted.truth
    index = prediction.index
    changed = prediction.unrefined_labels != np.ravel(prediction.labels)[index]
    if ignore is not None:
        changed &= np.ravel(truth)[index] != ignore
    if not prediction.refined or not changed.any():
        return None
    axis, cut, mask = busiest_plane(np.stack(np.unravel_index(index[changed], truth.shape), axis=1), truth.shape)
    spacing_mm = tuple(map(float, predicted.volume.spacing_mm))
    window = densest_window(mask, window_size([mm for other, mm in enumerate(spacing_mm) if other != axis]))
    cuts = [cut if other == axis else 0 for other in range(3)]
    grey = grey_planes(predicted.volume.array[0], cuts)[axis]
    true, unrefined, refined = (
        np.take(labels, cut, axis)[window] for labels in (truth, prediction.unrefined, prediction.labels)
    )
    counted = true != ignore if ignore is not None else np.ones(true.shape, bool)
    unrefined, refined = (np.where(counted, labels, true) for labels in (unrefined, refined))
    before, after = scores.mean_dice_of(False), scores.mean_dice_of(True)
    return Change(before, after, grey[window].copy(), true.copy(), unrefined, refined, axis, cut, spacing_mm)


def busiest_plane(places: NDArray[np.integer], shape: Sequence[int]) -> tuple[int, int, Mask]:
    """The plane across any axis that holds most of some voxels; the first of several.

    Args:
        places: (n, 3), voxels, n at least 1.
        shape: (D, H, W).

    Returns:
        Its axis, its slice number, and which of its voxels are among them.
    """
    counts = [np.bincount(places[:, axis], minlength=n) for axis, n in enumerate(shape)]
    axis = int(np.argmax([count.max() for count in counts]))
    cut = int(counts[axis].argmax())
    others = [other for other in range(3) if other != axis]
    mask = np.zeros([shape[other] for other in others], bool)
    mask[tuple(places[places[:, axis] == cut][:, others].T)] = True
    return axis, cut, mask


def window_size(spacing_mm: Sequence[float]) -> tuple[int, int]:
    """Voxels of a window that is square in mm and has `WINDOW_VOX` along the finer axis."""
    side_mm = WINDOW_VOX * min(spacing_mm)
    rows, columns = (max(round(side_mm / mm), 1) for mm in spacing_mm)
    return rows, columns


def densest_window(mask: Mask, size: tuple[int, int]) -> tuple[slice, slice]:
    """The window that holds most voxels of a (rows, columns) mask, with these in its middle as far as the plane goes.

    Args:
        size: voxels along both axes; less where the plane has less.
    """
    rows, columns = (min(n, side) for n, side in zip(mask.shape, size, strict=True))
    sums = np.pad(mask, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    counts = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    corner = np.unravel_index(counts.argmax(), counts.shape)
    held = mask[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns]
    spans = []
    for axis, (start, side) in enumerate(zip(corner, (rows, columns), strict=True)):
        filled = np.flatnonzero(held.any(1 - axis))
        middle = int(start) + (int(filled[0]) + int(filled[-1]) + 1 - side) // 2 if len(filled) else int(start)
        first = min(max(middle, 0), mask.shape[axis] - side)
        spans.append(slice(first, first + side))
    return spans[0], spans[1]


def counts_of(truth: Labels, before: Labels, after: Labels) -> tuple[int, int]:
    """Voxels that were wrong before and are right after, and the other way round."""
    right_before, right_after = before == truth, after == truth
    return int((~right_before & right_after).sum()), int((right_before & ~right_after).sum())


def drawn_errors(picture: Picture, truth: Labels, labels: Labels) -> Picture:
    """The picture with wrong voxels as a tint, the outline of the truth and, thinner, that of the labels."""
    wrong = (labels != truth).astype(np.intp)
    drawn = tint(picture, wrong, np.array([WRONG, WRONG], np.uint8))
    drawn[outline(truth, 4)] = TRUTH
    drawn[outline(labels, 2)] = PREDICTION
    return drawn
