"""Points whose distances to a plane are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vnet.evaluation.point_density import point_density, shares_within
from vnet.evaluation.refinement import DISTANCE_EDGES_MM

SHAPE, SPACING = (4, 6, 40), (3.0, 3.0, 1.0)


def half() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int64)
    labels[:, :, 20:] = 1
    return labels


def at(*columns: int) -> np.ndarray:
    return np.array([np.ravel_multi_index((1, 2, column), SHAPE) for column in columns])


def test_shares_count_points_on_both_sides_of_the_surface() -> None:
    # x = 19 and 20 lie 1 mm from the other side, 18 two, 22 three, 25 six, 0 twenty
    shares = shares_within(half(), at(19, 20, 18, 22, 25, 0), SPACING, classes=2)
    assert (1.0, 2.0, 3.0, 5.0, 10.0, np.inf) == DISTANCE_EDGES_MM
    np.testing.assert_allclose(shares, [2 / 6, 3 / 6, 4 / 6, 4 / 6, 5 / 6, 1])


def test_density_is_one_for_uniform_points_and_the_ratio_of_shares_else() -> None:
    labels = half()
    uniform = point_density(labels, np.arange(labels.size), SPACING, classes=2)
    assert uniform.ratio(1) == pytest.approx(1, abs=0.1)
    close = point_density(labels, at(19, 20, 18, 21), SPACING, classes=2)
    # four of forty columns lie within 2 mm
    assert close.ratio(1) == pytest.approx(10, rel=0.1)


def test_a_volume_without_a_surface_has_no_density() -> None:
    density = point_density(np.zeros(SHAPE, np.int64), at(1, 2), SPACING, classes=2)
    assert density.ratio(1) is None
    assert density.points[-1] == 1
