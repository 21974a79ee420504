"""The most uncertain voxels of a target grid, and their refinement."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pointrend import PointRend
from pointrend._kernels import margin_search as _margin_search
from pointrend.coordinates import extent_centres, flat_index, voxel_centres
from pointrend.reading import sample_at, uncertainty
from pointrend.sampling import PointSampling
from pointrend.subdivision import Change, Field, step_sizes
from pointrend.uncertain import uncertain_voxels

# ---- small heads with known logits, and batches for them; tests of the head import them

MODES = {2: "bilinear", 3: "trilinear"}


class Echo(PointRend):
    """Gives back the coarse logits: refinement must then be plain up-sampling."""

    def predict_points(self, points, coarse, features, image=None, *, grid=None):
        assert points.shape[:2] == (coarse.shape[0], coarse.shape[2])
        return coarse


class Position(PointRend):
    """Class 1 where z + y + x of the point is above a half of the axes, else class 0, whatever the logits."""

    def predict_points(self, points, coarse, features, image=None, *, grid=None):
        above = points.sum(-1) - points.shape[-1] / 2
        return torch.stack([-above, above, torch.full_like(above, -99.0)], dim=1)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def upsample(logits, size):
    return F.interpolate(logits, size=size, mode=MODES[len(size)], align_corners=False)


def a_model(ndim=3, **options):
    torch.manual_seed(0)
    usual = {
        "classes": 3,
        "features": {"fine": 4, "deep": 5},
        "image_channels": 2,
        "width": 8,
        "windows": {},
        "ndim": ndim,
    }
    model = PointRend(**usual | options)
    nn.init.normal_(model.head.logits.weight)
    return model


def a_batch(batch=2, coarse=(3, 4, 5), stride=2):
    torch.manual_seed(1)
    size = [n * stride for n in coarse]
    features = {"fine": torch.randn(batch, 4, *size), "deep": torch.randn(batch, 5, *coarse)}
    return torch.randn(batch, 3, *coarse), features, torch.randn(batch, 2, *size)


# ---- refinement

COARSE = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
FINE = {"fine": torch.randn(1, 2, 8, 10, 12, generator=torch.Generator().manual_seed(1))}


def test_training_and_refinement_give_a_voxel_the_same_logits():
    model = a_model(sampling=PointSampling(num_points=300))
    coarse, features, image = a_batch()
    labels = torch.zeros(2, 6, 8, 10, dtype=torch.int64)
    points, logits, _ = model.training_logits(coarse, features, image, labels, generators=generators(0, 1))
    refined = model.refine(coarse, features, image, (6, 8, 10), num_points=6 * 8 * 10)
    index = flat_index(points, (6, 8, 10))
    assert torch.equal(refined.labels.flatten(1).gather(1, index).long(), logits.argmax(1))


@settings(deadline=None, max_examples=60)
@given(
    ndim=st.integers(2, 3),
    batch=st.integers(1, 3),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1.2),
    steps=st.integers(1, 3),
    chunk=st.integers(1, 200),
)
def test_refining_with_an_echo_head_is_plain_up_sampling(ndim, batch, classes, seed, share, steps, chunk):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(1, 6, (ndim,), generator=generator).tolist()
    size = torch.randint(1, 14, (ndim,), generator=generator).tolist()
    logits = torch.randn(batch, classes, *coarse, generator=generator)
    refined = Echo(classes=classes, features={}).refine(
        logits, {}, None, size, num_points=round(share * math.prod(size)), steps=steps, chunk=chunk
    )
    dense = upsample(logits, size)
    sure = uncertainty(dense) < -1e-5  # elsewhere rounding decides
    assert refined.labels.shape == (batch, *size)
    assert torch.equal(refined.labels[sure].long(), dense.argmax(1)[sure])
    assert torch.equal(refined.unrefined[sure].long(), dense.argmax(1)[sure])


@settings(deadline=None, max_examples=40)
@given(
    ndim=st.integers(2, 3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1),
    cut=st.booleans(),
)
def test_refined_are_the_voxels_that_were_chosen_and_no_others(ndim, batch, seed, share, cut):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(2, 5, (ndim,), generator=generator).tolist()
    size = torch.randint(2, 11, (ndim,), generator=generator).tolist()
    extent = [0.75, 0.6, 1.0][:ndim] if cut else None
    logits = torch.randn(batch, 3, *coarse, generator=generator) * 3
    count = round(share * math.prod(size))
    refined = Position(classes=3, features={}).refine(logits, {}, None, size, num_points=count, extent=extent)
    shares = torch.tensor(extent or [1.0] * ndim)
    for sample, index in enumerate(refined.index):
        assert len(index) == min(count, math.prod(size))
        # the most uncertain, by interpolating everywhere
        points = voxel_centres(torch.arange(math.prod(size)), size) * shares
        doubt = uncertainty(sample_at(logits[sample, None], points[None]))[0]
        torch.testing.assert_close(refined.uncertainty[sample], doubt[index], atol=1e-4, rtol=0)
        if count:
            assert (doubt[index] >= doubt.topk(count).values[-1] - 1e-4).all()
        # the head saw the points of these very voxels, and every other voxel keeps its label
        expected = refined.unrefined[sample].flatten().clone()
        expected[index] = (points[index].sum(-1) > ndim / 2).to(expected.dtype)
        on_edge = (points.sum(-1) - ndim / 2).abs() < 1e-5
        same = refined.labels[sample].flatten() == expected
        assert (same | on_edge).all()


def test_refined_voxels_lie_in_all_slices():
    # a modulo too many, as in several 3D ports, puts them all in the first
    logits = torch.randn(1, 3, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    refined = Position(classes=3, features={}).refine(logits, {}, None, (12, 6, 8), num_points=300)
    assert (refined.index[0] // 48).unique().tolist() == list(range(12))


def test_refinement_may_go_to_the_grid_of_a_padded_image():
    # the volume fills 5 of 6, 7 of 8 and 10 of 10 voxels of the canvas: same labels as a cut of the whole canvas
    model = a_model()
    coarse, features, image = a_batch()
    whole = model.refine(coarse, features, image, (6, 8, 10), num_points=480)
    part = model.refine(coarse, features, image, (5, 7, 10), num_points=350, extent=(5 / 6, 7 / 8, 1.0))
    assert torch.equal(part.labels, whole.labels[:, :5, :7, :10])


@pytest.mark.parametrize("extent", [None, (5 / 6, 7 / 8, 1.0), (0.9, 0.8, 0.7)], ids=["whole", "padded", "any"])
@pytest.mark.parametrize("finer", [1, 2, 1.5])
def test_labels_do_not_depend_on_how_windows_are_read(extent, finer, monkeypatch):
    # by index where the target has the voxels of the maps, by the compiled loop between them; else sample by sample
    model = a_model(windows={"fine": 3, "image": 3})
    coarse, features, image = a_batch()
    size = [round(n * finer * share) for n, share in zip((6, 8, 10), extent or (1, 1, 1), strict=True)]
    number = math.prod(size) // 2
    quick = model.refine(coarse, features, image, size, num_points=number, extent=extent)
    monkeypatch.setattr("pointrend.reading._compiled_window_reads", lambda volume, points: False)
    monkeypatch.setattr("pointrend.refine.whole_grid", lambda size, extent: None)
    assert torch.equal(
        quick.labels, model.refine(coarse, features, image, size, num_points=number, extent=extent).labels
    )
    assert (quick.labels != quick.unrefined).any()


def test_an_extent_moves_the_points_even_where_sizes_agree():
    # features and target have (6, 8, 10) voxels, but the target spans half of each axis
    model = a_model()
    coarse, features, image = a_batch()
    refined = model.refine(coarse, features, image, (6, 8, 10), num_points=480, extent=(0.5, 0.5, 0.5))
    points = (voxel_centres(torch.arange(480), (6, 8, 10)) / 2).expand(2, -1, -1)
    expected = model.predict_points(points, sample_at(coarse, points), features, image).argmax(1)
    assert torch.equal(refined.labels.flatten(1).long(), expected)


def test_check_reports_the_share_that_asking_everywhere_would_change():
    model = Position(classes=3, features={})
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 2] = 50
    everywhere = model.refine(logits, {}, None, (6, 6), num_points=36, check=True)
    nowhere = model.refine(logits, {}, None, (6, 6), num_points=0, check=True)
    assert everywhere.differs == 0
    assert nowhere.differs == 1  # class 2 there, never the head's answer
    half = model.refine(logits, {}, None, (6, 6), num_points=9, check=True, chunk=5)
    assert half.differs == pytest.approx(27 / 36)
    assert model.refine(logits, {}, None, (6, 6), num_points=9).differs is None


def test_a_margin_that_none_falls_below_refines_nothing():
    coarse, features, image = a_batch()
    coarse[:, 0] += 100
    refined = a_model().refine(coarse, features, image, (6, 8, 10), max_margin=1.0)
    assert torch.equal(refined.labels, refined.unrefined)
    assert [len(index) for index in refined.index] == [0, 0]
    assert refined.labels.dtype == torch.uint8


def test_refinement_leaves_no_graph_and_the_inputs_as_they_were():
    coarse, features, image = a_batch()
    before = coarse.clone()
    refined = a_model().refine(coarse.requires_grad_(), features, image, (6, 8, 10), num_points=50)
    assert not refined.uncertainty[0].requires_grad
    assert torch.equal(coarse, before)
    assert (refined.labels != refined.unrefined).any()


# ---- more than one step


def test_steps_halve_down_to_the_coarse_grid():
    assert step_sizes((4, 4), (32, 32), 1, None) == [(32, 32)]
    assert step_sizes((4, 4), (32, 32), 3, None) == [(8, 8), (16, 16), (32, 32)]
    assert step_sizes((8, 20), (32, 40), 3, None) == [(8, 20), (16, 20), (32, 40)][1:]
    assert step_sizes((4, 4), (32, 33), 2, None) == [(16, 17), (32, 33)]


def test_steps_that_would_visit_every_voxel_are_skipped():
    assert step_sizes((4, 4), (32, 32), 3, 64) == [(16, 16), (32, 32)]
    assert step_sizes((4, 4), (32, 32), 3, 10**6) == [(32, 32)]
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        step_sizes((4, 4), (32, 32), 0, None)


def test_a_change_is_interpolated_between_the_voxels_of_its_grid():
    size, target = (2, 3, 4), (5, 6, 7)
    index = torch.tensor([0, 7, 13, 22])
    delta = torch.randn(2, 4)
    dense = torch.zeros(2, 24)
    dense[:, index] = delta
    expected = upsample(dense.view(1, 2, *size), target)[0].flatten(1)
    change = Change(size, index, delta)
    torch.testing.assert_close(change.at(torch.arange(210), target), expected)
    assert set(expected.abs().sum(0).nonzero()[:, 0].tolist()) <= set(
        change.reach(target).flatten().nonzero()[:, 0].tolist()
    )
    assert change.reach(target).sum() < 210


@pytest.mark.parametrize("strength", [2, 50])
@pytest.mark.parametrize(
    ("count", "margin"), [(9, None), (60, None), (130, None), (200, None), (None, 0.4), (30, 0.4), (0, None)]
)
def test_a_field_with_changes_is_searched_as_brute_force_would(count, margin, strength):
    torch.manual_seed(0)
    coarse = torch.randn(3, 3, 4)
    field = Field(coarse, (1.0, 1.0), (Change((6, 8), torch.tensor([3, 20, 41]), strength * torch.randn(3, 3)),))
    dense = upsample(coarse[None], (12, 16)) + upsample(
        torch.zeros(1, 3, 48).index_copy(2, field.changes[0].index, field.changes[0].delta[None]).view(1, 3, 6, 8),
        (12, 16),
    )
    doubt = uncertainty(dense)[0].flatten()
    order = doubt.sort(descending=True).indices[: len(doubt) if count is None else count]
    expected = order[doubt[order] >= (-math.inf if margin is None else -margin)].sort().values
    chosen = field.choose((12, 16), num_points=count, max_margin=margin)
    assert torch.equal(chosen.index, expected)
    torch.testing.assert_close(chosen.uncertainty, doubt[expected], atol=1e-5, rtol=0)
    assert torch.equal(chosen.best.long(), dense[0].flatten(1).argmax(0)[chosen.changed])


def test_two_steps_are_those_of_a_dense_loop():
    model = a_model()
    coarse, features, image = a_batch(batch=1)
    everywhere = model.predict_points  # the head's logits on both grids, and the fields of the two steps, densely
    field, head = upsample(coarse, (6, 8, 10)), []
    for size in ((6, 8, 10), (12, 16, 20)):
        points = voxel_centres(torch.arange(math.prod(size)), size)[None]
        head.append(everywhere(points, sample_at(coarse, points), features, image))
    first = uncertainty(field).flatten().topk(70).indices
    change = torch.zeros_like(field).flatten(2)
    change[..., first] = head[0][..., first] - field.flatten(2)[..., first]
    fine = (upsample(coarse, (12, 16, 20)) + upsample(change.view_as(field), (12, 16, 20))).flatten(2)
    second = uncertainty(fine)[0].topk(70).indices
    fine[..., second] = head[1][..., second]
    refined = model.refine(coarse, features, image, (12, 16, 20), num_points=70, steps=2)
    assert torch.equal(refined.index[0], second.sort().values)
    assert (refined.labels.flatten() == fine[0].argmax(0)).float().mean() > 0.999  # ties by rounding
    one_step = model.refine(coarse, features, image, (12, 16, 20), num_points=70)
    assert (refined.labels != one_step.labels).sum() > 100


def test_labels_next_to_voxels_refined_earlier_follow_them():
    # one coarse voxel of doubt: the head says class 1 on the 4 x 4 grid, and the 8 x 8 grid follows around it
    class Ones(PointRend):
        def predict_points(self, points, coarse, features, image=None, *, grid=None):
            return torch.stack([torch.full_like(coarse[:, 0], -40.0), torch.full_like(coarse[:, 0], 40.0)], dim=1)

    logits = torch.tensor([1.0, -1.0])[None, :, None, None].expand(1, 2, 2, 2).clone()
    logits[0, 0, 0, 0] = -0.9
    one = Ones(classes=2, features={}).refine(logits, {}, None, (8, 8), num_points=1, steps=1)
    two = Ones(classes=2, features={}).refine(logits, {}, None, (8, 8), num_points=1, steps=2)
    assert (one.labels != one.unrefined).sum() <= 1
    assert (two.labels != two.unrefined).sum() > 4


def test_numbers_out_of_range_are_refused():
    coarse, features, image = a_batch()
    model = a_model()
    for options, message in (
        ({"num_points": 3, "size": (6, 8)}, "size must be 3 whole numbers"),
        ({"num_points": 3, "extent": (1, 1, 2)}, r"extent must be 3 numbers in \(0, 1\]"),
        ({"num_points": 3, "steps": 0}, "steps must be at least 1, got 0"),
        ({"num_points": 3, "chunk": 0}, "chunk must be at least 1, got 0"),
        ({}, "num_points or max_margin must be given"),
    ):
        with pytest.raises(ValueError, match=message):
            model.refine(coarse, features, image, **{"size": (6, 8, 10)} | options)


# ---- other input


def refine(**change):
    model = PointRend(classes=3, features={"fine": 2})
    arguments = {"coarse": COARSE, "features": FINE, "image": None, "size": (8, 10, 12), "num_points": 9} | change
    return model.refine(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coarse": COARSE.clone().fill_(float("nan"))}, ValueError, "logits must be finite .* got NaN or infinity"),
        ({"coarse": COARSE.int()}, TypeError, "logits must be float16, .* got torch.int32"),
        ({"coarse": COARSE[0, 0]}, ValueError, "size must be 1 whole numbers"),
        ({"coarse": COARSE[:, :2]}, ValueError, r"coarse must have 3 classes, got \(1, 2, 9\)"),
        (
            {"features": {"fine": FINE["fine"][:, :, 0]}},
            ValueError,
            r"features\['fine'\] must have 2 channels, .*, got \(1, 2, 10, 12\)",
        ),
        ({"features": {}}, ValueError, r"\['fine'\] missing from \[\]"),
        ({"size": (8, 10)}, ValueError, r"size must be 3 whole numbers of at least 1, got \(8, 10\)"),
        ({"size": (8, 10, 0)}, ValueError, r"size must be 3 whole numbers of at least 1, got \(8, 10, 0\)"),
    ],
)
def test_refinement_refuses(change, error, message):
    with pytest.raises(error, match=message):
        refine(**change)


def test_one_class_has_nothing_to_refine():
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        PointRend(classes=1, features={"fine": 2})


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (1, 20, 3)])
def test_axes_of_one_voxel_and_targets_smaller_than_the_source(size):
    coarse, fine = COARSE[:, :, :1], {"fine": FINE["fine"][:, :, :1]}
    refined = refine(coarse=coarse, features=fine, size=size)
    dense = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")
    assert torch.equal(refined.unrefined.long(), dense.argmax(1))
    assert refined.labels.shape == (1, *size)


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
