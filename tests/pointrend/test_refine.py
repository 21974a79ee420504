"""PointRend as a module: one path for loss and refinement, refinement against the dense answer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pointrend import PointRend
from pointrend.coordinates import flat_index, voxel_centres
from pointrend.losses import point_losses
from pointrend.reading import read_window, sample_at, uncertainty
from pointrend.sampling import PointSampling
from pointrend.subdivision import Change, Field, step_sizes

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


# ---- one path


def test_features_of_any_stride_are_read_at_the_points_and_joined_by_channel():
    model = a_model()
    coarse, features, image = a_batch()
    points = torch.rand(2, 9, 3)
    at_points = sample_at(coarse, points)
    fine = torch.cat([sample_at(features["fine"], points), sample_at(features["deep"], points)], dim=1)
    expected = model.head(torch.cat([fine, sample_at(image, points)], dim=1), at_points)
    torch.testing.assert_close(model.predict_points(points, at_points, features, image), expected)
    # the order is the constructor's, whatever the dict's; other names are left alone
    shuffled = {"other": torch.zeros(1), "deep": features["deep"], "fine": features["fine"]}
    torch.testing.assert_close(model.predict_points(points, at_points, shuffled, image), expected)


def test_windows_are_read_where_they_are_named():
    model = a_model(windows={"fine": 3, "image": 5})
    coarse, features, image = a_batch()
    points = voxel_centres(torch.randint(6 * 8 * 10, (2, 30)), (6, 8, 10))
    at_points = sample_at(coarse, points)
    parts = [
        read_window(features["fine"], points, 3),
        sample_at(features["deep"], points),
        read_window(image, points, 5),
    ]
    expected = model.head(torch.cat(parts, dim=1), at_points)
    for grid in (None, (6, 8, 10)):
        torch.testing.assert_close(model.predict_points(points, at_points, features, image, grid=grid), expected)


@pytest.mark.parametrize("windows", [{"fine": 2}, {"fine": 0}, {"skip": 3}])
def test_windows_are_odd_and_of_what_the_head_reads(windows):
    with pytest.raises(ValueError, match=r"windows must hold odd sizes of \['fine', 'deep', 'image'\], got"):
        a_model(windows=windows)


def test_a_known_grid_changes_nothing():
    model = a_model()
    coarse, features, image = a_batch()
    points = voxel_centres(torch.randint(6 * 8 * 10, (2, 30)), (6, 8, 10))
    at_points = sample_at(coarse, points)
    plain = model.predict_points(points, at_points, features, image)
    torch.testing.assert_close(
        model.predict_points(points, at_points, features, image, grid=(6, 8, 10)), plain, atol=1e-4, rtol=1e-4
    )


def test_training_and_refinement_give_a_voxel_the_same_logits():
    model = a_model(sampling=PointSampling(num_points=300))
    coarse, features, image = a_batch()
    labels = torch.zeros(2, 6, 8, 10, dtype=torch.int64)
    points, logits, _ = model.training_logits(coarse, features, image, labels, generators=generators(0, 1))
    refined = model.refine(coarse, features, image, (6, 8, 10), num_points=6 * 8 * 10)
    index = flat_index(points, (6, 8, 10))
    assert torch.equal(refined.labels.flatten(1).gather(1, index).long(), logits.argmax(1))


def test_missing_features_and_images_are_named():
    model = a_model()
    coarse, features, image = a_batch()
    points = torch.rand(2, 9, 3)
    with pytest.raises(ValueError, match=r"\['deep'\] missing from \['fine'\]"):
        model.predict_points(points, sample_at(coarse, points), {"fine": features["fine"]}, image)
    with pytest.raises(ValueError, match="image must be given to a head with image_channels, got None"):
        model.predict_points(points, sample_at(coarse, points), features)
    with pytest.raises(ValueError, match=r"image must have 2 channels, \(2, 2, D, H, W\), got \(2, 1, 6, 8, 10\)"):
        model.predict_points(points, sample_at(coarse, points), features, image[:, :1])
    wrong = {**features, "deep": torch.randn(2, 6, 3, 4, 5)}
    with pytest.raises(
        ValueError, match=r"features\['deep'\] must have 5 channels, \(2, 5, D, H, W\), got \(2, 6, 3, "
    ):
        model.predict_points(points, sample_at(coarse, points), wrong, image)
    with pytest.raises(ValueError, match=r"coarse must have 3 classes, got \(2, 2, 9\)"):
        model.predict_points(points, sample_at(coarse, points)[:, :2], features, image)
    with pytest.raises(ValueError, match="points must be numbers, got NaN"):
        model.predict_points(points * math.nan, sample_at(coarse, points), features, image)


def test_labels_that_are_no_labels_are_refused():
    coarse, features, image = a_batch()
    model = a_model()
    with pytest.raises(TypeError, match=r"labels must be integers, got torch.float32; use labels.long\(\)"):
        model.loss(coarse, features, image, torch.zeros(2, 6, 8, 10))
    one_channel = torch.zeros(2, 1, 6, 8, 10, dtype=torch.int64)
    with pytest.raises(
        ValueError,
        match=r"labels must be \(2, D, H, W\), without a channel axis, got \(2, 1, 6, 8, 10\); use labels\[:, 0\]",
    ):
        model.loss(coarse, features, image, one_channel)
    with pytest.raises(ValueError, match=r"labels must be \(2, D, H, W\), got \(1, 6, 8, 10\)"):
        model.loss(coarse, features, image, one_channel[:1, 0])
    with pytest.raises(ValueError, match=r"labels must be \(2, D, H, W\), got \(2, 8, 10\)"):
        model.loss(coarse, features, image, one_channel[:, 0, 0])
    with pytest.raises(ValueError, match=r"labels must be \(2, H, W\), without a channel axis, got \(2, 1, 8, 10\)"):
        model.loss(coarse[:, :, 0], features, image, one_channel[:, :, 0])


# ---- the two heads


def test_the_default_reads_windows_of_the_image_and_trains_on_cross_entropy_and_dice():
    model = PointRend(classes=3, features={"fine": 4}, image_channels=2)
    assert model.head.features == 4 + 27 * 2
    assert model.sampling == PointSampling(num_points=2048, oversample_ratio=10, importance_ratio=1)
    assert model.dice_weight == 1
    flat = PointRend(classes=3, features={"fine": 4}, image_channels=2, ndim=2)
    assert flat.head.features == 4 + 9 * 2
    assert PointRend(classes=3, features={"fine": 4}, windows={"fine": 3}).head.features == 27 * 4


def test_the_head_of_the_paper_is_one_constructor_away():
    model = PointRend.paper(classes=3, features={"fine": 4}, image_channels=2, num_points=99)
    assert model.head.features == 4 + 2
    assert [layer.out_features for layer in model.head.hidden] == [256] * 3
    assert model.sampling == PointSampling(num_points=99, oversample_ratio=3, importance_ratio=0.75)
    coarse, features, image = a_batch()
    labels = torch.randint(0, 3, (2, 6, 8, 10))
    _, logits, truth = model.training_logits(coarse, features, image, labels, generators=generators(0, 1))
    loss = model.loss(coarse, features, image, labels, generators=generators(0, 1))
    torch.testing.assert_close(loss, F.cross_entropy(logits, truth))
    assert [layer.out_features for layer in PointRend.paper(classes=2, features={}, width=16).head.hidden] == [16] * 3


def test_a_head_is_made_from_an_example():
    coarse, features, image = a_batch()
    model = PointRend.from_example(coarse, features, image, width=8, sampling=PointSampling(num_points=9))
    assert model.head.features == 27 * 4 + 5 + 27 * 2  # `fine` and the image are on one grid, `deep` is coarser
    labels = torch.randint(0, 3, (2, 6, 8, 10))
    assert model.loss(coarse, features, image, labels).isfinite()
    without = PointRend.from_example(coarse[:, :, 0], {"deep": features["deep"][:, :, 0]})
    assert (without.head.features, without.head.ndim) == (5, 2)


def test_settings_of_the_loss_are_checked_on_construction():
    with pytest.raises(ValueError, match="dice_weight must be at least 0, got -1"):
        a_model(dice_weight=-1)
    with pytest.raises(ValueError, match=r"quotas must be one share per class, 3 here, got \(0.5,\)"):
        a_model(sampling=PointSampling(quotas=(0.5,)))
    with pytest.raises(ValueError, match="features must not be named 'image' where the head reads the image too"):
        a_model(features={"image": 3})


# ---- training


def test_the_loss_is_cross_entropy_and_dice_at_the_points_labels():
    model = a_model(dice_weight=0.5, sampling=PointSampling(num_points=40, ignore=7))
    coarse, features, image = a_batch()
    labels = torch.randint(0, 3, (2, 6, 8, 10))
    labels[0, :3] = 7
    points, logits, truth = model.training_logits(coarse, features, image, labels, generators=generators(4, 5))
    assert torch.equal(truth, labels.flatten(1).gather(1, flat_index(points, (6, 8, 10))))
    cross_entropy, dice = point_losses(logits, truth, 7)
    torch.testing.assert_close(cross_entropy, -logits.log_softmax(1).gather(1, truth[:, None]).mean())
    expected = cross_entropy + 0.5 * dice
    loss = model.loss(coarse, features, image, labels, generators=generators(4, 5))
    torch.testing.assert_close(loss, expected)


def test_the_loss_of_an_echo_head_is_that_of_up_sampled_logits_for_dense_points():
    coarse = torch.randn(1, 3, 3, 4)
    labels = torch.randint(0, 3, (1, 6, 8))
    sampling = PointSampling(num_points=20000, importance_ratio=0)
    model = Echo(classes=3, features={}, sampling=sampling, dice_weight=0)
    losses = [model.loss(coarse, {}, None, labels, generators=generators(seed)) for seed in (0, 1)]
    torch.testing.assert_close(losses[0], F.cross_entropy(upsample(coarse, (6, 8)), labels), atol=0.02, rtol=0)
    assert losses[0] != losses[1]


def test_gradients_reach_the_head_the_features_and_the_coarse_logits():
    model = a_model(sampling=PointSampling(num_points=100))
    coarse, features, image = a_batch()
    leaves = [coarse, *features.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    labels = torch.randint(0, 3, (2, 6, 8, 10))
    model.loss(coarse, features, image, labels, generators=generators(0, 1)).backward()
    for parameter in (*leaves, *model.parameters()):
        assert (parameter.grad != 0).any()
    assert sum(p.numel() for p in model.parameters()) == 14 * 8 + 8 + 2 * (11 * 8 + 8) + 11 * 3 + 3


def test_a_batch_of_ignored_voxels_costs_nothing_but_has_a_gradient():
    model = a_model(sampling=PointSampling(num_points=30, ignore=255))
    coarse, features, image = a_batch()
    labels = torch.full((2, 6, 8, 10), 255)
    loss = model.loss(coarse.requires_grad_(), features, image, labels, generators=generators(0, 1))
    loss.backward()
    assert loss.item() == 0
    assert (coarse.grad == 0).all()


def test_no_points_cost_nothing():
    coarse, features, image = a_batch()
    labels = torch.zeros(2, 6, 8, 10, dtype=torch.int64)
    assert a_model(sampling=PointSampling(num_points=0)).loss(coarse, features, image, labels).item() == 0


def test_samples_weigh_the_same_however_many_points_count():
    model = a_model(sampling=PointSampling(num_points=30, ignore=255))
    coarse, features, image = a_batch()
    labels = torch.randint(0, 3, (2, 6, 8, 10))
    labels[1] = 255
    both = model.loss(coarse, features, image, labels, generators=generators(0, 1))
    first = {name: maps[:1] for name, maps in features.items()}
    alone = model.loss(coarse[:1], first, image[:1], labels[:1], generators=generators(0))
    torch.testing.assert_close(both, alone / 2)


def test_half_precision_features_are_read():
    model = a_model()
    coarse, features, image = a_batch()
    low = {name: maps.bfloat16() for name, maps in features.items()}
    points = torch.rand(2, 20, 3)
    at_points = sample_at(coarse, points)
    full, half = (model.predict_points(points, at_points, maps, image) for maps in (features, low))
    assert half.dtype == torch.float32
    torch.testing.assert_close(full, half, atol=0.2, rtol=0.1)


# ---- refinement


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
