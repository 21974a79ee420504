"""State of a training: how far it is, what a step gave, and all that continues it bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vnet.core.config import Config, TrainingConfig
from vnet.core.distributed import gather, on_rank_zero
from vnet.core.errors import RunFault
from vnet.core.runs import Run
from vnet.data.dataset import Dataset
from vnet.data.prepared import PreparedData
from vnet.model.checkpoints import load_weights, read_checkpoint, save_checkpoint, start_from
from vnet.model.segmenter import Segmenter


@dataclass
class Progress:
    """Progress of a run; with weights and optimiser state all that is needed to continue.

    Attributes:
        step: finished steps.
        seconds: of all steps; validation does not count.
        best_dice, best_step: of the best validation so far.
        bad_steps: dropped steps.
        step_seconds, wait_seconds: of each step, and its part that waited for a batch.
        peak_memory_mib: of the process that took most, up to the last checkpoint.
        evaluated: the final evaluation is done and logged.
        last_curves: curve -> value at the last step, from the end of the steps until `evaluated`: the events of that
            step are written anew where the final evaluation is interrupted.
    """

    step: int = 0
    seconds: float = 0.0
    best_dice: float = -1.0
    best_step: int = 0
    bad_steps: int = 0
    step_seconds: list[float] = field(default_factory=list)
    wait_seconds: list[float] = field(default_factory=list)
    peak_memory_mib: float = 0.0
    evaluated: bool = False
    last_curves: dict[str, float] = field(default_factory=dict)

    def fraction(self, training: TrainingConfig) -> float:
        """Finished share of the steps, or of the seconds where the config gives seconds; 1 or more at the end."""
        return self.seconds / training.seconds if training.seconds is not None else self.step / training.steps


@dataclass(frozen=True)
class StepResult:
    """What a step gave, on the device; it is read one step later, so that the device never waits for the host.

    Attributes:
        step: number of the step, from 0.
        seconds: that it took.
        rate: learning rate.
        terms: unweighted terms of the loss.
        loss, norm: weighted sum of the terms, and norm of the gradient before it was clipped.
        dropped: whether loss or gradient were not finite.
    """

    step: int
    seconds: float
    rate: float
    terms: dict[str, Tensor]
    loss: Tensor
    norm: Tensor
    dropped: Tensor

    def curves(self, bad_steps: int) -> dict[str, float]:
        """Curve to value, as TensorBoard gets them."""
        return (
            {"loss/total": self.loss.item()}
            | {f"loss/{name}": term.item() for name, term in self.terms.items()}
            | {"optimiser/learning_rate": self.rate, "optimiser/gradient_norm": self.norm.item()}
            | {"optimiser/dropped_steps": float(bad_steps), "speed/steps_per_second": 1 / self.seconds}
        )


def restore_state(
    run: Run, config: Config, dataset: Dataset, model: Segmenter, optimizer: torch.optim.Optimizer
) -> Progress:
    """Load the last checkpoint of a run, or the weights that `training.init_from` names.

    Returns:
        The progress of the checkpoint; a new one where the run has none.

    Raises:
        InputError: a checkpoint that cannot be read, or is of another network.
        RunFault: the processes find different checkpoints.
    """
    progress = Progress()
    if run.last.is_file():
        state = read_checkpoint(run.last)
        load_weights(model, state, run.last)
        model.max_margin = state.get("max_margin")
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    elif config.training.init_from:
        line = start_from(model, Path(config.training.init_from), dataset)
        print(line, flush=True)
        run.log(line)
    if len(steps := set(gather(progress.step))) > 1:  # each process has read the file itself
        raise RunFault(
            f"{run.last}: processes find steps {sorted(steps)} there; put run_root on a file system that all "
            "machines share"
        )
    return progress


def save_state(
    path: Path,
    run: Run,
    prepared: PreparedData,
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint, on the first process: `restore_state` continues from it, `load_model` predicts with it."""
    dataset = prepared.dataset
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "max_margin": model.max_margin,
        "config_hash": run.config_hash,
        "preprocessing": prepared.preprocessing.to_dict(),
        "structures": list(dataset.structures),
        "in_channels": len(dataset.modalities),
        "ignore": dataset.ignore,
        "training_images": sorted(prepared.image_hashes[name] for name in prepared.fold.train),
    }
    on_rank_zero(lambda: save_checkpoint(path, state))
