"""The head and its losses, against plain formulas; taps that read features off any network."""

import copy
import math

import pytest
import torch
from monai.networks import nets
from torch import nn
from torch.nn import functional as F

from pointrend import PointRend, taps
from pointrend.coordinates import flat_index, voxel_centres
from pointrend.head import PointHead, fourier_code, point_losses, soft_dice_loss
from pointrend.reading import read_window, sample_at
from pointrend.sampling import PointSampling
from tests.pointrend.test_refine import Echo, a_batch, a_model, generators, upsample

# ---- the perceptron


def test_a_tiny_head_by_hand():
    head = PointHead(classes=2, features=1, width=1, layers=2)
    with torch.no_grad():
        head.hidden[0].weight[:] = torch.tensor([[2.0, 1.0, 0.0]])  # 2 f + c0
        head.hidden[0].bias[:] = -1.0
        head.hidden[1].weight[:] = torch.tensor([[1.0, 0.0, 3.0]])  # h + 3 c1
        head.hidden[1].bias[:] = 0.5
        head.logits.weight[:] = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
        head.logits.bias[:] = torch.tensor([0.0, 10.0])
    fine = torch.tensor([[[1.0, -3.0]]])
    coarse = torch.tensor([[[2.0, 1.0], [0.5, -1.0]]])
    # first point: h1 = relu(2 + 2 - 1) = 3, h2 = relu(3 + 1.5 + .5) = 5, logits (5 + 2, -5 + .5 + 10)
    # second: h1 = relu(-6 + 1 - 1) = 0, h2 = relu(0 - 3 + .5) = 0, logits (0 + 1, 0 - 1 + 10)
    torch.testing.assert_close(head(fine, coarse), torch.tensor([[[7.0, 1.0], [5.5, 9.0]]]))


def test_every_layer_reads_the_coarse_logits_again():
    head = PointHead(classes=4, features=5, width=7, layers=3)
    assert [layer.in_features for layer in head.hidden] == [5 + 4, 7 + 4, 7 + 4]
    assert head.logits.in_features == 7 + 4
    coarse = torch.randn(2, 4, 6, requires_grad=True)
    for cut in range(4):  # with the weights of all other layers on the coarse logits at 0 the gradient still arrives
        torch.manual_seed(0)
        head = PointHead(classes=4, features=5, width=64, layers=3)
        layers = [*head.hidden, head.logits]
        with torch.no_grad():
            for number, layer in enumerate(layers):
                layer.weight[:, -4:] = 0.3 if number == cut else 0.0
            head.logits.weight[:, :-4] = 0.1
        (gradient,) = torch.autograd.grad(head(torch.rand(2, 5, 6), coarse).sum(), coarse)
        assert (gradient != 0).any(), cut


def test_an_untrained_head_changes_next_to_nothing():
    head = PointHead(classes=3, features=8, width=32, layers=3)
    coarse = torch.randn(2, 3, 500)
    torch.testing.assert_close(head(torch.randn(2, 8, 500), coarse), coarse, atol=0.1, rtol=0)


def test_points_do_not_see_each_other():
    head = PointHead(classes=3, features=2, frequencies=2, ndim=2)
    nn.init.normal_(head.logits.weight)
    fine, coarse, points = torch.randn(2, 2, 9), torch.randn(2, 3, 9), torch.rand(2, 9, 2)
    whole = head(fine, coarse, points)
    order = torch.randperm(9)
    torch.testing.assert_close(head(fine[..., order], coarse[..., order], points[:, order]), whole[..., order])
    torch.testing.assert_close(head(fine[:1, :, 3:4], coarse[:1, :, 3:4], points[:1, 3:4]), whole[:1, :, 3:4])


def test_blocks_of_points_give_the_same_logits(monkeypatch):
    head = PointHead(classes=3, features=2, width=8)
    nn.init.normal_(head.logits.weight)
    fine, coarse = torch.randn(2, 2, 50), torch.randn(2, 3, 50)
    at_once = head(fine, coarse)
    monkeypatch.setattr("pointrend.head.VALUES_PER_BLOCK", 7 * 11)
    with torch.no_grad():
        torch.testing.assert_close(head(fine, coarse), at_once.detach())


def test_a_head_without_features_reads_the_logits_alone():
    assert PointHead(classes=2, features=0)(torch.zeros(1, 0, 5), torch.zeros(1, 2, 5)).shape == (1, 2, 5)


def test_no_points_give_no_logits():
    assert PointHead(classes=2, features=3)(torch.zeros(1, 3, 0), torch.zeros(1, 2, 0)).shape == (1, 2, 0)


def test_the_fourier_code_by_hand():
    code = fourier_code(torch.tensor([[[0.75, 0.5]]]), 2)  # positions 0.5 and 0 in [-1, 1]
    angles = [math.pi / 2, 0.0, math.pi, 0.0]  # octave by octave, axes in array order
    expected = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    torch.testing.assert_close(code, expected[None, :, None], atol=1e-6, rtol=0)


