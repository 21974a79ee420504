"""What TensorBoard is given: tags, charts, texts, meshes; and what is said at the end of a run."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.summary.writer import event_file_writer
from tensorboard.util.tensor_util import make_ndarray

from vnet.core.errors import InputError
from vnet.data.colours import structure_colours
from vnet.evaluation.comparison import Difference
from vnet.evaluation.statistics import Paired
from vnet.evaluation.study_tables import Study, read_study
from vnet.report.curves import Ending, convergence_notes, convergence_table, endings, ends_of_last_quarter
from vnet.report.meshes import INK, LARGE, RIGHT, SMALL, captioned, error_colours, error_mesh, label_colours, upright
from vnet.report.output import print_run_summary, write_report
from vnet.report.report import build_report
from vnet.report.run_summary import commands, next_looks, plain_words, program, summary_table
from vnet.report.tables import markdown
from vnet.report.tensorboard import CURVES, GROUPS, Band, Board, charts, markdown_pairs, refined_dice, tag


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def points(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_come_back_with_tag_step_and_value(tmp_path):
    with Board(tmp_path) as board:
        board.scalars(3, {"loss/total": 0.5, "dice/CA1/refined": None})
        board.scalars(7, {"loss/total": 0.25, "dice/CA1/refined": 0.75})
    events = read(tmp_path)
    assert points(events, "6 loss/total") == [(3, 0.5), (7, 0.25)]
    assert points(events, "1 dice/CA1/refined") == [(7, 0.75)]
    assert set(events.Tags()["scalars"]) == {"6 loss/total", "1 dice/CA1/refined"}


@pytest.mark.parametrize("last", [8, 9, 98])  # TensorBoard ends a file's name with a count of the process: 10 < 9
def test_after_a_resume_no_step_shows_twice(tmp_path, monkeypatch, last):
    count = itertools.count(last)
    monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=lambda: next(count)))
    with Board(tmp_path) as board:
        for step in (1, 2, 3, 4, 5):
            board.scalars(step, {"loss/total": step})
    with Board(tmp_path, start_step=4) as board:  # the checkpoint held 3 finished steps
        for step in (4, 5, 6):
            board.scalars(step, {"loss/total": 10 * step})
    assert points(read(tmp_path), "6 loss/total") == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


def test_pictures_come_back_pixel_by_pixel(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    with Board(tmp_path) as board:
        board.pictures(2, {"cases/worst": picture})
    (event,) = read(tmp_path).Images("2 cases/worst")
    assert event.step == 2
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), picture)


def test_text_is_written_at_the_start_step(tmp_path):
    with Board(tmp_path, start_step=6) as board:
        board.text({"about/config": "| key | value |"})
    (event,) = read(tmp_path).Tensors("9 about/config/text_summary")
    assert event.step == 6
    assert event.tensor_proto.string_val[0] == b"| key | value |"


def test_the_layout_puts_several_curves_in_one_chart(tmp_path):
    with Board(tmp_path) as board:
        board.layout({"first": {"CA1": ["dice/CA1 (left)/answer", "dice/CA1 (left)/unrefined"], "loss": ["loss/dice"]}})
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    shown = {chart.title: list(chart.multiline.tag) for part in layout.category for chart in part.chart}
    assert [part.title for part in layout.category] == ["first"]
    # each is a regular expression that fits its own curve only
    assert shown["CA1"] == [r"^1\ dice/CA1\ left/answer$", r"^1\ dice/CA1\ left/unrefined$"]
    assert shown["loss"] == [r"^6\ loss/dice$"]


def test_a_band_names_its_line_and_its_ends(tmp_path):
    with Board(tmp_path) as board:
        board.layout({"gain": {"CA1": Band(refined_dice("CA1"), "dice/CA1/unrefined", refined_dice("CA1"))}})
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    (series,) = category.chart[0].margin.series
    refined = "4 refinement/dice CA1"
    assert (series.value, series.lower, series.upper) == (refined, "1 dice/CA1/unrefined", refined)


def test_no_chart_has_more_than_four_curves():
    shown = charts(["CA1", "CA3", "DG"])
    assert list(shown["1 Dice"]) == ["mean", "CA1", "CA3", "DG"]
    assert all(isinstance(chart, Band) for chart in list(shown.values())[1].values())
    assert all(len(chart) <= CURVES for part in shown.values() for chart in part.values())


def test_a_mesh_comes_back_under_a_heading_of_its_own(tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    faces, colours = np.array([[0, 1, 2], [0, 2, 3]], np.int32), np.full((4, 3), 200, np.uint8)
    with Board(tmp_path) as board:
        board.mesh(7, "surface/answer", corners, faces, colours)
    events = read(tmp_path)
    found = {name: events.Tensors(name)[0] for name in events.Tags()["tensors"]}
    assert set(found) == {f"3 surface, answer/mesh_{part}" for part in ("VERTEX", "FACE", "COLOR")}
    assert {event.step for event in found.values()} == {7}
    np.testing.assert_array_equal(make_ndarray(found["3 surface, answer/mesh_VERTEX"].tensor_proto)[0], corners)


def test_hyperparameters_point_at_curves_and_add_no_point(tmp_path):
    with Board(tmp_path) as board:
        board.scalars(5, {"dice/mean/refined": 0.5})
        board.hyperparameters({"arm": "dense", "strides": (2, 2)}, ["dice/mean/refined"])
        board.finish(5)
    events = read(tmp_path)
    assert points(events, "1 dice/mean/refined") == [(5, 0.5)]
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert start["arm"].string_value == "dense"
    assert start["strides"].string_value == "(2, 2)"
    content = events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert plugin_data_pb2.HParamsPluginData.FromString(content).session_end_info.status == STATUS_SUCCESS
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["1 dice/mean/refined"]
    assert {info.name for info in experiment.hparam_infos} == {"arm", "strides"}


def test_groups_sort_in_the_order_of_the_page():
    tags = [tag(f"{group}/x") for group in GROUPS]
    assert tags == sorted(tags)
    assert tags[:2] == ["0 guide/x", "1 dice/x"]
    assert tag("dice/CA1 (left) [a]{b}/answer") == "1 dice/CA1 left ab/answer"  # a bracket would hide its curve


@pytest.mark.parametrize("name", ["los/total", "loss", "loss/"])
def test_an_unknown_group_is_refused(name):
    with pytest.raises(ValueError, match=rf"GROUP/NAME with a group of .*, got '{name}'"):
        tag(name)


def test_markdown_pairs_flatten_and_escape():
    text = markdown_pairs({"a": {"b": "x|y\nz"}, "c": 1})
    assert text.splitlines() == ["| key | value |", "|---|---|", "| a.b | x\\|y z |", "| c | 1 |"]


SHAPE, SPACING = (10, 12, 14), (3.0, 1.0, 2.0)


def box(*ranges, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(a, b) for a, b in ranges)] = value
    return labels


def test_a_perfect_prediction_has_no_error_anywhere():
    truth = box((2, 8), (3, 9), (4, 11))
    (mesh,) = error_mesh(truth, [truth], SPACING, classes=2)
    assert (mesh.error_mm == 0).all()
    # the surface runs half way between the voxel centres inside and outside
    np.testing.assert_allclose(mesh.vertices_mm.min(0), [1.5 * 3, 2.5 * 1, 3.5 * 2])
    np.testing.assert_allclose(mesh.vertices_mm.max(0), [7.5 * 3, 8.5 * 1, 10.5 * 2])
    assert mesh.faces.max() == len(mesh.vertices_mm) - 1


def test_a_wall_moved_by_two_voxels_is_off_by_their_length_and_signed():
    truth = box((2, 8), (3, 9), (4, 9))
    longer, shorter = box((2, 8), (3, 9), (4, 11)), box((2, 8), (3, 9), (4, 7))
    far, near = error_mesh(truth, [longer, shorter], SPACING, classes=2)
    wall = far.vertices_mm[:, 2] == 8.5 * 2
    middle = wall & (np.abs(far.vertices_mm[:, 0] - 15) < 2) & (np.abs(far.vertices_mm[:, 1] - 5.5) < 1)
    # inside the longer box the nearest of its faces may be one of the sides, never beyond 4 mm
    assert middle.any()
    assert 0 < far.error_mm[wall].max() <= 4
    assert (far.error_mm[wall] > 0).all()
    np.testing.assert_allclose(near.error_mm[middle], -4)
    other = far.vertices_mm[:, 2] == 3.5 * 2
    assert (far.error_mm[other] == 0).all()
    np.testing.assert_array_equal(far.vertices_mm, near.vertices_mm)


def test_what_was_missed_falls_short_without_end():
    truth = box((2, 8), (3, 9), (4, 9))
    (mesh,) = error_mesh(truth, [np.zeros_like(truth)], SPACING, classes=2)
    assert (mesh.error_mm == -np.inf).all()
    assert (error_colours(mesh.error_mm, 2.0) == SMALL).all()


def test_structures_share_one_mesh_and_an_ignored_label_has_none():
    truth = box((1, 4), (1, 4), (1, 4)) + box((5, 9), (5, 9), (5, 9), value=2)
    both = len(error_mesh(truth, [truth], SPACING, classes=3)[0].vertices_mm)
    truth[0, 0, :] = 255
    (mesh,) = error_mesh(truth, [truth], SPACING, classes=3)
    assert len(mesh.vertices_mm) == both
    assert mesh.faces.max() == both - 1
    (first,) = error_mesh(truth, [truth], SPACING, classes=2)
    assert 0 < len(first.vertices_mm) < both


def test_a_large_surface_is_taken_from_fewer_voxels():
    truth = np.zeros((50, 52, 54), np.uint8)
    truth[5:45, 5:45, 5:45] = 1
    whole, fewer = (error_mesh(truth, [truth], (1, 1, 1), 2, n)[0] for n in (100_000, 1000))
    assert len(whole.vertices_mm) == 6 * 40 * 40
    assert len(fewer.vertices_mm) <= 1500
    assert (fewer.error_mm == 0).all()


def test_nothing_to_show_is_an_empty_mesh():
    none = np.zeros(SHAPE, np.uint8)
    (mesh,) = error_mesh(none, [box((2, 8), (3, 9), (4, 9))], SPACING, classes=2)
    assert mesh.vertices_mm.shape == (0, 3)
    assert upright(mesh.vertices_mm).shape == (0, 3)


def test_colours_go_from_too_small_over_right_to_too_large():
    colours = error_colours(np.array([-9.0, -2.0, 0.0, 1.0, 2.0]), 2.0)
    np.testing.assert_array_equal(colours[[0, 1, 2, 4]], [SMALL, SMALL, RIGHT, LARGE])
    np.testing.assert_array_equal(colours[3], np.round((RIGHT + LARGE) / 2))


def test_the_head_is_up_and_the_patients_right_on_the_left():
    corners = np.array([[0, 0, 0], [4, 0, 0], [0, 6, 0], [0, 0, 2]], float)  # z, y, x
    np.testing.assert_array_equal(upright(corners), [[1, -2, -3], [1, 2, -3], [1, -2, 3], [-1, -2, -3]])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"must agree in shape, got \(10, 12, 14\) and \(2, 2, 2\)"):
        error_mesh(box(), [np.zeros((2, 2, 2), int)], SPACING, 2)


def test_a_structure_has_its_colour_in_pictures_meshes_and_headings():
    truth = box((1, 4), (1, 4), (1, 4)) + box((5, 9), (5, 9), (5, 9), value=2)
    (mesh,) = error_mesh(truth, [truth], SPACING, classes=3)
    assert set(mesh.labels) == {1, 2}
    colours = label_colours(mesh.labels, classes=3)
    far = mesh.vertices_mm[:, 0] > 4.5 * 3  # the second box lies higher
    assert {tuple(map(int, colour)) for colour in colours[far]} == {structure_colours(2)[1]}


def test_a_caption_lies_below_its_surface_in_the_colours_of_its_words():
    truth = box((2, 8), (3, 9), (4, 9))
    (mesh,) = error_mesh(truth, [truth], SPACING, classes=2)
    own = upright(mesh.vertices_mm)
    orange = structure_colours(1)[0]
    vertices, faces, colours = captioned(
        mesh, label_colours(mesh.labels, 2), [[("refined labels", INK)], [("organ", orange)]]
    )
    moved = vertices[: len(own)] - own
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], own.shape), atol=1e-5)
    np.testing.assert_allclose(vertices.min(0), -vertices.max(0), atol=1e-5)  # the whole lies about 0
    own = own + moved[0]
    words, inks = vertices[len(own) :], colours[len(own) :]
    assert words[:, 1].max() < own[:, 1].min()
    assert 0.8 * np.ptp(own[:, 0]) < np.ptp(words[:, 0]) <= max(np.ptp(own[:, 0]), 0.6 * np.ptp(own[:, 1])) + 1e-3
    assert {tuple(map(int, colour)) for colour in inks} == {INK, tuple(max(part, 1) for part in orange)}
    assert words[inks[:, 0] == orange[0], 1].max() < words[inks[:, 0] == INK[0], 1].min()  # the second line is lower
    assert faces.max() == len(vertices) - 1
    first, second, third = (words[faces[len(mesh.faces) :, i] - len(own)] for i in range(3))
    assert (np.cross(second - first, third - first)[:, 2] > 0).all()  # every triangle faces the eye


HEADER = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm"
ROWS = """
a,organ,false,.70,.6,4,2
a,organ,true,.80,.7,3,1
a,vessel,false,.20,.1,9,5
a,vessel,true,.10,.1,9,5
b,organ,false,.80,.7,3,1
b,organ,true,.90,.8,2,1
b,vessel,false,0,0,50,50
b,vessel,true,0,0,50,50
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "toy" / "pointrend_s2" / "fold0_seed0"
    folder.mkdir(parents=True)
    lines = [f"pointrend_s2,0,0,{line}" for line in ROWS.split()]
    (folder / "cases.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "run.json").write_text(json.dumps({"dropped_steps": 3}))
    (folder / "metrics.csv").write_text("step,dice\n10,0.40\n20,0.45\n")
    columns = "case,structure,distance_upto_mm,margin_upto,fixed,broken,unchanged,wrong_before\n"
    (folder / "refinement.csv").write_text(f"{columns}a,organ,1,1,9,9,9,9\na,all structures,1,1,25,10,65,40\n")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "worst_b.png").write_bytes(b"")
    return folder


