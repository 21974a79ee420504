"""Validation of a run, and its TensorBoard log: scores of the fold, the picture of each case, a row of metrics.csv."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vnet.core.config import Config
from vnet.core.distributed import gather, on_rank_zero, shard
from vnet.core.files import read_table, write_table
from vnet.core.randomness import CALIBRATION, sample_seed
from vnet.core.runs import Run
from vnet.data.prepared import PreparedData
from vnet.data.volumes import read_image
from vnet.evaluation.scores import CaseScores, PredictedCase, Scores, mean_dice, score_cases
from vnet.inference.calibration import Margins, calibrated_margin, changed_margins, share_within
from vnet.model.segmenter import Segmenter
from vnet.report.case_pictures import CasePicture, case_picture
from vnet.report.changes import find_change
from vnet.report.tensorboard import Board, open_page, write_guide
from vnet.report.validation_log import log_cases, log_dice, log_first_case, log_points, log_refinement

CASES = 8  # of the training fold, and as many of the validation fold


def calibrate_margin(model: Segmenter, prepared: PreparedData, config: Config) -> dict[str, float | None]:
    """Set `model.max_margin` from training cases, and measure what it holds.

    Training cases are fitted better than others: hence the share on validation cases, which decide nothing.

    Args:
        model: in evaluation mode, with a head.

    Returns:
        For run.json: `max_margin`, and the share of the head's label changes within it on training and on validation
        cases; None where no label changes.
    """
    margins = [measure(model, prepared, names, config) for names in (prepared.fold.train, prepared.fold.val)]
    model.max_margin = calibrated_margin(margins[0])
    shares = [share_within(one, model.max_margin) for one in margins]
    return {
        "max_margin": round(model.max_margin, 5),
        "changes_within_margin_training": shares[0],
        "changes_within_margin_validation": shares[1],
    }


def margin_text(facts: Mapping[str, float | None]) -> str:
    """What `calibrate_margin` found, in a line."""
    shares = [
        f"{share:.1%} on {kind} cases"
        for kind in ("training", "validation")
        if (share := facts[f"changes_within_margin_{kind}"]) is not None
    ]
    held = f" holds {' and '.join(shares)} of the labels that the head changes" if shares else ": no label changes"
    return f"margin {facts['max_margin']:.3f}{held}"


def measure(model: Segmenter, prepared: PreparedData, names: Sequence[str], config: Config) -> list[Margins]:
    """`changed_margins` of at most `CASES` of the named cases, evenly spaced, which the processes share."""
    count = min(CASES, len(names))
    chosen = [(number, names[number * len(names) // count]) for number in range(count)]
    mine = []
    for number, name in shard(chosen):
        (case,) = prepared.unchanged_cases((name,))
        generator = torch.Generator().manual_seed(sample_seed(config.seed, 0, number, CALIBRATION))
        mine.append(changed_margins(model, read_image(case.images), prepared.preprocessing, config, generator))
    return [one for part in gather(mine) for one in part]


LOG_EVERY = 5  # steps between points of a curve


class RunLogger:
    """Curves, pictures and meshes of a run.

    Args:
        config: of the run.
        folder: of the run.
        structures: names, the first is the background.
        first_step: the next step that is logged; events from there on are replaced. 1 starts anew.
        active: False writes nothing.
    """

    def __init__(
        self, config: Config, folder: Path, structures: Sequence[str], *, first_step: int, active: bool
    ) -> None:
        self.config, self.structures = config, structures
        self.board: Board | None = None
        if not active:
            return
        if first_step == 1:
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
            write_guide(folder.parent.parent)
        self.board = Board(folder, start_step=first_step if first_step > 1 else 0)
        if first_step == 1:
            open_page(self.board, config, structures)

    @property
    def active(self) -> bool:
        return self.board is not None

    def log_curves(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve; `step` finished steps."""
        if self.board:
            self.board.scalars(step, values)

    def log_first_case(self, step: int, predicted: PredictedCase) -> None:
        """Write where one case was refined, and its surface errors."""
        if self.board:
            run = f"{self.config.arm} {self.config.run_name.replace('_', ' ')}"
            log_first_case(self.board, step, predicted, self.structures, run)

    def log_validation(self, step: int, scores: Scores, pictures: Sequence[CasePicture]) -> None:
        """Write the curves of a validation and its worst, median, best and first case."""
        if self.board:
            log_dice(self.board, step, scores.dice_means())
            log_cases(self.board, step, pictures)
            log_refinement(self.board, step, scores.cases, self.structures, self.config.arm)

    def log_points(self, step: int, image: Tensor, labels: Tensor, index: Tensor, spacing_mm: Sequence[float]) -> None:
        """Write the training points of one volume; arguments as in `vnet.report.validation_log.log_points`."""
        if self.board:
            log_points(self.board, step, image, labels, index, spacing_mm, len(self.structures))

    def finish(self, step: int) -> None:
        """Mark the run as complete."""
        if self.board:
            self.board.finish(step)
            self.board.flush()

    def flush(self) -> None:
        """Write what is buffered: called before a checkpoint, as steps before it are never logged again."""
        if self.board:
            self.board.flush()

    def close(self) -> None:
        if self.board:
            self.board.close()


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
        dice_alone: leave surface distances and the pictures of changes out, and do not measure memory.
        use: called with each case that this process scored, while its volumes are there.
        faults: as in `score_cases`.
    """
    pictures: dict[str, CasePicture] = {}

    def cut_and_use(predicted: PredictedCase, scores: CaseScores) -> None:
        change = None if dice_alone else find_change(predicted, scores, prepared.dataset.ignore)
        pictures[scores.case] = case_picture(predicted, scores.mean_dice, prepared.dataset.structures, change)
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
