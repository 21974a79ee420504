"""Learning curves of a study, and whether the Dice of its arms still rose when their training ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from vnet.core.errors import InputError
from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.tables import Table, change, score

LAST_QUARTER = 0.75  # of the steps; what follows is the last quarter
# about 1.5 times the standard deviation between seeds of one arm on the hippocampus data, .0013: less may be chance
RISE = 0.002
Curve = Mapping[int, float]  # step to validation Dice


@dataclass(frozen=True)
class Ending:
    """How the curves of an arm ended: means over its runs that have a validation before the last quarter.

    Attributes:
        runs: how many.
        before: Dice at three quarters of the steps.
        end: Dice at the last step.
    """

    runs: int
    before: float
    end: float

    @property
    def rise(self) -> float:
        return self.end - self.before

    @property
    def converged(self) -> bool:
        return self.rise <= RISE


def read_curve(run: RunRecord) -> dict[int, float]:
    """Step to Dice of each validation of a run; empty where it has none.

    Raises:
        InputError: a curves.csv without steps or Dice.
    """
    try:
        rows = ((int(row["step"]), float(row["dice"])) for row in run.rows("curves.csv").to_dict("records"))
        return dict(sorted(rows))
    except (KeyError, ValueError) as error:
        raise InputError(f"{run.name}: its validation curve cannot be read ({error})") from None


def mean_curves(study: Study) -> dict[str, dict[int, float]]:
    """Arm to step to mean validation Dice over its runs; arms without two validations are left out."""
    found = {}
    for arm in study.arms:
        by_step: dict[int, list[float]] = {}
        for run in study.runs:
            for step, dice in read_curve(run).items() if run.arm == arm else ():
                by_step.setdefault(step, []).append(dice)
        if len(by_step) > 1:
            found[arm] = {step: fmean(values) for step, values in sorted(by_step.items())}
    return found


def ends_of_last_quarter(curve: Curve) -> tuple[float, float] | None:
    """Dice where the last quarter of the steps begins, between validations on a straight line, and where it ends.

    None where no validation was made before.
    """
    steps = sorted(curve)
    if not steps or steps[0] > LAST_QUARTER * steps[-1]:
        return None
    before = float(np.interp(LAST_QUARTER * steps[-1], steps, [curve[step] for step in steps]))
    return before, curve[steps[-1]]


def endings(study: Study) -> dict[str, Ending | None]:
    """Arm to how its curves ended; None where no run has a validation before the last quarter. Arms without a
    validation are left out."""
    found: dict[str, Ending | None] = {}
    for arm in study.arms:
        curves = [curve for run in study.runs if run.arm == arm and (curve := read_curve(run))]
        ends = [pair for curve in curves if (pair := ends_of_last_quarter(curve))]
        if curves:
            before, end = (fmean(values) for values in zip(*ends, strict=True)) if ends else (0.0, 0.0)
            found[arm] = Ending(len(ends), before, end) if ends else None
    return found


def convergence_notes(study: Study) -> list[str]:
    """Which arms have not converged, and of which it is not known: a sentence or two each."""
    found = endings(study)
    risen = [f"{arm} ({change('dice', e.rise)})" for arm, e in found.items() if e and not e.converged]
    unknown = [arm for arm, ending in found.items() if ending is None]
    notes = []
    if risen:
        notes.append(
            f"Not converged: {', '.join(risen)}. Their Dice still rose by more than {RISE:g} over the last quarter of"
            " the steps, so longer training may change the differences."
        )
    if unknown:
        notes.append(
            f"Not known to have converged: {', '.join(unknown)}. Their runs have no validation before the last quarter"
            " of the steps (training.validate_every)."
        )
    return notes


def convergence_table(study: Study) -> Table:
    """Dice of each arm at three quarters of its steps and at the end, and whether it still rose; a row an arm."""
    rows = []
    for arm, ending in endings(study).items():
        if ending is None:
            rows.append((arm, "not known", "-", "-", "-", "0"))
        else:
            verdict = "no longer rises" if ending.converged else "not converged"
            dice = score("dice", ending.before), score("dice", ending.end), change("dice", ending.rise)
            rows.append((arm, verdict, *dice, str(ending.runs)))
    note = (
        f"Not converged: the mean over runs of the validation Dice rose by more than {RISE:g} over the last quarter of"
        " the steps. Between validations it is taken to lie on a straight line."
    )
    columns = ("arm", "verdict", "at three quarters", "at the end", "rise", "runs")
    return Table("Convergence: validation Dice over the last quarter of the steps", columns, tuple(rows), note)