def test_dice_by_structure_with_and_without_refinement(run: Path) -> None:
    table = summary_table(read_study([run / "cases.csv"]))
    assert table.title == "pointrend_s2 fold 0 seed 0: mean over 2 cases"
    assert table.columns == ("structure", "Dice", "unrefined", "change", "surface Dice", "HD95 (mm)", "missed")
    assert table.rows == (
        ("mean", "0.4500", "0.4250", "+0.0250", "0.4000", "16.00", "1"),
        ("organ", "0.8500", "0.7500", "+0.1000", "0.7500", "2.50", "0"),
        ("vessel", "0.0500", "0.1000", "-0.0500", "0.0500", "29.50", "1"),
    )


def test_what_to_look_at_next(run: Path) -> None:
    assert next_looks(read_study([run / "cases.csv"])) == [
        "weakest structure: vessel, Dice 0.0500; missed in 1 of 2 cases",
        f"worst case: a, Dice 0.4500; look at {run / 'pictures' / 'worst_b.png'}",
        "refinement: Dice +0.0250, better in 1 and worse in 0 of 2 cases; of 100 voxels asked about 25% fixed, "
        "10% broken",
        "training: 3 steps not finite, dropped; a lower training.learning_rate may help",
        "training: not converged, Dice rose by 0.025 over the last quarter of the steps; more training.steps may help",
    ]


