"""The report: its words, its layouts, and what a hostile name does to them."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vnet.commands import compare
from vnet.core.config.schema import Config, StudyConfig
from vnet.core.errors import InputError
from vnet.evaluation.refinement import ALL
from vnet.evaluation.statistics import EquivalenceMargin
from vnet.report import charts
from vnet.report.figures import figures_of
from vnet.report.output import markdown_page, print_comparison, print_run_summary, write_report
from vnet.report.report import build_report, checked_margin
from vnet.report.subgroups import by_bin
from vnet.report.tables import Table, change, markdown, p_value, score

VOID = {"meta", "img"}
RESULTS = Path(__file__).parents[2] / "results"
COLUMNS = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm"
DICE = {"a": 0.8, "b": 0.9}


class Page(HTMLParser):
    """Tags that balance, the text, and every place that would fetch something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.fetched, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not value.startswith(("data:", "#")):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_command_prints_and_writes_the_report(study_folder, capsys, tmp_path):
    margin = ["--margin", "0.5", "--margin-reason", "half of all there is"]
    assert compare.main([str(study_folder), "--output", str(tmp_path / "out"), *margin]) == 0
    printed = capsys.readouterr().out
    assert (
        "In these 2 trainings pointrend_s2 did better than coarse_s2, by less than the margin of 0.5 Dice (" in printed
    )
    assert "Equivalence margin: ±0.5 Dice. Reason: half of all there is." in printed
    assert "at 1.10 times the seconds per training step" in printed
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.html", "report.md", "figures", "scores.csv", "differences.csv", "costs.csv"}
    with (tmp_path / "out" / "differences.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["comparison"] == "pointrend_s2 - pointrend_s2:unrefined"]
    assert len(rows) == 3 * 5  # mean, organ, vessel; five metrics
    assert float(rows[0]["mean"]) == pytest.approx(0.02, abs=1e-6)


def test_the_report_goes_beside_the_runs_by_default(pair_folder):
    compare.main([str(pair_folder)])
    page = (pair_folder / "report" / "report.html").read_text()
    compare.main([str(pair_folder)])  # a second time reads the same runs, and writes the same bytes
    assert (pair_folder / "report" / "report.html").read_text() == page


@pytest.fixture(scope="module")
def report(study_folder):
    return build_report([study_folder])


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    return write_report(report, tmp_path_factory.mktemp("written"))


def test_the_page_stands_alone_and_balances(written):
    page = written.read_text()
    found = Page(page)
    assert found.fetched == []
    assert "script" not in found.tags
    # two forests, two of cost, a dumbbell each of three named and two of refinement, six of where it helps
    assert found.tags.count("svg") == 2 + 2 + 5 + 6
    assert "worst case, pointrend_s2 fold 0 seed 0" in found.words
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert re.search(r"url\((?!#)", page) is None
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawn)  # well-formed
        assert "#010203" not in drawn


def test_no_machine_path_and_no_host_in_any_file(report, written, study_folder):
    for path in (path for path in written.parent.rglob("*") if path.is_file()):
        text = path.read_text()
        assert str(study_folder.parent) not in text
        assert "/home/someone" not in text
    assert "--data.root DATA/Phantoms" in markdown_page(report, figures_of(report))


def test_hostile_names_stay_text(tmp_path):
    name = "<script>alert(1)</script>|x"
    rows = [
        f"{arm},0,0,{name}{case},{name},false,.{5 + case}{k},1,1,1" for k, arm in enumerate("ab") for case in (0, 1)
    ]
    header = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm"
    (tmp_path / "cases.csv").write_text("\n".join([header, *rows]) + "\n")
    report = build_report([tmp_path])
    page = write_report(report, tmp_path / "report").read_text()
    assert "script" not in Page(page).tags
    assert "<script>alert(1)</script>\\|x" in markdown_page(report, figures_of(report))


def test_one_arm_alone_is_reported_without_a_comparison(tmp_path, make_run):
    make_run(tmp_path, "dense")
    report = build_report([tmp_path])
    assert report.headline() == ["Nothing to compare: no two arms share a scored case."]
    Page(write_report(report, tmp_path / "report").read_text())


