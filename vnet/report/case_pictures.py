"""The worst, the median and the best case of a set, as pictures: what one looks at before any mean."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vnet.core.files import write_bytes, write_text
from vnet.data.dataset import Dataset
from vnet.data.planes import TRUTH, Picture, Slices, contour_picture, cut_slices
from vnet.evaluation.scores import PredictedCase

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
    """

    name: str
    dice: float
    slices: Slices

    def draw(self, title: str, size_px: int, *, upright: bool = False) -> Picture:
        """Arguments as of `vnet.data.planes.contour_picture`."""
        whole = f"{title}: {self.name}, Dice {self.dice:.3f}"
        return contour_picture(self.slices, whole, size_px, upright=upright)


def case_picture(predicted: PredictedCase, dice: float, structures: Sequence[str]) -> CasePicture:
    """The planes of a case through its structures: first channel, truth, and labels: with a head also unrefined ones.

    Args:
        dice: mean over the case's structures, for the title.
        structures: names, the first is the background.
    """
    prediction, volume = predicted.prediction, predicted.volume
    if prediction.refined:
        versions = {"unrefined": prediction.unrefined, "refined": prediction.labels}
    else:
        versions = {"prediction": prediction.labels}
    slices = cut_slices(volume.array[0], {TRUTH: predicted.truth} | versions, volume.spacing_mm, structures)
    return CasePicture(predicted.case.name, dice, slices)


def pick_extremes(cases: Sequence[CasePicture]) -> dict[str, CasePicture]:
    """`worst`, `median` and `best` to a case; fewer where there are fewer cases, none where none can be ranked.

    Of an even number the lower of both middle ones is the median, so that it is a case; names settle ties.
    """
    ranked = sorted((case for case in cases if not math.isnan(case.dice)), key=lambda case: (case.dice, case.name))
    if len(ranked) < 3:
        return dict(zip(("worst", "best"), ranked, strict=False))
    return dict(zip(RANKS, (ranked[0], ranked[(len(ranked) - 1) // 2], ranked[-1]), strict=True))


def write_pictures(folder: Path, cases: Sequence[CasePicture], dataset: Dataset) -> list[Path]:
    """RANK_CASE.png of the extremes, and SOURCE.md where the data set names its source; those of before go.

    Returns:
        The pictures.
    """
    kept = {}
    for rank, case in pick_extremes(cases).items():
        plain = "".join(c if c.isalnum() or c in "-." else "_" for c in case.name)
        kept[folder / f"{rank}_{plain}.png"] = png(case.draw(rank, KEPT_PX))
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
    Image.fromarray(np.ascontiguousarray(picture)).quantize(COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()
