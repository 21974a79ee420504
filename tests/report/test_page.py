"""The page for a reader with a keyboard, a screen reader or a question: links, names, and what a reviewer asks."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vnet.evaluation.study_tables import read_study
from vnet.report import provenance
from vnet.report.arms import AUGMENTATION, arms_table, training_table
from vnet.report.figures import figures_of, read_curves
from vnet.report.output import write_report
from vnet.report.report import build_report
from vnet.report.subgroups import case_anchors, cases_table, worst_cases_table

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
    assert read_curves(read_study([tmp_path])) == {"dense": {10: 0.5, 20: pytest.approx(0.85)}}
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


def test_overrides_of_a_shipped_config_are_found_where_no_command_was_noted(tmp_path, make_run):
    from vnet.core.config import load_config
    from vnet.core.environment import config_file

    folder = make_run(tmp_path / "quickstart", "dense")
    config = load_config(["--config", str(config_file("quickstart")), "--training.steps", "20"])
    (folder / "config.yaml").write_text(config.to_yaml())
    assert provenance.commands(read_study([tmp_path]))[0] == (
        "vnet experiment --config configs/quickstart.yaml --data.root DATA/phantoms --training.steps 20"
    )