def test_one_case_has_no_interval_and_still_lays_out(tmp_path, make_run):
    for arm in ("dense", "pointrend_s2"):
        make_run(tmp_path, arm, cases=1, study={"comparisons": ["pointrend_s2 - dense"]})
    report = build_report([tmp_path])
    assert report.headline()[0].startswith("pointrend_s2 and dense share too few cases to tell (")
    assert report.tables()[0].rows[0][1] == "too few cases (1)"
    Page(write_report(report, tmp_path / "report").read_text())


def test_runs_without_run_json_are_compared_without_costs(pair_folder):
    for path in [*pair_folder.rglob("run.json"), *pair_folder.rglob("config.yaml")]:
        path.unlink()
    report = build_report([pair_folder])
    assert "seconds per" not in report.headline()[0]
    Page(write_report(report, pair_folder / "report").read_text())


def test_the_scope_is_told_from_the_number_of_runs(tmp_path, make_run):
    for fold in range(6):
        for arm in ("dense", "pointrend_s2"):
            make_run(tmp_path, arm, fold=fold, cases=4)
    assert "they speak of networks trained again" in build_report([tmp_path]).notes()[-1]
    few = build_report([tmp_path / "dense" / "fold0_seed0", tmp_path / "pointrend_s2" / "fold0_seed0"])
    assert "it speaks of these trained networks" in few.notes()[-1]


def test_markdown_tables_have_as_many_cells_in_each_row(report):
    text = markdown_page(report, figures_of(report))
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == 11
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_refined_voxels_are_summed_over_runs(report):
    counts = by_bin(report.refined, ALL, "distance_upto_mm")
    assert list(counts) == ["pointrend_s2", "pointrend_s4"]
    # two folds; three margins of 30 fixed each
    assert counts["pointrend_s2"]["to 1"] == {"fixed": 180, "broken": 42, "unchanged": 600, "wrong_before": 300}
    assert list(counts["pointrend_s2"]) == ["to 1", "to 2", "beyond"]


