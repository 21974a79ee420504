"""What is written is read back by TensorBoard's own reader."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.util.tensor_util import make_ndarray

from vnet.report.tensorboard import GROUPS, Board, markdown_pairs, tag


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


def test_after_a_resume_no_step_shows_twice(tmp_path):
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
    charts = {chart.title: list(chart.multiline.tag) for part in layout.category for chart in part.chart}
    assert [part.title for part in layout.category] == ["first"]
    # each is a regular expression that fits its own curve only
    assert charts["CA1"] == [r"^1\ dice/CA1\ left/answer$", r"^1\ dice/CA1\ left/unrefined$"]
    assert charts["loss"] == [r"^6\ loss/dice$"]


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
