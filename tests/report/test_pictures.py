"""Pictures by the colour of their pixels at places that are known.

Which cases are shown, and what lies beside the tables.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vnet.data.colours import structure_colours
from vnet.data.dataset import Dataset
from vnet.data.planes import contour_picture, cut_slices, displayed, largest_slices, outline
from vnet.evaluation.scores import CaseScores, PredictedCase
from vnet.inference.prediction import Prediction
from vnet.report.case_pictures import CasePicture, pick_extremes, png, write_pictures
from vnet.report.changes import WRONG, densest_window, find_change, window_size
from vnet.report.pictures import ASKED, DRAWN, points_picture, uncertainty_picture

SHAPE, SPACING = (6, 8, 10), (3.0, 1.0, 2.0)
HEIGHT, GAP = 240, 8  # of a panel, and what lies beside it
TOP = round(1.5 * (HEIGHT // 18))  # what is written above it in a picture without a title
# across and up, in mm: axial x and y, coronal x and z, sagittal y and z; panels are at most 2.5 times as wide as high
WIDTHS = (600, round(240 * 20 / 18), round(240 * 8 / 18))
ENDS = ((20, 8), (20, 18), (8, 18))
FIRST, SECOND = structure_colours(2)


def volume(*box, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, b) for a, b in box)] = value
    return labels


def pixels(picture, panel, x_mm, y_mm, row=0):
    """The colours of the pixels around a place of a panel, in mm from the patient's left, back or foot, as a set."""
    left = GAP + sum(WIDTHS[:panel]) + GAP * panel
    column = left + WIDTHS[panel] - x_mm / ENDS[panel][0] * WIDTHS[panel]
    line = TOP + HEIGHT - y_mm / ENDS[panel][1] * HEIGHT + row * (HEIGHT + TOP)
    near = picture[round(line) - 3 : round(line) + 3, round(column) - 3 : round(column) + 3]
    return {tuple(map(int, colour)) for colour in near.reshape(-1, 3)}


def picture_of(labels, image=None, **kwargs):
    image = np.zeros(SHAPE, np.float32) if image is None else image
    return contour_picture(cut_slices(image, labels, SPACING, **kwargs), size_px=HEIGHT)


def test_outlines_run_along_the_inside_of_a_structure():
    truth, shorter = volume((1, 5), (2, 6), (3, 8)), volume((1, 5), (2, 6), (3, 6))
    picture = picture_of({"truth": truth, "prediction": shorter})
    tint = tuple(int(0.45 * part) for part in FIRST)
    # axial: x to the left (2 mm), up y (1 mm); the truth ends at x = 8 voxels, the other at 6
    assert pixels(picture, 0, 15.7, 4.0) == {tint}
    assert pixels(picture, 0, 16.3, 4.0) == {(0, 0, 0)}
    assert FIRST in pixels(picture, 0, 11.9, 4.0)
    assert pixels(picture, 0, 14.0, 4.0) == {tint}
    # coronal: up z (3 mm): both end at 1 and 5
    assert pixels(picture, 1, 14.0, 14.7) == {tint}
    assert FIRST in pixels(picture, 1, 8.0, 14.9)
    # sagittal: the front is on the left
    assert FIRST in pixels(picture, 2, 5.9, 9.0)


def test_unrefined_and_refined_labels_have_a_row_each():
    truth, shorter = volume((1, 5), (2, 6), (3, 8)), volume((1, 5), (2, 6), (3, 6))
    picture = picture_of({"truth": truth, "unrefined": shorter, "refined": truth})
    assert FIRST not in pixels(picture, 0, 15.9, 4.0)
    assert FIRST in pixels(picture, 0, 15.9, 4.0, row=1)
    upright = contour_picture(cut_slices(np.zeros(SHAPE), {"truth": truth, "refined": truth}, SPACING), upright=True)
    assert upright.shape[1] == 700
    image_alone, refined = upright[40:160, GAP : GAP + 338], upright[40:160, 2 * GAP + 338 :]
    assert FIRST not in {tuple(map(int, colour)) for colour in image_alone.reshape(-1, 3)}
    assert FIRST in {tuple(map(int, colour)) for colour in refined.reshape(-1, 3)}


