"""Scores of labelled cases: each predicted, compared with its label on its own grid, and counted once.

A `PredictedCase` holds volumes and lives while it is scored and drawn; `CaseScores` holds numbers, few enough to keep
for every case and to send between processes. Nothing is drawn here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet.core.config import Config
from vnet.core.distributed import gather, shard
from vnet.core.errors import InputError
from vnet.core.hardware import peak_memory_mib, reset_peak_memory
from vnet.data.dataset import Case
from vnet.data.prepared import PreparedData
from vnet.data.preprocessing import Preprocessing
from vnet.data.volumes import Volume, read_image, read_label
from vnet.evaluation.metrics import METRICS, Labels, Row, case_metrics, dice_scores
from vnet.evaluation.refinement import calibration_counts, refinement_rows
from vnet.inference.ensemble import predict_volume
from vnet.inference.prediction import Prediction
from vnet.model.segmenter import Segmenter

# the first columns of cases.csv
CASE_COLUMNS = ("arm", "fold", "seed", "case", "structure", "refined", *METRICS)


@dataclass(frozen=True)
class PredictedCase:
    """A case, its prediction and its label, in canonical order on the native grid.

    Attributes:
        seconds: of reading, preprocessing, network, rendering and refinement.
        peak_memory_mib: of this process up to the end of the prediction; see `predict_case`.
    """

    case: Case
    volume: Volume
    truth: Labels
    prediction: Prediction
    seconds: float
    peak_memory_mib: float | None = None

    def versions(self) -> Iterator[tuple[bool, Labels]]:
        """(refined, labels) of each version to score; an arm without a head has the unrefined one alone."""
        yield False, self.prediction.unrefined
        if self.prediction.refined:
            yield True, self.prediction.labels


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case.

    Attributes:
        case: its name.
        dice: refined or not -> (K - 1,) Dice of the structures, NaN where one is absent from label and prediction.
        metrics: refined or not -> a row a structure as `case_metrics` gives it; empty where only Dice was asked for.
        refinement: rows of refinement.csv; none without a head.
        calibration: voxels, wrong, expected wrong by margin bin; None without a head.
        seconds, peak_memory_mib: as in `PredictedCase`.
    """

    case: str
    dice: Mapping[bool, NDArray[np.float64]]
    metrics: Mapping[bool, Sequence[Row]]
    refinement: Sequence[Row]
    calibration: NDArray[np.float64] | None
    seconds: float
    peak_memory_mib: float | None = None

    @property
    def mean_dice(self) -> float:
        """Mean over the structures of the labels that count (refined where a head refines); NaN where all are
        absent."""
        return self.mean_dice_of(max(self.dice))

    def mean_dice_of(self, refined: bool) -> float:
        """Mean over the structures of the refined or the unrefined labels; NaN where all are absent."""
        dice = self.dice[refined]
        present = dice[~np.isnan(dice)]
        return float(present.mean()) if len(present) else float("nan")


@dataclass(frozen=True)
class Scores:
    """Scores of a set of cases, in its order.

    Attributes:
        cases: one entry a case.
        structures: names by label value, the first is the background.
    """

    cases: Sequence[CaseScores]
    structures: Sequence[str]

    @property
    def seconds_per_case(self) -> float:
        """The median, NaN without cases."""
        return float(np.median([one.seconds for one in self.cases])) if self.cases else float("nan")

    @property
    def peak_memory_mib(self) -> float | None:
        """The highest of any case; None where it was not measured."""
        known = [one.peak_memory_mib for one in self.cases if one.peak_memory_mib is not None]
        return max(known, default=None)

    def dice_means(self) -> dict[bool, dict[str, float]]:
        """Refined or not -> structure -> mean Dice over cases; a structure absent from every case is left out."""
        means: dict[bool, dict[str, float]] = {}
        for refined in sorted({version for one in self.cases for version in one.dice}):
            table = np.array([one.dice[refined] for one in self.cases])  # (cases, K - 1)
            present = ~np.isnan(table).all(0)
            means[refined] = {
                name: float(np.nanmean(table[:, i])) for i, name in enumerate(self.structures[1:]) if present[i]
            }
        return means

    def case_rows(self, config: Config, subjects: Mapping[str, str] | None = None) -> list[Row]:
        """Rows of cases.csv: a row a case, version and structure.

        Args:
            subjects: case name -> subject, a further column; None or empty for no such column.
        """
        run = {"arm": config.arm, "fold": config.data.fold, "seed": config.seed}
        return [
            run
            | {"case": one.case, "structure": row["structure"], "refined": refined}
            | row
            | ({"subject": subjects[one.case]} if subjects else {})
            for one in self.cases
            for refined, rows in one.metrics.items()
            for row in rows
        ]

    def refinement_rows(self) -> list[Row]:
        """Rows of refinement.csv."""
        return [{"case": one.case} | row for one in self.cases for row in one.refinement]


