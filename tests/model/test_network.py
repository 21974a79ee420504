"""V-Net: the paper's parameter count, sizes, strides, layers; and what a config builds: network, head, losses."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.head import PointHead, soft_dice_loss
from pointrend.reading import read_window
from vnet.core.config import NetworkConfig, load_config
from vnet.core.errors import InputError
from vnet.core.hardware import peak_memory_mib, reset_peak_memory
from vnet.model import layers
from vnet.model.losses import negative_log_likelihood, segmentation_terms
from vnet.model.network import SpaceToDepth, VNet, build_network
from vnet.model.point_head import ConvolvingHead
from vnet.model.segmenter import build_model, count_multiply_adds


def small(**kwargs: object) -> VNet:
    settings = {"classes": 3, "width": 4, "kernel": 3, "norm": "instance"} | kwargs
    return VNet(**settings).eval()


def test_parameters_of_the_papers_network_by_hand() -> None:
    """Figure 2 of arXiv 1606.04797, one input channel, two classes, PReLU with a slope per channel, no norm."""

    def conv(a: int, b: int, voxels: int) -> int:
        return a * b * voxels + b  # weights and biases

    def stage(inputs: int, channels: int, convolutions: int) -> int:
        first = conv(inputs, channels, 125)
        return first + (convolutions - 1) * conv(channels, channels, 125) + convolutions * channels  # and the slopes

    down = stage(1, 16, 1)
    for channels, convolutions in ((32, 2), (64, 3), (128, 3), (256, 3)):
        down += conv(channels // 2, channels, 8) + channels + stage(channels, channels, convolutions)
    up = 0
    # transposed convolutions give half of a stage's channels, the skip the other half
    for coming, half, convolutions in ((256, 128, 3), (256, 64, 3), (128, 32, 2), (64, 16, 1)):
        up += conv(coming, half, 8) + half + stage(2 * half, 2 * half, convolutions)
    expected = down + up + conv(32, 2, 1)
    network = VNet(in_channels=1, classes=2, norm="none")
    assert sum(p.numel() for p in network.parameters()) == expected == 65_175_314


def test_the_paper_is_the_default_config() -> None:
    built = build_network(NetworkConfig(norm="none"), in_channels=1, classes=2)
    shapes = [tuple(p.shape) for p in VNet(norm="none").parameters()]
    assert [tuple(p.shape) for p in built.parameters()] == shapes


@pytest.mark.parametrize("size", [(1, 1, 33), (17, 19, 23), (32, 16, 48)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_any_size_works_and_grids_have_the_size_of_their_stride(size: tuple[int, ...], stride: int) -> None:
    output = small(output_stride=stride)(torch.randn(2, 1, *size))
    assert output.logits.shape == (2, 3, *(-(-n // stride) for n in size))
    assert output.features["decoder"].shape[2:] == output.logits.shape[2:]
    for level in range(5):
        assert output.features[f"encoder{level + 1}"].shape == (2, 4 * 2**level, *(-(-n // 2**level) for n in size))


def test_padding_is_zeros_at_the_end() -> None:
    network, image = small(), torch.randn(1, 1, 17, 20, 33)
    padded = torch.zeros(1, 1, 32, 32, 48)
    padded[..., :17, :20, :33] = image
    torch.testing.assert_close(network(image).logits, network(padded).logits[..., :17, :20, :33])


def test_strides_per_axis_keep_thick_slices() -> None:
    strides = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    network = small(strides=strides, output_stride=(1, 2, 2))
    assert network.total_stride == (4, 16, 16)
    output = network(torch.randn(1, 1, 6, 32, 48))
    assert output.logits.shape == (1, 3, 6, 16, 24)
    assert output.features["encoder3"].shape[2:] == (6, 8, 12)


def test_a_stage_adds_its_input() -> None:
    """With the last convolution of each stage silenced and no norm, a stage passes its (non-negative) input on."""
    network = small(norm="none", act="relu")
    stage = network.encoders[0]
    torch.nn.init.zeros_(stage.last[0].weight)
    torch.nn.init.zeros_(stage.last[0].bias)
    image = torch.rand(1, 1, 16, 16, 16)
    features = network(image).features["encoder1"]
    torch.testing.assert_close(features, image.expand(1, 4, 16, 16, 16))


def test_several_input_channels_are_repeated_for_the_first_residual() -> None:
    network = small(norm="none", act="relu", in_channels=3)
    stage = network.encoders[0]
    torch.nn.init.zeros_(stage.last[0].weight)
    torch.nn.init.zeros_(stage.last[0].bias)
    image = torch.rand(1, 3, 16, 16, 16)
    torch.testing.assert_close(network(image).features["encoder1"], image[:, [0, 1, 2, 0]])


def test_dropout_is_off_at_zero_and_on_above() -> None:
    assert not any(isinstance(m, torch.nn.Dropout3d) for m in small(dropout=0.0).modules())
    network, image = small(dropout=0.5).train(), torch.randn(1, 1, 32, 32, 32)
    assert not torch.equal(network(image).logits, network(image).logits)
    network.eval()
    assert torch.equal(network(image).logits, network(image).logits)


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
@pytest.mark.parametrize("act", ["prelu", "relu", "leaky_relu", "elu"])
def test_every_parameter_gets_a_gradient(norm: str, act: str) -> None:
    network = small(norm=norm, act=act).train()
    network(torch.randn(2, 1, 32, 32, 32)).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_an_early_stop_leaves_the_rest_of_the_decoder_out() -> None:
    assert len(small(output_stride=1).decoders) == 4
    assert len(small(output_stride=4).decoders) == 2


def test_refusals() -> None:
    with pytest.raises(ValueError, match="classes must be 2 or more"):
        VNet(classes=1)
    with pytest.raises(ValueError, match=r"output_stride must be one of .*, got 16"):
        VNet(output_stride=16)
    with pytest.raises(ValueError, match="width must be at least the 3 input channels, got 2"):
        VNet(in_channels=3, width=2)
    with pytest.raises(ValueError, match="norm must be none"):
        VNet(norm="layer")
    with pytest.raises(ValueError, match="activation must be prelu"):
        VNet(act="gelu")


def test_blocks_of_voxels_become_channels() -> None:
    image = torch.arange(2 * 4 * 2 * 6).float().view(1, 2, 4, 2, 6)
    out = SpaceToDepth((2, 1, 3))(image)
    assert out.shape == (1, 12, 2, 2, 2)
    # channel 1, the second voxel along z and the third along x of each block
    torch.testing.assert_close(out[0, 6 + 1 * 3 + 2], image[0, 1, 1::2, :, 2::3])
    torch.testing.assert_close(
        SpaceToDepth((2, 2, 2))(image[:, :1, :, :, :4])[0],
        torch.stack([image[0, 0, z::2, y::2, x:4:2] for z in (0, 1) for y in (0, 1) for x in (0, 1)]),
    )


def test_a_space_to_depth_stem_has_no_stage_at_full_resolution() -> None:
    network = small(stem="space_to_depth", output_stride=4, in_channels=2)
    output = network(torch.randn(2, 2, 17, 32, 48))
    assert output.logits.shape == (2, 3, 5, 8, 12)
    assert set(output.features) == {"encoder2", "encoder3", "encoder4", "encoder5", "decoder"}
    assert output.features["encoder2"].shape == (2, 8, 9, 16, 24)
    assert network.downs[0][0].in_channels == 2 * 8
    assert not list(network.encoders[0].parameters())
    strides = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    thick = small(stem="space_to_depth", output_stride=(1, 2, 2), strides=strides)
    assert thick(torch.randn(1, 1, 16, 32, 32)).logits.shape == (1, 3, 16, 16, 16)


def test_a_thin_stage_adds_to_the_up_sampled_logits_at_full_resolution() -> None:
    torch.manual_seed(0)
    sizes = {"in_channels": 2, "output_stride": 4, "down": (1,) * 4, "up": (1,) * 3, "strides": [(2, 2, 2)] * 3}
    network, image = small(**sizes, thin_stage=5), torch.randn(2, 2, 9, 13, 16)
    assert (network.output_stride, network.decoder_stride) == ((1, 1, 1), (4, 4, 4))
    output = network(image)
    assert output.logits.shape == (2, 3, 9, 13, 16)
    assert output.features["decoder"].shape[2:] == (3, 4, 4)
    stage = network.thin_stage
    assert stage is not None
    with torch.no_grad():
        for parameter in stage.correction.parameters():
            parameter.zero_()
    padded = torch.zeros(2, 2, 16, 16, 16)
    padded[:, :, :9, :13] = image
    coarse = small(**sizes)
    coarse.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("thin_stage")})
    expected = nn.functional.interpolate(coarse(padded).logits, (16, 16, 16), mode="trilinear")[:, :, :9, :13]
    torch.testing.assert_close(network(image).logits, expected)


def test_stems_are_refused() -> None:
    with pytest.raises(ValueError, match="stem must be full or space_to_depth, got none"):
        small(stem="none")
    with pytest.raises(ValueError, match=r"output_stride must be one of \[\(2, 2, 2\), .*, got 1"):
        small(stem="space_to_depth")


def both(one, other, x):
    """Results and gradients (of x, then of weights) of two modules or functions at x, with the same random gradient."""
    results = []
    for module in (one, other):
        here = x.clone().requires_grad_()
        out = module(here)
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape))
        weights = module.parameters() if isinstance(module, nn.Module) else ()
        results.append([out.detach(), here.grad, *(weight.grad for weight in weights)])
    return zip(*results, strict=True)


@pytest.mark.parametrize("size", [(6, 5, 4), (7, 5, 4), (3, 4, 5), (2, 3, 4)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (5, 3, 3)])
def test_a_lone_sample_cut_in_two_is_convolved_as_a_whole(size, kernel):
    ours = layers.Convolution(3, 4, kernel, bias=True)
    theirs = nn.Conv3d(3, 4, kernel, padding=tuple(n // 2 for n in kernel))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, *size)
    assert layers.left_to_loops(x, kernel)
    for one, other in both(ours, theirs, x):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_lone_small_float32_samples_are_cut():
    lone = torch.zeros(1, 32, 24, 24, 24)
    assert layers.left_to_loops(lone, (3, 3, 3))
    assert not layers.left_to_loops(lone, (5, 5, 5))
    assert not layers.left_to_loops(lone.expand(2, -1, -1, -1, -1), (3, 3, 3))
    assert not layers.left_to_loops(lone.double(), (3, 3, 3))
    assert not layers.left_to_loops(torch.zeros(1, 32, 24, 27, 2), (3, 3, 3))
    assert not layers.left_to_loops(torch.zeros(1, 32, 1, 5, 5), (3, 3, 3))


def test_a_pointwise_convolution_is_torchs():
    ours, theirs = layers.Pointwise(5, 3), nn.Conv3d(5, 3, 1)
    theirs.load_state_dict(ours.state_dict())
    for one, other in both(ours, theirs, torch.randn(2, 5, 4, 3, 6)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_instance_norm_is_torchs():
    ours, theirs = layers.InstanceNorm(3), nn.InstanceNorm3d(3, affine=True)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        ours.bias.copy_(torch.tensor([1.0, 0.0, -3.0]))
    theirs.load_state_dict(ours.state_dict())
    for one, other in both(ours, theirs, 5 + 3 * torch.randn(2, 3, 4, 5, 6)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_instance_norm_refuses_a_single_voxel():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        layers.InstanceNorm(3)(torch.zeros(2, 3, 1, 1, 1))


@pytest.mark.parametrize("slopes", [[0.25, 0.25, 0.25], [0.0, -0.5, 1.5]])
def test_prelu_is_torchs(slopes):
    ours, theirs = layers.PReLU(3), nn.PReLU(3)
    with torch.no_grad():
        ours.weight.copy_(torch.tensor(slopes))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 4, 5, 6)
    x[0, :, 0] = 0  # where the two sides meet
    for one, other in both(ours, theirs, x):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_prelu_by_differences():
    prelu = layers.PReLU(2).double()
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(layers.SlopedReLU.apply, (x, prelu.weight))


@pytest.mark.parametrize("source", [(3, 4, 5), (1, 2, 7)])
@pytest.mark.parametrize("size", [(6, 8, 10), (5, 4, 21), (7, 9, 7)])
def test_upsampling_is_torchs(source, size):
    def torchs(x):
        return nn.functional.interpolate(x, size, mode="trilinear", align_corners=False)

    for one, other in both(lambda x: layers.upsample(x, size), torchs, torch.randn(2, 3, *source)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_upsampling_first_in_inference_mode_still_goes_backward():
    x = torch.randn(1, 2, 3, 4, 5)
    with torch.inference_mode():
        layers.upsample(x, (11, 13, 17))  # sizes that no other test has cached
    layers.upsample(x.requires_grad_(), (11, 13, 17)).sum().backward()
    assert x.grad is not None
    assert x.grad.sum().item() == pytest.approx(2 * 11 * 13 * 17, rel=1e-4)  # weights of a voxel sum to 1


def test_upsampling_double_precision_keeps_it():
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    expected = nn.functional.interpolate(x, (6, 8, 10), mode="trilinear", align_corners=False)
    torch.testing.assert_close(layers.upsample(x, (6, 8, 10)), expected)


WORDS = ["--arm", "pointrend_s2", "--network.width", "4", "--network.kernel", "3", "--points.num_points", "64"]


def test_the_window_is_of_the_image_and_of_the_stage_on_its_grid() -> None:
    plain, windowed = (
        build_model(load_config([*WORDS, "--points.window", str(n)]), in_channels=2, classes=3) for n in (1, 3)
    )
    assert plain.head is not None
    assert windowed.head is not None
    decoder = plain.network.feature_channels["decoder"]
    assert plain.head.head.features == 4 + decoder + 2
    assert windowed.head.head.features == 27 * 4 + decoder + 27 * 2
    # the network's weights do not depend on the head
    for one, other in zip(plain.network.parameters(), windowed.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_windowed_head_learns_and_predicts() -> None:
    model = build_model(load_config([*WORDS, "--points.window", "3"]), in_channels=1, classes=2)
    image, labels = torch.randn(1, 1, 16, 16, 32), torch.randint(2, (1, 16, 16, 32))
    terms = model(image, labels, [torch.Generator().manual_seed(0)])
    terms["point"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert model.network.encoders[0].last[0].weight.grad.abs().sum() > 0


def test_the_losses_at_points_are_those_of_the_points_that_the_head_drew() -> None:
    words = [*WORDS, "--training.point_dice_weight", "0.5"]
    model = build_model(load_config(words), in_channels=1, classes=3, ignore=9)
    image, labels = torch.randn(2, 1, 16, 16, 32), torch.randint(3, (2, 16, 16, 32))
    labels[0, :12] = 9
    generators = [[torch.Generator().manual_seed(seed) for seed in (0, 1)] for _ in range(3)]
    terms = model(image, labels, generators[0])
    assert list(terms) == ["dice", "cross_entropy", "point", "point_dice"]
    output = model.predict(image)
    assert model.head is not None
    arguments = (output.logits, output.features, image, labels)
    _, logits, truth = model.head.training_logits(*arguments, generators=generators[1])
    torch.testing.assert_close(terms["point_dice"], soft_dice_loss(logits.log_softmax(1), truth))
    # the points are as many in each sample, so that the library's mean over points is the mean over samples
    loss = model.head.loss(*arguments, generators=generators[2])
    torch.testing.assert_close(terms["point"] + 0.5 * terms["point_dice"], loss)
    model.zero_grad()
    terms["point_dice"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())


ON_NETWORK = [*WORDS[2:], "--points.logits", "network"]


@pytest.mark.parametrize("stride", [1, 2])
def test_losses_at_points_may_be_of_the_networks_own_logits(stride: int) -> None:
    """The points are those that a head draws from equal logits; their logits are the up-sampled ones."""
    words = [*ON_NETWORK, "--network.output_stride", str(stride), "--training.point_dice_weight", "1"]
    model = build_model(load_config(words), in_channels=1, classes=3, ignore=9)
    with_head = build_model(load_config([*words, "--points.logits", "head"]), in_channels=1, classes=3, ignore=9)
    assert model.head is None
    image, labels = torch.randn(2, 1, 16, 16, 32), torch.randint(3, (2, 16, 16, 32))
    labels[0, :12] = 9
    generators = [[torch.Generator().manual_seed(seed) for seed in (0, 1)] for _ in range(2)]
    terms = model(image, labels, generators[0])
    index = with_head.draw_points(image, labels, generators[1]).clone()
    logits = F.interpolate(model.network(image).logits, labels.shape[1:], mode="trilinear", align_corners=False)
    at_points = logits.flatten(2).gather(2, index[:, None].expand(-1, 3, -1))
    truth = labels.flatten(1).gather(1, index)
    assert not (truth == 9).any()
    torch.testing.assert_close(terms["point"], F.cross_entropy(at_points, truth))
    torch.testing.assert_close(terms["point_dice"], soft_dice_loss(at_points.log_softmax(1), truth))
    terms["point"].backward()
    assert model.network.logits.weight.grad.abs().sum() > 0
    # without the points it is the same network with the same loss of all voxels
    plain = build_model(load_config([*words, "--points.num_points", "0"]), in_channels=1, classes=3, ignore=9)
    rest = plain(image, labels, generators[0])
    assert list(rest) == ["dice", "cross_entropy"]
    assert all(torch.equal(rest[name], terms[name]) for name in rest)


STUDY = ["--config", "study_converged"]


def test_controls_of_the_converged_study_take_what_the_protocol_says() -> None:
    image = torch.zeros(1, 1, 48, 64, 48)
    models = {
        arm: build_model(load_config([*STUDY, "--arm", arm], check_arms=False), in_channels=1, classes=3)
        for arm in ("dense", "dense_points", "coarse_s4", "pointrend_s4", "thin_s4")
    }
    counts = {arm: count_multiply_adds(model, image) for arm, model in models.items()}
    assert counts["dense_points"] == counts["dense"]
    head = counts["pointrend_s4"] - counts["coarse_s4"]
    # 243 values of windows, 64 of the decoder, the 3 coarse logits before each layer
    each = (310 + 2 * 67) * 64 + 67 * 3
    assert head == 2048 * each
    for asked in (0, 5000):  # points of a prediction
        assert count_multiply_adds(models["pointrend_s4"], image, asked) == counts["coarse_s4"] + asked * each
    assert count_multiply_adds(models["dense"], image, 5000) == counts["dense"]
    # 12 channels to 4, and 3x3x3 of these to 3; the interpolation of 3 logits along z, y and x is counted too
    thin = 48 * 64 * 48 * (12 * 4 + 27 * 4 * 3)
    interpolation = 3 * (48 * 12 * (16 * 12) + 48 * 64 * 16 * 12 + 48 * 64 * 48 * 12)
    assert counts["thin_s4"] - counts["coarse_s4"] == thin + interpolation
    assert thin / head == pytest.approx(0.94, abs=0.005)
    assert counts["thin_s4"] / counts["pointrend_s4"] == pytest.approx(1.0, abs=0.005)
    assert models["thin_s4"].head is None


def test_top_k_cross_entropy_by_hand() -> None:
    """Of eight voxels the two ignored ones never count; half of the other six are three."""
    losses = torch.tensor([[0.1, 3.0, 9.9, 0.5, 1.0, 9.9, 2.0, 0.2], [0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0]])
    labels = torch.zeros(2, 8, dtype=torch.int64)
    labels[0, [2, 5]] = 7
    log_probabilities = torch.stack([-losses, torch.zeros(2, 8)], dim=1)  # (B, K, N)
    found = negative_log_likelihood(log_probabilities, labels, 7, 0.5)
    assert float(found) == pytest.approx(((3.0 + 2.0 + 1.0) / 3 + (0.4 + 0.3 + 0.2 + 0.1) / 4) / 2)
    # the share is rounded up: of six voxels .2 are two
    assert float(negative_log_likelihood(log_probabilities[:1], labels[:1], 7, 0.2)) == pytest.approx(2.5)
    every = negative_log_likelihood(log_probabilities, labels, 7, 1 - 1e-7)
    assert float(every) == pytest.approx(float(negative_log_likelihood(log_probabilities, labels, 7)))
    assert float(negative_log_likelihood(log_probabilities[:1], torch.full((1, 8), 7), 7, 0.5)) == 0


def test_the_share_of_the_config_reaches_the_loss_of_all_voxels_alone() -> None:
    words = [*ON_NETWORK, "--network.output_stride", "1"]
    image, labels = torch.randn(1, 1, 16, 16, 32), torch.randint(2, (1, 16, 16, 32))
    terms = []
    for more in ([], ["--training.top_k_share", "0.1"]):
        model = build_model(load_config([*words, *more]), in_channels=1, classes=2)
        terms.append(model(image, labels, [torch.Generator().manual_seed(0)]))
        losses = F.cross_entropy(model.network(image).logits, labels, reduction="none").flatten()
    assert torch.equal(terms[0]["point"], terms[1]["point"])
    torch.testing.assert_close(terms[0]["cross_entropy"], losses.mean())
    torch.testing.assert_close(terms[1]["cross_entropy"], losses.topk(820).values.mean())  # a tenth of 8192, up


def test_without_a_weight_there_is_no_dice_at_points() -> None:
    model = build_model(load_config([*WORDS, "--training.point_dice_weight", "0"]), in_channels=1, classes=2)
    image, labels = torch.randn(1, 1, 16, 16, 32), torch.randint(2, (1, 16, 16, 32))
    assert "point_dice" not in model(image, labels, [torch.Generator()])


def test_quotas_are_one_a_label() -> None:
    config = load_config([*WORDS, "--points.quotas", "[0,0.5]"])
    assert build_model(config, in_channels=1, classes=2).head.sampling.quotas == (0.0, 0.5)
    with pytest.raises(InputError, match=r"points.quotas must hold one share a label, 3 here, got \[0.0, 0.5\]"):
        build_model(config, in_channels=1, classes=3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory can be reset on Linux alone")
def test_the_peak_starts_anew() -> None:
    block = np.ones(100 * 2**17)  # 100 MiB
    before = peak_memory_mib()
    assert block.all()
    del block
    if not reset_peak_memory():
        pytest.skip("this kernel does not reset the peak")
    after = peak_memory_mib()
    assert before - after > 80
    again = np.ones(200 * 2**17)
    assert again.all()
    assert peak_memory_mib() - after > 150


def test_dice_of_a_perfect_and_of_a_wrong_answer() -> None:
    labels = torch.randint(0, 3, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    sure = 50 * F.one_hot(labels, 3).movedim(-1, 1).float()
    assert float(soft_dice_loss(sure.log_softmax(1), labels)) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice_loss(sure.log_softmax(1), (labels + 1) % 3)) == pytest.approx(1, abs=1e-6)


def test_dice_by_hand() -> None:
    # four voxels, two of class 1, probabilities of class 1: .8 .6 .4 .2 -> 2 * 1.4 / (2 + 2)
    p = torch.tensor([0.8, 0.6, 0.4, 0.2])
    logits = torch.stack([torch.zeros(4), torch.log(p / (1 - p))])[None, :, :, None, None]
    labels = torch.tensor([1, 1, 0, 0])[None, :, None, None]
    assert float(soft_dice_loss(logits.log_softmax(1), labels)) == pytest.approx(1 - 2.8 / 4, abs=1e-6)


def test_dice_equals_monai_where_all_classes_are_present() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 5, 6, 7, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 6, 7), generator=generator)
    monai = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)
    torch.testing.assert_close(soft_dice_loss(logits.log_softmax(1), labels), monai(logits, labels[:, None]))


def test_absent_classes_do_not_count_in_dice() -> None:
    labels = torch.zeros(1, 2, 3, 4, dtype=torch.int64)
    logits = torch.randn(1, 3, 2, 3, 4, requires_grad=True)
    loss = soft_dice_loss(logits.log_softmax(1), labels)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_batch_is_the_mean_of_its_samples() -> None:
    """So that processes with equal shares of a batch agree with one process."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 3, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 3, (3, 4, 5, 6), generator=generator)
    labels[0, :2] = 9
    whole = segmentation_terms(logits, labels, ignore=9)
    parts = [segmentation_terms(logits[i : i + 1], labels[i : i + 1], ignore=9) for i in range(3)]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean())


