"""Taps on networks: which features they give, and what they refuse."""

import copy

import pytest
import torch
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
    with pytest.raises(ValueError, match=r"must name modules of Two, got \['third'\]; it has \['first', "):
        taps(Two(), {"fine": "third"})
    with pytest.raises(TypeError, match=r"'unused' must return a tensor to be tapped, it gave nothing"):
        taps(Two(), {"fine": "unused"})(torch.randn(1, 1, 4, 4))
