"""Metrics against masks small enough to count by hand, and against MONAI where MONAI has a value.

Scores of cases by hand: Dice of versions, means over cases, rows of the tables, order among processes.
"""

from __future__ import annotations

import math
import timeit
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vnet.core.config import load_config
from vnet.evaluation.metrics import METRICS, case_metrics, dice_scores
from vnet.evaluation.scores import Scores, mean_dice, score_case
from vnet.evaluation.surfaces import (
    SurfaceDistances,
    average_distance_mm,
    band_dice,
    hausdorff95_mm,
    surface_dice,
    surface_distances,
    surface_voxels,
)

NAMES = ("background", "organ", "vessel")


def box(shape, corner, size, label=1):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = label
    return labels


def blobs(seed, shape=(11, 14, 17), classes=3):
    """Two label volumes of smooth random blobs that overlap in part."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(classes, *shape))
    fields = [common + 0.6 * rng.normal(size=(classes, *shape)) for _ in range(2)]
    return [np.stack([ndimage.gaussian_filter(f, 1.5) for f in field]).argmax(0) for field in fields]


def test_a_cube_moved_one_voxel_along_a_3_mm_axis():
    truth, moved = box((9, 9, 9), (3, 3, 3), (3, 3, 3)), box((9, 9, 9), (4, 3, 3), (3, 3, 3))
    row, vessel = case_metrics(moved, truth, NAMES, (3.0, 1.0, 0.5), tolerance_mm=1.0)
    # 26 of the 27 voxels are surface; per direction the 9 of the face that was left are 3 mm off, and the centre of
    # the box that the other one fills is nearest to a face neighbour: 0.5 mm along x
    assert row["dice"] == pytest.approx(2 * 18 / 54)
    assert row["hd95_mm"] == 3.0
    assert row["assd_mm"] == pytest.approx((9 * 3 + 0.5) / 26)
    assert row["surface_dice"] == pytest.approx(17 / 26)
    assert row["truth_ml"] == row["predicted_ml"] == pytest.approx(27 * 1.5 / 1000)
    assert row["thinness"] == pytest.approx(26 / 27)
    assert {vessel[name] for name in METRICS} == {None}


def test_the_axis_of_the_spacing_matters():
    truth = box((9, 9, 9), (3, 3, 3), (3, 3, 3))
    for axis, spacing in enumerate((3.0, 1.0, 0.5)):
        moved = np.roll(truth, 1, axis)
        assert case_metrics(moved, truth, NAMES, (3.0, 1.0, 0.5), 1.0)[0]["hd95_mm"] == spacing


@pytest.mark.parametrize("missed", [True, False])
def test_missed_and_hallucinated_score_the_diagonal(missed):
    empty, full = np.zeros((4, 6, 10), np.int64), box((4, 6, 10), (1, 1, 1), (2, 2, 2))
    prediction, truth = (empty, full) if missed else (full, empty)
    row = case_metrics(prediction, truth, NAMES, (3.0, 2.0, 1.0), 1.0)[0]
    diagonal = math.sqrt(12**2 + 12**2 + 10**2)
    assert [row[name] for name in METRICS] == [0, 0, pytest.approx(diagonal), pytest.approx(diagonal), 0]
    assert row["truth_ml"] == (0.048 if missed else 0)
    assert row["thinness"] == (1.0 if missed else None)


def test_absent_in_both_is_blank():
    truth = box((5, 5, 5), (1, 1, 1), (2, 2, 2))
    rows = case_metrics(truth, truth, NAMES, (1, 1, 1), 0.0)
    assert [row["structure"] for row in rows] == ["organ", "vessel"]
    assert rows[0] | {"truth_ml": None, "predicted_ml": None} == {
        "structure": "organ", "dice": 1, "surface_dice": 1, "hd95_mm": 0, "assd_mm": 0, "band_dice": 1,
        "truth_ml": None, "predicted_ml": None, "thinness": 1,
    }  # fmt: skip
    assert all(rows[1][name] is None for name in ("dice", "surface_dice", "hd95_mm", "assd_mm", "band_dice"))


def test_ignored_voxels_count_for_nothing():
    truth = box((5, 6, 7), (1, 1, 1), (2, 2, 2))
    truth[4] = 255
    prediction = truth.copy()
    prediction[4] = 2  # a structure predicted where nobody looked
    organ, vessel = case_metrics(prediction, truth, NAMES, (1, 1, 1), 1.0, ignore=255)
    assert organ["dice"] == 1
    assert vessel["dice"] is None
    assert vessel["predicted_ml"] == 0
    np.testing.assert_array_equal(dice_scores(prediction, truth, 3, ignore=255), [1, np.nan])


def test_cropping_to_the_structure_changes_nothing():
    prediction, truth = blobs(3)
    wide = [np.pad(volume, ((2, 5), (1, 0), (7, 3))) for volume in (prediction, truth)]
    near = [np.pad(volume, 1) for volume in (prediction, truth)]
    for a, b in zip(
        case_metrics(*wide, NAMES, (2, 1, 1), 1.0), case_metrics(*near, NAMES, (2, 1, 1), 1.0), strict=True
    ):
        assert a == b


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([(1.0, 1.0, 1.0), (3.0, 1.0, 0.7), (0.8, 0.8, 2.5)]))
def test_surface_metrics_agree_with_monai(seed, spacing):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    prediction, truth = blobs(seed)
    one_hot = [torch.from_numpy(np.stack([v == k for k in range(3)])[None]).float() for v in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own deprecations, and absent structures
        expected = {
            "dice": compute_dice(*one_hot, include_background=False),
            "hd95_mm": compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing),
            "assd_mm": compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing),
            "surface_dice": compute_surface_dice(*one_hot, class_thresholds=[1.0, 1.0], spacing=spacing),
        }
    for k, row in enumerate(case_metrics(prediction, truth, NAMES, spacing, 1.0)):
        if (prediction == k + 1).any() and (truth == k + 1).any():
            for name, values in expected.items():
                assert row[name] == pytest.approx(float(values[0, k]), rel=1e-5), name


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_swapping_both_volumes_changes_no_symmetric_metric(seed):
    prediction, truth = blobs(seed, shape=(6, 7, 8))
    pairs = zip(
        case_metrics(prediction, truth, NAMES, (3, 1, 2), 1.5),
        case_metrics(truth, prediction, NAMES, (3, 1, 2), 1.5),
        strict=True,
    )
    for a, b in pairs:
        for name in ("dice", "surface_dice", "hd95_mm", "assd_mm"):
            assert a[name] == pytest.approx(b[name])


def test_dice_scores_agree_with_the_rows():
    prediction, truth = blobs(5)
    rows = case_metrics(prediction, truth, NAMES, (1, 1, 1), 1.0)
    np.testing.assert_allclose(dice_scores(prediction, truth, 3), [row["dice"] for row in rows])


def test_surface_voxels_of_a_solid_box_are_its_shell():
    mask = box((5, 6, 7), (0, 1, 1), (4, 4, 5)).astype(bool)
    inner = np.zeros_like(mask)
    inner[1:3, 2:4, 2:5] = True  # the box touches the border at z = 0, and ends there
    np.testing.assert_array_equal(surface_voxels(mask), mask & ~inner)


def test_hd95_is_the_larger_of_the_directions_and_assd_pools_them():
    distances = SurfaceDistances(np.array([0.0, 10.0]), np.zeros(8))
    assert hausdorff95_mm(distances) == pytest.approx(9.5)  # pooled, it would be 5.5
    assert average_distance_mm(distances) == 1.0
    assert surface_dice(distances, 1.0) == 0.9
    assert surface_dice(SurfaceDistances(np.array([0.1 + 0.2]), np.zeros(1)), 0.3) == 1.0


def test_band_dice_sees_the_band_only():
    truth = box((20, 12, 12), (2, 2, 2), (8, 8, 8)).astype(bool)
    surface = surface_voxels(truth)
    far = truth.copy()
    far[18:, :, :] = True  # more than 2 mm away from every surface voxel
    assert band_dice(far, truth, surface, (1, 1, 1), 2.0) == 1.0
    eaten = truth & ~surface
    # of the 512 voxels the band holds all within 2 mm of the shell: layers 0, 1 and 2, all but the 2x2x2 in the middle
    assert band_dice(eaten, truth, surface, (1, 1, 1), 2.0) == pytest.approx(2 * (6**3 - 8) / (504 + 6**3 - 8))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([(1.0, 1.0, 1.0), (3.0, 1.0, 0.7)]))
def test_band_dice_agrees_with_a_distance_map(seed, spacing):
    prediction, truth = (volume == 1 for volume in blobs(seed, shape=(8, 9, 10)))
    surface = surface_voxels(truth)
    if surface.any():
        band = ndimage.distance_transform_edt(~surface, sampling=spacing) <= 2.0
        expected = 2 * (prediction & truth & band).sum() / ((prediction & band).sum() + (truth & band).sum())
        assert band_dice(prediction, truth, surface, spacing, 2.0) == pytest.approx(expected)


def gantry_tilt(degrees, spacing=(5.0, 1.0, 1.0)):
    """Steps of slices that a tilted gantry shifts along y, (z, y, x) in mm."""
    z, y, x = spacing
    angle = math.radians(degrees)
    return np.array([[z * math.cos(angle), 0, 0], [z * math.sin(angle), y, 0], [0, 0, x]])


def test_a_tilted_gantry_is_measured_by_the_affine():
    steps, (sine, cosine) = gantry_tilt(25), (math.sin(math.radians(25)), math.cos(math.radians(25)))
    truth, moved = box((7, 12, 6), (1, 5, 1), (1, 1, 3)), box((7, 12, 6), (2, 3, 1), (1, 1, 3))
    row = case_metrics(moved, truth, NAMES, steps, 1.0)[0]
    # one slice up and two voxels back: the tilt alone goes 2.113 mm forward. By column lengths it would be 5.385 mm
    assert row["hd95_mm"] == pytest.approx(math.hypot(5 * cosine, 5 * sine - 2)) == pytest.approx(4.53295, abs=1e-5)
    assert row["truth_ml"] == pytest.approx(3 * 5 * cosine / 1000)
    # a structure that is missed is as far away as the farthest corners, from (0, 0, 0) to (7, 12, 6)
    missed = case_metrics(np.zeros_like(truth), truth, NAMES, steps, 1.0)[0]
    assert missed["hd95_mm"] == pytest.approx(math.hypot(35 * cosine, 12 + 35 * sine, 6))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_distances_on_a_sheared_grid_agree_with_all_pairs(seed):
    prediction, truth = (volume == 1 for volume in blobs(seed, shape=(6, 7, 8)))
    steps, surfaces = gantry_tilt(25, (2.0, 1.0, 0.7)), [surface_voxels(m) for m in (prediction, truth)]
    if not all(surface.any() for surface in surfaces):
        return
    places = [np.argwhere(surface) @ steps.T for surface in surfaces]
    pairs = np.linalg.norm(places[0][:, None] - places[1][None], axis=-1)
    found = surface_distances(*surfaces, steps)
    np.testing.assert_allclose(found.to_truth_mm, pairs.min(1))
    np.testing.assert_allclose(found.to_prediction_mm, pairs.min(0))
    # the band: every voxel within 2 mm of the true surface
    voxels = np.indices(truth.shape).reshape(3, -1).T @ steps.T
    band = (np.linalg.norm(voxels[:, None] - places[1][None], axis=-1).min(1) <= 2).reshape(truth.shape)
    expected = 2 * (prediction & truth & band).sum() / ((prediction & band).sum() + (truth & band).sum())
    assert band_dice(prediction, truth, surfaces[1], steps, 2.0) == pytest.approx(expected)


def test_the_band_costs_no_more_than_the_surface():
    # a ball of 3 mm radius at .05 mm: dilating its surface by a ball of 2 mm took minutes
    z, y, x = np.ogrid[-62:63, -62:63, -62:63]
    squares = z**2 + y**2 + x**2
    truth, prediction = squares <= 60**2, squares <= 58**2
    surface, spacing = surface_voxels(truth), (0.05, 0.05, 0.05)
    dice = band_dice(prediction, truth, surface, spacing, 2.0)  # compiles, or loads what was compiled
    inner = squares > 20**2  # within 2 mm of the surface lies all but the ball of 1 mm in the middle, about
    expected = 2 * (prediction & inner).sum() / ((prediction & inner).sum() + (truth & inner).sum())
    assert dice == pytest.approx(expected, abs=1e-3)
    of_band = min(timeit.repeat(lambda: band_dice(prediction, truth, surface, spacing, 2.0), number=1, repeat=3))
    of_surface = min(
        timeit.repeat(lambda: surface_distances(surface_voxels(prediction), surface, spacing), number=1, repeat=3)
    )
    assert of_band < 4 * of_surface  # measured: equal; other processes may run beside


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"prediction": np.zeros((3, 4, 6), int)}, r"agree in shape, got \(3, 4, 6\) and \(3, 4, 5\)"),
        ({"prediction": np.full((3, 4, 5), 3)}, r"prediction must lie in \[0, 3\), got 3 to 3"),
        ({"truth": np.full((3, 4, 5), -1)}, r"truth must lie in \[0, 3\), got -1 to -1"),
        ({"truth": np.zeros((3, 4, 5))}, "truth must hold whole numbers, got dtype float64"),
        (
            {"spacing_mm": (1, 0, 1)},
            r"three positive numbers or an invertible \(3, 3\) matrix, got \(1, 0, 1\)",
        ),
        ({"spacing_mm": (1, 1)}, "spacing_mm must be three positive numbers"),
        ({"tolerance_mm": float("nan")}, "tolerance_mm must be a number of 0 or more, got nan"),
    ],
)
def test_refusals(change, rule):
    good = {"prediction": np.zeros((3, 4, 5), int), "truth": np.zeros((3, 4, 5), int)}
    good |= {"structures": NAMES, "spacing_mm": (1, 1, 1), "tolerance_mm": 1.0}
    with pytest.raises(ValueError, match=rule):
        case_metrics(**(good | change))


def test_the_distance_to_nothing_is_refused():
    with pytest.raises(ValueError, match="must hold a voxel, got 0 predicted and 1 true"):
        surface_distances(np.zeros((1, 1, 1), bool), np.ones((1, 1, 1), bool), (1, 1, 1))


STRUCTURES = ("background", "organ", "vessel", "cyst")


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
    one = score_case(predicted([0, 1, 1, 2], unrefined=[0, 0, 1, 2], refined=[0, 1, 1, 2]), STRUCTURES)
    two = score_case(predicted([0, 1, 1, 0], unrefined=[0, 1, 1, 0], refined=[0, 1, 1, 2]), STRUCTURES)
    means = Scores([one, two], STRUCTURES).dice_means()
    # organ: 2/3 and 1; vessel: 1 in the first case, absent in both in the second; the cyst is nowhere
    assert means[False] == pytest.approx({"organ": 5 / 6, "vessel": 1.0})
    # refined, the second case has a vessel that is not there: 0
    assert means[True] == pytest.approx({"organ": 1.0, "vessel": 0.5})
    assert mean_dice(means[False]) == pytest.approx(11 / 12)


def test_a_case_scores_the_mean_of_its_refined_structures() -> None:
    assert score_case(predicted([0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 0, 2]), STRUCTURES).mean_dice == pytest.approx(5 / 6)
    assert np.isnan(score_case(predicted([0, 0], [0, 0], [0, 0]), STRUCTURES).mean_dice)
    assert score_case(predicted([0, 1, 1, 2], [0, 0, 1, 2]), STRUCTURES).mean_dice == pytest.approx(5 / 6)


def test_rows_of_the_tables_name_run_case_and_version() -> None:
    config = load_config(["--arm", "pointrend_s2", "--data.fold", "3", "--seed", "5"])
    one = score_case(predicted([0, 1, 1, 2], [0, 0, 1, 2], [0, 1, 1, 1]), STRUCTURES, tolerance_mm=1.0)
    scores = Scores([one], STRUCTURES)
    rows = scores.case_rows(config)
    assert [(row["structure"], row["refined"]) for row in rows] == [
        (name, refined) for refined in (False, True) for name in STRUCTURES[1:]
    ]
    assert {(row["arm"], row["fold"], row["seed"], row["case"]) for row in rows} == {("pointrend_s2", 3, 5, "a")}
    assert [row["dice"] for row in rows] == pytest.approx([2 / 3, 1.0, None, 0.8, 0.0, None])
    counts = [row for row in scores.refinement_rows() if row["structure"] == "all structures"]
    assert sum(row["fixed"] for row in counts) == 1
    assert sum(row["broken"] for row in counts) == 1
    assert {row["case"] for row in counts} == {"a"}


def test_without_a_tolerance_dice_alone_is_scored() -> None:
    one = score_case(predicted([0, 1], [0, 1]), STRUCTURES)
    assert one.metrics == {}
    assert one.refinement == []
    assert one.calibration is None
    assert Scores([one], STRUCTURES).case_rows(load_config([])) == []


def test_no_case_and_no_structure() -> None:
    assert mean_dice({}) == 0.0
    assert np.isnan(Scores([], STRUCTURES).seconds_per_case)
    assert Scores([], STRUCTURES).peak_memory_mib is None
    assert Scores([], STRUCTURES).dice_means() == {}
