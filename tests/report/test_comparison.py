"""Runs read back and compared, on tables whose differences are known."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from vnet.core.errors import InputError
from vnet.evaluation.comparison import MEAN, arm_means, compare, paired_cases, refinement_comparisons, usual_comparisons
from vnet.evaluation.study_tables import read_study

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
    assert (dice.verdict, dice.summary.better, dice.summary.cases) == ("better", 1.0, 12)
    # lower is better: the sign is the metric's, the verdict is the arm's
    hd95 = pick(found, "pointrend_s2 - dense", "vessel", "hd95_mm")
    assert hd95.summary.mean == pytest.approx(-0.05, abs=1e-5)
    assert (hd95.verdict, hd95.summary.better) == ("better", 1.0)


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


def test_a_blank_on_one_side_takes_the_structure_out_of_both_means(tmp_path):
    rows = ["0,0,x,organ,false,{},1,1,1", "0,0,x,vessel,false,{},{},{},{}"]
    # the vessel is absent: one arm says so, the other predicts it and scores 0
    table(tmp_path / "a", "a," + rows[0].format(0.9), "a," + rows[1].format("", "", "", ""))
    table(tmp_path / "b", "b," + rows[0].format(0.7), "b," + rows[1].format(0, 0, 50, 50))
    study = read_study([tmp_path])
    assert paired_cases(study, "a - b", MEAN, "dice")["difference"].tolist() == pytest.approx([0.2])
    found = pick(compare(study, ["a - b"]), "a - b", "vessel")
    assert (found.summary, found.verdict, found.one_sided) == (None, "no shared case", 1)
    means = arm_means(study).set_index(["side", "structure"])
    assert means.loc[("b", MEAN), "dice"] == pytest.approx(0.35)
    assert means.loc[("a", MEAN), "dice"] == pytest.approx(0.9)
    assert (means.loc[("b", "vessel"), "missed"], means.loc[("a", "vessel"), "cases"]) == (1, 0)


def test_seeds_are_averaged_within_a_case(tmp_path):
    for seed, dice in ((0, 0.9), (1, 0.7)):
        table(tmp_path / f"a{seed}", f"a,0,{seed},x,organ,false,{dice},1,1,1", f"a,0,{seed},y,organ,false,.5,1,1,1")
        table(tmp_path / f"b{seed}", f"b,0,{seed},x,organ,false,.6,1,1,1", f"b,0,{seed},y,organ,false,.6,1,1,1")
    summary = pick(compare(read_study([tmp_path]), ["a - b"]), "a - b").summary
    assert (summary.cases, summary.runs) == (2, 2)
    assert summary.mean == pytest.approx((0.2 - 0.1) / 2)
    assert summary.seed_spread == pytest.approx(0.1 / 2**0.5)  # the runs' means are .1 and 0


def test_the_usual_comparisons_are_those_whose_arms_are_there(study_folder, tmp_path, make_run):
    assert usual_comparisons(read_study([study_folder])) == [
        "pointrend_s2 - coarse_s2",
        "pointrend_s4 - coarse_s4",
        "pointrend_s2 - dense",
    ]
    make_run(tmp_path / "own", "wide", offset=0.0)
    make_run(tmp_path / "own", "dense")
    assert usual_comparisons(read_study([tmp_path / "own"])) == ["wide - dense"]
    named = {"comparisons": ["dense - wide"]}
    make_run(tmp_path / "named", "wide", offset=0.0, study=named)
    make_run(tmp_path / "named", "dense", study=named)
    assert usual_comparisons(read_study([tmp_path / "named"])) == ["dense - wide"]


def test_missing_runs_are_named(tmp_path, make_run):
    make_run(tmp_path, "dense", study={"arms": {"dense": {}, "wide": {}}, "folds": [0, 1], "seeds": [0]})
    assert read_study([tmp_path]).missing() == ["dense fold 1 seed 0", "wide fold 0 seed 0", "wide fold 1 seed 0"]


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