def test_ignored_voxels_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 3, 4, 5, 6, generator=generator)
    labels = torch.randint(0, 3, (1, 4, 5, 6), generator=generator)
    labels[0, 1] = 255
    before = segmentation_terms(logits, labels, ignore=255)
    logits[0, :, 1] = 1000 * torch.randn(3, 5, 6, generator=generator)
    after = segmentation_terms(logits, labels, ignore=255)
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_all_ignored_is_zero_with_a_gradient() -> None:
    logits = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    terms = segmentation_terms(logits, torch.full((1, 3, 4, 5), 7), ignore=7)
    total = terms["dice"] + terms["cross_entropy"]
    total.backward()
    assert total.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0]]).reshape(1, 2, 1)
    assert float(negative_log_likelihood(logits.log_softmax(1), torch.tensor([[1]]), -100)) == pytest.approx(
        math.log(1 + math.exp(-1))
    )


def test_coarse_logits_are_scored_on_the_full_grid() -> None:
    coarse = torch.randn(1, 3, 3, 4, 5)
    labels = torch.randint(0, 3, (1, 6, 8, 10))
    fine = F.interpolate(coarse, size=(6, 8, 10), mode="trilinear", align_corners=False)
    expected = segmentation_terms(fine, labels)
    for name, value in segmentation_terms(coarse, labels).items():
        torch.testing.assert_close(value, expected[name])


