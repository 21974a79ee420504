"""Refinement against the dense answer, in one step and several, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pointrend import PointRend
from pointrend.coordinates import flat_index, voxel_centres
from pointrend.reading import sample_at, uncertainty
from pointrend.sampling import PointSampling
from pointrend.subdivision import Change, Field, step_sizes

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
