"""Paired statistics of two arms: how large the difference is, how sure, and the verdict it allows.

The unit is the case. A case that several trainings scored (seeds; folds, on another data set) counts once, with the
mean of its differences. A *training* is a (fold, seed) that both arms have. Where a subject has several cases
(`data.groups`), bootstrap and test take the subject for the unit; the mean stays that over cases.

A verdict says what the intervals and the test of a comparison allow.

- `better` or `worse` needs `FEWEST_CASES` cases, an interval over cases on one side of 0, and a p below `ALPHA`.
- `equivalent` needs `FEWEST_CASES` cases and an interval over cases within the equivalence margin.
- With fewer trainings than a bootstrap can resample, the t interval over trainings must agree; otherwise the verdict
  speaks of the trainings made: `better in these trainings`, and of a single one `better in this training`.
- Else the verdict is `no difference shown` or `too few cases (n)`.

`noninferiority` is a verdict of its own, on the lower end of the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 4000
LEVEL = 0.95
MOST_SIGNS = 13  # values of which all changes of sign are tried: 8192
RUNS_TO_RESAMPLE = 6  # with fewer trainings a bootstrap cannot tell their spread from that of cases


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """Standard deviation between seeds of a training's mean difference, pooled over folds.

    Attributes:
        sd: the standard deviation.
        low, high: its 95 % interval (chi-squared, for normal means).
        trainings: those behind it: of folds with two seeds or more.
    """

    sd: float
    low: float
    high: float
    trainings: int


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Summary of the differences `first - second` of one metric.

    Attributes:
        mean: over cases.
        low, high: 95 % interval of the mean over cases, and over trainings from `RUNS_TO_RESAMPLE` on; NaN below two
            cases.
        over_trainings: 95 % t interval over the trainings' means; None with one training, and from
            `RUNS_TO_RESAMPLE` on, where the first interval holds them.
        p: two-sided, of Wilcoxon's signed-rank test, over subjects.
        effect: rank-biserial correlation in [-1, 1], above 0 where the first arm is better.
        better, worse: share of cases in which the first arm is better, and worse.
        cases, runs: how many; runs are trainings.
        runs_resampled: whether `low` and `high` speak of networks trained again.
        seed_spread: None where no fold has two seeds.
        subjects: as many as cases, unless a subject has several.
    """

    mean: float
    low: float
    high: float
    over_trainings: tuple[float, float] | None
    p: float
    effect: float
    better: float
    worse: float
    cases: int
    runs: int
    runs_resampled: bool
    seed_spread: SeedSpread | None
    subjects: int


