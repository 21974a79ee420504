"""Paired statistics of two arms: how large the difference is, how sure, and of what it speaks.

The unit is the case. A case that several runs scored (seeds; folds, on another data set) counts once, with
the mean of its differences; a *run* is a (fold, seed) that both arms have.
"""

from __future__ import annotations

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
MOST_SIGNS = 13  # of which all changes of sign are tried: 8192
RUNS_TO_RESAMPLE = 6  # below, the spread between runs cannot be told from that between cases


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Summary of the differences `first - second` of one metric."""

    mean: float  # over cases
    low: float  # of the interval of the mean; NaN below two cases
    high: float
    p: float  # Wilcoxon's signed-rank test, two-sided; NaN without a case
    effect: float  # rank-biserial correlation in [-1, 1], above 0 where the first arm is better
    better: float  # share of cases in which the first arm is better
    worse: float
    cases: int
    runs: int
    runs_resampled: bool
    seed_spread: float | None  # standard deviation between seeds of a fold's mean difference; None with one seed


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
        differences: a row a run and case, with `fold`, `seed`, `case` and `difference` (no blanks).
        higher_is_better: which sign of the difference is the better one.
        resamples: of the bootstrap.
        level: of the interval.
        seed: of the bootstrap; same input and seed give the same numbers.

    Raises:
        ValueError: no rows, a difference that is not finite, or a run that holds a case twice.
    """
    if differences.empty:
        raise ValueError("differences must hold at least one row, got none")
    if not np.isfinite(differences["difference"]).all():
        raise ValueError("differences must be finite; leave out pairs that are blank in one arm")
    if differences.duplicated(["fold", "seed", "case"]).any():
        raise ValueError("differences must hold a case once a run; average over structures first")
    by_case = differences.groupby("case")["difference"].mean().to_numpy()
    signed = by_case if higher_is_better else -by_case
    table = differences.pivot_table(index=["fold", "seed"], columns="case", values="difference").to_numpy()
    low, high = bootstrap_interval(table, resamples=resamples, level=level, seed=seed)
    return Paired(
        mean=float(by_case.mean()),
        low=low,
        high=high,
        p=wilcoxon(by_case),
        effect=rank_biserial(signed),
        better=float((signed > 0).mean()),
        worse=float((signed < 0).mean()),
        cases=len(by_case),
        runs=len(table),
        runs_resampled=len(table) >= RUNS_TO_RESAMPLE,
        seed_spread=_seed_spread(differences),
    )


def bootstrap_interval(
    table: NDArray[np.float64], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean difference, expanded for small samples.

    Cases are drawn with replacement; runs that share a case see the same draw, as its difficulty is shared.
    From `RUNS_TO_RESAMPLE` runs on the runs are drawn as well, so that the interval also speaks of networks
    trained again. The percentiles are those of Hesterberg's expanded interval (The American Statistician 69, 2015),
    as plain percentiles are too narrow for few cases.

    Args:
        table: (runs, cases), NaN where a run does not hold the case; every run and case holds a value.

    Returns:
        Lower and upper end; NaN below two cases.
    """
    runs, cases = table.shape
    if cases < 2:
        return float("nan"), float("nan")
    case_weights, run_weights = _draws(runs, cases, resamples, seed)
    known = np.isfinite(table)
    values = np.where(known, table, 0.0)
    # mean over a case's drawn runs, then over the drawn cases; a case of which no run was drawn is left out
    drawn = run_weights @ known  # (resamples, cases)
    means = np.divide(run_weights @ values, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    weights = case_weights * (drawn > 0)
    total = weights.sum(1)
    estimates = ((weights * means).sum(1) / np.where(total > 0, total, np.nan))[total > 0]
    tail = stats.norm.cdf(np.sqrt(cases / (cases - 1)) * stats.t.ppf((1 - level) / 2, cases - 1))
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(runs: int, cases: int, resamples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each resample holds each case, and each run; one row for all where runs are not drawn."""
    rng = np.random.default_rng(seed)
    case_weights = rng.multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(float)
    if runs < RUNS_TO_RESAMPLE:
        return case_weights, np.ones((1, runs))
    return case_weights, rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples).astype(float)


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


def verdict(summary: Paired, margin: float | None = None, *, higher_is_better: bool = True) -> str:
    """`better`, `worse`, `equivalent` (the interval lies within +-margin) or `no difference shown`.

    An interval on one side of 0 that also lies within the margin is `better` or `worse`, and equivalent as
    well: `better, but equivalent`.
    """
    if not np.isfinite(summary.low):
        return "too few cases"
    low, high = (summary.low, summary.high) if higher_is_better else (-summary.high, -summary.low)
    side = "better" if low > 0 else "worse" if high < 0 else ""
    equivalent = margin is not None and -margin <= low and high <= margin
    if side:
        return f"{side}, but equivalent" if equivalent else side
    return "equivalent" if equivalent else "no difference shown"


def _seed_spread(differences: pd.DataFrame) -> float | None:
    """Pooled over folds, each with its degrees of freedom."""
    means: Any = differences.groupby(["fold", "seed"])["difference"].mean().groupby("fold")
    freedom = (means.count() - 1).sum()
    if freedom < 1:
        return None
    squares = means.var(ddof=1).fillna(0) * (means.count() - 1)
    return float(np.sqrt(squares.sum() / freedom))
