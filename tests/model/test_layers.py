"""The quicker layers give what torch's own give, forward and backward."""

import pytest
import torch
from torch import nn

from vnet.model import layers


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