def test_the_pictures_of_what_refinement_changed_are_named(run: Path) -> None:
    for rank, case in (("best", "a"), ("median", "c"), ("worst", "b")):
        (run / "pictures" / f"change_{rank}_{case}.png").write_bytes(b"")
    pictures = run / "pictures"
    assert next_looks(read_study([run / "cases.csv"]))[3] == (
        f"what refinement changed: look at {pictures / 'change_best_a.png'}, change_median_c.png, change_worst_b.png"
    )


def test_a_curve_that_fell_names_its_best_step(run: Path) -> None:
    (run / "metrics.csv").write_text("step,dice\n10,0.50\n20,0.46\n30,0.45\n")
    assert next_looks(read_study([run / "cases.csv"]))[-1] == (
        "training: Dice was best at step 10 (0.500) and 0.450 at the end, step 30"
    )


def test_an_arm_without_a_head_has_no_word_on_refinement(run: Path) -> None:
    kept = [line for line in (run / "cases.csv").read_text().splitlines() if ",true," not in line]
    (run / "cases.csv").write_text("\n".join(kept) + "\n")
    study = read_study([run / "cases.csv"])
    assert summary_table(study).columns == ("structure", "Dice", "surface Dice", "HD95 (mm)", "missed")
    assert not [line for line in next_looks(study) if line.startswith("refinement")]


