"""Comparison of arms, and what refinement fixed and broke: values by hand, brute force, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vnet.core.errors import InputError
from vnet.evaluation.comparison import (
    MEAN,
    arm_means,
    compare,
    named_comparisons,
    paired_cases,
    refinement_comparisons,
    seed_nulls,
    usual_comparisons,
    with_spread_of,
)
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
from vnet.evaluation.study_tables import read_study
from vnet.report.report import build_report

RESULTS = Path(__file__).parents[2] / "results"
HEADER = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm\n"


def table(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return folder / "cases.csv"


def pick(differences, comparison, structure=MEAN, metric="dice"):
    (found,) = (d for d in differences if (d.comparison, d.structure, d.metric) == (comparison, structure, metric))
    return found


def test_a_known_difference_comes_back(tmp_path, make_run):
    make_run(tmp_path, "dense", offset=0.0, spread=0)
    make_run(tmp_path, "pointrend_s2", offset=0.005, spread=0)
    found = compare(read_study([tmp_path]), ["pointrend_s2 - dense"], margin=0.002)
    dice = pick(found, "pointrend_s2 - dense")
    assert dice.summary.mean == pytest.approx(0.005, abs=1e-6)
    assert (dice.verdict, dice.summary.better, dice.summary.cases) == ("better in this training", 1.0, 12)
    assert dice.means[0] - dice.means[1] == pytest.approx(0.005, abs=1e-6)
    # lower is better: the sign is the metric's, the verdict is the arm's
    hd95 = pick(found, "pointrend_s2 - dense", "vessel", "hd95_mm")
    assert hd95.summary.mean == pytest.approx(-0.05, abs=1e-5)
    assert (hd95.verdict, hd95.summary.better) == ("better in this training", 1.0)


def test_refinement_on_and_off_is_a_comparison_of_its_own(study_folder):
    study = read_study([study_folder])
    assert refinement_comparisons(study) == [
        "pointrend_s2 - pointrend_s2:unrefined",
        "pointrend_s4 - pointrend_s4:unrefined",
    ]
    own = pick(compare(study, ["pointrend_s2 - dense"]), "pointrend_s2 - pointrend_s2:unrefined")
    assert own.summary.mean == pytest.approx(0.02, abs=1e-6)
    assert not own.confirmatory


def test_holm_covers_the_mean_dice_of_the_named_comparisons_only(study_folder):
    named = ["pointrend_s2 - coarse_s2", "pointrend_s2 - dense"]
    confirmatory = [d for d in compare(read_study([study_folder]), named) if d.confirmatory]
    assert [(d.comparison, d.structure, d.metric) for d in confirmatory] == [(n, MEAN, "dice") for n in named]
    smallest = min(confirmatory, key=lambda d: d.summary.p)
    assert smallest.p_holm == pytest.approx(2 * smallest.summary.p)


def test_pairs_are_of_the_same_run_and_case(tmp_path):
    table(
        tmp_path / "a", "a,0,0,x,organ,false,.9,1,1,1", "a,0,0,y,organ,false,.8,1,1,1", "a,1,0,z,organ,false,.1,1,1,1"
    )
    table(tmp_path / "b", "b,0,0,y,organ,false,.6,1,1,1", "b,0,0,x,organ,false,.5,1,1,1")
    pairs = paired_cases(read_study([tmp_path]), "a - b", MEAN, "dice")
    assert list(pairs["case"]) == ["x", "y"]
    assert list(pairs["difference"]) == pytest.approx([0.4, 0.2])


def invented_vessel(folder):
    """A case whose vessel is absent in the truth: `a` says so, `b` predicts it."""
    table(folder / "a", "a,0,0,x,organ,false,.9,1,1,1", "a,0,0,x,vessel,false,,,,")
    table(folder / "b", "b,0,0,x,organ,false,.7,1,1,1", "b,0,0,x,vessel,false,0,0,50,50")
    return read_study([folder])


def test_a_structure_that_one_arm_invents_counts_as_perfect_on_the_other_side(tmp_path):
    found = compare(invented_vessel(tmp_path), ["a - b"])
    mean, vessel = pick(found, "a - b"), pick(found, "a - b", "vessel")
    # a: (.9 + 1) / 2, b: (.7 + 0) / 2; the means are of the comparison's own pairs
    assert mean.means == pytest.approx((0.95, 0.35))
    assert mean.summary.mean == pytest.approx(0.6)
    assert (vessel.means, vessel.invented, vessel.absent) == ((1.0, 0.0), 1, 0)
    hd95 = pick(found, "a - b", "vessel", "hd95_mm")
    assert (hd95.means, hd95.missed) == ((0.0, 50.0), 1)
    assert (hd95.without_missed != hd95.without_missed) is True  # the one pair is the missed one
    # distances of the case: (1 + 0) / 2 against (1 + 50) / 2; without the invented vessel they are equal
    of_case = pick(found, "a - b", MEAN, "hd95_mm")
    assert of_case.summary.mean == pytest.approx(-25)
    assert of_case.without_missed == 0


def test_the_table_of_false_positives_of_before_is_no_tie(tmp_path):
    # .9 and blank against .9 and an invented vessel: .9000 against .4500 by arm, once +0.0000 as a comparison
    table(tmp_path / "a", "a,0,0,x,organ,false,.9,1,1,1", "a,0,0,x,vessel,false,,,,")
    table(tmp_path / "b", "b,0,0,x,organ,false,.9,1,1,1", "b,0,0,x,vessel,false,0,0,50,50")
    study = read_study([tmp_path])
    by_arm = arm_means(study).set_index(["side", "structure"])["dice"]
    assert (by_arm["a", MEAN], by_arm["b", MEAN]) == pytest.approx((0.9, 0.45))
    assert pick(compare(study, ["a - b"]), "a - b").summary.mean == pytest.approx(0.95 - 0.45)


def test_absent_in_truth_and_both_arms_is_left_out_and_counted(tmp_path):
    for arm, dice in (("a", 0.9), ("b", 0.7)):
        table(tmp_path / arm, f"{arm},0,0,x,organ,false,{dice},1,1,1", f"{arm},0,0,x,vessel,false,,,,")
    found = compare(read_study([tmp_path]), ["a - b"])
    vessel = pick(found, "a - b", "vessel")
    assert (vessel.summary, vessel.verdict, vessel.absent, vessel.invented) == (None, "no shared case", 1, 0)
    assert pick(found, "a - b").means == pytest.approx((0.9, 0.7))


def test_means_by_arm_leave_blanks_out_and_count_them(tmp_path):
    means = arm_means(invented_vessel(tmp_path)).set_index(["side", "structure"])
    assert means.loc[("b", MEAN), "dice"] == pytest.approx(0.35)
    assert means.loc[("a", MEAN), "dice"] == pytest.approx(0.9)
    assert list(means.loc[("b", "vessel"), ["missed", "absent"]]) == [1, 0]
    assert list(means.loc[("a", "vessel"), ["missed", "absent", "cases"]]) == [0, 1, 0]
    # the mean distance with the diagonal of the invented vessel, and without it
    assert list(means.loc[("b", MEAN), ["hd95_mm", "found_hd95_mm"]]) == [25.5, 1.0]


def test_a_table_that_is_blank_everywhere_holds_nothing_to_compare(tmp_path):
    for arm in "ab":
        table(tmp_path / arm, f"{arm},0,0,x,organ,false,,,,")
    study = read_study([tmp_path])
    assert study.metrics == ["dice"]
    found = pick(compare(study, ["a - b"]), "a - b")
    assert (found.summary, found.verdict, found.absent) == (None, "no shared case", 1)


def test_tables_that_disagree_on_the_truth_are_refused(tmp_path):
    table(tmp_path / "a", "a,0,0,x,organ,false,.9,1,1,1")
    table(tmp_path / "b", "b,0,0,x,organ,false,,,,")
    with pytest.raises(InputError, match="case x, structure organ: absent in the truth by one row .* \\(Dice 0.9\\)"):
        compare(read_study([tmp_path]), ["a - b"])


def test_what_has_no_partner_is_named(tmp_path):
    table(tmp_path / "a", *(f"a,0,0,{case},organ,false,.9,1,1,1" for case in "xyz"), "a,1,0,w,organ,false,.9,1,1,1")
    table(tmp_path / "b", *(f"b,0,0,{case},organ,false,.8,1,1,1" for case in "yzv"))
    found = pick(compare(read_study([tmp_path]), ["a - b"]), "a - b")
    assert found.summary.cases == 2
    assert found.unpaired == ("fold 1 seed 0 of a (1 cases)", "x of a", "v of b")


def test_comparisons_not_named_beforehand_are_not_tested_together_with_those_that_are(study_folder):
    study = read_study([study_folder])
    found = compare(study, ["pointrend_s2 - dense"], ["pointrend_s4 - dense"])
    assert [d.comparison for d in found if d.confirmatory] == ["pointrend_s2 - dense"]
    assert pick(found, "pointrend_s2 - dense").p_holm == pick(found, "pointrend_s2 - dense").summary.p
    assert pick(found, "pointrend_s4 - dense").p_holm is None


def test_the_verdict_of_a_named_comparison_uses_the_corrected_p(tmp_path, make_run):
    # six cases that all gain have p = 2/64; of two such comparisons corrected by Holm none lies below .05
    for arm, offset in (("dense", 0.0), ("coarse_s2", 0.0), ("pointrend_s2", 0.01)):
        make_run(tmp_path, arm, offset=offset, spread=0.001, cases=6)
    study = read_study([tmp_path])
    both = ["pointrend_s2 - dense", "pointrend_s2 - coarse_s2"]
    assert [pick(compare(study, both), name).verdict for name in both] == ["no difference shown"] * 2
    assert pick(compare(study, both[:1]), both[0]).verdict == "better in this training"
    assert pick(compare(study, [], both), both[0]).verdict == "better in this training"


def test_the_seed_spread_is_taken_from_the_same_comparison_alone(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path / "seeds", "dense", offset=0.0, spread=0, seed=seed)
        make_run(tmp_path / "seeds", "pointrend_s2", offset=0.01 * seed, spread=0, seed=seed)
    for arm in ("dense", "pointrend_s2", "pointrend_s4"):
        make_run(tmp_path / "study", arm, spread=0)
    names = ["pointrend_s2 - dense", "pointrend_s4 - dense"]
    seeds = compare(read_study([tmp_path / "seeds"]), names[:1])
    found = with_spread_of(compare(read_study([tmp_path / "study"]), names), seeds)
    measured = pick(found, names[0]).seed_spread
    assert (measured.sd, measured.trainings) == (pytest.approx(0.01 / 2**0.5, abs=1e-6), 2)
    assert pick(found, names[1]).seed_spread is None


def test_seeds_are_averaged_within_a_case(tmp_path):
    for seed, dice in ((0, 0.9), (1, 0.7)):
        table(tmp_path / f"a{seed}", f"a,0,{seed},x,organ,false,{dice},1,1,1", f"a,0,{seed},y,organ,false,.5,1,1,1")
        table(tmp_path / f"b{seed}", f"b,0,{seed},x,organ,false,.6,1,1,1", f"b,0,{seed},y,organ,false,.6,1,1,1")
    summary = pick(compare(read_study([tmp_path]), ["a - b"]), "a - b").summary
    assert (summary.cases, summary.runs) == (2, 2)
    assert summary.mean == pytest.approx((0.2 - 0.1) / 2)
    assert summary.seed_spread.sd == pytest.approx(0.1 / 2**0.5)  # the runs' means are .1 and 0


def test_the_usual_comparisons_are_those_whose_arms_are_there(study_folder, tmp_path, make_run):
    assert usual_comparisons(read_study([study_folder])) == [
        "pointrend_s2 - coarse_s2",
        "pointrend_s4 - coarse_s4",
        "pointrend_s2 - dense",
    ]
    make_run(tmp_path / "own", "wide", offset=0.0)
    make_run(tmp_path / "own", "dense")
    assert usual_comparisons(read_study([tmp_path / "own"])) == ["wide - dense"]


def test_named_comparisons_are_those_of_the_config_whose_arms_are_there(tmp_path, make_run):
    named = {"comparisons": ["dense - wide", "narrow - dense"]}
    make_run(tmp_path, "wide", offset=0.0, study=named)
    make_run(tmp_path, "dense", study=named)
    assert named_comparisons(read_study([tmp_path])) == ["dense - wide"]


def test_missing_runs_are_named(tmp_path, make_run):
    make_run(tmp_path, "dense", study={"arms": {"dense": {}, "wide": {}}, "folds": [0, 1], "seeds": [0]})
    assert read_study([tmp_path]).missing() == ["dense fold 1 seed 0", "wide fold 0 seed 0", "wide fold 1 seed 0"]


def test_a_seed_counts_when_every_arm_is_there_on_every_fold(tmp_path, make_run):
    named = {"arms": {"dense": {}, "wide": {}}, "folds": [0, 1], "seeds": [0, 1]}
    runs = [(arm, fold, seed) for seed in (0, 1) for fold in (0, 1) for arm in ("dense", "wide")]
    for arm, fold, seed in runs[:3]:
        make_run(tmp_path, arm, fold=fold, seed=seed, study=named, offset=0.0)
    assert len(read_study([tmp_path]).of_complete_seeds().runs) == 3  # no seed is complete: all count
    for arm, fold, seed in runs[3:7]:
        make_run(tmp_path, arm, fold=fold, seed=seed, study=named, offset=0.0)
    complete = read_study([tmp_path]).of_complete_seeds()
    assert {(run.arm, int(run.fold), run.seed) for run in complete.runs} == set(runs[:4])
    assert set(complete.cases["seed"]) == {0}
    report = build_report([tmp_path])
    assert report.missing == ("wide fold 1 seed 1",)
    assert "Seed 1: 3 runs left out until every arm is there on every fold." in report.notes()
    make_run(tmp_path, "wide", fold=1, seed=1, study=named, offset=0.0)
    assert len(read_study([tmp_path]).of_complete_seeds().runs) == 8
    assert not any("left out" in note for note in build_report([tmp_path]).notes())


def test_seeds_that_no_config_names_count(tmp_path, make_run):
    for arm, seed in (("dense", 0), ("wide", 0), ("dense", 1)):
        make_run(tmp_path, arm, seed=seed, offset=0.0)
    assert len(read_study([tmp_path]).of_complete_seeds().runs) == 3


def test_evaluation_counts_only_when_the_path_lies_in_it(tmp_path, make_run):
    run = make_run(tmp_path, "dense")
    table(run / "evaluation" / "other", "dense,0,0,far,organ,false,.5,1,1,1")
    assert "far" not in set(read_study([tmp_path]).cases["case"])
    for path in (run / "evaluation", run / "evaluation" / "other", run / "evaluation" / "other" / "cases.csv"):
        study = read_study([path])
        assert set(study.cases["case"]) == {"far"}
        assert study.runs[0].info["commit"] == "abc123"


def test_a_copy_of_a_run_counts_once_and_another_run_is_refused(tmp_path, make_run):
    run = make_run(tmp_path / "runs", "dense")
    shutil.copytree(run, tmp_path / "results" / "dense")
    assert len(read_study([tmp_path]).runs) == 1
    (tmp_path / "results" / "dense" / "run.json").write_text('{"config_hash": "other"}')
    with pytest.raises(InputError, match="another run of dense fold 0 seed 0 lies in .*; name one of them"):
        read_study([tmp_path])


def test_names_that_look_like_blanks_or_numbers_stay_names(tmp_path):
    table(tmp_path, "a,all,0,007,NA,false,.5,1,1,1")
    row = read_study([tmp_path]).cases.iloc[0]
    assert (row["fold"], row["case"], row["structure"]) == ("all", "007", "NA")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("", "cannot be read as a table"),
        ("a,b\n1,2\n", "lacks the columns arm, fold, seed"),
        (HEADER, "no rows; the runs scored no case"),
        (HEADER + "a,0,0,x,organ,false,high,1,1,1\n", "column dice must hold numbers"),
        (HEADER + "a,0,0,x,organ,false,1.02,1,1,1\n", r"column dice must lie in \[0, 1\], got 1.02"),
        (HEADER + "a,0,0,x,organ,false,.5,-.1,1,1\n", r"column surface_dice must lie in \[0, 1\], got -0.1"),
        (HEADER + "a,0,0,x,organ,false,.5,1,inf,1\n", "column hd95_mm must be finite and 0 or more, got inf"),
        (HEADER + "a,0,0,x,organ,yes,.5,1,1,1\n", "column refined must hold true or false"),
        (HEADER + "a,0,0,x,,false,.5,1,1,1\n", "column structure holds a blank"),
        (HEADER + "a,0,0,x,organ,false,.5,1,1,1\n" * 2, "holds a case and structure twice"),
    ],
)
def test_a_table_that_is_not_one_is_refused(tmp_path, content, rule):
    (tmp_path / "cases.csv").write_text(content)
    with pytest.raises(InputError, match=rule):
        read_study([tmp_path])


def test_places_without_runs_are_refused_together(tmp_path):
    with pytest.raises(InputError) as error:
        read_study([tmp_path, tmp_path / "nowhere"])
    assert [fault.split(": ")[1].split(";")[0] for fault in error.value.faults] == [
        "no cases.csv below",
        "does not exist",
    ]


def test_runs_of_different_data_sets_are_refused(tmp_path, make_run):
    make_run(tmp_path, "dense")
    other = make_run(tmp_path, "coarse_s2")
    (other / "run.json").write_text('{"data_hash": "e"}')
    with pytest.raises(InputError, match="made on another data set than"):
        read_study([tmp_path])


@pytest.mark.parametrize("comparison", ["dense", "dense - dense", "dense - sparse", "dense:unrefined - coarse_s2"])
def test_an_unknown_comparison_is_refused(study_folder, comparison):
    with pytest.raises(InputError, match="must be `A - B` of dense, coarse_s2"):
        compare(read_study([study_folder]), [comparison])


def test_the_contract_s_columns_are_enough(tmp_path):
    table(tmp_path, "a,0,0,x,organ,false,.5,.6,2,1")
    study = read_study([tmp_path])
    assert study.metrics == ["dice", "surface_dice", "hd95_mm", "assd_mm"]
    pd.testing.assert_series_equal(
        arm_means(study).iloc[0][study.metrics].astype(float),
        pd.Series({"dice": 0.5, "surface_dice": 0.6, "hd95_mm": 2.0, "assd_mm": 1.0}),
        check_names=False,
    )


def test_every_pair_of_seeds_of_an_arm_over_the_folds_they_share(tmp_path, make_run):
    for seed, offset in ((0, 0.0), (1, 0.01), (2, 0.03)):
        for fold in (0, 1):
            make_run(tmp_path, "dense", fold=fold, seed=seed, offset=offset, spread=0, cases=4)
    make_run(tmp_path, "coarse_s2", offset=0.0, cases=4)
    found = seed_nulls(read_study([tmp_path]))
    assert [(n.arm, n.first, n.second) for n in found] == [("dense", 0, 1), ("dense", 0, 2), ("dense", 1, 2)]
    assert [n.summary.mean for n in found] == pytest.approx([-0.01, -0.03, -0.02], abs=1e-6)
    assert [(n.summary.cases, n.summary.runs) for n in found] == [(8, 2)] * 3


def test_the_committed_seeds_of_coarse_s2():
    found = {
        (n.first, n.second): n.summary
        for n in seed_nulls(read_study([RESULTS / "study_seeds"]))
        if n.arm == "coarse_s2"
    }
    assert len(found) == 3
    s = found[0, 2]
    assert (s.mean, s.low, s.high) == pytest.approx((0.0026, 0.0001, 0.0051), abs=5e-5)
    assert s.cases == 52


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
