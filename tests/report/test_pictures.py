"""Pictures by the colour of their pixels at places that are known.

Which cases are shown, and what lies beside the tables.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vnet.data.dataset import Dataset
from vnet.report.case_pictures import CasePicture, pick_extremes, png, write_pictures
from vnet.report.pictures import (
    CONTOURS,
    DOT,
    contour_picture,
    cut_slices,
    largest_slices,
    outline,
    points_picture,
    uncertainty_picture,
)

SHAPE, SPACING = (6, 8, 10), (3.0, 1.0, 2.0)
HEIGHT, TOP, GAP = 240, 24, 8  # of a panel, and what lies above and beside it in a picture without a title
# across and up, in mm: axial x and y, coronal x and z, sagittal y and z; panels are at most 2.5 times as wide as high
WIDTHS = (600, round(240 * 20 / 18), round(240 * 8 / 18))
ENDS = ((20, 8), (20, 18), (8, 18))


def volume(*box, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, b) for a, b in box)] = value
    return labels


def pixels(picture, panel, x_mm, y_mm):
    """The colours of the pixels around a place given in mm of a panel, as a set."""
    left = GAP + sum(WIDTHS[:panel]) + GAP * panel
    column = left + x_mm / ENDS[panel][0] * WIDTHS[panel]
    row = TOP + HEIGHT - y_mm / ENDS[panel][1] * HEIGHT
    near = picture[round(row) - 3 : round(row) + 3, round(column) - 3 : round(column) + 3]
    return {tuple(map(int, colour)) for colour in near.reshape(-1, 3)}


def picture_of(labels, image=None, **kwargs):
    image = np.zeros(SHAPE, np.float32) if image is None else image
    return contour_picture(cut_slices(image, labels, SPACING, **kwargs), height_px=HEIGHT)


def test_contours_run_between_inside_and_outside():
    truth, shorter = volume((1, 5), (2, 6), (3, 8)), volume((1, 5), (2, 6), (3, 6))
    picture = picture_of({"truth": truth, "unrefined": shorter})
    yellow, orange = CONTOURS["truth"], CONTOURS["unrefined"]
    # axial: across x (2 mm), up y (1 mm); the truth ends at x = 8 voxels, the other at 6
    assert yellow in pixels(picture, 0, 16.0, 4.0)
    assert orange not in pixels(picture, 0, 16.0, 4.0)
    assert orange in pixels(picture, 0, 12.0, 4.0)
    assert pixels(picture, 0, 14.0, 4.0) == {(0, 0, 0)}
    # coronal: up z (3 mm): both end at 1 and 5
    assert yellow in pixels(picture, 1, 14.0, 15.0)
    assert yellow not in pixels(picture, 1, 14.0, 12.0)
    # sagittal: across y
    assert orange in pixels(picture, 2, 2.0, 9.0)


def test_all_three_outlines_are_seen_where_they_agree():
    labels = volume((1, 5), (2, 6), (3, 8))
    picture = picture_of(dict.fromkeys(CONTOURS, labels))
    left = GAP + round(WIDTHS[0] * 0.8)
    edge = picture[TOP + 70 : TOP + 170, left - 3 : left + 3].reshape(-1, 3)
    assert set(CONTOURS.values()) <= {tuple(map(int, colour)) for colour in edge}


def test_each_structure_has_its_outline_and_the_border_closes_it():
    labels = volume((0, 6), (0, 4), (0, 10)) + volume((0, 6), (4, 8), (0, 10), value=2)
    picture = picture_of({"truth": labels})
    assert CONTOURS["truth"] in pixels(picture, 0, 10.0, 4.0)
    assert CONTOURS["truth"] in pixels(picture, 0, 19.95, 6.0)
    assert picture.shape[1] == sum(WIDTHS) + 4 * GAP


def test_an_outline_is_both_sides_of_a_border():
    plane = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    expected = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(outline(plane), expected)
    assert outline(plane, wide=True).sum() > expected.sum()


def test_voxels_keep_their_grey_and_rows_go_up():
    image = np.zeros(SHAPE, np.float32)
    image[:, 4:] = 1.0  # the front half
    picture = picture_of({"truth": np.zeros(SHAPE, int)}, image=image)
    assert pixels(picture, 0, 10.0, 7.0) == {(255, 255, 255)}
    assert pixels(picture, 0, 10.0, 1.0) == {(0, 0, 0)}


def test_the_planes_cut_where_the_structure_is_largest():
    labels = volume((0, 2), (0, 1), (0, 1)) + volume((4, 5), (3, 6), (7, 8), value=2)
    assert cut_slices(np.zeros(SHAPE), {"truth": labels}, SPACING, structure=2).cuts == (4, 3, 7)
    assert largest_slices(np.zeros(SHAPE, bool)) == (3, 4, 5)


def test_a_long_axis_is_cut_to_the_structures():
    labels = np.zeros((3, 40, 300), np.uint8)
    labels[1, 10:20, 100:120] = 1
    slices = cut_slices(np.zeros(labels.shape), {"truth": labels}, SPACING)
    assert slices.image[0].shape == (40, 20 + 2 * 16)
    assert slices.labels["truth"][0].sum() == 10 * 20


def test_points_lie_on_their_voxels():
    uncertainty = np.full(SHAPE, -6.0, np.float32)
    uncertainty[2, 3, 4] = 0.0
    points = (np.array([[2, 5, 4]]) + 0.5) / SHAPE
    picture = uncertainty_picture(uncertainty, points, SPACING)[:, :, :]
    scale = 264 / HEIGHT
    panel = picture[TOP : TOP + 264, GAP : GAP + round(WIDTHS[0] * scale)]
    rows, columns = np.nonzero((panel == DOT).all(-1))
    assert 1 - rows.mean() / 264 == pytest.approx(5.5 / 8, abs=0.02)
    assert columns.mean() / panel.shape[1] == pytest.approx(4.5 / 10, abs=0.02)
    bright = panel[264 - round(3.5 / 8 * 264), round(0.45 * panel.shape[1])]
    assert bright.min() > 0.7 * 255  # the tie is the bright end of the scale
    assert panel[5, 5].max() < 0.1 * 255


def test_training_points_are_drawn_over_the_outline_of_the_truth():
    truth = volume((1, 5), (2, 6), (3, 8))
    points = (np.array([[2, 0, 1], [4, 3, 4]]) + 0.5) / SHAPE
    picture = points_picture(np.zeros(SHAPE, np.float32), truth, points, SPACING)
    panel = picture[TOP : TOP + 264, GAP : GAP + 660]
    colours = {tuple(map(int, colour)) for colour in panel.reshape(-1, 3)}
    # the planes cut at z = 1, y = 2, x = 3, where neither point lies
    assert CONTOURS["truth"] in colours
    assert DOT not in colours
    points = (np.array([[1, 0, 1]]) + 0.5) / SHAPE
    panel = points_picture(np.zeros(SHAPE, np.float32), truth, points, SPACING)[TOP : TOP + 264, GAP : GAP + 660]
    assert (panel == DOT).all(-1).any()


def test_no_points_and_an_empty_structure_still_draw():
    assert uncertainty_picture(np.zeros(SHAPE), np.zeros((0, 3)), SPACING).ndim == 3
    picture = picture_of({"truth": np.zeros(SHAPE, int)})
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_refusals():
    with pytest.raises(ValueError, match=r"labels must be named among .*, got \['guess'\]"):
        cut_slices(np.zeros(SHAPE), {"guess": volume()}, SPACING)
    with pytest.raises(ValueError, match=r"truth must have the shape of the image \(6, 8, 10\), got \(2, 2, 2\)"):
        cut_slices(np.zeros(SHAPE), {"truth": np.zeros((2, 2, 2), int)}, SPACING)
    with pytest.raises(ValueError, match=r"points must be \(N, 3\), got \(4, 2\)"):
        uncertainty_picture(np.zeros(SHAPE), np.zeros((4, 2)), SPACING)


def case(name: str, dice: float) -> CasePicture:
    truth = np.zeros((5, 6, 7), np.uint8)
    truth[1:4, 2:5, 2:6] = 1
    return CasePicture(
        name, dice, cut_slices(np.random.default_rng(0).random(truth.shape), {"truth": truth}, (1, 1, 1))
    )


def names(*cases: CasePicture) -> dict[str, str]:
    return {rank: one.name for rank, one in pick_extremes(cases).items()}


def dataset(**source: str) -> Dataset:
    return Dataset(Path(), "Toy", ("background", "organ"), ("MRI",), None, (), source=source)


def test_worst_median_and_best() -> None:
    assert names(case("a", 0.9), case("b", 0.1), case("c", 0.5)) == {"worst": "b", "median": "c", "best": "a"}
    four = [case(name, dice) for name, dice in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True)]
    assert names(*four) == {"worst": "d", "median": "c", "best": "a"}
    assert names(case("b", 0.5), case("a", 0.5), case("c", 0.5)) == {"worst": "a", "median": "b", "best": "c"}


def test_few_cases_and_cases_without_structures() -> None:
    assert names() == {}
    assert names(case("a", math.nan)) == {}
    assert names(case("a", 0.2), case("b", math.nan)) == {"worst": "a"}
    assert names(case("a", 0.2), case("b", 0.1)) == {"worst": "b", "best": "a"}


def test_pictures_replace_those_of_before_and_name_their_source(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder, [case("a/1", 0.2), case("b", 0.9)], dataset())
    assert sorted(file.name for file in folder.iterdir()) == ["best_b.png", "worst_a_1.png"]
    source = {"reference": "A hospital", "licence": "CC-BY-SA 4.0"}
    written = write_pictures(folder, [case("b", 0.2), case("c", 0.9)], dataset(**source))
    assert sorted(file.name for file in folder.iterdir()) == ["SOURCE.md", "best_c.png", "worst_b.png"]
    assert [file.name for file in written] == ["worst_b.png", "best_c.png"]
    note = (folder / "SOURCE.md").read_text()
    assert "data set Toy" in note
    assert "- licence: CC-BY-SA 4.0" in note
    assert all(file.stat().st_size < 100_000 for file in written)


def test_no_cases_write_nothing(tmp_path: Path) -> None:
    assert write_pictures(tmp_path / "pictures", [], dataset(licence="CC0")) == []
    assert not (tmp_path / "pictures").exists()


def test_the_colours_of_a_png_stay_close() -> None:
    picture = case("a", 0.5).draw("worst", 120)
    again = np.asarray(Image.open(io.BytesIO(png(picture))).convert("RGB")).astype(int)
    assert again.shape == picture.shape
    assert np.abs(again - picture).mean() < 4
