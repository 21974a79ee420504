"""Predict labelled cases and score them on their own grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vnet.core.config import Config
from vnet.core.distributed import unshard
from vnet.data.dataset import Case
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import Volume, read_image, read_label
from vnet.evaluation.metrics import METRICS, case_metrics, dice_scores
from vnet.evaluation.refinement import refinement_rows
from vnet.inference.segment import Prediction, predict_volume
from vnet.model.segmenter import Segmenter
from vnet.report.case_pictures import CasePicture, case_picture

# the first columns of cases.csv
CASE_COLUMNS = ("arm", "fold", "seed", "case", "structure", "refined", *METRICS)


@dataclass(frozen=True)
class Scored:
    """A case with its prediction and its truth (canonical order, native grid)."""

    case: Case
    volume: Volume
    truth: np.ndarray
    prediction: Prediction
    seconds: float

    def versions(self) -> Iterator[tuple[bool, np.ndarray]]:
        """(refined, labels) of the versions to score; an arm without a head has only the unrefined one."""
        yield False, self.prediction.unrefined
        if self.prediction.refined:
            yield True, self.prediction.labels

    def picture(self, dice: float) -> CasePicture:
        """What its picture needs; `dice` is the mean over its structures."""
        spacing_mm = self.volume.spacing_mm
        return case_picture(self.case.name, dice, self.volume.array[0], self.truth, self.prediction, spacing_mm)


def predict_cases(
    model: Segmenter, cases: Iterable[Case], preprocessing: Preprocessing, config: Config
) -> Iterator[Scored]:
    """Each case predicted; `seconds` is reading, preprocessing, network, rendering and refinement."""
    for case in cases:
        assert case.label is not None  # folds hold labelled cases only
        start = time.perf_counter()
        volume = read_image(case.images)
        prediction = predict_volume(model, volume, preprocessing, config)
        seconds = time.perf_counter() - start
        yield Scored(case, volume, read_label(case.label).array, prediction, seconds)


def case_rows(scored: Scored, config: Config, structures: Sequence[str], ignore: int | None) -> list[dict[str, Any]]:
    """Rows of cases.csv for one case."""
    run = {"arm": config.arm, "fold": config.data.fold, "seed": config.seed, "case": scored.case.name}
    rows = []
    for refined, labels in scored.versions():
        for row in case_metrics(
            labels,
            scored.truth,
            structures,
            scored.volume.voxel_to_mm,
            config.metrics.tolerance_mm,
            ignore=ignore,
        ):
            rows.append(run | {"structure": row["structure"], "refined": refined} | row)
    return rows


@dataclass(frozen=True)
class Evaluation:
    """Tables of a set of cases, and what the pictures of its extremes need."""

    cases: list[dict[str, Any]]
    refinement: list[dict[str, Any]]
    pictures: list[CasePicture]
    seconds: list[float]

    @property
    def seconds_per_case(self) -> float:
        """The median, NaN without cases."""
        return float(np.median(self.seconds)) if self.seconds else float("nan")


def evaluate_cases(
    model: Segmenter,
    cases: Iterable[Case],
    preprocessing: Preprocessing,
    config: Config,
    *,
    structures: Sequence[str],
    ignore: int | None = None,
    shown: Callable[[str], None] = lambda case: None,
) -> Evaluation:
    """Score `cases` with and without refinement.

    Args:
        shown: called with the name of each finished case.
    """
    rows, refinement, seconds, pictures = [], [], [], []
    for scored in predict_cases(model, cases, preprocessing, config):
        own = case_rows(scored, config, structures, ignore)
        rows += own
        seconds.append(scored.seconds)
        pictures.append(scored.picture(mean_of_case(own)))
        if scored.prediction.refined:
            refinement += [
                {"case": scored.case.name} | row
                for row in refinement_rows(
                    scored.truth,
                    scored.prediction.unrefined,
                    scored.prediction.labels,
                    scored.prediction.index,
                    scored.prediction.uncertainty,
                    scored.volume.voxel_to_mm,
                    structures,
                    ignore=ignore,
                )
            ]
        shown(scored.case.name)
    return Evaluation(rows, refinement, pictures, seconds)


def merge_evaluations(shares: Sequence[Evaluation], cases: Sequence[str]) -> Evaluation:
    """One table of what several processes scored, in the order of `cases`."""
    place = {case: number for number, case in enumerate(cases)}

    def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: place[row["case"]])

    return Evaluation(
        ordered([row for share in shares for row in share.cases]),
        ordered([row for share in shares for row in share.refinement]),
        unshard([share.pictures for share in shares]),
        unshard([share.seconds for share in shares]),
    )


def mean_of_case(rows: Sequence[dict[str, Any]]) -> float:
    """Mean Dice over a case's structures, refined where there are such rows; NaN where all are absent."""
    refined = max(row["refined"] for row in rows)
    found = [row["dice"] for row in rows if row["refined"] == refined and row["dice"] is not None]
    return float(np.mean(found)) if found else float("nan")


class DiceTable:
    """Dice by case and structure, with and without refinement, of the cases added so far."""

    def __init__(self, structures: Sequence[str], ignore: int | None = None) -> None:
        self.structures, self.ignore = structures, ignore
        self.scores: dict[bool, list[np.ndarray]] = {}

    def add(self, scored: Scored) -> float:
        """Score a case; returns the mean over its structures of the labels that count, NaN where all are absent."""
        for refined, labels in scored.versions():
            dice = dice_scores(labels, scored.truth, len(self.structures), self.ignore)
            self.scores.setdefault(refined, []).append(dice)
        present = dice[~np.isnan(dice)]
        return float(present.mean()) if len(present) else float("nan")

    def merge(self, shares: Sequence[dict[bool, list[np.ndarray]]]) -> None:
        """Take the scores of all processes, in the order of the cases that they shared."""
        refined = sorted({key for share in shares for key in share})
        self.scores = {key: unshard([share.get(key, []) for share in shares]) for key in refined}

    def means(self) -> dict[bool, dict[str, float]]:
        """refined or not -> structure -> mean Dice over cases; structures in no case are left out."""
        means = {}
        for refined, rows in self.scores.items():
            table = np.array(rows)  # (cases, structures without the background), NaN where absent in both
            means[refined] = {
                name: float(np.nanmean(table[:, i]))
                for i, name in enumerate(self.structures[1:])
                if not np.isnan(table[:, i]).all()
            }
        return means


def mean_dice(by_structure: dict[str, float]) -> float:
    """Mean over structures, 0 where there is none."""
    return float(np.mean(list(by_structure.values()))) if by_structure else 0.0
