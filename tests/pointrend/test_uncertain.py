"""The most uncertain voxels of a finer grid: against brute force over the dense grid, on both paths."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend._kernels import margin_search as _margin_search
from pointrend.coordinates import extent_centres
from pointrend.reading import sample_at, uncertainty
from pointrend.uncertain import uncertain_voxels

PATHS = pytest.mark.parametrize("compiled", [False, True], ids=["torch", "numba"])


@st.composite
def searches(draw):
    ndim = draw(st.integers(2, 3))
    coarse = draw(st.lists(st.integers(1, 6), min_size=ndim, max_size=ndim))
    size = draw(st.lists(st.integers(1, 19), min_size=ndim, max_size=ndim))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(draw(st.integers(2, 9)), *coarse, generator=generator) * draw(st.sampled_from([0.1, 3, 50]))
    kind = draw(st.sampled_from(["noise", "whole numbers", "one class ahead", "constant"]))
    if kind == "whole numbers":
        logits = logits.round()
    elif kind == "one class ahead":
        logits[0] += 4 * logits.abs().max()
    elif kind == "constant":
        logits[:] = 1.5
    extent = draw(st.one_of(st.none(), st.lists(st.floats(0.3, 1), min_size=ndim, max_size=ndim)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return logits.to(dtype), size, extent, draw(st.floats(0, 1.1))


def dense_margins(logits, size, extent):
    """(V,) float64 best minus second best, every voxel interpolated."""
    index = torch.arange(math.prod(size))
    points = extent_centres(index, size, extent or [1.0] * len(size)).double()
    return -uncertainty(sample_at(logits.float().double()[None], points[None]))[0]


@PATHS
@settings(deadline=None, max_examples=80)
@given(search=searches())
def test_the_n_most_uncertain_are_those_of_brute_force(compiled, search):
    logits, size, extent, share = search
    margins = dense_margins(logits, size, extent)
    count = round(share * len(margins))
    index, doubt = uncertain_voxels(logits, size, num_points=count, extent=extent, compiled=compiled)
    assert len(index) == len(doubt) == min(count, len(margins))
    assert (index.diff() > 0).all()
    tolerance = 3e-6 * (float(logits.abs().max()) + 1)
    torch.testing.assert_close(-doubt.double(), margins[index], atol=tolerance, rtol=0)
    if len(index):
        worst = margins.kthvalue(len(index)).values
        assert (margins[index] <= worst + 2 * tolerance).all()


@PATHS
@settings(deadline=None, max_examples=60)
@given(search=searches())
def test_a_margin_chooses_all_voxels_within_it(compiled, search):
    logits, size, extent, share = search
    margins = dense_margins(logits, size, extent)
    margin = float(margins.quantile(min(share, 1)))
    index, _ = uncertain_voxels(logits, size, max_margin=margin, extent=extent, compiled=compiled)
    tolerance = 3e-6 * (float(logits.abs().max()) + 1)
    assert (margins[index] <= margin + tolerance).all()
    assert set((margins < margin - tolerance).nonzero()[:, 0].tolist()) <= set(index.tolist())


@settings(deadline=None, max_examples=60)
@given(search=searches(), margin=st.one_of(st.none(), st.floats(0, 3)))
def test_both_paths_choose_the_same_voxels_bit_for_bit(search, margin):
    logits, size, extent, share = search
    options = {"num_points": round(share * math.prod(size)), "max_margin": margin, "extent": extent}
    one = uncertain_voxels(logits, size, **options, compiled=True)
    other = uncertain_voxels(logits, size, **options, compiled=False)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@PATHS
def test_count_and_margin_choose_the_most_uncertain_within_the_margin(compiled):
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    within, _ = uncertain_voxels(logits, (8, 9, 10), max_margin=0.3, compiled=compiled)
    both, _ = uncertain_voxels(logits, (8, 9, 10), max_margin=0.3, num_points=len(within) + 50, compiled=compiled)
    few, doubt = uncertain_voxels(logits, (8, 9, 10), max_margin=0.3, num_points=7, compiled=compiled)
    assert torch.equal(within, both)
    assert torch.equal(few, uncertain_voxels(logits, (8, 9, 10), num_points=7, compiled=compiled)[0])
    assert (doubt >= -0.3).all()


@PATHS
def test_a_planted_ambiguous_voxel_is_found(compiled):
    logits = torch.zeros(2, 3, 4, 5)
    logits[1] = 9.0
    logits[:, 2, 1, 3] = torch.tensor([4.0, 4.0])
    index, doubt = uncertain_voxels(logits, (3, 4, 5), num_points=1, compiled=compiled)
    assert index.tolist() == [2 * 20 + 1 * 5 + 3]
    assert doubt.tolist() == [0.0]


@PATHS
def test_ties_go_to_the_lower_index(compiled):
    index, doubt = uncertain_voxels(torch.zeros(3, 2, 3), (5, 7), num_points=6, compiled=compiled)
    assert index.tolist() == [0, 1, 2, 3, 4, 5]
    assert doubt.tolist() == [0.0] * 6


@PATHS
def test_a_boundary_between_sure_neighbours_is_found(compiled):
    # uncertainty of the grid, interpolated, would be the same everywhere
    logits = torch.tensor([[-8.0, -8.0, 8.0, 8.0], [8.0, 8.0, -8.0, -8.0]])[:, None]
    index, _ = uncertain_voxels(logits, (1, 40), num_points=2, compiled=compiled)
    assert index.tolist() == [19, 20]


@PATHS
def test_a_third_class_that_wins_inside_a_cell_counts(compiled):
    # (10, -10, 1) and (-10, 10, 1): the class that leads at no corner leads in the middle
    logits = torch.tensor([[10.0, -10.0], [-10.0, 10.0], [1.0, 1.0], [-50.0, -50.0], [-60.0, -60.0]])[:, None]
    _, doubt = uncertain_voxels(logits, (1, 21), num_points=21, compiled=compiled)
    torch.testing.assert_close(-doubt.double(), dense_margins(logits, (1, 21), None), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"num_points": 5000}, {"num_points": 120000}, {"max_margin": 0.5}, {"num_points": 60000, "max_margin": 2.0}],
)
@pytest.mark.parametrize("lead", [0.0, 40.0], ids=["surfaces", "one class ahead everywhere"])
def test_threads_and_small_buffers_change_nothing(options, lead, monkeypatch):
    smooth = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(1)) * 5
    smooth[:, 0] += lead
    logits = F.interpolate(smooth, size=(14, 15, 16), mode="trilinear")[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = uncertain_voxels(logits, (60, 50, 70), **options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(_margin_search, "VOXELS_PER_THREAD", 1)
    monkeypatch.setattr(_margin_search, "SMALLEST_BUFFER", 1)
    together = uncertain_voxels(logits, (60, 50, 70), **options)
    in_torch = uncertain_voxels(logits, (60, 50, 70), **options, compiled=False)
    for other in (together, in_torch):
        assert torch.equal(alone[0], other[0])
        assert torch.equal(alone[1], other[1])
    assert threading.active_count() < 8  # the pools are gone


@PATHS
@pytest.mark.parametrize("options", [{"num_points": 0}, {"num_points": 0, "max_margin": 9.0}])
def test_nothing_may_be_asked_for(compiled, options):
    index, doubt = uncertain_voxels(torch.randn(2, 3, 4), (6, 8), **options, compiled=compiled)
    assert (index.shape, doubt.shape) == ((0,), (0,))
    assert (index.dtype, doubt.dtype) == (torch.int64, torch.float32)


@PATHS
def test_no_voxel_within_the_margin(compiled):
    logits = torch.stack([torch.zeros(3, 4), torch.full((3, 4), 9.0)])
    assert uncertain_voxels(logits, (6, 8), max_margin=1.0, compiled=compiled)[0].shape == (0,)


def test_the_search_keeps_no_gradient():
    index, doubt = uncertain_voxels(torch.randn(2, 3, 4, requires_grad=True), (6, 8), num_points=3)
    assert not doubt.requires_grad
    assert len(index) == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(1, 3, 4)}, ValueError, r"K >= 2, got \(1, 3, 4\)"),
        ({"logits": torch.zeros(2, 3)}, ValueError, r"got \(2, 3\)"),
        ({"logits": torch.zeros(2, 0, 4)}, ValueError, r"got \(2, 0, 4\)"),
        ({"logits": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "must be floating point, got torch.int64"),
        ({"logits": torch.full((2, 3, 4), math.nan)}, ValueError, "must be finite, got NaN or infinite values"),
        ({"logits": torch.full((2, 3, 4), -math.inf)}, ValueError, "must be finite"),
        ({"num_points": None}, ValueError, "num_points or max_margin must be given, got neither"),
        ({"num_points": -3}, ValueError, "num_points must be a whole number of at least 0, got -3"),
        ({"num_points": 0.5}, ValueError, "num_points must be a whole number of at least 0, got 0.5"),
        ({"max_margin": -0.1}, ValueError, "max_margin must be at least 0, got -0.1"),
        ({"max_margin": math.nan}, ValueError, "max_margin must be at least 0, got nan"),
        ({"size": (6, 8, 2)}, ValueError, "size must be 2 whole numbers"),
        ({"size": (2**16, 2**16)}, ValueError, r"fewer than 2\^32 voxels, got \(65536, 65536\)"),
        ({"extent": (0.5,)}, ValueError, r"extent must be 2 numbers in \(0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        uncertain_voxels(**{"logits": torch.zeros(2, 3, 4), "size": (6, 8), "num_points": 3} | change)
