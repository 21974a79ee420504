"""The page for a reader with a keyboard, a screen reader or a question: links, names, and what a reviewer asks.

Below: what counts as evidence, where the seed spread is from, and how cases are grouped.
"""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from vnet.commands import compare
from vnet.core.errors import InputError
from vnet.evaluation.comparison import MEAN
from vnet.evaluation.study_tables import read_study
from vnet.report import provenance
from vnet.report.arms import AUGMENTATION, arms_table, costs_table, training_table
from vnet.report.curves import mean_curves
from vnet.report.figures import figures_of
from vnet.report.output import markdown_page, write_report
from vnet.report.report import build_report
from vnet.report.subgroups import (
    case_anchors,
    cases_table,
    risk_table,
    subgroups_table,
    volumes_table,
    worst_cases_table,
)

RESULTS = Path(__file__).parents[2] / "results"
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@pytest.fixture(scope="module")
def page(study_folder, tmp_path_factory) -> str:
    return write_report(build_report([study_folder]), tmp_path_factory.mktemp("page")).read_text()


def test_every_link_leads_to_a_place_on_the_page(page):
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'<a href="#([^"]*)"', page)
    assert set(links) <= set(ids)
    headings = re.findall(r'<h2 id="([^"]*)">', page)
    contents = re.search(r'<nav aria-label="Contents">.*?</nav>', page, re.DOTALL)[0]
    assert re.findall(r'href="#([^"]*)"', contents) == headings


def test_each_case_of_a_chart_leads_to_its_row(page, study_folder):
    study = read_study([study_folder])
    anchors = case_anchors(study)
    assert len(anchors) == 24
    rows = dict(re.findall(r'<tr id="([^"]*)"><th scope="row">([^<]*)</th>', page))
    assert rows == {anchor: case for case, anchor in anchors.items()}
    (chart,) = re.findall(r"<svg[^>]*cases_pointrend_s2_dense-title.*?</svg>", page, re.DOTALL)
    named = re.findall(r'<a href="#([^"]*)" aria-label="([^:]*): 0[.]\d{4} against 0[.]\d{4}"', chart)
    # a line and an end each
    assert sorted(named) == sorted(2 * [(anchor, case) for case, anchor in anchors.items()])


def test_charts_have_a_role_a_title_and_a_description(page):
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ET.fromstring(drawn.replace("<a href=", "<a data-href="))
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
        assert root.get("role") == ("group" if root.find(f".//{SVG}a") is not None else "img")
        assert len(title.text) > 20
        assert len(description.text) > 20


def test_tables_name_their_rows_and_columns_and_scroll_by_keyboard(page):
    assert page.count("<th ") == page.count('<th scope="')
    boxes = re.findall(r'<div class="scroll[^"]*" ([^>]*)>', page)
    assert len(boxes) > 8
    for attributes in boxes:
        assert re.fullmatch(r'tabindex="0" role="region" aria-label="[^"]+"', attributes)
    assert page.count("<table>") <= len(boxes)


def test_pictures_say_what_is_seen(page):
    (seen,) = re.findall(r'<img alt="([^"]*)"', page)
    assert seen == (
        "Three planes of case case, the worst of pointrend_s2 fold 0 seed 0: the image, tinted where the"
        " truth is, with outlines of the prediction"
    )


def test_pictures_of_changes_have_a_section_and_lead_to_the_row_of_their_case(pair_folder):
    pictures = pair_folder / "pointrend_s2" / "fold0_seed0" / "pictures"
    pictures.mkdir()
    for rank, case in (("worst", 3), ("median", 0), ("best", 2)):
        (pictures / f"change_{rank}_case_0_0{case}.png").write_bytes(b"not decoded here")
    (pictures / "worst_case_0_01.png").write_bytes(b"not decoded here")
    text = write_report(build_report([pair_folder]), pair_folder / "report").read_text()
    section = re.search(r'<h2 id="what-refinement-did">.*?</section>', text, re.DOTALL)[0]
    run = "pointrend_s2 fold 0 seed 0"
    assert re.findall(r"<figcaption>(.*?)</figcaption>", section) == [
        f'largest gain of Dice: <a href="#case-3">case_0_02</a>, {run}',
        f'median gain of Dice: <a href="#case-1">case_0_00</a>, {run}',
        f'smallest gain of Dice, or loss: <a href="#case-4">case_0_03</a>, {run}',
    ]
    assert f'alt="One plane of case case_0_02 of {run} twice, around the voxels that refinement changed: on' in section
    assert text.count("<img ") == 4
    assert f'<figcaption>worst <a href="#case-2">case_0_01</a>, {run}</figcaption>' in text
    assert '<a href="#what-refinement-did">What refinement did</a>' in text


