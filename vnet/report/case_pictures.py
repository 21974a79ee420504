"""The worst, the median and the best case of a set, as pictures: what one looks at before any mean.

With a head also three changes: the largest, the median and the smallest gain of Dice by refinement.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vnet.core.files import plain_name, write_bytes, write_text
from vnet.data.dataset import Dataset
from vnet.data.planes import TRUTH, Picture, Slices, contour_picture, cut_slices
from vnet.evaluation.scores import PredictedCase
from vnet.report.changes import Change

RANKS = ("worst", "median", "best")
KEPT_PX = 264  # height of a plane in the pictures beside the tables, so that each stays below 100 kB
COLOURS = 128  # of a file: greys, tints and lines


@dataclass(frozen=True)
class CasePicture:
    """What a case's picture needs; small, so that one can be kept of every case until the worst is known.

    Attributes:
        name: of the case.
        dice: mean over its structures, of the labels that count (refined where a head refines); NaN where every
            structure is absent.
        slices: three planes.
        change: what refinement changed; None where it changed nothing, or was not asked for.
    """

    name: str
    dice: float
    slices: Slices
    change: Change | None = None

    @property
    def gain(self) -> float:
        """Of Dice by refinement; NaN where there is no change to show."""
        return self.change.gain if self.change else math.nan

    def draw(self, title: str, size_px: int, *, upright: bool = False) -> Picture:
        """Arguments as of `vnet.data.planes.contour_picture`."""
        whole = f"{title}: {self.name}, Dice {self.dice:.3f}"
        return contour_picture(self.slices, whole, size_px, upright=upright)


def case_picture(
    predicted: PredictedCase, dice: float, structures: Sequence[str], change: Change | None = None
) -> CasePicture:
    """The planes of a case through its structures: first channel, truth, and labels: with a head also unrefined ones.

    Args:
        dice: mean over the case's structures, for the title.
        structures: names, the first is the background.
        change: of `vnet.report.changes.find_change`.
    """
    prediction, volume = predicted.prediction, predicted.volume
    if prediction.refined:
        versions = {"unrefined": prediction.unrefined, "refined": prediction.labels}
    else:
        versions = {"prediction": prediction.labels}
    slices = cut_slices(volume.array[0], {TRUTH: predicted.truth} | versions, volume.spacing_mm, structures)
    return CasePicture(predicted.case.name, dice, slices, change)


def pick_extremes(
    cases: Sequence[CasePicture], value_of: Callable[[CasePicture], float] = lambda case: case.dice
) -> dict[str, CasePicture]:
    """`worst`, `median` and `best` to a case; fewer where there are fewer cases, none where none can be ranked.

    Of an even number the lower of both middle ones is the median, so that it is a case; names settle ties.

    Args:
        value_of: a case's value, the higher the better; a case of NaN is left out.
    """
    ranked = sorted((c for c in cases if not math.isnan(value_of(c))), key=lambda c: (value_of(c), c.name))
    if len(ranked) < 3:
        return dict(zip(("worst", "best"), ranked, strict=False))
    return dict(zip(RANKS, (ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1]), strict=True))


def write_pictures(folder: Path, cases: Sequence[CasePicture], dataset: Dataset) -> list[Path]:
    """RANK_CASE.png of the extremes, change_RANK_CASE.png of those by gain of refinement, and SOURCE.md where the data
    set names its source; those of before go.

    Returns:
        The pictures.
    """
    kept = {}
    for rank, case in pick_extremes(cases).items():
        kept[folder / f"{rank}_{plain_name(case.name)}.png"] = png(case.draw(rank, KEPT_PX))
    for rank, case in pick_extremes(cases, lambda case: case.gain).items():
        if case.change:
            kept[folder / f"change_{rank}_{plain_name(case.name)}.png"] = png(case.change.draw(rank, case.name))
    for old in folder.glob("*.png"):
        if old not in kept:
            old.unlink()
    for path, data in kept.items():
        write_bytes(path, data)
    if kept and dataset.source:
        write_text(folder / "SOURCE.md", source_note(dataset.name, dataset.source))
    return list(kept)


def source_note(name: str, source: Mapping[str, str]) -> str:
    """Whose images these are, as dataset.json tells it."""
    lines = [f"The images in these pictures are from the data set {name}.", ""]
    return "\n".join([*lines, *(f"- {key}: {value}" for key, value in source.items())]) + "\n"


def png(picture: Picture) -> bytes:
    """PNG of `COLOURS`: planes of grey, tints and lines lose nothing that the eye would miss."""
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    # the default, a median cut, turns the few pixels of a thin structure or of its legend grey
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
    return file.getvalue()