def test_the_code_joins_the_features():
    head = PointHead(classes=2, features=3, frequencies=4, ndim=3)
    assert head.hidden[0].in_features == 3 + 2 * 4 * 3 + 2
    nn.init.normal_(head.logits.weight)
    fine, coarse = torch.randn(1, 3, 1).expand(1, 3, 2), torch.randn(1, 2, 1).expand(1, 2, 2)
    here, there = head(fine, coarse, torch.tensor([[[0.1, 0.2, 0.3], [0.1, 0.2, 0.4]]]))[0].unbind(1)
    assert not torch.allclose(here, there)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("classes", 1, 2), ("features", -1, 0), ("width", 0, 1), ("layers", 0, 1), ("frequencies", -2, 0), ("ndim", 0, 1)],
)
def test_numbers_out_of_range_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
        PointHead(**{"classes": 2, "features": 1} | {name: value})


def test_channels_and_points_are_checked():
    head = PointHead(classes=2, features=3, frequencies=1)
    with pytest.raises(ValueError, match="must have 3 and 2 channels, got 4 and 2"):
        head(torch.zeros(1, 4, 5), torch.zeros(1, 2, 5), torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="points must be given to a head with frequencies, got None"):
        head(torch.zeros(1, 3, 5), torch.zeros(1, 2, 5))


# ---- what it reads


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


def test_half_precision_features_are_read():
    model = a_model()
    coarse, features, image = a_batch()
    low = {name: maps.bfloat16() for name, maps in features.items()}
    points = torch.rand(2, 20, 3)
    at_points = sample_at(coarse, points)
    full, half = (model.predict_points(points, at_points, maps, image) for maps in (features, low))
    assert half.dtype == torch.float32
    torch.testing.assert_close(full, half, atol=0.2, rtol=0.1)


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


# ---- losses


def test_dice_of_a_perfect_and_of_a_wrong_answer():
    labels = torch.randint(0, 3, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    sure = 50 * F.one_hot(labels, 3).movedim(-1, 1).float()
    assert float(soft_dice_loss(sure.log_softmax(1), labels)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice_loss(sure.log_softmax(1), (labels + 1) % 3)) == pytest.approx(1, abs=1e-6)


def test_cross_entropy_and_dice_by_hand():
    # four points, two of class 1, probabilities of class 1: .8 .6 .4 .2 -> Dice 2 * 1.4 / (2 + 2)
    p = torch.tensor([0.8, 0.6, 0.4, 0.2])
    logits = torch.stack([torch.zeros(4), torch.log(p / (1 - p))])[None]
    cross_entropy, dice = point_losses(logits, torch.tensor([[1, 1, 0, 0]]))
    assert float(cross_entropy) == pytest.approx(-math.log(0.8 * 0.6 * 0.6 * 0.8) / 4, abs=1e-6)
    assert float(dice) == pytest.approx(1 - 2.8 / 4, abs=1e-6)


def test_ignored_points_count_in_neither():
    # of four points the second and third are ignored: Dice 2 * .8 / (.8 + .2 + 1), cross-entropy a mean over all four
    p = torch.tensor([0.8, 0.6, 0.4, 0.2])
    logits = torch.stack([torch.zeros(4), torch.log(p / (1 - p))])[None].requires_grad_()
    cross_entropy, dice = point_losses(logits, torch.tensor([[1, 9, 9, 0]]), ignore=9)
    assert cross_entropy.item() == pytest.approx(-math.log(0.8 * 0.8) / 4, abs=1e-6)
    assert dice.item() == pytest.approx(1 - 1.6 / 2, abs=1e-6)
    (gradient,) = torch.autograd.grad(cross_entropy + dice, logits)
    assert (gradient[0, :, 1:3] == 0).all()
    assert (gradient[0, :, 0] != 0).all()


def test_no_point_that_counts_costs_nothing_but_has_a_gradient():
    for labels in (torch.full((2, 5), 9), torch.zeros(2, 0, dtype=torch.int64)):
        logits = torch.randn(2, 3, labels.shape[1], requires_grad=True)
        losses = point_losses(logits, labels, ignore=9)
        assert [loss.item() for loss in losses] == [0, 0]
        (gradient,) = torch.autograd.grad(sum(losses), logits)
        assert (gradient == 0).all()


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


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 2, 2, stride=2)
        self.unused = nn.Identity()

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_taps_give_the_outputs_of_the_named_modules():
    model = Two()
    x = torch.randn(2, 1, 6, 8)
    output, features = taps(model, {"fine": "first", "last": "second"})(x)
    assert torch.equal(features["fine"], model.first(x))
    assert torch.equal(features["last"], output)
    assert torch.equal(output, model(x))


def test_taps_share_the_parameters_and_leave_no_hooks():
    model = Two()
    tapped = taps(model, {"fine": "first"})
    tapped(torch.randn(1, 1, 4, 4))
    assert not model.first._forward_hooks
    assert {id(p) for p in tapped.parameters()} == {id(p) for p in model.parameters()}
    twin = copy.deepcopy(tapped)
    x = torch.randn(1, 1, 4, 4)
    assert torch.equal(twin(x)[1]["fine"], tapped(x)[1]["fine"])