def test_a_file_of_a_chart_links_to_the_page(study_folder):
    figure = next(f for f in figures_of(build_report([study_folder])) if f.section == "cases")
    assert '<a href="../report.html#case-' in figure.file()


def test_the_worst_cases_and_their_weakest_structure(tmp_path):
    columns = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm"
    dice = {"x": (0.9, 0.5), "y": (0.6, 0.4), "z": (0.8, 0.9)}
    rows = [
        f"{arm},0,0,{case},{structure},false,{value - loss},1,1,1"
        for arm, loss in (("a", 0), ("b", 0.1))
        for case, values in dice.items()
        for structure, value in zip(("organ", "vessel"), values, strict=True)
    ]
    (tmp_path / "cases.csv").write_text("\n".join([columns, *rows]) + "\n")
    study = read_study([tmp_path])
    assert worst_cases_table(study).rows == (
        ("y", "vessel 0.3500", "0.5000", "0.4000"),
        ("x", "vessel 0.4500", "0.7000", "0.6000"),
        ("z", "organ 0.7500", "0.8500", "0.7500"),
    )
    assert cases_table(study).rows[0] == ("x", "0.7000", "0.6000")


def test_learning_curves_are_means_over_runs(tmp_path, make_run):
    for seed, end in ((0, 0.8), (1, 0.9)):
        folder = make_run(tmp_path, "dense", seed=seed)
        (folder / "metrics.csv").write_text(f"step,dice\n10,0.5\n20,{end}\n")
    (make_run(tmp_path, "coarse_s2") / "metrics.csv").write_text("step,dice\n20,0.7\n")  # one point is no curve
    assert mean_curves(read_study([tmp_path])) == {"dense": {10: 0.5, 20: pytest.approx(0.85)}}
    assert "learning_curves" in [figure.name for figure in figures_of(build_report([tmp_path]))]


def test_what_a_reviewer_asks_of_the_committed_study():
    study = read_study([RESULTS / "study_hippocampus"])
    rows = [row for row in training_table(study).rows if row[0] != "commit"]
    assert ("steps", "all", "500") in rows
    assert ("training cases", "all", "156") in rows
    assert ("epochs", "all", "6.4") in rows  # 500 steps of 2 volumes
    assert ("batch", "all", "2 of 48 x 64 x 48 voxels (z, y, x)") in rows
    assert ("optimiser", "all", "AdamW, learning rate 0.003, weight decay 0.01, gradient norm up to 12") in rows
    losses = {arms: value for name, arms, value in rows if name == "loss"}
    assert losses["dense, coarse_s2, coarse_s4"] == "Dice + cross-entropy of the network's logits"
    assert losses["pointrend_s1, pointrend_s2, pointrend_s4"].endswith(
        "+ 1 x cross-entropy at points + 1 x Dice at points"
    )
    assert dict(arms_table(study).rows)["pointrend_s4"] == "decoder stops at stride 4, head refines 6% of the voxels"
    ablations = dict(arms_table(read_study([RESULTS / "ablations"])).rows)
    assert ablations["uniform"].endswith("; points.importance_ratio: 0.0")
    assert provenance.commands(study) == [
        "vnet experiment --config configs/study_hippocampus.yaml --data.root DATA/Task04_Hippocampus",
        "vnet compare results/study_hippocampus",
    ]


def test_the_augmentation_of_the_report_is_that_of_the_code():
    from vnet.data import augmentation as code

    for number in (code.ROTATION_DEGREES, code.SCALE, 100 * code.AFFINE_PROBABILITY):
        assert re.search(rf"\b{number:g}\b", AUGMENTATION)


def test_the_title_holds_study_data_set_and_date(tmp_path, make_run):
    folder = make_run(tmp_path / "toy", "dense")
    study = read_study([tmp_path])
    assert provenance.title(study) == f"toy on Phantoms, report of {datetime.now(UTC):%Y-%m-%d}"
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"date": "2026-11-24"}))
    assert provenance.title(read_study([tmp_path])) == "toy on Phantoms, 2026-11-24"


def test_commands_are_those_that_were_typed(tmp_path, make_run):
    folder = make_run(tmp_path, "dense")
    typed = "vnet train --config mine.yaml --data.root DATA/Mine --training.steps=20 --arm dense --data.fold 0 --seed=1"
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"command": typed}))
    found = provenance.commands(read_study([tmp_path]))
    assert found[0] == "vnet experiment --config mine.yaml --data.root DATA/Mine --training.steps=20"
    assert found[1] == f"vnet compare runs/{tmp_path.name}"