def test_commands_can_be_pasted(run: Path) -> None:
    assert len(commands(run)) == 2  # without events there is nothing for TensorBoard
    (run / "events.out.tfevents.1").write_bytes(b"")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    board, predict, compare = commands(run)
    assert board.endswith(f"vnet tensorboard {run.parent.parent}")
    assert predict.endswith(f"vnet predict {run} --input scan.nii.gz --output predicted")
    assert compare.endswith(f"vnet compare {run.parent.parent}")


def difference(first: float, second: float, verdict: str, *, cases: int = 5, better: int = 4) -> Difference:
    summary = Paired(
        mean=first - second, low=-1, high=1, over_trainings=None, p=0.1, effect=0, better=better / cases,
        worse=(cases - better) / cases, cases=cases, subjects=cases, runs=1, runs_resampled=False,
        seed_spread=None,
    )  # fmt: skip
    return Difference(
        comparison="pointrend_s4 - dense", structure="mean", metric="dice", means=(first, second), summary=summary,
        p_holm=0.1, verdict=verdict, seed_spread=None, missed=0, without_missed=0, absent=0, invented=0,
    )  # fmt: skip


SEEN = (
    "In plain words: pointrend_s4 scored higher than dense on 5 cases (mean Dice 0.8000 against 0.7000; higher in 4, "
    "lower in 1)"
)


