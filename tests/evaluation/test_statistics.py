"""Statistics on simulated data whose answer is known, and against numbers worked out by hand.

Verdicts from intervals, p-values and counts that are set by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vnet.evaluation.statistics import (
    Paired,
    bootstrap_interval,
    holm,
    noninferiority,
    rank_biserial,
    summarise,
    t_interval,
    verdict,
    wilcoxon,
)


def frame(differences, fold="0", seed=0):
    cases = [f"fold{fold}_case{i}" for i in range(len(differences))]
    return pd.DataFrame({"fold": fold, "seed": seed, "case": cases, "difference": differences})


def simulate(rng, *, folds, seeds, cases, run_spread, truth=0.0):
    """(runs, cases): a shared difficulty for each case, an effect for each run, and noise."""
    table = np.full((folds * seeds, folds * cases), np.nan)
    for fold in range(folds):
        difficulty = rng.normal(size=cases)
        for seed in range(seeds):
            effect = run_spread * rng.normal()
            row = truth + effect + difficulty + rng.normal(size=cases)
            table[fold * seeds + seed, fold * cases : (fold + 1) * cases] = row
    return table


@pytest.mark.parametrize(
    ("folds", "seeds", "cases", "run_spread"), [(1, 1, 10, 0.0), (1, 3, 30, 0.0), (3, 2, 20, 0.4), (6, 1, 15, 0.5)]
)
def test_the_interval_covers_the_truth_as_often_as_it_says(folds, seeds, cases, run_spread):
    rng = np.random.default_rng(7)
    trials, hits = 200, 0
    for trial in range(trials):
        table = simulate(rng, folds=folds, seeds=seeds, cases=cases, run_spread=run_spread, truth=0.3)
        low, high = bootstrap_interval(table, resamples=400, seed=trial)
        hits += low <= 0.3 <= high
    # .95 within three standard errors of a share of 200
    assert 0.90 <= hits / trials <= 0.995


def test_without_the_runs_resampled_the_interval_would_miss_their_spread():
    rng = np.random.default_rng(3)
    tables = [simulate(rng, folds=6, seeds=1, cases=30, run_spread=1.0) for _ in range(60)]
    widths = [np.ptp(bootstrap_interval(table, resamples=300)) for table in tables]
    # cases alone: 4 * sqrt(2 / 180); runs: 4 / sqrt(6)
    assert np.mean(widths) > 2 * 4 * math.sqrt(2 / 180)


def test_the_test_is_as_strict_as_it_says():
    rng = np.random.default_rng(11)
    p = [wilcoxon(rng.normal(size=30)) for _ in range(600)]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.08
    # a shift of one standard deviation is found nearly always
    assert np.mean([wilcoxon(rng.normal(1, size=30)) < 0.05 for _ in range(50)]) > 0.9


def test_holm_keeps_the_family_below_its_level():
    rng = np.random.default_rng(5)
    false_alarms = [min(holm(rng.uniform(size=4).tolist())) < 0.05 for _ in range(2000)]
    assert 0.03 <= np.mean(false_alarms) <= 0.065


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, float("nan"), 0.6]) == pytest.approx([1.0, float("nan"), 1.0], nan_ok=True)
    assert holm([]) == []


def test_wilcoxon_by_hand():
    assert wilcoxon(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 2**5)  # all signs alike
    assert wilcoxon(np.zeros(4)) == 1.0
    assert math.isnan(wilcoxon(np.zeros(0)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_without_ties_the_test_is_scipy_s_exact_one(seed, count):
    values = np.random.default_rng(seed).normal(0.3, size=count)
    assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)


def test_ties_and_zeros_are_exact_for_few_values():
    # ranks 2.5, 2.5 and 4 after the zero's 1, which drops out: all 8 changes of sign reach |sum| >= 9 twice
    assert wilcoxon(np.array([0.0, 1.0, 1.0, 3.0])) == pytest.approx(2 / 8)


def test_many_ties_take_the_normal_approximation():
    values = np.repeat([1.0, -1.0, 0.0], [20, 8, 5])
    assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values, zero_method="pratt", method="asymptotic").pvalue)


def test_rank_biserial_by_hand():
    # ranks 1 to 4, of which rank 1 is negative; zeros do not count
    assert rank_biserial(np.array([-1.0, 2.0, 3.0, 4.0, 0.0])) == pytest.approx((2 + 3 + 4 - 1) / 10)
    assert rank_biserial(np.zeros(3)) == 0.0


def test_a_summary_by_hand():
    # two seeds of one fold: case means .1, .2, -.3
    rows = pd.concat([frame([0.0, 0.2, -0.2], seed=0), frame([0.2, 0.2, -0.4], seed=1)])
    found = summarise(rows)
    assert found.mean == pytest.approx(0.0)
    assert (found.cases, found.runs, found.runs_resampled) == (3, 2, False)
    assert (found.better, found.worse) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.effect == pytest.approx(0.0)  # ranks 1 and 2 against 3
    assert found.seed_spread.sd == pytest.approx(0.0)  # both seeds have the mean 0
    assert found.over_trainings == pytest.approx((0.0, 0.0))
    assert found.low < 0 < found.high


def test_lower_may_be_better():
    found = summarise(frame([-1.0, -2.0, 0.5]), higher_is_better=False)
    assert (found.better, found.worse) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.effect == pytest.approx((2 + 3 - 1) / 6)
    assert found.mean == pytest.approx(-2.5 / 3)  # the sign of the metric is kept


def test_the_seed_spread_is_pooled_over_folds():
    rows = [frame([d, d], fold=f, seed=s) for f, s, d in [("0", 0, 0.0), ("0", 1, 2.0), ("1", 0, 7.0)]]
    found = summarise(pd.concat(rows)).seed_spread
    # fold 0 has two seeds, one degree of freedom; fold 1 has one seed and says nothing
    assert (found.sd, found.trainings) == (pytest.approx(math.sqrt(2)), 2)
    # chi-squared with one degree of freedom is the square of a normal: .025 and .975 lie at .000982 and 5.0239
    assert (found.low, found.high) == (
        pytest.approx(math.sqrt(2 / 5.0239), rel=1e-4),
        pytest.approx(math.sqrt(2 / 0.000982), rel=1e-3),
    )
    assert summarise(pd.concat(rows[1:])).seed_spread is None


def test_the_interval_of_the_seed_spread_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        rows = [frame([d, d], seed=seed) for seed, d in enumerate(rng.normal(size=4))]
        found = summarise(pd.concat(rows), resamples=2).seed_spread
        hits += found.low <= 1 <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_the_interval_over_trainings_by_hand():
    # mean 2, standard deviation 1, t(2) = 4.302653
    expected = pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert t_interval(np.array([1.0, 2.0, 3.0])) == expected
    assert t_interval(np.array([0.5, 0.5])) == (0.5, 0.5)
    rows = [frame([d - 0.1, d + 0.1], fold=str(fold)) for fold, d in enumerate((1.0, 2.0, 3.0))]
    assert summarise(pd.concat(rows)).over_trainings == expected


def test_runs_are_drawn_from_six_on():
    rows = [frame([0.1 * f, 0.2, -0.1], fold=str(f)) for f in range(6)]
    six, five, one = (summarise(pd.concat(rows[:count])) for count in (6, 5, 1))
    # from six on, the first interval holds the runs; a single run has no second one
    assert (six.runs_resampled, six.over_trainings) == (True, None)
    assert not five.runs_resampled
    assert five.over_trainings is not None
    assert one.over_trainings is None


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=12), st.floats(0.1, 10))
def test_swapping_and_scaling_the_arms(thousandths, scale):
    values = [n / 1000 for n in thousandths]  # scaling keeps apart what differs, and equal what does not
    one = summarise(frame(values), resamples=200)
    other = summarise(frame([-scale * v for v in values]), resamples=200)
    assert other.mean == pytest.approx(-scale * one.mean, abs=1e-9)
    assert (other.better, other.worse) == (one.worse, one.better)
    assert other.effect == pytest.approx(-one.effect)
    assert other.p == pytest.approx(one.p)


def test_the_same_seed_gives_the_same_interval():
    rows = frame(np.random.default_rng(0).normal(size=20))
    assert summarise(rows) == summarise(rows)
    assert summarise(rows, seed=1).low != summarise(rows).low


def by_subject(rows: pd.DataFrame, subjects: list[str]) -> pd.DataFrame:
    return rows.assign(subject=rows["case"].map(dict(zip(sorted(set(rows["case"])), subjects, strict=True))))


def test_cases_of_a_subject_count_as_one_in_interval_and_test():
    """Each difference twice, as two cases of one subject: what the single cases show, and no more."""
    values = np.random.default_rng(4).normal(0.3, size=9)
    single = summarise(frame(values))
    doubled = frame(np.repeat(values, 2))
    names = [f"s{i // 2}" for i in range(18)]
    doubled["subject"] = names
    found = summarise(doubled)
    assert (found.low, found.high) == pytest.approx((single.low, single.high))
    assert (found.mean, found.p, found.effect) == pytest.approx((single.mean, single.p, single.effect))
    assert (found.cases, found.subjects, single.subjects) == (18, 9, 9)
    # taken for 18 independent cases they would seem more certain
    loose = summarise(doubled.drop(columns="subject"))
    assert np.ptp([loose.low, loose.high]) < 0.8 * np.ptp([found.low, found.high])
    assert loose.p < found.p


def test_a_subject_for_each_case_changes_nothing():
    rows = frame(np.random.default_rng(1).normal(size=12))
    found = summarise(rows.assign(subject=[f"s{i}" for i in range(12)]))
    # subjects sort as s0, s1, s10, ...: other cases meet the same draws
    assert found.p == summarise(rows).p
    assert summarise(rows.assign(subject=rows["case"])) == summarise(rows)


def test_subjects_of_two_cases_weigh_twice_in_the_mean_and_once_in_the_test():
    rows = frame([0.3, 0.1, -0.2])
    rows["subject"] = ["a", "a", "b"]
    found = summarise(rows)
    assert found.mean == pytest.approx(0.2 / 3)  # over cases
    assert found.p == pytest.approx(1.0)  # +0.2 of a and -0.2 of b: ranks alike
    assert (found.better, found.worse) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    # only a, both, or only b can be drawn: .2, .2 / 3 or -.2
    assert -0.2 - 1e-9 <= found.low <= found.high <= 0.2 + 1e-9


def test_the_interval_over_subjects_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(8), 0
    subjects = np.repeat(np.arange(25), 2)
    for trial in range(200):
        values = 0.3 + rng.normal(size=25)[subjects] + 0.3 * rng.normal(size=50)
        low, high = bootstrap_interval(values[None], subjects, resamples=400, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 200 <= 0.995


def test_one_case_has_no_interval():
    assert math.isnan(summarise(frame([0.5])).low)


def test_refusals():
    with pytest.raises(ValueError, match="must hold at least one row, got none"):
        summarise(frame([]))
    with pytest.raises(ValueError, match="must be finite"):
        summarise(frame([0.1, float("nan")]))
    with pytest.raises(ValueError, match="must hold a case once a run"):
        summarise(pd.concat([frame([0.1]), frame([0.2])]))


MARGIN = 0.002


def paired(low, high, *, cases=20, subjects=None, over_trainings=None, resampled=True) -> Paired:
    return Paired(
        mean=(low + high) / 2,
        low=low,
        high=high,
        over_trainings=over_trainings,
        p=math.nan,  # the p of the verdict is handed in
        effect=0.0,
        better=0.5,
        worse=0.5,
        cases=cases,
        runs=6 if resampled else 1 if over_trainings is None else 3,
        runs_resampled=resampled,
        seed_spread=None,
        subjects=cases if subjects is None else subjects,
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.004, "better"),
        (-0.004, -0.001, "worse"),
        (-0.001, 0.0015, "equivalent"),
        (-0.001, 0.003, "no difference shown"),
        (0.0005, 0.0015, "better, but equivalent"),
    ],
)
def test_the_interval_decides_where_the_test_agrees(low, high, expected):
    assert verdict(paired(low, high), 0.01, MARGIN) == expected
    if expected in ("better", "worse"):
        turned = "worse" if expected == "better" else "better"
        assert verdict(paired(low, high), 0.01, MARGIN, higher_is_better=False) == turned


@pytest.mark.parametrize("p", [0.05, 0.2, math.nan])
def test_an_interval_without_the_test_claims_no_difference(p):
    assert verdict(paired(0.001, 0.004), p) == "no difference shown"
    assert verdict(paired(-0.004, -0.001), p) == "no difference shown"
    # equivalence rests on the interval alone
    assert verdict(paired(0.0005, 0.0015), p, MARGIN) == "equivalent"


def test_the_test_without_the_interval_claims_nothing():
    assert verdict(paired(-0.001, 0.004), 0.001) == "no difference shown"


@pytest.mark.parametrize("cases", [1, 2, 3, 4, 5])
def test_too_few_cases_claim_nothing(cases):
    low = math.nan if cases == 1 else 0.01
    assert verdict(paired(low, 0.02, cases=cases), 0.001, MARGIN) == f"too few cases ({cases})"
    assert verdict(paired(-0.0001, 0.0001, cases=cases), 1.0, MARGIN) == f"too few cases ({cases})"


def test_six_cases_are_enough():
    assert verdict(paired(0.001, 0.004, cases=6), 2 / 64) == "better"


@pytest.mark.parametrize(
    ("over_trainings", "expected"),
    [
        (None, "better in this training"),
        ((-0.0008, 0.0083), "better in these trainings"),
        ((0.0001, 0.0083), "better"),
        ((-0.008, -0.001), "better in these trainings"),
    ],
)
def test_with_few_trainings_their_interval_must_agree(over_trainings, expected):
    assert verdict(paired(0.001, 0.004, over_trainings=over_trainings, resampled=False), 0.001) == expected


def test_equivalence_with_few_trainings():
    within = {"resampled": False, "over_trainings": (-0.0015, 0.0019)}
    assert verdict(paired(-0.001, 0.001, **within), 1.0, MARGIN) == "equivalent"
    wider = within | {"over_trainings": (-0.0015, 0.0021)}
    assert verdict(paired(-0.001, 0.001, **wider), 1.0, MARGIN) == "equivalent in these trainings"
    assert verdict(paired(-0.001, 0.001, resampled=False), 1.0, MARGIN) == "equivalent in this training"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.0049, 0.02, "non-inferior"),
        (0.001, 0.02, "non-inferior"),
        (-0.005, 0.02, "not shown"),
        (-0.02, -0.0051, "inferior"),
        (-0.02, 0.02, "not shown"),
    ],
)
def test_noninferiority_looks_at_the_lower_end_alone(low, high, expected):
    assert noninferiority(paired(low, high), 0.005) == expected
    assert noninferiority(paired(-high, -low), 0.005, higher_is_better=False) == expected


def test_noninferiority_with_few_trainings():
    few = {"resampled": False}
    assert noninferiority(paired(-0.001, 0.02, **few), 0.005) == "non-inferior in this training"
    wide = few | {"over_trainings": (-0.006, 0.02)}
    assert noninferiority(paired(-0.001, 0.02, **wide), 0.005) == "non-inferior in these trainings"
    narrow = few | {"over_trainings": (-0.004, 0.02)}
    assert noninferiority(paired(-0.001, 0.02, **narrow), 0.005) == "non-inferior"
    assert noninferiority(paired(-0.001, 0.02, cases=8, subjects=5), 0.005) == "not shown"
    assert verdict(paired(0.001, 0.02, cases=8, subjects=5), 0.001) == "too few cases (8)"