def test_each_structure_has_its_colour_and_the_border_closes_it():
    labels = volume((0, 6), (0, 4), (0, 10)) + volume((0, 6), (4, 8), (0, 10), value=2)
    picture = picture_of({"truth": labels})
    assert {FIRST, SECOND} <= pixels(picture, 0, 10.0, 4.0)
    assert SECOND in pixels(picture, 0, 19.95, 6.0)
    assert picture.shape[1] == sum(WIDTHS) + 4 * GAP


def test_the_legend_names_the_structures_that_are_seen():
    labels = volume((0, 6), (0, 4), (0, 10), value=2)
    named = contour_picture(cut_slices(np.zeros(SHAPE), {"truth": labels}, SPACING, ("background", "organ", "vessel")))
    legend = {tuple(map(int, colour)) for colour in named[-30:].reshape(-1, 3)}
    assert SECOND in legend
    assert FIRST not in legend


def test_a_value_that_is_no_structure_is_not_drawn():
    labels = volume((0, 6), (0, 4), (0, 10)) + volume((0, 6), (4, 8), (0, 10), value=255)
    slices = cut_slices(np.zeros(SHAPE), {"truth": labels}, SPACING, ("background", "organ"))
    assert set(np.unique(slices.labels["truth"][1])) <= {0, 1}


def test_an_outline_lies_inside_and_closes_at_the_end_of_a_plane():
    plane = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    expected = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]], bool)
    np.testing.assert_array_equal(outline(plane), expected)
    np.testing.assert_array_equal(outline(plane, 2), plane > 0)


def test_voxels_keep_their_grey_and_the_patients_right_and_front_come_first():
    image = np.zeros(SHAPE, np.float32)
    image[:, 4:] = 1.0  # the front half
    picture = picture_of({"truth": np.zeros(SHAPE, int)}, image=image)
    assert pixels(picture, 0, 10.0, 7.0) == {(255, 255, 255)}
    assert pixels(picture, 0, 10.0, 1.0) == {(0, 0, 0)}
    plane = np.arange(12).reshape(3, 4)  # y to the front, x to the right of the patient
    shown = displayed(plane, (1, 1, 1), axis=0, size_px=3)
    np.testing.assert_array_equal(shown, [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]])
    assert displayed(plane, (1, 1, 2), axis=0, size_px=8, upright=True).shape == (3, 8)


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


WIDE, HIGH = 338, 135  # of the axial panel of an upright picture: 8 mm up, 20 mm across


def axial_panel(picture):
    """The first panel of an upright picture of one column, in the middle of the page below its caption."""
    left = (picture.shape[1] - WIDE) // 2
    return picture[37 : 37 + HIGH, left : left + WIDE]


def test_points_lie_on_their_voxels():
    uncertainty = np.full(SHAPE, -6.0, np.float32)
    uncertainty[2, 3, 4] = 0.0
    points = (np.array([[2, 5, 4]]) + 0.5) / SHAPE
    panel = axial_panel(uncertainty_picture(uncertainty, points, SPACING))
    rows, columns = np.nonzero((panel == ASKED).all(-1))
    assert 1 - rows.mean() / HIGH == pytest.approx(5.5 / 8, abs=0.02)
    assert 1 - columns.mean() / WIDE == pytest.approx(4.5 / 10, abs=0.02)
    bright = panel[HIGH - round(3.5 / 8 * HIGH), round(0.55 * WIDE)]
    assert bright.min() > 0.7 * 255  # the tie is the bright end of the scale
    assert panel[5, 5].max() < 0.1 * 255