@pytest.mark.parametrize(
    ("verdict", "end"),
    [
        ("too few cases (5)", "these are too few cases to tell how other cases would come out."),
        ("no difference shown", "the cases differ too much to expect the same on others."),
        ("better", "expect the same on other cases, also of networks that are trained again."),
        (
            "better in this training",
            "expect the same of these trained networks on other cases; trained again they may come out otherwise.",
        ),
        (
            "better, but equivalent in these trainings",
            "expect the same of these trained networks on other cases; trained again they may come out otherwise, and "
            "the difference is too small to matter by this study's margin.",
        ),
    ],
)
def test_every_verdict_in_plain_words(verdict: str, end: str) -> None:
    assert plain_words(difference(0.8, 0.7, verdict)) == f"{SEEN}; {end}"


def test_equivalent_arms_scored_alike_in_plain_words() -> None:
    seen = (
        "In plain words: pointrend_s4 and dense scored alike on 5 cases (mean Dice 0.8000 and 0.7000; higher in 4, "
        "lower in 1); expect no difference that matters by this study's margin "
    )
    assert plain_words(difference(0.8, 0.7, "equivalent")) == (
        f"{seen}on other cases, also of networks that are trained again."
    )
    assert plain_words(difference(0.8, 0.7, "equivalent in these trainings")) == (
        f"{seen}of these trained networks on other cases; trained again they may come out otherwise."
    )


def test_the_sign_of_a_difference_in_plain_words() -> None:
    worse = plain_words(difference(0.7, 0.8, "worse", cases=1, better=0))
    assert worse.startswith("In plain words: pointrend_s4 scored lower than dense on 1 case (mean Dice 0.7000 against")
    same = plain_words(difference(0.70001, 0.70002, "no difference shown"))
    assert same.startswith("In plain words: pointrend_s4 and dense scored the same on 5 cases (mean Dice 0.7000); the")
    assert plain_words(None) == ""


