"""V-Net: the paper's parameter count, sizes, strides, features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vnet.core.config import NetworkConfig
from vnet.model import layers
from vnet.model.network import SpaceToDepth, VNet, build_network


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
