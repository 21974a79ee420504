"""Means over cases and structures as a validation shows them."""

from types import SimpleNamespace

import numpy as np
import pytest

from vnet.evaluation.scores import DiceTable, mean_dice, mean_of_case

NAMES = ("background", "organ", "vessel", "cyst")


def scored(truth: list[int], unrefined: list[int], refined: list[int]) -> SimpleNamespace:
    versions = [(False, np.array(unrefined)), (True, np.array(refined))]
    return SimpleNamespace(truth=np.array(truth), versions=lambda: iter(versions))


def test_a_structure_absent_in_both_is_left_out_of_the_mean() -> None:
    table = DiceTable(NAMES)
    table.add(scored([0, 1, 1, 2], unrefined=[0, 0, 1, 2], refined=[0, 1, 1, 2]))  # type: ignore[arg-type]
    table.add(scored([0, 1, 1, 0], unrefined=[0, 1, 1, 0], refined=[0, 1, 1, 2]))  # type: ignore[arg-type]
    means = table.means()
    # organ: 2/3 and 1; vessel: 1 in the first case, absent in both in the second; the cyst is nowhere
    assert means[False] == pytest.approx({"organ": 5 / 6, "vessel": 1.0})
    # refined, the second case has a vessel that is not there: 0
    assert means[True] == pytest.approx({"organ": 1.0, "vessel": 0.5})
    assert mean_dice(means[False]) == pytest.approx(11 / 12)


def test_a_case_scores_the_mean_of_its_refined_structures() -> None:
    table = DiceTable(NAMES)
    assert table.add(scored([0, 1, 1, 2], [0, 0, 1, 2], refined=[0, 1, 0, 2])) == pytest.approx(5 / 6)  # type: ignore[arg-type]
    assert np.isnan(table.add(scored([0, 0], [0, 0], refined=[0, 0])))  # type: ignore[arg-type]
    rows = [{"refined": False, "dice": 0.1}, {"refined": True, "dice": 0.5}, {"refined": True, "dice": None}]
    assert mean_of_case(rows) == 0.5
    assert np.isnan(mean_of_case([{"refined": False, "dice": None}]))


def test_no_structure_at_all_is_a_mean_of_zero() -> None:
    assert mean_dice({}) == 0.0