def test_hooks_go_when_the_network_fails():
    model = Two()
    with pytest.raises(RuntimeError):
        taps(model, {"fine": "first"})(torch.randn(1, 3, 4, 4))
    assert not model.first._forward_hooks


def test_unknown_and_unused_modules_are_refused():
    nearest = r"the nearest: first \(4 channels, stride 1\), second \(2 channels, stride 2\)$"
    with pytest.raises(ValueError, match=rf"must name modules of Two, got \['third'\]; {nearest}"):
        taps(Two(), {"fine": "third"})
    with pytest.raises(TypeError, match=r"'unused' must return a tensor to be tapped, it gave nothing"):
        taps(Two(), {"fine": "unused"})(torch.randn(1, 1, 4, 4))


NETWORKS = {
    "UNet": ("model.00", "model.0 (8 channels, stride 2)"),
    "SegResNet": ("up_layer.2", "up_layers.2 (8 channels, stride 1)"),
    "DynUNet": ("downsample.0", "downsamples.0 (16 channels, stride 1x2x2)"),
    "SwinUNETR": ("encoder.1", "encoder1 (12 channels, stride 1)"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_path_is_answered_with_the_nearest_maps(name):
    """Of MONAI's networks, found without running them on values: weights, buffers and random numbers stay."""
    made = {
        "UNet": {"spatial_dims": 3, "channels": (8, 16, 32), "strides": (2, 2), "norm": "batch"},
        "SegResNet": {"init_filters": 8},
        "DynUNet": {
            "spatial_dims": 3,
            "kernel_size": [3, 3, 3],
            "strides": [1, (1, 2, 2), 2],
            "upsample_kernel_size": [(1, 2, 2), 2],
            "filters": [8, 16, 32],
        },
        "SwinUNETR": {"feature_size": 12},
    }
    model = getattr(nets, name)(in_channels=2, out_channels=3, **made[name]).train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    path, first = NETWORKS[name]
    with pytest.raises(ValueError, match="the nearest: ") as refusal:
        taps(model, {"fine": path})
    near = str(refusal.value).split("the nearest: ")[1]
    assert near.startswith(first)
    assert near.count(" channels, stride ") == 8
    assert near.endswith(" more")
    assert torch.equal(random, torch.get_rng_state())
    after = model.state_dict()
    assert not any(value.is_meta for value in after.values())
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_run_without_values_is_named_without_channels():
    class Reads(Two):
        def forward(self, x):
            return self.first(x) if x.sum().item() > 0 else x

    with pytest.raises(ValueError, match=r"the nearest: first, second, unused$"):
        taps(Reads(), {"fine": "firs"})
    with pytest.raises(ValueError, match=r"the nearest: 0$"):
        taps(nn.Sequential(nn.Linear(3, 4)), {"fine": "1"})


MODES = {"training": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def shift(inplace):
    """A network of one convolution, whose output is what the bias says, and a ReLU."""
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(inplace=inplace))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias[:] = torch.tensor([-2.37, 1.5])
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inplace", [True, False])
def test_features_before_a_module_that_works_in_place_are_the_module_s_own(mode, inplace):
    with MODES[mode]():
        output, features = taps(shift(inplace), {"fine": "0", "last": "1"})(torch.ones(1, 1, 3, 4, 5))
    assert features["fine"][0, :, 2, 3, 4].tolist() == pytest.approx([-2.37, 1.5])
    assert output[0, :, 2, 3, 4].tolist() == features["last"][0, :, 2, 3, 4].tolist() == [0.0, 1.5]


def test_features_before_a_module_that_works_in_place_have_a_gradient():
    model = shift(True)
    output, features = taps(model, {"fine": "0"})(torch.ones(1, 1, 3, 4, 5))
    (features["fine"].sum() + 10 * output.sum()).backward()
    assert model[0].bias.grad.tolist() == [60.0, 660.0]  # the ReLU stops the first channel of the output


class Overwrites(nn.Module):
    """Works in place without a module that says so, on a view of the features."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        first = self.first(x)
        first.flatten(2).clamp_(min=0.5)
        return first * 2


@pytest.mark.parametrize("mode", MODES)
def test_features_that_are_overwritten_otherwise_are_refused(mode):
    tapped = taps(Overwrites(), {"fine": "first"})
    with MODES[mode](), pytest.raises(RuntimeError, match=r"'first' was overwritten in place .* tap a later module"):
        tapped(torch.randn(1, 1, 30, 40))
    assert not tapped.model.first._forward_hooks


@pytest.mark.parametrize("mode", MODES)
def test_features_that_hold_nan_are_given_as_they_are(mode):
    with MODES[mode]():
        _, features = taps(shift(True), {"fine": "0"})(torch.full((1, 1, 2, 2, 2), math.nan))
    assert features["fine"].isnan().all()
