"""What a report counts as evidence, where its seed spread is from, and how it groups cases."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from vnet.core.errors import InputError
from vnet.evaluation.comparison import MEAN
from vnet.evaluation.study_tables import read_study
from vnet.report.arms import costs_table
from vnet.report.figures import figures_of
from vnet.report.output import markdown_page, write_report
from vnet.report.report import build_report
from vnet.report.subgroups import subgroups_table

PAIR = ("dense", "pointrend_s2")


def dice(report, comparison="pointrend_s2 - dense"):
    (found,) = (d for d in report.differences if (d.comparison, d.structure, d.metric) == (comparison, MEAN, "dice"))
    return found


def write_pair(make_run, root, gain, *, study, fold=0, seed=0):
    for arm in PAIR:
        make_run(root, arm, fold=fold, seed=seed, offset=gain * (arm != "dense"), spread=0, study=study)


def test_the_folds_of_choices_are_shown_apart(tmp_path, make_run):
    study = {"choice_folds": [0], "comparisons": ["pointrend_s2 - dense"]}
    write_pair(make_run, tmp_path / "s", 0.05, study=study)
    before = build_report([tmp_path / "s"])
    assert dice(before).summary.mean == pytest.approx(0.05, abs=1e-6)
    assert any("No evidence yet: choices of the method were made on fold 0" in note for note in before.notes())
    for fold in (1, 2):
        write_pair(make_run, tmp_path / "s", 0.01, study=study, fold=fold)
    after = build_report([tmp_path / "s"])
    assert dice(after).summary.mean == pytest.approx(0.01, abs=1e-6)
    assert (dice(after).summary.cases, dice(after).summary.runs) == (24, 2)
    assert not any("No evidence" in note for note in after.notes())
    (apart,) = (table for table in after.tables() if table.title.startswith("Fold 0, on which choices were made"))
    row = dict(zip(apart.columns, apart.rows[0], strict=True))
    assert (row["comparison"], row["difference"]) == ("pointrend_s2 - dense", "+0.0500")
    assert not {"p", "p (Holm)", "verdict"} & set(apart.columns)
    for text in (markdown_page(after, figures_of(after)), write_report(after, tmp_path / "out").read_text()):
        assert "Fold 0, on which choices were made, and no evidence" in text
        assert "Choices of the method were made on fold 0 alone." in text


def test_the_seed_spread_is_that_of_the_study_beside(tmp_path, make_run):
    study = {"spread_from": "seeds", "comparisons": ["pointrend_s2 - dense", "pointrend_s4 - dense"]}
    write_pair(make_run, tmp_path / "s", 0.01, study=study)
    make_run(tmp_path / "s", "pointrend_s4", offset=0.0, spread=0, study=study)
    assert dice(build_report([tmp_path / "s"])).seed_spread is None
    for seed, gain in enumerate((0.01, 0.02, 0.03)):
        write_pair(make_run, tmp_path / "seeds", gain, fold=1, seed=seed, study={})
    report = build_report([tmp_path / "s"])
    measured = dice(report).seed_spread
    assert (measured.sd, measured.trainings) == (pytest.approx(0.01, abs=1e-6), 3)
    # of another stride nothing was measured, and nothing is lent
    assert dice(report, "pointrend_s4 - dense").seed_spread is None
    rows = {row[0]: row for row in report.tables()[0].rows}
    column = report.tables()[0].columns.index("seed spread")
    assert rows["pointrend_s2 - dense"][column] == "0.0100 (0.0052 to 0.0628, n = 3)"
    assert rows["pointrend_s4 - dense"][column] == "-"
    assert any("of the same comparison in seeds (fold 1, seeds 0, 1, 2)" in note for note in report.notes())
    assert "seed spread 0.0100 (0.0052 to 0.0628, n = 3)" in " ".join(report.headline())


def test_thirds_are_of_each_structure_and_cover_all_cases(study_folder):
    table = subgroups_table(read_study([study_folder]), ["pointrend_s2 - coarse_s2"])
    by_size = [row for row in table.rows if row[1] == "true volume"]
    assert [row[2] for row in by_size] == ["lowest third", "middle third", "highest third"]
    assert [int(row[5]) for row in by_size] == [8, 8, 8]  # 24 cases; the structures of a case are alike in size
    assert all(float(row[3]) == pytest.approx(0.021, abs=0.02) for row in by_size)


def test_cases_are_grouped_by_the_data_set_s_own_numbers(tmp_path, make_run):
    folders = [make_run(tmp_path / "s", arm, cases=4, spread=0) for arm in PAIR]
    properties = pd.DataFrame({"case": [f"case_0_{i:02d}" for i in range(4)], "noise": [0.1, 0.3, 0.1, 0.3]})
    for folder in folders:
        properties.to_csv(folder / "properties.csv", index=False)
    table = subgroups_table(read_study([tmp_path / "s"]), ["pointrend_s2 - dense"])
    by_noise = [row[2:4] + row[5:] for row in table.rows if row[1] == "noise"]
    assert by_noise == [("0.1", "+0.0010", "2"), ("0.3", "+0.0010", "2")]
    (folders[0] / "properties.csv").write_text("case,noise\ncase_0_00,loud\n")
    with pytest.raises(InputError, match="must hold a column case and columns of numbers"):
        subgroups_table(read_study([tmp_path / "s"]), ["pointrend_s2 - dense"])


def test_steps_timed_alone_come_from_the_benchmark(tmp_path, make_run):
    import json

    for arm in PAIR:
        folder = make_run(tmp_path / "s", arm)
        config = json.loads((folder / "config.yaml").read_text())
        config |= {"training": {"patch": [4, 5, 6], "batch": 2}, "study": {"comparisons": ["pointrend_s2 - dense"]}}
        (folder / "config.yaml").write_text(json.dumps(config))
    study = read_study([tmp_path / "s"])
    assert "s per step, alone" not in costs_table(study).columns
    (tmp_path / "benchmarks").mkdir()
    rows = ["config,size,batch,arm,seconds", "s,4x5x6,2,dense,0.2", "s,4x5x6,2,pointrend_s2,0.1", "t,4x5x6,2,dense,9"]
    (tmp_path / "benchmarks" / "step.csv").write_text("\n".join(rows) + "\n")
    table = costs_table(study)
    assert [row[1] for row in table.rows] == ["0.200 (1.00)", "0.100 (0.50)"]
    assert "at 0.50 times the seconds per training step" in " ".join(build_report([tmp_path / "s"]).headline())


def test_arms_of_a_study_keep_its_order(tmp_path, make_run):
    study = {"arms": {"dense_equal_time": {}, "a_control": {}}}
    for arm in ("a_control", "dense_equal_time"):
        make_run(tmp_path / "s", arm, offset=0.0, study=study)
    assert read_study([tmp_path / "s"]).arms == ["dense_equal_time", "a_control"]


def test_markdown_shows_the_figures_of_the_page(study_folder, tmp_path):
    report = build_report([study_folder])
    write_report(report, tmp_path)
    linked = re.findall(r"\]\((figures/[^)]+)\)", (tmp_path / "report.md").read_text())
    assert len(linked) == len(figures_of(report)) == len(set(linked))
    for name in linked:
        drawn = (tmp_path / name).read_text()
        assert drawn.startswith("<svg")
        assert "currentColor" not in drawn


def test_a_margin_gives_a_column_of_noninferiority(tmp_path, make_run):
    study = {"comparisons": ["pointrend_s2 - dense"], "equivalence_margin": 0.005, "equivalence_reason": "a test"}
    for fold in range(6):
        write_pair(make_run, tmp_path / "s", -0.004, study=study, fold=fold)
        write_pair(make_run, tmp_path / "t", -0.006, study=study, fold=fold)
        write_pair(make_run, tmp_path / "u", -0.006, study={"comparisons": study["comparisons"]}, fold=fold)
    near, far, free = (build_report([tmp_path / name]) for name in "stu")
    assert (dice(near).noninferior, dice(far).noninferior, dice(free).noninferior) == ("non-inferior", "inferior", "")
    (table,) = near.difference_tables()
    assert dict(zip(table.columns, table.rows[0], strict=True))["non-inferior"] == "yes"
    assert "non-inferior" not in free.difference_tables()[0].columns
    assert any("the 95 % interval lies above -0.005" in note for note in near.notes())


def test_cases_of_one_subject_are_resampled_together(tmp_path, make_run):
    study = {"comparisons": ["pointrend_s2 - dense"]}
    for arm in PAIR:
        make_run(tmp_path / "s", arm, study=study)
        path = tmp_path / "s" / arm / "fold0_seed0" / "cases.csv"
        table = pd.read_csv(path, dtype=str)
        table.assign(subject=table["case"].str[-2:].astype(int) // 2).to_csv(path, index=False)
    report = build_report([tmp_path / "s"])
    assert (dice(report).summary.cases, dice(report).summary.subjects) == (12, 6)
    (table,) = report.difference_tables()
    assert dict(zip(table.columns, table.rows[0], strict=True))["cases"] == "12 of 6 subjects"
