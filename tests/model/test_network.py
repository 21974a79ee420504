"""V-Net: the paper's parameter count, sizes, strides, features."""

import pytest
import torch

from vnet.core.config import NetworkConfig
from vnet.model.network import VNet, build_network


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
