"""The TensorBoard log of a run, written by the first process; on the others every method does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vnet.core.config import Config
from vnet.evaluation.scores import PredictedCase, Scores
from vnet.report.case_pictures import CasePicture
from vnet.report.tensorboard import Board, open_page, write_guide
from vnet.report.validation_log import log_cases, log_dice, log_first_case, log_points, log_refinement

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
            log_first_case(self.board, step, predicted, len(self.structures), run)

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
