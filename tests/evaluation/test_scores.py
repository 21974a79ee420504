"""Scores of cases by hand: Dice of versions, means over cases, rows of the tables, order among processes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vnet.core.config import load_config
from vnet.evaluation.scores import Scores, mean_dice, score_case

NAMES = ("background", "organ", "vessel", "cyst")


def predicted(truth: list[int], unrefined: list[int], refined: list[int] | None = None) -> Any:
    """A predicted case of a few voxels in a row, all of them refined where `refined` is given."""
    arrays = [None if labels is None else np.array(labels)[None, None] for labels in (truth, unrefined, refined)]
    index = np.arange(0 if refined is None else len(truth))
    prediction = SimpleNamespace(
        refined=refined is not None, unrefined=arrays[1], labels=arrays[2], index=index, uncertainty=-1.0 * index
    )
    versions = [(False, arrays[1])] + ([] if refined is None else [(True, arrays[2])])
    return SimpleNamespace(
        case=SimpleNamespace(name="a"),
        volume=SimpleNamespace(voxel_to_mm=np.eye(3)),
        truth=arrays[0],
        prediction=prediction,
        seconds=1.5,
        peak_memory_mib=None,
        versions=lambda: iter(versions),
    )


def test_a_structure_absent_in_both_is_left_out_of_the_mean() -> None:
    one = score_case(predicted([0, 1, 1, 2], unrefined=[0, 0, 1, 2], refined=[0, 1, 1, 2]), NAMES)
    two = score_case(predicted([0, 1, 1, 0], unrefined=[0, 1, 1, 0], refined=[0, 1, 1, 2]), NAMES)
    means = Scores([one, two], NAMES).dice_means()
    # organ: 2/3 and 1; vessel: 1 in the first case, absent in both in the second; the cyst is nowhere
    assert means[False] == pytest.approx({"organ": 5 / 6, "vessel": 1.0})
    # refined, the second case has a vessel that is not there: 0
    assert means[True] == pytest.approx({"organ": 1.0, "vessel": 0.5})
    assert mean_dice(means[False]) == pytest.approx(11 / 12)


def test_a_case_scores_the_mean_of_its_refined_structures() -> None:
    assert score_case(predicted([0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 0, 2]), NAMES).mean_dice == pytest.approx(5 / 6)
    assert np.isnan(score_case(predicted([0, 0], [0, 0], [0, 0]), NAMES).mean_dice)
    assert score_case(predicted([0, 1, 1, 2], [0, 0, 1, 2]), NAMES).mean_dice == pytest.approx(5 / 6)


def test_rows_of_the_tables_name_run_case_and_version() -> None:
    config = load_config(["--arm", "pointrend_s2", "--data.fold", "3", "--seed", "5"])
    one = score_case(predicted([0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 1, 1]), NAMES, tolerance_mm=1.0)
    scores = Scores([one], NAMES)
    rows = scores.case_rows(config)
    assert [(row["structure"], row["refined"]) for row in rows] == [
        (name, refined) for refined in (False, True) for name in NAMES[1:]
    ]
    assert {(row["arm"], row["fold"], row["seed"], row["case"]) for row in rows} == {("pointrend_s2", 3, 5, "a")}
    assert [row["dice"] for row in rows] == pytest.approx([2 / 3, 1.0, None, 0.8, 0.0, None])
    counts = [row for row in scores.refinement_rows() if row["structure"] == "all structures"]
    assert sum(row["fixed"] for row in counts) == 1
    assert sum(row["broken"] for row in counts) == 1
    assert {row["case"] for row in counts} == {"a"}


def test_without_a_tolerance_dice_alone_is_scored() -> None:
    one = score_case(predicted([0, 1], [0, 1]), NAMES)
    assert one.metrics == {}
    assert one.refinement == []
    assert one.calibration is None
    assert Scores([one], NAMES).case_rows(load_config([])) == []


def test_no_case_and_no_structure() -> None:
    assert mean_dice({}) == 0.0
    assert np.isnan(Scores([], NAMES).seconds_per_case)
    assert Scores([], NAMES).peak_memory_mib is None
    assert Scores([], NAMES).dice_means() == {}
