"""Provenance of a report: study, data set, date, methods, environments, and the commands that make the runs again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from vnet.core.config import flatten, load_config
from vnet.core.config.keys import LEFT_OUT
from vnet.core.environment import config_file
from vnet.core.errors import InputError
from vnet.evaluation.statistics import ALPHA, FEWEST_CASES, RUNS_TO_RESAMPLE, EquivalenceMargin
from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.tables import comparison_name


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
        " Where subjects are named (data.groups), interval and test take the subject for the unit. Confirmatory:"
        " Wilcoxon's signed-rank test on the mean foreground Dice of the comparisons named beforehand"
        f" ({'; '.join(map(comparison_name, named)) or 'none'}), corrected together by Holm's rule. All else is"
        f" exploratory, with the unadjusted p. Better and worse need {FEWEST_CASES} cases, an interval without 0, p"
        f" below {ALPHA:g}, and the interval over runs: without it they speak of these trainings alone. Seed spread:"
        " the standard deviation between seeds of a fold's mean difference, with its 95 % interval (chi-squared) and"
        f" its trainings. Effect: rank-biserial correlation, above 0 where the first arm is better.{equivalence}"
    )


def _dig(config: Mapping[str, Any], section: str, key: str) -> Any:
    inner = config.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


# options of one run, which `vnet experiment` sets itself
OF_ONE_RUN = ("--arm", "--data.fold", "--seed")


def title(study: Study) -> str:
    """Study, data set and date: that of the last run, or that of the report where no run holds one."""
    names = dict.fromkeys(str(run.config["name"]) for run in study.runs if run.config.get("name"))
    data = dict.fromkeys(str(run.info["data_set"]) for run in study.runs if run.info.get("data_set"))
    dates = [str(run.info["date"]) for run in study.runs if run.info.get("date")]
    date = max(dates) if dates else f"report of {datetime.now(UTC):%Y-%m-%d}"
    on_data = f" on {', '.join(data)}" if data else ""
    return f"{', '.join(names) or 'Comparison'}{on_data}, {date}"


def environments(study: Study) -> list[str]:
    """The different environments of the runs, a line each."""
    lines: dict[str, None] = {}
    for run in study.runs:
        packages = run.info.get("packages") or {}
        parts = [
            f"commit {run.info['commit']}" if run.info.get("commit") else "",
            f"Python {run.info['python']}" if run.info.get("python") else "",
            *(f"{name} {version}" for name, version in packages.items()),
            run.machine,
        ]
        lines[", ".join(part for part in parts if part)] = None
    return [line for line in lines if line]


def commands(study: Study, options: Sequence[str] = ()) -> list[str]:
    """The commands that make the runs and this report again; data folders appear as DATA/NAME.

    Args:
        options: of `vnet compare`.
    """
    lines: dict[str, None] = {}
    for run in study.runs:
        if run.config.get("name"):
            lines[_experiment(run)] = None
    names = dict.fromkeys(str(run.config["name"]) for run in study.runs if run.config.get("name"))
    folders = [_folder(study, name) for name in names] or ["PATH"]
    return [*lines, shlex.join(["vnet", "compare", *folders, *options])]


def _experiment(run: RunRecord) -> str:
    """`vnet experiment` with the config file and the options of a run: as noted by the run, else found anew."""
    noted = shlex.split(str(run.info.get("command") or ""))[2:]
    if noted:
        return shlex.join(["vnet", "experiment", *_without_options(noted, OF_ONE_RUN)])
    return shlex.join(["vnet", "experiment", *_found_options(run)])


def _found_options(run: RunRecord) -> list[str]:
    """The shipped config of the study's name and the keys in which the run differs from it."""
    name = str(run.config["name"])
    options = ["--config", f"configs/{name}.yaml"]
    root = (run.config.get("data") or {}).get("root")
    if root:
        options += ["--data.root", f"DATA/{Path(root).name}"]
    due = _shipped_keys(name, run.arm)
    for key, value in flatten(run.config).items():
        left_out = any(key == place or key.startswith(f"{place}.") for place in (*LEFT_OUT, "arm", "seed", "data.fold"))
        if not left_out and key in due and due[key] != value:
            options += [f"--{key}", "null" if value is None else str(value)]
    return options


def _without_options(words: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """A command line without some options and their values, written `--key value` or `--key=value`."""
    kept: list[str] = []
    skip = False
    for word in words:
        option, _, value = word.partition("=")
        if skip or option in left_out:
            skip = option in left_out and not value and not skip
        else:
            kept.append(word)
    return kept


@lru_cache(maxsize=64)
def _shipped_keys(name: str, arm: str) -> dict[str, object]:
    """Dotted keys of the shipped config of a name for an arm; {} where there is none."""
    try:
        return flatten(load_config(["--config", str(config_file(name)), "--arm", arm], check_arms=False).to_dict())
    except InputError:
        return {}


def _folder(study: Study, name: str) -> str:
    """Where the runs of a study lie, without folders of this machine: results/NAME or runs/NAME."""
    kept = any(run.shared for run in study.runs if run.config.get("name") == name)
    return f"{'results' if kept else 'runs'}/{name}"
