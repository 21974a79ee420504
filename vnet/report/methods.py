"""How the numbers of a report were made: methods, environments, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vnet.evaluation.statistics import RUNS_TO_RESAMPLE
from vnet.evaluation.study_tables import Study
from vnet.evaluation.verdicts import ALPHA, FEWEST_CASES, EquivalenceMargin
from vnet.report.formatting import comparison_name


def methods(study: Study, named: Sequence[str], margin: EquivalenceMargin | None) -> list[str]:
    """How the numbers were made, a paragraph each."""
    return [_data_paragraph(study), _metrics_paragraph(study), _statistics_paragraph(named, margin)]


def _data_paragraph(study: Study) -> str:
    chosen = study.choice_folds
    apart = f" Choices of the method were made on fold {', '.join(sorted(chosen))} alone." if chosen else ""
    folds = ", ".join(sorted({run.fold for run in study.runs}))
    seeds = ", ".join(map(str, sorted({run.seed for run in study.runs})))
    data = ", ".join(sorted({str(run.info["data_set"]) for run in study.runs if run.info.get("data_set")}))
    cases = study.cases["case"].nunique()
    return (
        f"Data: {data + ', ' if data else ''}{cases} cases, folds {folds}, seeds {seeds}. Every case is scored on the"
        f" grid of its own label, by the last checkpoint of a run that did not see it in training.{apart}"
    )


def _metrics_paragraph(study: Study) -> str:
    tolerances = {_dig(run.config, "metrics", "tolerance_mm") for run in study.runs} - {None}
    tolerance = f" (tolerance {', '.join(f'{t:g}' for t in sorted(tolerances))} mm)" if tolerances else ""
    return (
        f"Metrics: Dice; surface Dice{tolerance}; HD95, the larger of both directed 95th percentiles; ASSD, the average"
        " symmetric surface distance; Dice of the voxels within 2 mm of the true surface. A structure that is missed,"
        " or predicted where there is none, scores 0 and the diagonal of the image; one absent in both is left out. In"
        " a difference, a structure that is absent in the truth and that one side alone predicts counts as perfect on"
        " the other side."
    )


def _statistics_paragraph(named: Sequence[str], margin: EquivalenceMargin | None) -> str:
    equivalence = (
        f" Two arms are called equivalent where the intervals lie within ±{margin.dice:g} Dice, for this reason:"
        f" {margin.reason.rstrip('.')}."
        if margin
        else ""
    )
    return (
        "Differences are paired by run and case, averaged over the seeds of a case; the mean is over cases. A run is a"
        " training: an arm, a fold, a seed. The 95 % interval is of expanded bootstrap percentiles over cases, and over"
        f" runs from {RUNS_TO_RESAMPLE} runs on; below, the t interval over the runs' means stands beside it."
        " Confirmatory: Wilcoxon's signed-rank test on the mean foreground Dice of the comparisons named beforehand"
        f" ({'; '.join(map(comparison_name, named)) or 'none'}), corrected together by Holm's rule. All else is"
        f" exploratory, with the unadjusted p. Better and worse need {FEWEST_CASES} cases, an interval without 0, p"
        f" below {ALPHA:g}, and the interval over runs: without it they speak of these trainings alone. Seed spread:"
        " the standard deviation between seeds of a fold's mean difference, with its 95 % interval (chi-squared) and"
        f" its trainings. Effect: rank-biserial correlation, above 0 where the first arm is better.{equivalence}"
    )


def _dig(config: Mapping[str, Any], section: str, key: str) -> Any:
    inner = config.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None