HEAD_SIZE = (7, 8, 9)


def head(window: int = 5, features: int = 0) -> ConvolvingHead:
    torch.manual_seed(0)
    made = ConvolvingHead(
        image_channels=2, window=window, convolution=4, features=features + 2 * window**3, classes=3, width=6
    )
    made.convolution.bias.data.normal_()
    return made


@pytest.mark.parametrize("window", [3, 5])
def test_windows_are_convolved_as_the_whole_image(window: int) -> None:
    made, image = head(window), torch.randn(2, 2, *HEAD_SIZE)
    whole = F.relu(F.conv3d(image, made.convolution.weight.view(4, 2, 3, 3, 3), made.convolution.bias, padding=1))
    index = torch.tensor([[(z * 8 + y) * 9 + x for z, y, x in ((3, 4, 5), (2, 3, 6))]] * 2)  # away from the border
    points = voxel_centres(index, HEAD_SIZE)
    got = made.convolve(read_window(image, points, window, HEAD_SIZE))
    torch.testing.assert_close(got, read_window(whole, points, window - 2, HEAD_SIZE))


def test_the_rest_is_the_plain_head() -> None:
    made, fine, coarse = head(features=7), torch.randn(2, 7 + 2 * 125, 11), torch.randn(2, 3, 11)
    joined = torch.cat([fine[:, :7], made.convolve(fine[:, 7:])], dim=1)
    assert made.features == 7 + 4 * 27
    torch.testing.assert_close(made(fine, coarse), PointHead.forward(made, joined, coarse))
    assert made(fine[..., :0], coarse[..., :0]).shape == (2, 3, 0)


