"""What a report of a comparison says, before it is laid out: headline, differences, tables, notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from vnet.core.errors import InputError
from vnet.core.runs import RunKey, shipped_results
from vnet.evaluation.comparison import (
    MEAN,
    Difference,
    Null,
    compare,
    named_comparisons,
    refinement_comparisons,
    seed_nulls,
    sides_of,
    usual_comparisons,
    with_spread_of,
)
from vnet.evaluation.predictions import Predictions, add_predictions
from vnet.evaluation.statistics import NO_DIFFERENCE, RUNS_TO_RESAMPLE, THESE, THIS, EquivalenceMargin
from vnet.evaluation.study_tables import Study, find_tables, read_study
from vnet.report.arms import ALONE, costs, costs_table
from vnet.report.curves import convergence_notes, convergence_table
from vnet.report.subgroups import read_refinement, subgroups_table, volumes_table, voxel_tables
from vnet.report.tables import (
    NONINFERIOR,
    Table,
    change,
    differences_table,
    interval,
    listed,
    nulls_table,
    over_trainings,
    p_equation,
    score,
    scores_table,
    side_name,
    spread,
    structures_table,
)

QUESTION = "Does point refinement (PointRend) help V-Net, where, and at what price?"
SHOWN_UNPAIRED = 5


def headline(
    study: Study, differences: Sequence[Difference], named: Sequence[str], margin: EquivalenceMargin | None
) -> list[str]:
    """Two sentences: the first comparison named beforehand, and the next one of the same arm (else the next one)."""
    of_dice = [d for d in differences if d.summary and d.structure == MEAN and d.metric == "dice"]
    found = [d for d in of_dice if d.comparison in named]
    if not found:
        return [nothing_to_say(of_dice)]
    same = [d for d in found[1:] if sides_of(d.comparison)[0] == sides_of(found[0].comparison)[0]]
    by_arm = costs(study)
    return [sentence(d, margin, by_arm) for d in [found[0], *(same or found[1:])[:1]]]


def nothing_to_say(of_dice: Sequence[Difference]) -> str:
    """Why there is no headline.

    Args:
        of_dice: differences of mean Dice that share a case.
    """
    if of_dice:
        return "No comparison was named beforehand (study.comparisons), so nothing is claimed."
    return "Nothing to compare: no two arms share a scored case."


def sentence(
    difference: Difference, margin: EquivalenceMargin | None, by_arm: Mapping[str, Mapping[str, float]]
) -> str:
    """The verdict on a difference of mean foreground Dice, its numbers, the costs, and what had no partner."""
    summary, means = difference.summary, difference.means
    assert summary is not None
    assert means is not None
    first, second = map(side_name, sides_of(difference.comparison))
    facts = [
        f"{change('dice', summary.mean)} mean foreground Dice, {' against '.join(score('dice', m) for m in means)}"
    ]
    if math.isfinite(summary.low):
        facts.append(f"95 % interval {interval('dice', summary.low, summary.high)}")
    if summary.over_trainings is not None:
        facts.append(f"over {summary.runs} trainings {over_trainings(difference)}")
    if difference.seed_spread is not None:
        facts.append(f"seed spread {spread('dice', difference.seed_spread)}")
    facts.append(f"{summary.cases} cases")
    if difference.p_holm is not None and math.isfinite(difference.p_holm):
        facts.append(f"{p_equation(difference.p_holm)} after Holm's correction")
    price = _price(first, second, by_arm)
    return f"{_claim(difference, margin)} ({', '.join(facts)}){price}.{_without_partner(difference)}"


def scope(differences: Sequence[Difference]) -> str:
    """A sentence on whether the intervals speak of these trained networks, or of networks trained again."""
    summaries = [d.summary for d in differences if d.summary]
    if not summaries:
        return ""
    if all(s.runs_resampled for s in summaries):
        return "The intervals resample cases and runs: they speak of networks trained again on such data."
    return (
        f"Where a comparison rests on fewer than {RUNS_TO_RESAMPLE} runs, its 95 % interval resamples cases only: it"
        " speaks of these trained networks on such cases, not of networks trained again. The interval over trainings"
        " (Student's t over their means) speaks of networks trained again; a single training has none."
    )


def null_sentences(nulls: Sequence[Null]) -> list[str]:
    """What the interval over cases shows where nothing is to be found, a sentence an arm with several seeds."""
    sentences = []
    for arm, group in groupby(nulls, key=lambda null: null.arm):
        pairs = list(group)
        shown = [
            f"seed {n.first} - seed {n.second} {change('dice', n.summary.mean)}"
            f" ({interval('dice', n.summary.low, n.summary.high)})"
            for n in pairs
        ]
        excluded = sum(n.summary.low > 0 or n.summary.high < 0 for n in pairs)
        sentences.append(
            f"Null of {arm}, the same interval between trainings that differ in the seed alone: {', '.join(shown)};"
            f" {excluded} of {len(pairs)} exclude 0, though there is no difference to find."
        )
    return sentences


def margin_sentence(margin: EquivalenceMargin | None) -> str:
    """The equivalence margin with its reason; empty where there is none."""
    return f"Equivalence margin: ±{margin.dice:g} Dice. Reason: {margin.reason.rstrip('.')}." if margin else ""


def noninferiority_sentence(margin: EquivalenceMargin | None) -> str:
    """What non-inferior means; empty without a margin."""
    return f"Non-inferior: the 95 % interval lies above -{margin.dice:g} Dice, wherever it ends." if margin else ""


def _claim(difference: Difference, margin: EquivalenceMargin | None) -> str:
    first, second = map(side_name, sides_of(difference.comparison))
    verdict, summary = difference.verdict, difference.summary
    assert summary is not None
    within = f"the margin of {margin.dice:g} Dice" if margin else ""
    where = ""
    if verdict.endswith(THESE):
        where = f"In these {summary.runs} trainings "
    elif verdict.endswith(THIS):
        where = "In this training "
    said = verdict.removesuffix(THESE).removesuffix(THIS)
    side, _, equivalent = said.partition(", but ")
    by_less = f", by less than {within}" if equivalent else ""
    if side in ("better", "worse"):
        return f"{where}{first} {'did' if where else 'is'} {side} than {second}{by_less}"
    if side == "equivalent":
        return f"{where}{first} and {second} {'were' if where else 'are'} equivalent within {within}"
    if verdict == NO_DIFFERENCE:
        return f"No difference between {first} and {second} is shown"
    return f"{first} and {second} share too few cases to tell"


def _without_partner(difference: Difference) -> str:
    if not difference.unpaired:
        return ""
    return f" Left out, as the other side did not score it: {listed(difference.unpaired, SHOWN_UNPAIRED)}."


def _price(first: str, second: str, by_arm: Mapping[str, Mapping[str, float]]) -> str:
    alone = all(math.isfinite(by_arm.get(arm, {}).get(ALONE, math.nan)) for arm in (first, second))
    step = [by_arm.get(arm, {}).get(ALONE if alone else "seconds_per_step", math.nan) for arm in (first, second)]
    if first == second or not all(map(math.isfinite, step)) or not step[1]:
        return ""
    return f", at {step[0] / step[1]:.2f} times the seconds per training step"


SHOWN_MISSING = 12
OF_ONE_CHECKPOINT = (
    "Exploratory: what refining does to the output of a network that was trained with a head. The gain of having a head"
    " is the comparison with the arm without one."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a report.

    Attributes:
        study: the runs that are evidence.
        named: the comparisons named beforehand, whose mean Dice is tested.
        others: comparisons that were not named beforehand.
        differences: every comparison by structure and metric.
        nulls: differences between seeds of one arm.
        refined: rows of every refinement.csv.
        margin: of the verdict `equivalent`; None for no such verdict.
        missing: runs that the study's config asks for and that have no table.
        apart: differences on the folds on which choices were made; empty where there are none.
        remarks: further notes.
        options: of `vnet compare` that this report was asked for with.
    """

    study: Study
    named: tuple[str, ...]
    others: tuple[str, ...]
    differences: tuple[Difference, ...]
    nulls: tuple[Null, ...]
    refined: pd.DataFrame
    margin: EquivalenceMargin | None
    missing: tuple[str, ...] = ()
    apart: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def headline(self) -> list[str]:
        """One or two sentences: the outcome of the first named comparisons."""
        return headline(self.study, self.differences, self.named, self.margin)

    def notes(self) -> list[str]:
        """What limits the outcome, a sentence or two each."""
        folds = {run.fold for run in self.study.runs}
        chosen = self.study.choice_folds and folds <= self.study.choice_folds
        notes = [
            f"Runs not there yet: {listed(self.missing, SHOWN_MISSING)}." if self.missing else "",
            f"No evidence yet: choices of the method were made on fold {', '.join(sorted(folds))}." if chosen else "",
            *convergence_notes(self.study),
            scope(self.differences),
            *null_sentences(self.nulls),
            margin_sentence(self.margin),
            noninferiority_sentence(self.margin),
            *self.remarks,
        ]
        return [note for note in notes if note]

    def difference_tables(self) -> list[Table]:
        """Mean foreground Dice: of named comparisons, of others, of the folds of choices, of seeds of one arm."""
        tables = []
        if self.named:
            title = "Named comparisons: mean foreground Dice"
            tables.append(differences_table(self.differences, self.named, title).without("p"))
        if self.others:
            title = "Not named beforehand, exploratory: mean foreground Dice"
            note = "The p is not adjusted for the number of comparisons."
            tables.append(differences_table(self.differences, self.others, title, note).without("p (Holm)"))
        if self.apart:
            title = f"Fold {', '.join(sorted(self.study.choice_folds))}, on which choices were made, and no evidence"
            shown = [d.comparison for d in self.apart if d.structure == MEAN and d.metric == "dice"]
            tables.append(differences_table(self.apart, shown, title).without("p", "p (Holm)", "verdict", NONINFERIOR))
        return [*tables, *([nulls_table(self.nulls)] if self.nulls else [])]

    def score_tables(self) -> list[Table]:
        """Scores by arm, and costs."""
        return [scores_table(self.study), costs_table(self.study)]

    def convergence_tables(self) -> list[Table]:
        """Whether Dice still rose when the training ended; none where no run was validated."""
        return [table] if (table := convergence_table(self.study)).rows else []

    def structures_table(self, metrics: Sequence[str] | None = None) -> Table:
        """Differences by structure, of `metrics` or of all."""
        return structures_table(self.differences, self.study.metrics if metrics is None else metrics)

    def checkpoint_tables(self) -> list[Table]:
        """Refined minus unrefined output of one checkpoint; none without a head."""
        shown = [name for name in refinement_comparisons(self.study) if name not in (*self.named, *self.others)]
        title = "Refined - unrefined output of one checkpoint: mean foreground Dice"
        table = differences_table(self.differences, shown, title, OF_ONE_CHECKPOINT).without("p (Holm)")
        return [table] if shown else []

    def tables(self) -> list[Table]:
        """The main tables."""
        volumes = volumes_table(self.study)
        return [
            *self.difference_tables(),
            *self.score_tables(),
            *([volumes] if volumes.rows else []),
            *self.convergence_tables(),
            self.structures_table(),
            *self.checkpoint_tables(),
        ]

    def refinement_tables(self) -> list[Table]:
        """Where refinement helped: by kind of case, and by voxel where a run has a head."""
        by_kind = [subgroups_table(self.study, self.named)] if self.named else []
        tables = [table for table in by_kind if table.rows]
        return tables if self.refined.empty else [*tables, *voxel_tables(self.refined)]


