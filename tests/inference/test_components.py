"""Components by hand-made volumes."""

import numpy as np
import pytest

from vnet.inference.components import clean_components


def two_pieces() -> np.ndarray:
    """Structure 1: a block of 12 voxels and one of 2; structure 2: one of 3 and one of 3; unequal axes."""
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[0:2, 0:2, 0:3] = 1
    labels[4, 5, 6:8] = 1
    labels[3, 0:3, 0] = 2
    labels[5, 0, 4:7] = 2
    return labels


def test_the_largest_component_of_each_structure_stays_and_a_tie_goes_to_the_first() -> None:
    labels, expected = two_pieces(), two_pieces()
    expected[4, 5, 6:8] = 0
    expected[5, 0, 4:7] = 0
    clean_components(labels, 1.0, largest=True)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("min_mm3", "left"),
    [(0.0, {1: 14, 2: 6}), (12.0, {1: 14, 2: 6}), (12.1, {1: 12, 2: 6}), (18.1, {1: 12, 2: 0}), (72.1, {1: 0, 2: 0})],
)
def test_small_components_go_by_volume_in_mm(min_mm3: float, left: dict[int, int]) -> None:
    labels = two_pieces()
    clean_components(labels, 6.0, min_mm3=min_mm3)
    assert {value: int((labels == value).sum()) for value in (1, 2)} == left


def test_a_corner_joins_and_another_structure_does_not() -> None:
    labels = np.zeros((3, 4, 5), np.uint16)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 300  # a diagonal is one piece
    labels[0, 3, 0:2] = 300
    labels[1, 3, 0] = 7  # touches the piece of 2 and is no part of it
    before = labels.copy()
    before[0, 3, 0:2] = 0
    clean_components(labels, 1.0, largest=True)
    np.testing.assert_array_equal(labels, before)


def test_pieces_in_one_box_do_not_cost_what_lies_between() -> None:
    labels = np.array([[[1, 2, 2, 1, 1]]], np.uint8)
    clean_components(labels, 1.0, largest=True)
    np.testing.assert_array_equal(labels, [[[0, 2, 2, 1, 1]]])


def test_background_alone_stays() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    clean_components(labels, 1.0, largest=True, min_mm3=5)
    assert not labels.any()
