"""Pictures by the colour of their pixels at places that are known."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb as colour

from vnet.pictures import CONTOURS, contour_picture, largest_slices, to_rgb, uncertainty_picture

SHAPE, SPACING = (6, 8, 10), (3.0, 1.0, 2.0)


def volume(*box, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, b) for a, b in box)] = value
    return labels


def pixel(figure, rgb, panel, x_mm, y_mm):
    """Colours (0 to 1) of the pixels around a place given in mm of a panel."""
    column, row = figure.axes[panel].transData.transform((x_mm, y_mm))
    row = len(rgb) - 1 - row
    return rgb[round(row) - 2 : round(row) + 3, round(column) - 2 : round(column) + 3].reshape(-1, 3) / 255


def shows(colours, name):
    return bool((np.abs(colours - colour(name)).max(1) < 0.2).any())


def test_contours_run_between_inside_and_outside():
    truth, refined = volume((1, 5), (2, 6), (3, 8)), volume((1, 5), (2, 6), (3, 6))
    figure = contour_picture(np.zeros(SHAPE, np.float32), {"truth": truth, "unrefined": refined}, SPACING)
    rgb = to_rgb(figure)
    yellow, orange = CONTOURS["truth"][0], CONTOURS["unrefined"][0]
    # axial: across x (2 mm), up y (1 mm); truth ends at x = 8 voxels, the other at 6
    assert shows(pixel(figure, rgb, 0, 16.0, 4.0), yellow)
    assert shows(pixel(figure, rgb, 0, 12.0, 4.0), orange)
    assert not shows(pixel(figure, rgb, 0, 14.0, 4.0), yellow)
    # coronal: up z (3 mm): both end at 1 and 5
    assert shows(pixel(figure, rgb, 1, 14.0, 15.0), yellow)
    assert not shows(pixel(figure, rgb, 1, 14.0, 12.0), yellow)
    # sagittal: across y
    assert shows(pixel(figure, rgb, 2, 2.0, 9.0), orange)


def test_each_structure_has_its_outline_and_the_border_closes_it():
    labels = volume((0, 6), (0, 4), (0, 10)) + volume((0, 6), (4, 8), (0, 10), value=2)
    figure = contour_picture(np.zeros(SHAPE, np.float32), {"truth": labels}, SPACING)
    assert shows(pixel(figure, to_rgb(figure), 0, 10.0, 4.0), CONTOURS["truth"][0])
    assert figure.axes[0].get_xlim() == (0, 20)
    assert figure.axes[0].get_ylim() == (0, 8)


def test_the_planes_cut_where_the_structure_is_largest():
    labels = volume((0, 2), (0, 1), (0, 1)) + volume((4, 5), (3, 6), (7, 8), value=2)
    figure = contour_picture(np.zeros(SHAPE, np.float32), {"truth": labels}, SPACING, structure=2, title="t")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["axial, slice 4", "coronal, slice 3", "sagittal, slice 7"]
    assert largest_slices(np.zeros(SHAPE, bool)) == (3, 4, 5)


def test_points_lie_on_their_voxels():
    uncertainty = np.full(SHAPE, -6.0, np.float32)
    uncertainty[2, 3, 4] = 0.0
    points = (np.array([[2, 5, 4]]) + 0.5) / SHAPE
    figure = uncertainty_picture(uncertainty, points, SPACING)
    rgb = to_rgb(figure)
    blue = "#56b4e9"
    assert shows(pixel(figure, rgb, 0, 9.0, 5.5), blue)
    assert not shows(pixel(figure, rgb, 0, 9.0, 3.5), blue)
    assert pixel(figure, rgb, 0, 9.0, 3.5).min() > 0.7  # the tie is the bright end of the scale
    assert pixel(figure, rgb, 0, 13.0, 3.5).max() < 0.1


def test_no_points_and_an_empty_structure_still_draw():
    assert to_rgb(uncertainty_picture(np.zeros(SHAPE), np.zeros((0, 3)), SPACING)).ndim == 3
    picture = to_rgb(contour_picture(np.zeros(SHAPE), {"truth": np.zeros(SHAPE, int)}, SPACING))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_refusals():
    with pytest.raises(ValueError, match=r"labels must be named among .*, got \['guess'\]"):
        contour_picture(np.zeros(SHAPE), {"guess": volume()}, SPACING)
    with pytest.raises(ValueError, match=r"truth must have the shape of the image \(6, 8, 10\), got \(2, 2, 2\)"):
        contour_picture(np.zeros(SHAPE), {"truth": np.zeros((2, 2, 2), int)}, SPACING)
    with pytest.raises(ValueError, match=r"points must be \(N, 3\), got \(4, 2\)"):
        uncertainty_picture(np.zeros(SHAPE), np.zeros((4, 2)), SPACING)
