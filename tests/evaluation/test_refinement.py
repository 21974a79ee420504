"""Counts of refined voxels on volumes small enough to count by hand.

Points whose distances to a plane are counted by hand.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vnet.evaluation.refinement import (
    ALL,
    COUNTS,
    DISTANCE_EDGES_MM,
    calibration_counts,
    distance_across_mm,
    point_density,
    refinement_rows,
    shares_within,
)

NAMES = ("background", "organ", "vessel")
SPACING = (3.0, 1.0, 0.5)


def counts(rows):
    """(structure, distance, margin) -> fixed, broken, unchanged, wrong before."""
    keys = ("structure", "distance_upto_mm", "margin_upto")
    return {tuple(row[key] for key in keys): tuple(row[name] for name in COUNTS) for row in rows}


def test_each_kind_of_voxel_lands_in_its_row():
    truth = np.zeros((3, 4, 5), np.uint8)
    truth[1, 1:3, 1:4] = 1
    before, after = truth.copy(), truth.copy()
    before[1, 1, 1], after[1, 1, 1] = 0, 1  # fixed
    before[1, 0, 2], after[1, 0, 2] = 0, 1  # broken
    before[1, 2, 3], after[1, 2, 3] = 0, 2  # wrong, and wrong in another way
    places = [(1, 1, 1), (1, 0, 2), (1, 2, 3), (1, 1, 2)]
    index = np.ravel_multi_index(np.array(places).T, truth.shape)
    rows = refinement_rows(truth, before, after, index, np.array([-0.1, -0.1, -3, -9.0]), SPACING, NAMES)
    # all four lie within 1 mm of the other side: 0.5 mm along x or 1 mm along y
    assert counts(rows) == {
        ("organ", 1.0, 0.25): (1, 1, 0, 1),
        ("organ", 1.0, 4.0): (0, 0, 1, 1),
        ("organ", 1.0, np.inf): (0, 0, 1, 0),
        ("vessel", np.inf, 4.0): (0, 1, 0, 0),
        (ALL, 1.0, 0.25): (1, 1, 0, 1),
        (ALL, 1.0, 4.0): (0, 0, 1, 1),
        (ALL, 1.0, np.inf): (0, 0, 1, 0),
    }


def test_calibration_counts_what_the_margin_lets_expect():
    truth = np.array([1, 0, 1, 255], np.uint8).reshape(1, 2, 2)
    before = np.array([1, 1, 0, 0], np.uint8).reshape(1, 2, 2)
    uncertainty = np.array([0.0, -0.2, -3.0, -9.0])
    bins = calibration_counts(truth, before, np.arange(4), uncertainty, ignore=255)
    expected = np.zeros((6, 3))
    expected[0] = 2, 1, 1 / 2 + 1 / (1 + np.exp(0.2))
    expected[4] = 1, 1, 1 / (1 + np.exp(3.0))
    np.testing.assert_allclose(bins, expected)


def test_ignored_voxels_are_not_counted():
    truth = np.full((2, 2, 2), 255, np.uint8)
    truth[0, 0, 0] = 1
    before, after = np.zeros((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8)
    rows = refinement_rows(truth, before, after, np.arange(8), np.zeros(8), (1, 1, 1), NAMES, ignore=255)
    assert counts(rows) == {("organ", 1.0, 0.25): (1, 0, 0, 1), (ALL, 1.0, 0.25): (1, 0, 0, 1)}


def test_nothing_refined_gives_no_rows():
    empty = np.zeros((2, 3, 4), np.uint8)
    assert refinement_rows(empty, empty, empty, np.zeros(0, np.int64), np.zeros(0), (1, 1, 1), NAMES) == []


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.02, 0.98))
def test_distances_agree_with_a_distance_map(seed, share):
    mask = np.random.default_rng(seed).random((4, 5, 6)) < share
    places = np.argwhere(np.ones_like(mask))
    found = distance_across_mm(mask, places, SPACING).reshape(mask.shape)
    if mask.any() and not mask.all():
        maps = [ndimage.distance_transform_edt(side, sampling=SPACING) for side in (mask, ~mask)]
        expected = maps[0] + maps[1]  # each is 0 where the other is not
        np.testing.assert_allclose(found, np.where(expected > 10, np.inf, expected))
    else:
        assert np.isinf(found).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_fixed_less_broken_is_the_change_in_right_voxels(seed):
    rng = np.random.default_rng(seed)
    truth, before, after = rng.integers(0, 3, (3, 4, 5, 6))
    index = np.sort(rng.choice(truth.size, 40, replace=False))
    after = np.where(np.isin(np.arange(truth.size), index).reshape(truth.shape), after, before)
    rows = refinement_rows(truth, before, after, index, -rng.exponential(2, 40), SPACING, NAMES)
    total = {name: sum(row[name] for row in rows if row["structure"] == ALL) for name in COUNTS}
    assert total["fixed"] - total["broken"] == (after == truth).sum() - (before == truth).sum()
    assert total["fixed"] + total["broken"] + total["unchanged"] == 40
    assert total["wrong_before"] == (before != truth).ravel()[index].sum()


def test_refusals():
    a, b = np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int)
    with pytest.raises(ValueError, match="must agree in shape"):
        refinement_rows(a, a, b, np.arange(2), np.zeros(2), (1, 1, 1), NAMES)
    with pytest.raises(ValueError, match=r"must both be \(n,\), got \(2,\) and \(3,\)"):
        refinement_rows(a, a, a, np.arange(2), np.zeros(3), (1, 1, 1), NAMES)


HALF_SHAPE, HALF_SPACING = (4, 6, 40), (3.0, 3.0, 1.0)


def half() -> np.ndarray:
    labels = np.zeros(HALF_SHAPE, np.int64)
    labels[:, :, 20:] = 1
    return labels


def at(*columns: int) -> np.ndarray:
    return np.array([np.ravel_multi_index((1, 2, column), HALF_SHAPE) for column in columns])


def test_shares_count_points_on_both_sides_of_the_surface() -> None:
    # x = 19 and 20 lie 1 mm from the other side, 18 two, 22 three, 25 six, 0 twenty
    shares = shares_within(half(), at(19, 20, 18, 22, 25, 0), HALF_SPACING, classes=2)
    assert (1.0, 2.0, 3.0, 5.0, 10.0, np.inf) == DISTANCE_EDGES_MM
    np.testing.assert_allclose(shares, [2 / 6, 3 / 6, 4 / 6, 4 / 6, 5 / 6, 1])


def test_density_is_one_for_uniform_points_and_the_ratio_of_shares_else() -> None:
    labels = half()
    uniform = point_density(labels, np.arange(labels.size), HALF_SPACING, classes=2)
    assert uniform.ratio(1) == pytest.approx(1, abs=0.1)
    close = point_density(labels, at(19, 20, 18, 21), HALF_SPACING, classes=2)
    # four of forty columns lie within 2 mm
    assert close.ratio(1) == pytest.approx(10, rel=0.1)


def test_a_volume_without_a_surface_has_no_density() -> None:
    density = point_density(np.zeros(HALF_SHAPE, np.int64), at(1, 2), HALF_SPACING, classes=2)
    assert density.ratio(1) is None
    assert density.points[-1] == 1
