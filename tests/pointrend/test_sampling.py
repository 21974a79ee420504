"""Which voxels training looks at: the draw replayed, its bias, its pools, and refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend.coordinates import flat_index, voxel_centres
from pointrend.reading import uncertainty
from pointrend.sampling import PointSampling, training_points, training_voxels


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def edge_logits(batch=1):
    """Two classes that tie between columns 3 and 4 of 8, (B, 2, 8, 8)."""
    ramp = (torch.arange(8) - 3.5).expand(batch, 8, 8)
    return torch.stack([-ramp, ramp], dim=1)


def test_points_are_voxel_centres_of_the_label_grid():
    points = training_points(edge_logits(2), (12, 20), PointSampling(num_points=50), generators=generators(0, 1))
    assert points.shape == (2, 50, 2)
    index = flat_index(points, (12, 20))
    assert torch.equal(voxel_centres(index, (12, 20)), points)


def test_beta_of_n_are_the_most_uncertain_of_k_n_candidates():
    # N = 40, k = 5, beta = 0.75: 30 of 200 candidates, 10 uniform; the draw is replayed with its own generator
    size = (16, 16)
    sampling = PointSampling(num_points=40, oversample_ratio=5, importance_ratio=0.75)
    chosen = training_voxels(edge_logits(), size, sampling, generators=generators(3))[0]
    drawn = torch.randint(256, (210,), generator=generators(3)[0])
    dense = F.interpolate(edge_logits(), size=size, mode="bilinear", align_corners=False)
    doubt = uncertainty(dense).flatten()[drawn[:200]]
    assert torch.equal(chosen, chosen.sort().values)
    counts = torch.bincount(chosen, minlength=256)
    sought = counts - torch.bincount(drawn[200:], minlength=256)  # without the uniform ones
    assert sought.min() == 0
    found = uncertainty(dense).flatten().repeat_interleave(sought)
    assert torch.equal(doubt.topk(30).values.sort().values, found.sort().values)


def test_uncertainty_is_taken_after_interpolation():
    # Neighbours of -1 and +1 are sure of themselves; halfway between them lies the boundary. Interpolating the
    # uncertainties of the grid, or logits sorted per voxel, would call every place alike.
    logits = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])[None, :, None]  # (1, 2, 1, 2)
    sampling = PointSampling(num_points=10, oversample_ratio=100, importance_ratio=1)
    chosen = training_voxels(logits, (1, 400), sampling, generators=generators(0))
    assert ((chosen - 199.5).abs() < 15).all()


@pytest.mark.parametrize(("importance_ratio", "lowest", "highest"), [(0.0, 0.1, 0.4), (1.0, 0.9, 1.0)])
def test_importance_moves_points_to_the_boundary(importance_ratio, lowest, highest):
    sampling = PointSampling(num_points=400, oversample_ratio=8, importance_ratio=importance_ratio)
    chosen = training_voxels(edge_logits(), (32, 32), sampling, generators=generators(0))
    near = ((chosen % 32 - 15.5).abs() < 4).float().mean()
    assert lowest <= near <= highest  # a quarter of the columns is near


def test_a_sample_draws_the_same_whatever_else_is_in_the_batch():
    logits = torch.randn(3, 4, 5, 6, 7)
    labels = torch.randint(0, 4, (3, 10, 12, 14))
    size, sampling = (10, 12, 14), PointSampling(num_points=30, ignore=2)
    batch = training_voxels(logits, size, sampling, generators=generators(5, 6, 7), labels=labels)
    alone = training_voxels(logits[1:2], size, sampling, generators=generators(6), labels=labels[1:2])
    again = training_voxels(logits, size, sampling, generators=generators(5, 6, 7), labels=labels)
    assert torch.equal(batch[1], alone[0])
    assert torch.equal(batch, again)
    assert not torch.equal(batch[0], batch[1])


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0.01, 0.99), importance_ratio=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_ignored_voxels_are_never_drawn(share, importance_ratio, seed):
    labels = (torch.rand(1, 6, 7, 8, generator=torch.Generator().manual_seed(seed)) < share).long() * 255
    labels[0, 0, 0, 0] = 0
    logits = torch.randn(1, 3, 3, 4, 5)
    sampling = PointSampling(num_points=60, importance_ratio=importance_ratio, ignore=255)
    drawn = training_voxels(logits, (6, 7, 8), sampling, generators=generators(seed), labels=labels)
    assert drawn.shape == (1, 60)
    assert (labels.flatten(1).gather(1, drawn) == 0).all()


def test_a_sample_without_counted_voxels_still_gives_points():
    labels = torch.full((1, 4, 4), 9)
    sampling = PointSampling(num_points=5, ignore=9)
    drawn = training_voxels(edge_logits(), (4, 4), sampling, generators=generators(0), labels=labels)
    assert drawn.shape == (1, 5)


def test_quotas_feed_small_structures():
    labels = torch.zeros(1, 32, 32, dtype=torch.int64)
    labels[0, 5, 5:8] = 2  # three voxels of 1024, far from the boundary of the logits
    logits = torch.cat([edge_logits(), torch.full((1, 2, 8, 8), -9.0)], dim=1)  # class 1, 3: no quota, absent
    sampling = PointSampling(num_points=100, quotas=(0, 0, 0.2, 0.3))
    drawn = training_voxels(logits, (32, 32), sampling, generators=generators(0), labels=labels)
    assert drawn.shape == (1, 100)
    at_labels = labels.flatten()[drawn[0]]
    assert (at_labels == 2).sum() >= 20  # its quota; the absent class's went to the rest
    plain = training_voxels(logits, (32, 32), PointSampling(num_points=100), generators=generators(0))
    assert (labels.flatten()[plain[0]] == 2).sum() < 5


def test_quotas_keep_off_ignored_voxels():
    labels = torch.randint(0, 3, (1, 9, 9))
    sampling = PointSampling(num_points=64, ignore=2, quotas=(0.1, 0.2, 0.5))
    drawn = training_voxels(torch.randn(1, 3, 3, 3), (9, 9), sampling, generators=generators(0), labels=labels)
    assert (labels.flatten()[drawn[0]] != 2).all()


def test_no_points_may_be_asked_for():
    assert training_points(edge_logits(), (4, 4), PointSampling(num_points=0)).shape == (1, 0, 2)


def test_without_generators_torch_s_global_one_is_drawn_from():
    sampling = PointSampling(num_points=40)
    logits = torch.cat([edge_logits(), edge_logits()])
    torch.manual_seed(5)
    drawn = training_voxels(logits, (12, 20), sampling)
    one = torch.Generator().manual_seed(5)
    assert torch.equal(drawn, training_voxels(logits, (12, 20), sampling, generators=[one, one]))
    assert not torch.equal(drawn, training_voxels(logits, (12, 20), sampling))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": -1}, "num_points must be a whole number of at least 0, got -1"),
        ({"num_points": 2.5}, "num_points must be a whole number of at least 0, got 2.5"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1, got 0.5"),
        ({"oversample_ratio": math.nan}, "oversample_ratio must be at least 1, got nan"),
        ({"importance_ratio": 1.1}, r"importance_ratio must lie in \[0, 1\], got 1.1"),
        ({"quotas": (0.5, 0.6)}, r"of at least 0 and of sum at most 1, got \(0.5, 0.6\)"),
        ({"quotas": (0.5, -0.1)}, r"of at least 0 and of sum at most 1, got \(0.5, -0.1\)"),
        ({"quotas": (math.nan, 0.1)}, r"of at least 0 and of sum at most 1, got \(nan, 0.1\)"),
    ],
)
def test_numbers_out_of_range_are_refused_on_construction(options, message):
    with pytest.raises(ValueError, match=message):
        PointSampling(**options)


def test_shares_that_sum_to_1_but_for_rounding_are_taken():
    assert sum((0.1,) * 10) != 1
    PointSampling(num_points=100, quotas=(0.1,) * 10)
    PointSampling(num_points=100, quotas=(1 / 3, 1 / 3, 1 / 3 + 1e-12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generators": []}, "generators must be one per sample, got 0 for a batch of 1"),
        ({"sampling": PointSampling(ignore=3)}, "labels must be given with ignore or quotas, got None"),
        ({"labels": torch.zeros(1, 4, 5)}, r"labels must be \(1, 4, 4\), got \(1, 4, 5\)"),
        (
            {"labels": torch.zeros(1, 4, 4), "sampling": PointSampling(quotas=(0.5,))},
            r"quotas must be one share per class, 2 here, got \(0.5,\)",
        ),
        ({"size": (4, 4, 4)}, r"size must be 2 whole numbers"),
        ({"logits": torch.zeros(1, 1, 8, 8)}, r"K >= 2, got \(1, 1, 8, 8\)"),
    ],
)
def test_arguments_that_disagree_are_refused(change, message):
    usual = {"logits": edge_logits(), "size": (4, 4), "sampling": PointSampling(num_points=3)}
    with pytest.raises(ValueError, match=message):
        training_points(**usual | change)