def mean_dice(by_structure: Mapping[str, float]) -> float:
    """Mean over structures, 0 where there is none."""
    return float(np.mean(list(by_structure.values()))) if by_structure else 0.0


def predict_case(
    model: Segmenter, case: Case, preprocessing: Preprocessing, config: Config, *, measure_memory: bool = False
) -> PredictedCase:
    """A labelled case with its prediction.

    Args:
        measure_memory: start the peak memory anew (where the system can), so that what was scored and drawn of earlier
            cases does not count.

    Raises:
        InputError: a file that cannot be read.
    """
    assert case.label is not None  # folds hold labelled cases alone
    measured = measure_memory and reset_peak_memory(release=False)
    start = time.perf_counter()
    volume = read_image(case.images)
    prediction = predict_volume(model, volume, preprocessing, config)
    seconds = time.perf_counter() - start
    peak = peak_memory_mib() if measured else None
    return PredictedCase(case, volume, read_label(case.label, volume).array, prediction, seconds, peak)


def score_case(
    predicted: PredictedCase,
    structures: Sequence[str],
    *,
    ignore: int | None = None,
    tolerance_mm: float | None = None,
) -> CaseScores:
    """Scores of one predicted case.

    Args:
        structures: names by label value, the first is the background.
        ignore: label value whose voxels are not counted.
        tolerance_mm: of the surface Dice; None leaves every metric but Dice out.
    """
    truth, prediction, voxel_to_mm = predicted.truth, predicted.prediction, predicted.volume.voxel_to_mm
    versions = dict(predicted.versions())
    dice = {refined: dice_scores(labels, truth, len(structures), ignore) for refined, labels in versions.items()}
    metrics: dict[bool, list[Row]] = {}
    if tolerance_mm is not None:
        for refined, labels in versions.items():
            metrics[refined] = case_metrics(labels, truth, structures, voxel_to_mm, tolerance_mm, ignore=ignore)
    refinement: list[dict[str, Any]] = []
    calibration = None
    if prediction.refined:
        asked = prediction.index, prediction.uncertainty
        refinement = refinement_rows(
            truth, prediction.unrefined, prediction.labels, *asked, voxel_to_mm, structures, ignore=ignore
        )
        calibration = calibration_counts(truth, prediction.unrefined, *asked, ignore)
    return CaseScores(
        predicted.case.name, dice, metrics, refinement, calibration, predicted.seconds, predicted.peak_memory_mib
    )


def score_cases(
    model: Segmenter,
    prepared: PreparedData,
    names: Sequence[str],
    config: Config,
    *,
    dice_alone: bool = False,
    measure_memory: bool = False,
    use: Callable[[PredictedCase, CaseScores], None] = lambda predicted, scores: None,
    faults: list[str] | None = None,
) -> Scores:
    """Scores of the named cases, which the processes share; every process gets all of them.

    Args:
        dice_alone: leave surface distances out.
        measure_memory: as in `predict_case`.
        use: called with each case that this process scored, while its volumes are there.
        faults: gets the faults of cases that cannot be read, which are then left out; None raises the first of them.

    Raises:
        InputError: a case cannot be read, and `faults` is None.
    """
    dataset = prepared.dataset
    tolerance_mm = None if dice_alone else config.metrics.tolerance_mm
    mine = []
    for name in shard(names):
        try:
            (case,) = prepared.unchanged_cases((name,))
            predicted = predict_case(model, case, prepared.preprocessing, config, measure_memory=measure_memory)
        except InputError as error:
            if faults is None:
                raise
            faults += error.faults
            continue
        mine.append(score_case(predicted, dataset.structures, ignore=dataset.ignore, tolerance_mm=tolerance_mm))
        use(predicted, mine[-1])
    scored = {one.case: one for part in gather(mine) for one in part}
    return Scores([scored[name] for name in names if name in scored], dataset.structures)
