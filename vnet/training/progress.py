"""How far a run is, and what one step gave."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vnet.core.config import TrainingConfig


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