def build_report(
    paths: Sequence[Path],
    *,
    named: Sequence[str] | None = None,
    others: Sequence[str] | None = None,
    margin: EquivalenceMargin | None = None,
    only: Mapping[RunKey, Path] | None = None,
    predictions: Sequence[Predictions] = (),
    data: Path | None = None,
) -> Report:
    """Read the runs below `paths` and compare them.

    Args:
        paths: folders of runs, or tables; see `vnet.evaluation.study_tables.read_study`.
        named: comparisons named beforehand; None takes those of the study's config.
        others: further comparisons; None takes the usual ones where none is named.
        margin: None takes the study's.
        only: as `read_study` takes it.
        predictions: label files of other programs, each an arm that is compared with every other.
        data: the data set with their true labels; None takes the folder that the runs name.

    Raises:
        InputError: tables that do not fit each other, or comparisons of arms that are not there.
    """
    found = read_study(paths, only)
    whole = found.of_complete_seeds()
    own_arms, read = list(whole.arms), []
    for one in predictions:
        whole, said = add_predictions(whole, one, data)
        read.append(said)
    chosen = whole.choice_folds
    study = whole.on_folds({run.fold for run in whole.runs} - chosen) or whole
    apart = whole.on_folds(chosen) if study is not whole else None
    named = tuple(named_comparisons(study) if named is None else named)
    options = [word for name in others or () for word in ("--comparison", name)]
    options += ["--margin", f"{margin.dice:g}", "--margin-reason", margin.reason] if margin else []
    options += [word for one in predictions for word in ("--predictions", one.name, one.folder.name)]
    if others is None:
        others = () if named else usual_comparisons(study)
    beside = [f"{one.name} - {arm}" for one in predictions for arm in own_arms]
    others = (*others, *(name for name in beside if study.has(name) and name not in others))
    others = tuple(name for name in others if name not in named)
    used, margin_remark = (margin, "") if margin else study_margin(study)
    dice = used.dice if used else None
    elsewhere, spread_remark = spread_beside(whole)
    differences = compare(study, named, others, margin=dice)
    shown_apart = [name for name in (*named, *others) if apart and apart.has(name)]
    return Report(
        study=study,
        named=named,
        others=others,
        differences=tuple(with_spread_of(differences, elsewhere)),
        nulls=tuple(seed_nulls(study)),
        refined=read_refinement(study),
        margin=used,
        missing=tuple(found.missing()),
        apart=tuple(compare(apart, shown_apart, margin=dice)) if apart else (),
        remarks=tuple(remark for remark in (left_out(found, whole), *read, margin_remark, spread_remark) if remark),
        options=tuple(options),
    )