def test_a_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tool = tmp_path / "my tools" / "python"
    tool.parent.mkdir()
    tool.symlink_to(sys.executable)
    assert program("python", str(tool)) == "'my tools/python'"
    assert program("python", "/elsewhere/python") == "/elsewhere/python"
    monkeypatch.setenv("PATH", str(tool.parent) + os.pathsep + os.environ["PATH"])
    assert program("python", str(tool)) == "python"


def test_a_run_without_validation_cases_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "cases.csv").write_text("")
    print_run_summary(run)
    assert "no validation case" in capsys.readouterr().out


def test_the_last_quarter_begins_between_validations_on_a_straight_line() -> None:
    assert ends_of_last_quarter({250: 0.5, 500: 0.6, 750: 0.7, 1000: 0.75}) == (pytest.approx(0.7), 0.75)
    # 3/4 of 200 lies half way between 100 and 200
    assert ends_of_last_quarter({200: 0.8, 100: 0.6}) == (pytest.approx(0.7), 0.8)
    assert ends_of_last_quarter({160: 0.6, 200: 0.8}) is None
    assert ends_of_last_quarter({200: 0.8}) is None
    assert ends_of_last_quarter({}) is None


SUMMARY_CURVES = {
    ("dense", 0): "30,0.700\n40,0.704\n",
    ("dense", 1): "30,0.700\n40,0.702\n",
    ("coarse_s2", 0): "30,0.7000\n40,0.7015\n",
    ("pointrend_s2", 0): "35,0.7\n40,0.9\n",
    ("coarse_s4", 0): "",
}


@pytest.fixture
def ended(tmp_path: Path, make_run: Callable[..., Path]) -> Study:
    for (arm, seed), rows in SUMMARY_CURVES.items():
        folder = make_run(tmp_path / "s", arm, seed=seed)
        (folder / "metrics.csv").write_text("step,dice\n" + rows)
    return read_study([tmp_path / "s"])


def test_an_arm_has_not_converged_where_the_mean_over_its_runs_still_rises(ended: Study) -> None:
    assert endings(ended) == {
        "dense": Ending(2, pytest.approx(0.7), pytest.approx(0.703)),
        "coarse_s2": Ending(1, pytest.approx(0.7), pytest.approx(0.7015)),
        "pointrend_s2": None,
    }
    assert convergence_table(ended).rows == (
        ("dense", "not converged", "0.7000", "0.7030", "+0.0030", "2"),
        ("coarse_s2", "no longer rises", "0.7000", "0.7015", "+0.0015", "1"),
        ("pointrend_s2", "not known", "-", "-", "-", "0"),
    )


def test_the_report_says_not_converged_and_where_it_is_not_known(ended: Study, tmp_path: Path) -> None:
    risen, unknown = convergence_notes(ended)
    assert risen == (
        "Not converged: dense (+0.0030). Their Dice still rose by more than 0.002 over the last quarter of the steps,"
        " so longer training may change the differences."
    )
    assert unknown.startswith(
        "Not known to have converged: pointrend_s2. Their runs have no validation before the last"
    )
    report = build_report([tmp_path / "s"])
    page = write_report(report, tmp_path / "report").read_text()
    for text in (risen, unknown):
        assert text in report.notes()
        assert f'<p class="note">{text}</p>' in page
    assert "Convergence: validation Dice over the last quarter of the steps" in page
    assert markdown(convergence_table(ended)) in (tmp_path / "report" / "report.md").read_text()


def test_a_curve_without_steps_is_refused(ended: Study, tmp_path: Path) -> None:
    (tmp_path / "s" / "dense" / "fold0_seed0" / "metrics.csv").write_text("a,dice\n1,0.5\n")
    with pytest.raises(InputError, match="dense fold 0 seed 0: its validation curve cannot be read"):
        endings(read_study([tmp_path / "s"]))
