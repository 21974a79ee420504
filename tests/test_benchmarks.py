"""The sides of a benchmark do the same work: what is compared in seconds is equal in labels and points."""

import math

import numpy as np
import pytest

from benchmarks import charts, getpoint, render


@pytest.mark.parametrize("noise", [0.2, math.inf])
@pytest.mark.parametrize("side", render.SIDES)
def test_every_side_renders_the_same_labels(side, noise):
    case = render.Case(5, (9, 10, 11), (21, 20, 25), noise=noise)
    logits = render.made_logits(case)
    expected = render.torch_whole(logits, case.target)
    labels = render.FUNCTIONS[side](logits, case.target)
    assert labels.shape == expected.shape
    # float32 ties aside, of which some thousand voxels have none or one
    assert (labels != expected).sum() <= 1


def test_mixed_share_counts_cells():
    logits = np.zeros((1, 2, 3, 4, 5), np.float32)
    logits[0, 1, ..., 2:] = 1
    assert render.mixed_share(logits) == pytest.approx(1 / 4)


def test_the_algorithms_of_2020_draw_near_the_same_boundary():
    mask = getpoint.made_mask(80, 80)
    counts = [len(side(mask)) for side in (getpoint.original, getpoint.improved)]
    assert counts[0] == pytest.approx(counts[1], rel=0.2)
    # the window of today is 3 x 3, theirs was 2 x 2: a wider band
    assert len(getpoint.filters(mask)) > 1.2 * counts[1]


def test_rows_become_a_table_and_a_chart(tmp_path):
    rows = [{"case": "a", "one_s": 0.5, "two_s": 0.1}, {"case": "b", "one_s": 0.2, "extra": 3}]
    charts.write_csv(rows, tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().splitlines() == ["case,one_s,two_s,extra", "a,0.5,0.1,", "b,0.2,,3"]
    charts.draw_seconds(rows, tmp_path / "rows.png", "title")
    assert (tmp_path / "rows.png").read_bytes()[:4] == b"\x89PNG"
