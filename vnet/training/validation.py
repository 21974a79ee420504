"""Validation of a run: scores of its fold, the picture of each case, a row of metrics.csv."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vnet.core.config import Config
from vnet.core.distributed import gather, on_rank_zero
from vnet.core.files import read_table, write_table
from vnet.core.runs import Run
from vnet.data.prepared import PreparedData
from vnet.evaluation.scores import CaseScores, PredictedCase, Scores, mean_dice, score_cases
from vnet.model.segmenter import Segmenter
from vnet.report.case_pictures import CasePicture, case_picture
from vnet.training.logger import RunLogger


@dataclass(frozen=True)
class Validation:
    """Scores of a fold and what the pictures of its cases need, both in the order of the fold."""

    scores: Scores
    pictures: Sequence[CasePicture]

    @property
    def dice(self) -> float:
        """Mean over structures of the labels that count: refined where a head refines."""
        means = self.scores.dice_means()
        return mean_dice(means[max(means)])

    def text(self) -> str:
        """Dice in a few words, without refinement too where a head refines."""
        means = self.scores.dice_means()
        unrefined = f" (unrefined {mean_dice(means[False]):.4f})" if len(means) > 1 else ""
        return f"validation Dice {self.dice:.4f}{unrefined}"


def validate(
    model: Segmenter,
    prepared: PreparedData,
    names: Sequence[str],
    config: Config,
    *,
    dice_alone: bool = False,
    use: Callable[[PredictedCase, CaseScores], None] = lambda predicted, scores: None,
    faults: list[str] | None = None,
) -> Validation:
    """Predict and score the named cases, which the processes share, and cut the planes of their pictures.

    Args:
        model: in evaluation mode afterwards.
        dice_alone: leave surface distances out, and do not measure memory.
        use: called with each case that this process scored, while its volumes are there.
        faults: as in `score_cases`.
    """
    pictures: dict[str, CasePicture] = {}

    def cut_and_use(predicted: PredictedCase, scores: CaseScores) -> None:
        pictures[scores.case] = case_picture(predicted, scores.mean_dice)
        use(predicted, scores)

    model.eval()
    scores = score_cases(
        model,
        prepared,
        names,
        config,
        dice_alone=dice_alone,
        measure_memory=not dice_alone,
        use=cut_and_use,
        faults=faults,
    )
    cut = {name: picture for part in gather(pictures) for name, picture in part.items()}
    return Validation(scores, [cut[one.case] for one in scores.cases])


class Validator:
    """Validates a run on its fold: scores, rows of metrics.csv, events of the log.

    Args:
        config, prepared, run: of the run.
        logger: of the run.
        keep_steps: rows of metrics.csv up to this step are kept, later ones belong to steps that are made again.
    """

    def __init__(self, config: Config, prepared: PreparedData, run: Run, logger: RunLogger, *, keep_steps: int) -> None:
        self.config, self.prepared, self.run, self.logger = config, prepared, run, logger
        rows = read_table(run.folder / "metrics.csv")
        self.history: list[dict[str, Any]] = [dict(row) for row in rows if int(row["step"]) <= keep_steps]

    @property
    def last_dice(self) -> float | None:
        """Dice of the latest validation, None before the first."""
        return float(self.history[-1]["dice"]) if self.history else None

    def validate(
        self,
        model: Segmenter,
        step: int,
        *,
        dice_alone: bool,
        advance: Callable[[str], None] = lambda case: None,
    ) -> Validation:
        """Validate after `step` finished steps.

        Args:
            dice_alone: as in `validate`.
            advance: called with the name of each case when it is scored.
        """
        shown: list[str] = []

        def use(predicted: PredictedCase, scores: CaseScores) -> None:
            if not shown:  # the same case each time, so that the slider shows it learn
                self.logger.log_first_case(step, predicted)
            shown.append(scores.case)
            advance(scores.case)

        start = time.perf_counter()
        names = self.prepared.fold.val
        validation = validate(model, self.prepared, names, self.config, dice_alone=dice_alone, use=use)
        if names:
            self.add_row(step, validation, time.perf_counter() - start)
            self.logger.log_validation(step, validation.scores, validation.pictures)
        return validation

    def add_row(self, step: int, validation: Validation, seconds: float) -> None:
        """Add a row to metrics.csv, in place of an earlier one of the same step."""
        means = validation.scores.dice_means()
        structures = self.prepared.dataset.structures[1:]
        row: dict[str, Any] = {"step": step, "dice": validation.dice, "dice_unrefined": mean_dice(means[False])}
        row |= {f"dice_{name}": means[max(means)].get(name) for name in structures}
        row |= {f"dice_unrefined_{name}": means[False].get(name) for name in structures}
        self.history = [old for old in self.history if int(old["step"]) != step]
        self.history.append(row | {"seconds_validation": seconds})
        on_rank_zero(lambda: write_table(self.run.folder / "metrics.csv", self.history))
