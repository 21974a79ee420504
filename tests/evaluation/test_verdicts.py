"""Verdicts from intervals, p-values and counts that are set by hand."""

from __future__ import annotations

import math

import pytest

from vnet.evaluation.statistics import Paired
from vnet.evaluation.verdicts import verdict

MARGIN = 0.002


def paired(low, high, *, cases=20, over_trainings=None, resampled=True) -> Paired:
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