def test_points_only_trains_all_weights_and_takes_less_than_lean_s4() -> None:
    words = ["--network.width", "4", "--network.kernel", "3", "--network.norm", "instance", "--points.num_points", "64"]
    costs = {}
    for arm in ("points_only_s4", "lean_s4"):
        model = build_model(load_config(["--arm", arm, *words]), in_channels=2, classes=3)
        image, labels = torch.randn(2, 2, 16, 32, 32), torch.randint(3, (2, 16, 32, 32))
        terms = model(image, labels, [torch.Generator().manual_seed(i) for i in range(2)])
        sum(terms.values()).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert missing == []
        costs[arm] = count_multiply_adds(model, image[:1])
    assert costs["points_only_s4"] < costs["lean_s4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--points.image_convolution", "-1"], "points.image_convolution must be 0 or more, got -1"),
        (["--points.image_convolution", "8", "--points.window", "1"], "be 0 without points.image or a window of 3"),
        (["--points.image_convolution", "8", "--points.image", "false"], "be 0 without points.image or a window of 3"),
        (["--network.stem", "space_to_depth"], "network.output_stride must be the stride of a decoder stage"),
        (
            ["--network.stem", "space_to_depth", "--network.output_stride", "2"],
            "points.features must name stages of .*, got encoder1",
        ),
        (["--network.thin_stage", "4"], "network.thin_stage must be 0 where the decoder reaches full resolution"),
        (["--network.thin_stage", "-1"], "network.thin_stage must be 0 or more, got -1"),
        (["--training.top_k_share", "0"], r"training.top_k_share must lie in \(0, 1\], got 0"),
    ],
)
def test_heads_and_stems_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(words)