def test_training_points_are_drawn_over_the_outline_of_the_truth():
    truth = volume((1, 5), (2, 6), (3, 8))
    points = (np.array([[2, 0, 1], [4, 3, 4]]) + 0.5) / SHAPE
    panel = axial_panel(points_picture(np.zeros(SHAPE, np.float32), truth, points, SPACING))
    # the planes cut at z = 1, y = 2, x = 3, where neither point lies; the letters of the sides are never white
    assert (panel == FIRST).all(-1).any()
    assert not (panel == DRAWN).all(-1).any()
    points = (np.array([[1, 0, 1]]) + 0.5) / SHAPE
    panel = axial_panel(points_picture(np.zeros(SHAPE, np.float32), truth, points, SPACING))
    assert (panel == DRAWN).all(-1).any()


def test_no_points_and_an_empty_structure_still_draw():
    assert uncertainty_picture(np.zeros(SHAPE), np.zeros((0, 3)), SPACING).ndim == 3
    picture = picture_of({"truth": np.zeros(SHAPE, int)})
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_refusals():
    with pytest.raises(ValueError, match="labels must hold at least one label volume, got none"):
        cut_slices(np.zeros(SHAPE), {}, SPACING)
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


def test_the_colour_of_a_few_pixels_survives_in_a_png() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (200, 200, 1), dtype=np.uint8)
    picture = np.repeat(grey, 3, axis=2)
    picture[:3, :5] = structure_colours(3)[2]
    again = np.asarray(Image.open(io.BytesIO(png(picture))).convert("RGB")).astype(int)
    assert np.abs(again[:3, :5] - structure_colours(3)[2]).max() <= 4


ORGAN, VESSEL = 1, 2


def predicted(truth, before, after, *, image=None, refined=True) -> PredictedCase:
    """A case whose refined voxels are those that differ and a few that do not."""
    index = np.flatnonzero((before != after) | (np.arange(before.size).reshape(before.shape) % 7 == 0))
    index = index if refined else index[:0]
    zeros = np.zeros(len(index))
    prediction = Prediction(
        after, refined, index, before.ravel()[index], zeros, zeros, torch.zeros(3, 1, 1, 1), truth.shape, (1.0,) * 3
    )
    image = np.zeros(truth.shape, np.float32) if image is None else image
    return PredictedCase(
        SimpleNamespace(name="a"), SimpleNamespace(array=image[None], spacing_mm=SPACING), truth, prediction, 0.0
    )