def test_a_broken_refinement_table_is_refused(pair_folder):
    (pair_folder / "pointrend_s2" / "fold0_seed0" / "refinement.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="refinement.csv: not a table of refined voxels"):
        build_report([pair_folder])


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_a_margin_out_of_range_is_refused(margin):
    with pytest.raises(InputError, match="the margin must be a Dice of 0 or more"):
        checked_margin(margin, "a reason")


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_a_margin_without_a_reason_is_refused(reason):
    with pytest.raises(InputError, match="the margin of 0.002 Dice needs a reason, which is printed"):
        checked_margin(0.002, reason)


def test_the_study_s_margin_counts_with_its_reason_alone(tmp_path, make_run):
    for name, reason in (("with", {"equivalence_reason": "half the spread of raters."}), ("without", {})):
        study = {"comparisons": ["pointrend_s2 - dense"], "equivalence_margin": 0.5} | reason
        for arm in ("dense", "pointrend_s2"):
            make_run(tmp_path / name, arm, study=study)
    report = build_report([tmp_path / "with"])
    assert report.margin == EquivalenceMargin(0.5, "half the spread of raters.")
    assert "Equivalence margin: ±0.5 Dice. Reason: half the spread of raters." in report.notes()
    assert "Non-inferior: the 95 % interval lies above -0.5 Dice, wherever it ends." in report.notes()
    assert report.headline()[0].startswith("In this training pointrend_s2 and dense were equivalent within the margin")
    without = build_report([tmp_path / "without"])
    assert without.margin is None
    assert any("names a margin (0.5 Dice) and no reason for it" in note for note in without.notes())


@pytest.mark.parametrize("cases", [3, 4, 5])
def test_tables_of_few_cases_claim_nothing(tmp_path, cases, capsys):
    rows = [f"{arm},0,0,c{i},organ,false,{dice + i / 1000},1,1,1" for i in range(cases) for arm, dice in DICE.items()]
    (tmp_path / "cases.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    compare.main([str(tmp_path), "--comparison", "b - a"])
    printed = capsys.readouterr().out
    assert f"too few cases ({cases})" in printed
    assert "nothing is claimed" in printed
    assert not re.search(r"\b(better|worse|equivalent)\b(?! /)", printed)
    # and where the comparison was named beforehand
    report = build_report([tmp_path], named=["b - a"])
    assert report.headline()[0].startswith("b and a share too few cases to tell (+0.1000 mean foreground Dice, 0.9")
    assert report.tables()[0].rows[0][1] == f"too few cases ({cases})"


def test_comparisons_not_named_beforehand_are_headed_so_and_make_no_headline(tmp_path, make_run):
    for arm in ("dense", "coarse_s2", "pointrend_s2"):
        make_run(tmp_path, arm, study={"comparisons": ["pointrend_s2 - dense"]})
    usual = build_report([tmp_path])
    assert (usual.named, usual.others) == (("pointrend_s2 - dense",), ())
    asked = build_report([tmp_path], others=["pointrend_s2 - coarse_s2", "pointrend_s2 - dense"])
    assert (asked.named, asked.others) == (("pointrend_s2 - dense",), ("pointrend_s2 - coarse_s2",))
    assert "coarse_s2" not in " ".join(asked.headline())
    (table,) = (t for t in asked.tables() if t.title.startswith("Not named beforehand, exploratory"))
    assert "p (Holm)" not in table.columns
    assert "The p is not adjusted" in table.note
    none = build_report([tmp_path], named=[])
    assert none.headline() == ["No comparison was named beforehand (study.comparisons), so nothing is claimed."]


def test_a_table_that_is_blank_everywhere_is_nothing_to_compare(tmp_path, capsys):
    rows = [f"{arm},0,0,c{i},organ,false,,,," for i in range(8) for arm in "ab"]
    (tmp_path / "cases.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    assert compare.main([str(tmp_path), "--comparison", "b - a"]) == 0
    assert "Nothing to compare: no two arms share a scored case." in capsys.readouterr().out


def test_a_missed_structure_is_marked_beside_its_distance(tmp_path):
    rows = [f"{arm},0,0,c{i},organ,false,.9,.9,2,1" for i in range(7) for arm in "ab"]
    rows += ["a,0,0,c7,organ,false,.9,.9,2,1", "b,0,0,c7,organ,false,0,0,433.2,433.2"]
    (tmp_path / "cases.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    report = build_report([tmp_path], named=["b - a"])
    row = dict(zip(report.structures_table().columns, report.structures_table().rows[0], strict=True))
    assert row["HD95 (mm)"].startswith("+53.90† (")
    assert row["HD95 (mm)"].endswith("; +0.00 without 1 missed)")
    assert "†" not in row["Dice"]
    assert "holds pairs (run, case, structure) that one side missed or invented" in report.structures_table().note
    scores = {(r[0], r[1]): r for r in report.score_tables()[0].rows}
    assert scores["b", "organ"][4] == "55.90† (2.00)"
    assert scores["a", "organ"][4] == "2.00"


def test_cases_without_a_partner_are_named_in_the_sentence(tmp_path):
    rows = [f"{arm},0,0,c{i},organ,false,.{i + 1},1,1,1" for i in range(7) for arm in "ab" if (arm, i) != ("b", 4)]
    (tmp_path / "cases.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    sentence = build_report([tmp_path], named=["b - a"]).headline()[0]
    assert sentence.endswith(" Left out, as the other side did not score it: c4 of a.")


def test_the_null_of_seeds_calls_no_seed_better(capsys, tmp_path):
    compare.main([str(RESULTS / "study_seeds"), "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    (sentence,) = (line for line in printed.splitlines() if line.startswith("Null of coarse_s2"))
    for part in (
        "seed 0 - seed 1",
        "seed 0 - seed 2 +0.0026 (+0.0001 to +0.0051)",
        "seed 1 - seed 2",
        "1 of 3 exclude 0",
    ):
        assert part in sentence
    assert not re.search("better|worse", sentence)


def test_runs_from_a_changed_tree_are_marked(tmp_path, make_run):
    for arm in ("dense", "pointrend_s2"):
        for fold in (0, 1):
            folder = make_run(tmp_path, arm, fold=fold)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"commit": "abc123+"}))
    scores, cost = build_report([tmp_path]).score_tables()
    assert list(dict.fromkeys(row[0] for row in scores.rows)) == ["dense", "pointrend_s2 +", "pointrend_s2 unrefined +"]
    assert [row[0] for row in cost.rows] == ["dense", "pointrend_s2 +"]
    assert scores.note.endswith("were made from a tree that differs from its commit (pointrend_s2 1).")


def test_refining_one_checkpoint_stands_below_with_what_it_does_not_show(report):
    titles = [table.title for table in report.tables()]
    assert titles[0] == "Named comparisons: mean foreground Dice"
    assert titles[-1] == "Refined - unrefined output of one checkpoint: mean foreground Dice"
    assert "The gain of having a head is the comparison with the arm without one." in report.tables()[-1].note


def test_a_run_s_summary_names_the_next_commands(study_folder, capsys):
    print_run_summary(study_folder / "pointrend_s2" / "fold0_seed0")
    printed = capsys.readouterr().out
    assert "pointrend_s2 fold 0 seed 0: mean over 12 cases" in printed
    # the made runs hold no curves and no checkpoint
    assert "tensorboard" not in printed
    assert "no checkpoint" in printed
    assert f"vnet compare {study_folder}\n" in printed


def test_numbers_are_written_alike_everywhere():
    assert (score("dice", 0.88164), change("dice", 0.00686)) == ("0.8816", "+0.0069")
    assert (score("hd95_mm", 1.234), change("hd95_mm", -0.5), score("dice", float("nan"))) == ("1.23", "-0.50", "-")
    assert (p_value(0.04321), p_value(1e-9), p_value(float("nan"))) == ("0.0432", "< 0.0001", "-")


def test_a_table_as_csv_markdown_and_in_part():
    table = Table("T", ("a", "b", "c"), (("x", "y,z", "1"),), "n")
    assert table.csv() == 'a,b,c\nx,"y,z",1\n'
    assert markdown(table) == "### T\n\n| a | b | c |\n| --- | --- | ---: |\n| x | y,z | 1 |\n\nn"
    assert table.only("c", "a") == Table("T", ("a", "c"), (("x", "1"),), "n", 1)


def test_the_experiment_s_comparison_takes_each_run_from_where_it_is_done(tmp_path, make_run, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = StudyConfig(arms={"dense": {}, "pointrend_s2": {}}, results_root="results")
    configs = [Config(name="toy", arm=arm, study=study) for arm in study.arms]
    for config in configs:
        folder = make_run(Path("runs", "toy"), config.arm)
        info = json.loads((folder / "run.json").read_text()) | {"config_hash": config.hash("d")}
        (folder / "run.json").write_text(json.dumps(info))
    print_comparison(configs)
    printed = capsys.readouterr().out
    assert "pointrend_s2 - dense" in printed
    assert "report: runs/toy/report/report.html" in printed
    assert Path("runs/toy/report/report.html").is_file()


def test_a_name_goes_left_where_another_stands_at_its_right() -> None:
    places = [(1.0, 0.87), (1.2, 0.87), (3.0, 0.87), (1.1, 0.84)]
    assert [charts.has_name_right(place, places) for place in places] == [True, False, False, False]


@pytest.mark.parametrize("arms", [3, 18])
@pytest.mark.filterwarnings("error")  # a chart without room for its axes warns
def test_a_chart_grows_with_its_legend(arms):
    counts = {"1": {"fixed": 3, "broken": 1, "unchanged": 6, "wrong_before": 4}}
    heights = []
    for number in (2, arms):
        figure = charts.calibration({f"an_arm_with_a_long_name_{i}": counts for i in range(number)})
        charts.svg_text(figure, "c", "title", "what is seen")
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.8 * heights[0]