def summarise(
    differences: pd.DataFrame,
    *,
    higher_is_better: bool = True,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Paired:
    """Summarise paired differences.

    Args:
        differences: a row a training and case, with `fold`, `seed`, `case` and `difference` (no blanks); with a column
            `subject` the cases of a subject are resampled and tested together.
        higher_is_better: which sign of the difference is the better one.
        resamples: of the bootstrap.
        level: of the intervals.
        seed: of the bootstrap; same input and seed give the same numbers.

    Raises:
        ValueError: no rows, a difference that is not finite, or a training that holds a case twice.
    """
    if differences.empty:
        raise ValueError("differences must hold at least one row, got none")
    if not np.isfinite(differences["difference"]).all():
        raise ValueError("differences must be finite; leave out pairs that are blank in one arm")
    if differences.duplicated(["fold", "seed", "case"]).any():
        raise ValueError("differences must hold a case once a run; average over structures first")
    of_case = differences.groupby("case")["difference"].mean()
    by_case = of_case.to_numpy()
    signed = by_case if higher_is_better else -by_case
    subjects = subject_numbers(differences)
    by_subject = of_case.groupby(subjects).mean().to_numpy()
    table = differences.pivot_table(index=["fold", "seed"], columns="case", values="difference").to_numpy()
    low, high = bootstrap_interval(table, subjects, resamples=resamples, level=level, seed=seed)
    few = 1 < len(table) < RUNS_TO_RESAMPLE
    return Paired(
        mean=float(by_case.mean()),
        low=low,
        high=high,
        over_trainings=t_interval(np.nanmean(table, axis=1), level=level) if few else None,
        p=wilcoxon(by_subject),
        effect=rank_biserial(by_subject if higher_is_better else -by_subject),
        better=float((signed > 0).mean()),
        worse=float((signed < 0).mean()),
        cases=len(by_case),
        runs=len(table),
        runs_resampled=len(table) >= RUNS_TO_RESAMPLE,
        seed_spread=seed_spread(differences, level=level),
        subjects=len(by_subject),
    )


def subject_numbers(differences: pd.DataFrame) -> NDArray[np.int64]:
    """(cases,) number of the subject of each case, cases sorted by name; without a column `subject`, of the case."""
    named = "subject" if "subject" in differences else "case"
    of_case = differences.groupby("case")[named].first()
    return np.unique(of_case.to_numpy(str), return_inverse=True)[1]


def t_interval(means: NDArray[np.float64], *, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of the trainings' means: mean +- t(n - 1) sd / sqrt(n).

    Args:
        means: (n,), of n trainings, 2 or more.
    """
    scale = stats.sem(means)
    if not scale:  # scipy gives NaN for an interval without width
        return float(means[0]), float(means[0])
    low, high = stats.t.interval(level, len(means) - 1, loc=means.mean(), scale=scale)
    return float(low), float(high)


def bootstrap_interval(
    table: NDArray[np.float64],
    subjects: NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean difference, expanded for small samples.

    Cases are drawn with replacement; runs that share a case see the same draw, as its difficulty is shared. Of a
    drawn subject all cases are drawn (the cluster bootstrap), as they are no independent samples.
    From `RUNS_TO_RESAMPLE` runs on the runs are drawn as well, so that the interval also speaks of networks
    trained again. The percentiles are those of Hesterberg's expanded interval (The American Statistician 69, 2015),
    as plain percentiles are too narrow for few cases.

    Args:
        table: (runs, cases), NaN where a run does not hold the case; every run and case holds a value.
        subjects: (cases,) number of each case's subject, from 0; None takes each case for a subject of its own.

    Returns:
        Lower and upper end; NaN below two subjects.
    """
    runs, cases = table.shape
    subjects = np.arange(cases) if subjects is None else subjects
    units = len(np.unique(subjects))
    if units < 2:
        return float("nan"), float("nan")
    unit_weights, run_weights = _draws(runs, units, resamples, seed)
    case_weights = unit_weights[:, subjects]
    known = np.isfinite(table)
    values = np.where(known, table, 0.0)
    # mean over a case's drawn runs, then over the drawn cases; a case of which no run was drawn is left out
    drawn = run_weights @ known  # (resamples, cases)
    means = np.divide(run_weights @ values, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    weights = case_weights * (drawn > 0)
    total = weights.sum(1)
    estimates = ((weights * means).sum(1) / np.where(total > 0, total, np.nan))[total > 0]
    tail = stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf((1 - level) / 2, units - 1))
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(runs: int, subjects: int, resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each resample holds each subject, and each run; one row for all where runs are not drawn."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=resamples).astype(float)
    if runs < RUNS_TO_RESAMPLE:
        return weights, np.ones((1, runs))
    return weights, rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(float)


def wilcoxon(values: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where all differences are 0.

    Zeros keep their ranks (Pratt), as dropping them would hide that many cases did not change. Exact where that is
    feasible: by all changes of sign for up to `MOST_SIGNS` values, by the distribution without ties for up to 50.
    """
    if not len(values):
        return float("nan")
    sizes = np.abs(values)
    ranks = np.where(values != 0, stats.rankdata(sizes), 0.0)
    if len(values) <= MOST_SIGNS:
        # scipy's own permutations take seconds each
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        sums = np.abs(signs @ ranks)
        return float(np.mean(sums >= abs((np.sign(values) * ranks).sum()) - 1e-9))
    if not np.any(values):
        return 1.0
    plain = len(np.unique(sizes)) == len(sizes) <= 50 and np.all(sizes > 0)
    method = "exact" if plain else "asymptotic"
    return float(stats.wilcoxon(values, zero_method="pratt", method=method).pvalue)


def rank_biserial(values: NDArray[np.float64]) -> float:
    """Sum of the ranks of |value| of the positive less those of the negative, over the sum of both; 0 for none."""
    values = values[values != 0]
    if not len(values):
        return 0.0
    ranks = stats.rankdata(np.abs(values))
    return float((ranks * np.sign(values)).sum() / ranks.sum())


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count as a test."""
    values = np.asarray(p, float)
    corrected = np.full(len(values), np.nan)
    order = [i for i in np.argsort(values) if np.isfinite(values[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[i]))
        corrected[i] = highest
    return corrected.tolist()


def seed_spread(differences: pd.DataFrame, *, level: float = LEVEL) -> SeedSpread | None:
    """Standard deviation between the seeds of a fold, pooled over folds by their degrees of freedom.

    Args:
        differences: as in `summarise`.

    Returns:
        None where no fold has two seeds.
    """
    means: Any = differences.groupby(["fold", "seed"])["difference"].mean().groupby("fold")
    counts = means.count()
    counts = counts[counts > 1]
    freedom = int((counts - 1).sum())
    if freedom < 1:
        return None
    sd = float(np.sqrt((means.var(ddof=1)[counts.index] * (counts - 1)).sum() / freedom))
    low, high = (sd * np.sqrt(freedom / stats.chi2.ppf((1 + sign * level) / 2, freedom)) for sign in (1, -1))
    return SeedSpread(sd=sd, low=float(low), high=float(high), trainings=int(counts.sum()))


ALPHA = 0.05
FEWEST_CASES = 6  # with five, no two-sided signed-rank test reaches .05; counted in subjects where they are known
NO_DIFFERENCE = "no difference shown"
NOT_SHOWN = "not shown"
THESE, THIS = " in these trainings", " in this training"


@dataclass(frozen=True)
class EquivalenceMargin:
    """Difference of Dice within which two arms are called equivalent, and why it is that large."""

    dice: float
    reason: str


def verdict(summary: Paired, p: float, margin: float | None = None, *, higher_is_better: bool = True) -> str:
    """The verdict on `first - second`, as the module says.

    Args:
        p: of the test; after Holm's correction for a comparison named beforehand.
        margin: difference within which two arms are equivalent; None for no such verdict.
        higher_is_better: which sign of the difference is the better one.

    Returns:
        `better`, `worse`, `equivalent`, `better, but equivalent` or `worse, but equivalent`, with ` in these trainings`
        or ` in this training` behind it where it holds for no more; `no difference shown`; or `too few cases (n)`.
    """
    if too_few(summary):
        return f"too few cases ({summary.cases})"
    over_cases = _claims((summary.low, summary.high), margin, higher_is_better)
    if not p < ALPHA:
        over_cases = over_cases & {"equivalent"}
    if not over_cases:
        return NO_DIFFERENCE
    said = ", but ".join(word for word in ("better", "worse", "equivalent") if word in over_cases)
    if summary.runs_resampled:
        return said
    if summary.over_trainings is None:
        return said + THIS
    over_trainings = _claims(summary.over_trainings, margin, higher_is_better)
    return said if over_cases <= over_trainings else said + THESE


def too_few(summary: Paired) -> bool:
    """Whether there are too few independent cases for any verdict."""
    return summary.subjects < FEWEST_CASES or not math.isfinite(summary.low)


def noninferiority(summary: Paired, margin: float, *, higher_is_better: bool = True) -> str:
    """Whether `first` is worse than `second` by less than the margin: the one-sided question of a cheaper arm.

    It rests on the lower end of the 95 % interval alone, so the chance of a wrong yes is 2.5 %. With fewer trainings
    than a bootstrap can resample, the t interval over trainings must agree, as in `verdict`.

    Args:
        margin: loss that is still accepted.

    Returns:
        `non-inferior`, with ` in these trainings` or ` in this training` behind it where it holds for no more;
        `inferior` where the whole interval lies below -margin; `not shown` else.
    """
    if too_few(summary):
        return NOT_SHOWN
    low, high = _turned((summary.low, summary.high), higher_is_better)
    if low <= -margin:
        return "inferior" if high < -margin else NOT_SHOWN
    if summary.runs_resampled:
        return "non-inferior"
    if summary.over_trainings is None:
        return "non-inferior" + THIS
    return "non-inferior" + ("" if _turned(summary.over_trainings, higher_is_better)[0] > -margin else THESE)


def _turned(interval: tuple[float, float], higher_is_better: bool) -> tuple[float, float]:
    """The interval with the better side above."""
    return interval if higher_is_better else (-interval[1], -interval[0])


def _claims(interval: tuple[float, float], margin: float | None, higher_is_better: bool) -> set[str]:
    """What an interval alone shows, among better, worse and equivalent."""
    low, high = _turned(interval, higher_is_better)
    shown = {
        "better": low > 0,
        "worse": high < 0,
        "equivalent": margin is not None and -margin <= low and high <= margin,
    }
    return {claim for claim, holds in shown.items() if holds}