def scores(before: float, after: float) -> CaseScores:
    """Mean Dice before and after, of two structures and of one that is absent."""
    dice = {False: np.array([before - 0.1, before + 0.1, np.nan]), True: np.array([after, after, np.nan])}
    return CaseScores("a", dice, {}, [], None, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_plane_of_a_change_holds_most_changed_voxels(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, before = random.integers(0, 3, (2, *SHAPE)).astype(np.uint8)
    after = np.where(random.random(SHAPE) < 0.2, random.integers(0, 3, SHAPE), before).astype(np.uint8)
    found = find_change(predicted(truth, before, after), scores(0.6, 0.7))
    counts = {
        (axis, cut): int((np.take(before, cut, axis) != np.take(after, cut, axis)).sum())
        for axis, n in enumerate(SHAPE)
        for cut in range(n)
    }
    assert counts[found.axis, found.cut] == max(counts.values())
    assert (found.unrefined != found.refined).sum() == max(counts.values())  # the window holds the whole small plane
    np.testing.assert_array_equal(found.truth, np.take(truth, found.cut, found.axis))
    assert (found.before, found.after) == (pytest.approx(0.6), pytest.approx(0.7))
    assert found.gain == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_window_of_a_change_holds_as_many_changed_voxels_as_any(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = random.random((23, 31)) < 0.1
    size = (7, 11)
    most = max(mask[i : i + 7, j : j + 11].sum() for i in range(23 - 6) for j in range(31 - 10))
    window = densest_window(mask, size)
    assert mask[window].shape == size
    assert mask[window].sum() == most


def test_the_window_of_a_change_has_it_in_its_middle_unless_the_plane_ends() -> None:
    mask = np.zeros((50, 61), bool)
    mask[20:23, 40:42] = True
    assert densest_window(mask, (9, 12)) == (slice(17, 26), slice(35, 47))
    assert densest_window(mask, (45, 99)) == (slice(0, 45), slice(0, 61))
    assert window_size((1.0, 2.5)) == (32, 13)  # square in mm


def test_what_was_fixed_is_wrong_on_the_left_alone_and_what_was_broken_on_the_right(monkeypatch) -> None:
    truth, before = volume((1, 5), (2, 6), (2, 7)), volume((1, 5), (2, 6), (2, 6))
    after = before.copy()
    fixed, broken = [(2, y, 6) for y in (2, 3, 4, 5)], [(2, 4, 4), (2, 1, 8)]
    for place in fixed:
        after[place] = ORGAN
    after[broken[0]], after[broken[1]] = VESSEL, ORGAN
    words: dict[str, float] = {}
    write = ImageDraw.ImageDraw.text

    def noting(self, xy, text, *rest, **options):
        words.setdefault(text, xy[0])
        write(self, xy, text, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noting)
    picture = find_change(predicted(truth, before, after), scores(0.6, 0.8)).draw("best", "case_7")

    def colour(panel: int, y: int, x: int) -> tuple[int, ...]:
        """In the middle of a voxel. Two lines of 32 pixels lie above; the plane is 2.5 times as wide as high."""
        line, column = 64 + 154 * (1 - (y + 0.5) / 8), 8 + 392 * panel + 384 * (1 - (x + 0.5) / 10)
        return tuple(map(int, picture[int(line), int(column)]))

    tint = tuple(int(0.45 * part) for part in WRONG)
    for _, y, x in fixed:
        assert (colour(0, y, x), colour(1, y, x)) == (tint, (0, 0, 0))
    for _, y, x in broken:
        assert (colour(0, y, x), colour(1, y, x)) == ((0, 0, 0), tint)
    assert colour(0, 3, 3) == colour(1, 3, 3) == (0, 0, 0)
    assert {"without the head, axial 2", "with the head, axial 2", "4 voxels fixed, 2 broken"} <= set(words)
    assert "largest gain: case_7, Dice 0.600 without, 0.800 with the head" in words
    assert words["R"] < words["L"]  # radiological, as everywhere


def test_no_change_is_shown_without_a_head_nor_where_the_truth_is_ignored() -> None:
    truth, before = volume((1, 5), (2, 6), (2, 7)), volume((1, 5), (2, 6), (2, 6))
    after = before.copy()
    after[3, 4, 6] = ORGAN
    truth[3, 4, 6] = 255
    assert find_change(predicted(truth, before, before), scores(0.6, 0.6)) is None
    assert find_change(predicted(truth, before, after), scores(0.6, 0.6), ignore=255) is None
    assert find_change(predicted(truth, after, after, refined=False), scores(0.6, 0.6)) is None
    after[2, 3, 6] = ORGAN
    found = find_change(predicted(truth, before, after), scores(0.6, 0.6), ignore=255)
    assert (found.axis, found.cut, int((found.unrefined != found.refined).sum())) == (0, 2, 1)


def test_the_best_the_median_and_the_worst_change_are_written(tmp_path: Path) -> None:
    truth, before = volume((1, 5), (2, 6), (2, 7)), volume((1, 5), (2, 6), (2, 6))
    made = []
    for name, after in (("a", 0.5), ("b/1", 0.9), ("c", 0.7), ("d", math.nan)):
        change = find_change(predicted(truth, before, truth), scores(0.6, after))
        made.append(replace(case(name, 0.5), change=change))
    made.append(case("e", 0.5))
    write_pictures(tmp_path, made, dataset())
    found = sorted(path.name for path in tmp_path.glob("change_*"))
    assert found == ["change_best_b_1.png", "change_median_c.png", "change_worst_a.png"]
    assert all(path.stat().st_size < 100_000 for path in tmp_path.glob("*.png"))
