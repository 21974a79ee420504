"""Taps on networks: which features they give, and what they refuse."""

import copy
import math

import pytest
import torch
from monai.networks import nets
from torch import nn

from pointrend import taps


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
