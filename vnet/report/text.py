"""The words of a report, made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vnet.evaluation.comparison import MEAN, Difference
from vnet.evaluation.statistics import RUNS_TO_RESAMPLE
from vnet.evaluation.study_tables import Study
from vnet.report.tables import ALONE, change, comparison_name, costs, interval, p_value, side_name, spread

OWN = "seconds_per_step"
QUESTION = "Does point refinement (PointRend) help V-Net, where, and at what price?"


def answer(study: Study, differences: Sequence[Difference], named: Sequence[str], margin: float | None) -> list[str]:
    """Two sentences: the first named comparison, and the next one of the same arm (else the next one)."""
    found = [
        d for d in differences if d.summary and d.comparison in named and d.structure == MEAN and d.metric == "dice"
    ]
    same = [d for d in found[1:] if d.comparison.split(" - ")[0] == found[0].comparison.split(" - ")[0]]
    sentences = [sentence(d, margin, costs(study)) for d in [*found[:1], *(same or found[1:])[:1]]]
    return sentences or ["The named arms share no case yet: there is nothing to compare."]


def sentence(difference: Difference, margin: float | None, by_arm: Mapping[str, Mapping[str, float]]) -> str:
    """What the interval of a difference of mean foreground Dice says, and what the first arm costs."""
    summary = difference.summary
    assert summary is not None
    first, second = (side_name(side) for side in difference.comparison.split(" - "))
    said = {
        "better": f"{first} is better than {second}",
        "worse": f"{first} is worse than {second}",
        "equivalent": f"{first} and {second} are equivalent within {margin or 0:g} Dice",
        "better, but equivalent": f"{first} is better than {second}, by less than the margin of {margin or 0:g} Dice",
        "worse, but equivalent": f"{first} is worse than {second}, by less than the margin of {margin or 0:g} Dice",
        "no difference shown": f"No difference between {first} and {second} is shown",
    }.get(difference.verdict, f"{first} and {second} share too few cases to tell")
    facts = [f"{change('dice', summary.mean)} mean foreground Dice"]
    if math.isfinite(summary.low):
        facts.append(f"95 % interval {interval('dice', summary.low, summary.high)}")
    if difference.seed_spread is not None:
        facts.append(f"seed spread {spread(difference)}")
    facts.append(f"{summary.cases} cases")
    if difference.p_holm is not None:
        facts.append(f"p {_with_sign(p_value(difference.p_holm))} after Holm's correction")
    price = _price(first, second, by_arm)
    return f"{said} ({', '.join(facts)}){price}."


def scope(differences: Sequence[Difference]) -> str:
    """What the intervals speak of."""
    summaries = [d.summary for d in differences if d.summary]
    if not summaries:
        return ""
    if all(s.runs_resampled for s in summaries):
        return "The intervals resample cases and runs: they speak of networks trained again on such data."
    return (
        f"Where a comparison rests on fewer than {RUNS_TO_RESAMPLE} runs, its interval resamples cases only: it speaks"
        " of these trained networks on such cases, not of networks trained again. The seed spread, where there are"
        " several seeds, says how far another training may lie."
    )


def methods(study: Study, named: Sequence[str], margin: float | None) -> list[str]:
    """How the numbers were made, a paragraph each."""
    chosen = study.choice_folds
    apart = f" Choices of the method were made on fold {', '.join(sorted(chosen))} alone." if chosen else ""
    folds = ", ".join(sorted({run.fold for run in study.runs}))
    seeds = ", ".join(map(str, sorted({run.seed for run in study.runs})))
    data = ", ".join(sorted({str(run.info["data_set"]) for run in study.runs if run.info.get("data_set")}))
    cases = study.cases["case"].nunique()
    tolerances = {_dig(run.config, "metrics", "tolerance_mm") for run in study.runs} - {None}
    tolerance = f" (tolerance {', '.join(f'{t:g}' for t in sorted(tolerances))} mm)" if tolerances else ""
    equivalence = f" Two arms are called equivalent where the interval lies within ±{margin:g} Dice." if margin else ""
    return [
        f"Data: {data + ', ' if data else ''}{cases} cases, folds {folds}, seeds {seeds}. Every case is scored on the"
        f" grid of its own label, by the last checkpoint of a run that did not see it in training.{apart}",
        f"Metrics: Dice; surface Dice{tolerance}; HD95, the larger of both directed 95th percentiles; ASSD, the average"
        " symmetric surface distance; Dice of the voxels within 2 mm of the true surface. A structure that is missed,"
        " or predicted where there is none, scores 0 and the diagonal of the image; one absent in both is left out.",
        "Differences are paired by run and case, averaged over the seeds of a case; the mean is over cases. Intervals"
        f" are expanded bootstrap percentiles over cases, and over runs (fold, seed) from {RUNS_TO_RESAMPLE} runs on."
        " Confirmatory: Wilcoxon's signed-rank test on the mean foreground Dice of the comparisons named beforehand"
        f" ({'; '.join(map(comparison_name, named)) or 'none'}), corrected together by Holm's rule. All else is"
        " exploratory. Seed spread: the standard deviation between seeds of a fold's mean difference; `~` marks one"
        " lent by other comparisons. Effect: rank-biserial correlation, above 0 where the first arm is"
        f" better.{equivalence}",
    ]


def environments(study: Study) -> list[str]:
    """The different environments of the runs, a line each."""
    lines: dict[str, None] = {}
    for run in study.runs:
        packages = run.info.get("packages") or {}
        parts = [
            f"commit {run.info['commit']}" if run.info.get("commit") else "",
            f"Python {run.info['python']}" if run.info.get("python") else "",
            *(f"{name} {version}" for name, version in packages.items()),
            f"{run.info['processor']}, {run.info.get('cores')} cores" if run.info.get("processor") else "",
        ]
        lines[", ".join(part for part in parts if part)] = None
    return [line for line in lines if line]


def commands(study: Study) -> list[str]:
    """The commands that make the runs and this report again; data folders appear as DATA/NAME."""
    names = dict.fromkeys(str(run.config["name"]) for run in study.runs if run.config.get("name"))
    roots = {str(run.config.get("name")): _dig(run.config, "data", "root") for run in study.runs}
    lines = []
    for name in names:
        root = f" --data.root DATA/{Path(roots[name]).name}" if roots[name] else ""
        lines += [
            f"python scripts/experiment.py --config configs/{name}.yaml{root}",
            f"python scripts/compare.py results/{name}",
        ]
    return lines or ["python scripts/compare.py PATH"]


def _price(first: str, second: str, by_arm: Mapping[str, Mapping[str, float]]) -> str:
    key = ALONE if all(math.isfinite(by_arm.get(arm, {}).get(ALONE, math.nan)) for arm in (first, second)) else OWN
    step = [by_arm.get(arm, {}).get(key, math.nan) for arm in (first, second)]
    if first == second or not all(map(math.isfinite, step)) or not step[1]:
        return ""
    return f", at {step[0] / step[1]:.2f} times the seconds per training step"


def _with_sign(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _dig(config: Mapping[str, Any], section: str, key: str) -> Any:
    inner = config.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None
