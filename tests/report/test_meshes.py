"""Surface errors of boxes, whose distances are known."""

from __future__ import annotations

import numpy as np
import pytest

from vnet.report.meshes import LARGE, RIGHT, SMALL, error_colours, error_mesh, upright

SHAPE, SPACING = (10, 12, 14), (3.0, 1.0, 2.0)


def box(*ranges, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, b) for a, b in ranges)] = value
    return labels


def test_a_perfect_prediction_has_no_error_anywhere():
    truth = box((2, 8), (3, 9), (4, 11))
    (mesh,) = error_mesh(truth, [truth], SPACING, classes=2)
    assert (mesh.error_mm == 0).all()
    # the surface runs half way between the voxel centres inside and outside
    np.testing.assert_allclose(mesh.vertices_mm.min(0), [1.5 * 3, 2.5 * 1, 3.5 * 2])
    np.testing.assert_allclose(mesh.vertices_mm.max(0), [7.5 * 3, 8.5 * 1, 10.5 * 2])
    assert mesh.faces.max() == len(mesh.vertices_mm) - 1


def test_a_wall_moved_by_two_voxels_is_off_by_their_length_and_signed():
    truth = box((2, 8), (3, 9), (4, 9))
    longer, shorter = box((2, 8), (3, 9), (4, 11)), box((2, 8), (3, 9), (4, 7))
    far, near = error_mesh(truth, [longer, shorter], SPACING, classes=2)
    wall = far.vertices_mm[:, 2] == 8.5 * 2
    middle = wall & (np.abs(far.vertices_mm[:, 0] - 15) < 2) & (np.abs(far.vertices_mm[:, 1] - 5.5) < 1)
    # inside the longer box the nearest of its faces may be one of the sides, never beyond 4 mm
    assert middle.any()
    assert 0 < far.error_mm[wall].max() <= 4
    assert (far.error_mm[wall] > 0).all()
    np.testing.assert_allclose(near.error_mm[middle], -4)
    other = far.vertices_mm[:, 2] == 3.5 * 2
    assert (far.error_mm[other] == 0).all()
    np.testing.assert_array_equal(far.vertices_mm, near.vertices_mm)


def test_what_was_missed_falls_short_without_end():
    truth = box((2, 8), (3, 9), (4, 9))
    (mesh,) = error_mesh(truth, [np.zeros_like(truth)], SPACING, classes=2)
    assert (mesh.error_mm == -np.inf).all()
    assert (error_colours(mesh.error_mm, 2.0) == SMALL).all()


def test_structures_share_one_mesh_and_an_ignored_label_has_none():
    truth = box((1, 4), (1, 4), (1, 4)) + box((5, 9), (5, 9), (5, 9), value=2)
    both = len(error_mesh(truth, [truth], SPACING, classes=3)[0].vertices_mm)
    truth[0, 0, :] = 255
    (mesh,) = error_mesh(truth, [truth], SPACING, classes=3)
    assert len(mesh.vertices_mm) == both
    assert mesh.faces.max() == both - 1
    (first,) = error_mesh(truth, [truth], SPACING, classes=2)
    assert 0 < len(first.vertices_mm) < both


def test_a_large_surface_is_taken_from_fewer_voxels():
    truth = np.zeros((50, 52, 54), np.uint8)
    truth[5:45, 5:45, 5:45] = 1
    whole, fewer = (error_mesh(truth, [truth], (1, 1, 1), 2, n)[0] for n in (100_000, 1000))
    assert len(whole.vertices_mm) == 6 * 40 * 40
    assert len(fewer.vertices_mm) <= 1500
    assert (fewer.error_mm == 0).all()


def test_nothing_to_show_is_an_empty_mesh():
    none = np.zeros(SHAPE, np.uint8)
    (mesh,) = error_mesh(none, [box((2, 8), (3, 9), (4, 9))], SPACING, classes=2)
    assert mesh.vertices_mm.shape == (0, 3)
    assert upright(mesh.vertices_mm).shape == (0, 3)


def test_colours_go_from_too_small_over_right_to_too_large():
    colours = error_colours(np.array([-9.0, -2.0, 0.0, 1.0, 2.0]), 2.0)
    np.testing.assert_array_equal(colours[[0, 1, 2, 4]], [SMALL, SMALL, RIGHT, LARGE])
    np.testing.assert_array_equal(colours[3], np.round((RIGHT + LARGE) / 2))


def test_the_head_is_up_and_the_patients_right_on_the_left():
    corners = np.array([[0, 0, 0], [4, 0, 0], [0, 6, 0], [0, 0, 2]], float)  # z, y, x
    np.testing.assert_array_equal(upright(corners), [[1, -2, -3], [1, 2, -3], [1, -2, 3], [-1, -2, -3]])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"must agree in shape, got \(10, 12, 14\) and \(2, 2, 2\)"):
        error_mesh(box(), [np.zeros((2, 2, 2), int)], SPACING, 2)
