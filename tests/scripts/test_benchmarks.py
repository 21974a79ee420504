"""The sides of a benchmark do the same work: what is compared in seconds is equal in labels and points."""

import math

import numpy as np
import pytest
import torch

from pointrend import render_labels
from scripts.benchmarks import getpoint, harness, predict, refinement, render
from scripts.benchmarks.harness import chosen_names, timed
from vnet.core.errors import InputError


@pytest.mark.parametrize("noise", [0.2, math.inf])
@pytest.mark.parametrize("side", render.SIDES)
def test_every_side_renders_the_same_labels(side, noise):
    case = render.Case(5, (9, 10, 11), (21, 20, 25), noise=noise)
    logits = render.synthetic_logits(case)
    expected = render.torch_whole(logits, case.target)
    labels = render.FUNCTIONS[side](logits, case.target)
    assert labels.shape == expected.shape
    # float32 ties aside, of which some thousand voxels have none or one
    assert (labels != expected).sum() <= 1


def test_logits_resampled_by_monai_lie_where_ours_are_rendered():
    logits = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    for size in ((9, 11, 13), (5, 12, 7)):
        ours = render_labels(logits[None], size)[0].numpy()
        assert (predict.resampled(logits, size) != ours).mean() < 0.002  # ties within rounding


def test_mixed_share_counts_cells():
    logits = np.zeros((1, 2, 3, 4, 5), np.float32)
    logits[0, 1, ..., 2:] = 1
    assert render.mixed_share(logits) == pytest.approx(1 / 4)


def test_the_algorithms_of_2020_draw_near_the_same_boundary():
    mask = getpoint.blob_mask(80, 80)
    counts = [len(side(mask)) for side in (getpoint.original, getpoint.improved)]
    assert counts[0] == pytest.approx(counts[1], rel=0.2)
    # the window of today is 3 x 3, theirs was 2 x 2: a wider band
    assert len(getpoint.filters(mask)) > 1.2 * counts[1]


def test_rows_become_a_table_and_a_chart(tmp_path):
    rows = [{"case": "a", "one_s": 0.5, "two_s": 0.1}, {"case": "b", "one_s": 0.2, "extra": 3}]
    harness.write_csv(rows, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().splitlines() == ["case,one_s,two_s,extra", "a,0.5,0.1,", "b,0.2,,3"]
    harness.draw_seconds(rows, tmp_path / "rows.png", "title")
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"


def test_rows_measured_again_take_the_place_of_the_old(tmp_path):
    old = [{"case": "a", "one_s": 0.5}, {"case": "b", "one_s": 0.2, "size": "2x3"}]
    harness.write_csv(old, tmp_path / "rows.csv")
    assert harness.read_csv(tmp_path / "rows.csv") == old
    rows = harness.merged(old, [{"case": "c", "one_s": 1}, {"case": "a", "one_s": 0.4}])
    assert [(row["case"], row["one_s"]) for row in rows] == [("a", 0.4), ("b", 0.2), ("c", 1)]


def test_benchmarks_of_a_module_share_a_table(tmp_path):
    table = tmp_path / "step.csv"
    assert harness.keep_rows([{"case": "a", "one_s": 0.5}, {"case": "b", "one_s": 0.2}], table, "step")
    harness.keep_rows([{"arm": "dense", "growth": 3}], table, "growth")
    rows = harness.keep_rows([{"case": "b", "one_s": 0.1}], table, "step", part=True)
    assert rows == [{"case": "a", "one_s": 0.5}, {"case": "b", "one_s": 0.1}]
    harness.keep_rows([{"arm": "dense", "growth": 4}], table, "growth")
    assert harness.read_csv(table) == [
        {"benchmark": "step", "case": "a", "one_s": 0.5},
        {"benchmark": "step", "case": "b", "one_s": 0.1},
        {"benchmark": "growth", "arm": "dense", "growth": 4},
    ]


def test_rows_are_chosen_by_name():
    assert chosen_names(("a", "b", "c"), ["c", "a"]) == ["a", "c"]
    assert chosen_names(("a", "b"), []) == ["a", "b"]
    with pytest.raises(InputError, match="--case d: no such row; one of a; b"):
        chosen_names(("a", "b"), ["d"])


def test_a_timed_function_answers_as_before_and_counts_each_call():
    seconds: list[float] = []
    root = timed(math.sqrt, seconds)
    assert root(9.0) == 3
    with pytest.raises(ValueError, match="math domain error|expected a nonnegative input"):
        root(-1.0)
    assert len(seconds) == 2
    assert min(seconds) >= 0


def test_the_most_uncertain_share_and_its_dice():
    truth, unrefined, labels = np.zeros((2, 5), int), np.zeros((2, 5), int), np.ones((2, 5), int)
    truth[0, :2] = 1
    case = refinement.Refined(truth, unrefined, labels, np.array([0, 1, 7]), np.array([0.2, 0.1, 0.3]))
    assert refinement.most_uncertain(case, 0.2).tolist() == [True, True, False]
    assert case.dice(refinement.most_uncertain(case, 0.1), 2) == pytest.approx(2 / 3)
    rows = {row["case"]: row for row in refinement.dice_rows([case], 2)}
    assert rows["nothing refined"] == {"case": "nothing refined", "voxels_asked": 0, "dice": 0}
    assert rows["margin 0.25"] == {"case": "margin 0.25", "voxels_asked": 0.2, "dice": 1}