def test_the_command_of_the_report_holds_all_studies_and_its_own_options(tmp_path, make_run):
    for study, arm in (("one", "dense"), ("two", "pointrend_s2")):
        make_run(tmp_path / study, arm)
    words = ["--comparison", "pointrend_s2 - dense", "--margin", "0.004", "--margin-reason", "half of raters'"]
    compare.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "report"), *words])
    text = (tmp_path / "report" / "report.md").read_text()
    command = next(line for line in text.splitlines() if line.startswith("vnet compare"))
    assert shlex.split(command) == ["vnet", "compare", "runs/one", "runs/two", *words]


def test_overrides_of_a_shipped_config_are_found_where_no_command_was_noted(tmp_path, make_run):
    from vnet.core.config import load_config
    from vnet.core.environment import config_file

    folder = make_run(tmp_path / "quickstart", "dense")
    config = load_config(["--config", str(config_file("quickstart")), "--training.steps", "20"])
    (folder / "config.yaml").write_text(config.to_yaml())
    assert provenance.commands(read_study([tmp_path]))[0] == (
        "vnet experiment --config configs/quickstart.yaml --data.root DATA/phantoms --training.steps 20"
    )


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


def test_seconds_are_of_the_machine_that_ran_every_arm(tmp_path, make_run):
    def run(arm: str, fold: int, processor: str, seconds: float) -> None:
        folder = make_run(tmp_path / "s", arm, fold=fold)
        info = json.loads((folder / "run.json").read_text())
        info |= {"processor": processor, "cores": 2, "seconds_per_step": seconds, "parameters": 10**6 * (1 + fold)}
        (folder / "run.json").write_text(json.dumps(info))

    run("dense", 0, "Quick", 0.2)
    run("pointrend_s2", 0, "Quick", 0.1)
    assert "Seconds" not in costs_table(read_study([tmp_path / "s"])).note
    run("dense", 1, "Slow", 0.9)
    table = costs_table(read_study([tmp_path / "s"]))
    step, parameters = (table.columns.index(name) for name in ("s per step", "parameters"))
    assert [row[step] for row in table.rows] == ["0.200 (1.00)", "0.100 (0.50)"]
    assert [row[parameters] for row in table.rows] == ["1.50 M (1.00)", "1.00 M (0.67)"]  # of all runs
    assert table.note.endswith("Seconds: of the 2 runs on Quick, 2 cores, not of those on Slow, 2 cores.")


def test_seconds_of_arms_on_different_machines_do_not_compare(tmp_path, make_run):
    for arm, processor in zip(PAIR, ("Quick", "Slow"), strict=True):
        folder = make_run(tmp_path / "s", arm)
        info = json.loads((folder / "run.json").read_text()) | {"processor": processor, "cores": 2}
        (folder / "run.json").write_text(json.dumps(info))
    note = costs_table(read_study([tmp_path / "s"])).note
    assert "different machines (Quick, 2 cores; Slow, 2 cores): their seconds do not compare." in note


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


def test_volumes_are_compared_by_structure(tmp_path, make_run):
    """The organ is predicted a tenth too large in each case, the vessel half a ml too small in one of four."""
    path = make_run(tmp_path / "s", "dense", cases=4) / "cases.csv"
    assert volumes_table(read_study([tmp_path / "s"])).rows == ()
    table = pd.read_csv(path, dtype={"refined": str})
    table["predicted_ml"] = table["truth_ml"].where(table["structure"] == "vessel", 1.1 * table["truth_ml"])
    table.loc[table.index[-1], "predicted_ml"] -= 0.5
    table.to_csv(path, index=False)
    report = build_report([tmp_path / "s"])
    (volumes,) = (table for table in report.tables() if table.title == "Volumes")
    # true means: 2 + (0 + 1 + 2 + 3) / 9 / 4, and 1 less
    assert volumes.rows == (
        ("dense", "organ", "2.167", "+0.217", "+10.0%", "100%"),
        ("dense", "vessel", "1.167", "-0.125", "-10.7%", "0%"),
    )


def test_risk_against_coverage_by_hand():
    """100 voxels: 60 sure with 3 wrong, 40 unsure with 20 wrong, of which 15 are fixed and 1 other is broken."""
    counts = {
        "arm": {
            "to 0.5": {"fixed": 15, "broken": 1, "unchanged": 24, "wrong_before": 20},
            "beyond": {"fixed": 0, "broken": 0, "unchanged": 60, "wrong_before": 3},
        }
    }
    assert risk_table(counts).rows == (
        ("arm", "above 0.5", "60.0%", "5.0%", "5.0%"),
        ("arm", "all", "100.0%", "23.0%", "9.0%"),
    )
