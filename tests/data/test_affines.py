"""Spacing, shear and grids of affines, against values worked by hand."""

import numpy as np
import pytest

from vnet.data.affines import (
    axis_codes,
    axis_cosine,
    canonical_steps,
    corner_distance_mm,
    is_turned,
    relative_orientation,
    spacing_zyx,
    voxel_to_mm,
)
from vnet.data.volumes import volume_from_array

TILT = np.deg2rad(25)


def tilted(spacing_xyz=(1.0, 1.0, 2.0)):
    """A gantry tilt: slices stay upright along x and y, the step to the next slice leans towards the front."""
    x, y, z = spacing_xyz
    affine = np.diag([x, y, z, 1.0])
    affine[:3, 2] = 0, z * np.sin(TILT), z * np.cos(TILT)
    return affine


def rotated(axes, spacing_xyz, angle):
    affine = np.eye(4)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = (turn * spacing_xyz)[:, axes]
    return affine


def test_of_axes_at_right_angles_the_matrix_is_the_spacing():
    for angle in (0.0, 0.3, 0.7):
        affine = rotated([2, 0, 1], (0.5, 2.0, 3.0), angle)
        np.testing.assert_allclose(voxel_to_mm(affine), np.diag(spacing_zyx(affine)), rtol=1e-12)
        assert (voxel_to_mm(affine) - np.diag(np.diag(voxel_to_mm(affine))) == 0).all()
    assert spacing_zyx(rotated([2, 0, 1], (0.5, 2.0, 3.0), 0.3)) == pytest.approx((3.0, 2.0, 0.5))


def test_of_a_tilted_grid_lengths_and_volume_are_those_of_the_affine():
    affine = tilted()
    matrix = voxel_to_mm(affine)
    offsets = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (2, 3, -4)])
    x, y, z = offsets[:, 2], offsets[:, 1], offsets[:, 0]
    by_hand = np.sqrt(x**2 + (y + 2 * z * np.sin(TILT)) ** 2 + (2 * z * np.cos(TILT)) ** 2)
    np.testing.assert_allclose(np.linalg.norm(offsets @ matrix.T, axis=1), by_hand)
    assert np.linalg.det(matrix) == pytest.approx(2 * np.cos(TILT))
    assert volume_from_array(np.zeros((3, 4, 5)), affine).voxel_ml == pytest.approx(0.002 * np.cos(TILT))
    assert volume_from_array(np.zeros((3, 4, 5)), np.diag([2, -3, 4, 1])).voxel_ml == pytest.approx(0.024)
    assert axis_cosine(affine) == pytest.approx(np.sin(TILT))
    assert spacing_zyx(affine) == pytest.approx((2, 1, 1))


def test_a_tilted_grid_stored_in_other_axes_has_the_same_matrix():
    affine = tilted()
    turned = affine.copy()
    turned[:3, :3] = affine[:3, [2, 0, 1]] * (-1, 1, -1)
    np.testing.assert_allclose(np.abs(voxel_to_mm(turned)), np.abs(voxel_to_mm(affine)), atol=1e-12)
    np.testing.assert_allclose(canonical_steps(turned), canonical_steps(affine), atol=1e-12)


def test_axes_are_compared_with_each_other_and_not_with_the_body():
    """Half-way between two body axes a grid and its copy with exchanged axes have other codes, or the same ones."""
    affine = rotated([0, 1, 2], (1.0, 1.0, 2.0), np.deg2rad(45))
    assert not is_turned(relative_orientation(affine, affine))
    exchanged = affine[:, [1, 0, 2, 3]]
    assert relative_orientation(exchanged, affine).tolist() == [[1, 1], [0, 1], [2, 1]]
    mirrored = affine * [-1, 1, 1, 1]
    assert relative_orientation(mirrored, affine).tolist() == [[0, -1], [1, 1], [2, 1]]
    assert axis_codes(np.diag([-1, -2, 3, 1])) == "LPS"


def test_the_distance_of_grids_is_that_of_their_farthest_corners():
    assert corner_distance_mm(np.diag([1, 1, 1.5, 1]), np.eye(4), (3, 4, 5)) == pytest.approx(2.5)
