"""Which voxels training looks at: the draw of `sampling` replayed, its bias, its pools, refusals; and `getpoint`,
the draw of 2020 without its faults, the same on every path, for any number of axes.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend import getpoint
from pointrend.boxes import Boxes, two_logits
from pointrend.coordinates import flat_index, voxel_centres
from pointrend.reading import uncertainty
from pointrend.sampling import PointSampling, box_training_voxels, training_points, training_voxels


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


# ---- boxes


def boxes_of(corners):
    return Boxes(corners=torch.tensor(corners), sample=torch.zeros(len(corners), dtype=torch.int64))


def test_points_lie_in_their_boxes_and_lean_to_the_edge():
    size, boxes = (30, 50), boxes_of([[0.2, 0.1, 0.8, 0.5], [0.5, 0.6, 0.9, 0.9]])
    ramp = torch.linspace(-5, 5, 20).expand(2, 1, 20, 20)  # 0 in the middle column of the box
    draw = PointSampling(num_points=80, oversample_ratio=5.0, importance_ratio=0.75)
    index = box_training_voxels(two_logits(ramp), size, boxes, draw, generator=generators(0)[0])
    assert index.shape == (2, 80)
    assert (index.diff(dim=1) >= 0).all()
    inside = boxes.to_box(voxel_centres(index, size))
    assert ((inside > 0) & (inside < 1)).all()
    # 60 of 400 candidates by certainty: within .075 of the middle, give or take the voxel
    near = ((inside[..., 1] - 0.5).abs() < 0.13).sum(1)
    assert (near >= 60).all()


def test_uniform_points_cover_the_box_evenly():
    size, boxes = (30, 50), boxes_of([[0.2, 0.1, 0.8, 0.5]])
    draw = PointSampling(num_points=36000, importance_ratio=0.0)
    index = box_training_voxels(torch.zeros(1, 2, 3, 3), size, boxes, draw, generator=generators(0)[0])
    counts = torch.bincount(index[0], minlength=1500).view(size)
    assert counts.sum() == counts[6:24, 5:25].sum()  # rows 6 to 24, columns 5 to 25
    assert (counts[6:24, 5:25] - 100).abs().max() < 60  # of 360 voxels 100 each, standard deviation 10


def test_ignored_pixels_are_not_drawn_unless_nothing_else_is_there():
    size, boxes = (30, 50), boxes_of([[0.2, 0.1, 0.8, 0.5], [0.5, 0.6, 0.9, 0.9]])
    labels = torch.zeros(2, *size, dtype=torch.int64)
    labels[0, :, :20] = 255  # columns 5 to 20 of the first box
    labels[1] = 255  # all of the second
    draw = PointSampling(num_points=60, ignore=255)
    index = box_training_voxels(torch.randn(2, 2, 3, 3), size, boxes, draw, labels=labels, generator=generators(0)[0])
    assert (labels[0].flatten()[index[0]] == 0).all()
    assert (labels[1].flatten()[index[1]] == 255).all()
    with pytest.raises(ValueError, match="labels must be given with ignore, got None"):
        box_training_voxels(torch.randn(2, 2, 3, 3), size, boxes, draw)
    with pytest.raises(ValueError, match="quotas are not drawn in boxes"):
        box_training_voxels(torch.randn(2, 2, 3, 3), size, boxes, PointSampling(quotas=(0.5, 0.5)))


# ---- getpoint


def brute_force_mixed(mask: np.ndarray, element: np.ndarray, radius: int) -> bool:
    inside = np.ones(mask.shape, dtype=bool)
    for axis, index in enumerate(np.indices(mask.shape)):
        inside &= abs(index - element[axis]) <= radius
    return len(np.unique(mask[inside])) > 1


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(1, 11), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([bool, np.uint8, np.float16, ">i4"]))
    threshold = draw(st.floats(0.0, 0.3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return (random.random(shape) < threshold).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    mask=masks(),
    k=st.floats(0, 3),
    beta=st.floats(0, 1),
    radius=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
def test_both_paths_give_the_same_points(mask, k, beta, radius, seed):
    fast = getpoint(mask, k, beta, nearest_neighbor=radius, rng=seed)
    direct = getpoint(mask, k, beta, nearest_neighbor=radius, new_if_near=False, rng=seed)
    np.testing.assert_array_equal(fast, direct)
    assert (fast >= 0).all()
    assert (fast < mask.shape).all()


@pytest.mark.parametrize("shape", [(31, 37), (11, 12, 13), (400,)])
@pytest.mark.parametrize("density", [0.002, 0.3, 6.0])  # scattered windows, and the table of all windows
def test_candidates_are_kept_by_the_definition(shape, density):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(n // 3, n // 2) for n in shape)] = 3
    points = getpoint(mask, density, 1.0, nearest_neighbor=2, rng=5)
    drawn = np.random.default_rng(5).random((int(density * mask.size), len(shape))) * shape
    expected = [p for p in drawn if brute_force_mixed(mask, p.astype(int), 2)]
    np.testing.assert_array_equal(points, np.array(expected).reshape(-1, len(shape)))


def test_the_window_is_centred_and_two_radii_and_one_wide():
    mask = np.zeros((1, 20), dtype=np.uint8)
    mask[0, 10:] = 1
    points = getpoint(mask, 200, 1, nearest_neighbor=3, rng=0)
    # elements 7..9 see element 10, elements 10..12 see element 9
    assert set(points[:, 1].astype(int)) == {7, 8, 9, 10, 11, 12}


def test_last_rows_and_columns_are_drawn_and_uniformly_so():
    points = getpoint(np.zeros((4, 5), dtype=bool), 1000, 0, rng=1)
    counts = np.zeros((4, 5))
    np.add.at(counts, tuple(points.astype(int).T), 1)
    assert points.shape == (20_000, 2)
    # binomial with mean 1000 and standard deviation 31
    assert abs(counts - 1000).max() < 160


def test_counts_are_the_truncated_products():
    mask = np.zeros((7, 9), dtype=bool)
    assert len(getpoint(mask, 1.3, 0, rng=0)) == int(1.3 * 63)
    assert len(getpoint(mask, 1.3, 0.75, rng=0)) == int(0.25 * 1.3 * 63)  # one value: no candidate stays
    assert len(getpoint(mask, 1.3, 1.0, rng=0)) == 0
    assert len(getpoint(np.indices((7, 9)).sum(0) % 2, 1.3, 0.75, rng=0)) == int(0.75 * 81.9) + int(0.25 * 81.9)


def test_uniform_points_follow_the_candidates():
    mask = np.zeros((6, 7), dtype=np.uint8)
    mask[2:4, 3:5] = 1
    random = np.random.default_rng(3)
    random.random((int(0.5 * 10 * 42), 2))
    expected = random.random((int(0.5 * 10 * 42), 2)) * mask.shape
    np.testing.assert_array_equal(getpoint(mask, 10, 0.5, rng=3)[-210:], expected)


def test_inference_returns_the_indices_of_positive_elements():
    mask = np.array([[0, 2, 0], [-1, 0, 7]])
    points = getpoint(mask, 1, 0.5, training=False)
    assert points.tolist() == [[0, 1], [1, 2]]
    assert points.dtype == np.int64
    assert getpoint(np.zeros((3, 4, 5)), 1, 0.5, training=False).shape == (0, 3)


def test_result_unpacks_by_axis():
    rows, columns = zip(*getpoint(np.eye(8), 2, 0.9, rng=0), strict=True)
    assert len(rows) == len(columns) > 0
    assert max(rows) < 8


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3, 5)])
def test_masks_without_elements_have_no_points(shape):
    assert getpoint(np.zeros(shape), 5, 0.5, rng=0).shape == (0, len(shape))


def test_a_generator_is_advanced_and_a_seed_repeats():
    mask, generator = np.eye(9), np.random.default_rng(0)
    first, second = (getpoint(mask, 1, 0.5, rng=generator) for _ in range(2))
    np.testing.assert_array_equal(first, getpoint(mask, 1, 0.5, rng=0))
    assert first.shape != second.shape or (first != second).any()


def test_minus_zero_is_zero():
    assert len(getpoint(np.array([[0.0, -0.0], [-0.0, 0.0]]), 50, 1, nearest_neighbor=1, rng=0)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta": 1.5}, ValueError, r"beta must lie in \[0, 1\], got 1.5"),
        ({"beta": float("nan")}, ValueError, r"beta must lie in \[0, 1\], got nan"),
        ({"beta": "half"}, TypeError, "beta must be a number, got 'half'"),
        ({"k": -1}, ValueError, "k must be finite and at least 0, got -1"),
        ({"k": float("inf")}, ValueError, "k must be finite and at least 0, got inf"),
        ({"k": True}, TypeError, "k must be a number, got True"),
        ({"nearest_neighbor": -2}, ValueError, "nearest_neighbor must be at least 0, got -2"),
        ({"nearest_neighbor": 1.5}, TypeError, "nearest_neighbor must be a whole number, got 1.5"),
        ({"mask_img": np.array(3)}, ValueError, "mask_img must have at least one axis"),
        ({"mask_img": np.array([0.0, np.nan])}, ValueError, "mask_img must be finite"),
        ({"mask_img": np.array(["a"])}, TypeError, "mask_img must be boolean, integer or floating point, got dtype"),
        ({"mask_img": np.array([1j])}, TypeError, "got dtype complex128"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        getpoint(**({"mask_img": np.eye(4), "k": 1, "beta": 0.5} | arguments))


def test_empty_masks_have_uniform_points_alone():
    mask = np.zeros((6, 7), bool)
    assert len(getpoint(mask, 2, 0.75, rng=0)) == int(0.25 * 2 * 42)
    assert getpoint(mask, 2, 0.75, training=False).shape == (0, 2)