def left_out(found: Study, used: Study) -> str:
    """A sentence on the runs that do not count, as their seed is not complete; "" where all count."""
    seeds = sorted({run.seed for run in found.runs} - {run.seed for run in used.runs})
    runs = len(found.runs) - len(used.runs)
    name = f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{name}: {runs} run{'s' * (runs > 1)} left out until every arm is there on every fold." if seeds else ""


def study_margin(study: Study) -> tuple[EquivalenceMargin | None, str]:
    """The equivalence margin of the study's config, and a remark where it is not used, as it has no reason."""
    dice, reason = (study.settings.get(key) for key in ("equivalence_margin", "equivalence_reason"))
    if not dice:
        return None, ""
    if not reason:
        return None, (
            f"No arms are called equivalent: the config of these runs names a margin ({dice:g} Dice) and no reason for"
            " it (study.equivalence_reason)."
        )
    return checked_margin(float(dice), str(reason)), ""


def checked_margin(dice: float, reason: str | None) -> EquivalenceMargin:
    """A margin with its reason.

    Raises:
        InputError: it is no Dice, or has no reason.
    """
    if not 0 <= dice < math.inf:
        raise InputError(f"the margin must be a Dice of 0 or more, got {dice}")
    if not (reason or "").strip():
        raise InputError(f"the margin of {dice:g} Dice needs a reason, which is printed; give --margin-reason")
    return EquivalenceMargin(dice, str(reason))


def spread_beside(study: Study) -> tuple[list[Difference], str]:
    """Differences of the study of several seeds that `study.spread_from` names, and a sentence that names it.

    That study lies beside this one. Nothing is returned where it is not there.
    """
    name = study.settings.get("spread_from")
    roots = dict.fromkeys([*(run.root for run in study.runs if run.root), *shipped_results()])
    folder = next((root / name for root in roots if name and (root / name).is_dir()), None)
    if folder is None or not find_tables([folder], missing_ok=True):
        return [], ""
    seeds = read_study([folder])
    folds, numbers = ({str(getattr(run, key)) for run in seeds.runs} for key in ("fold", "seed"))
    note = f"Seed spread: of the same comparison in {name} (fold {', '.join(sorted(folds))}, seeds"
    return compare(seeds, named_comparisons(seeds), usual_comparisons(seeds)), f"{note} {', '.join(sorted(numbers))})."
