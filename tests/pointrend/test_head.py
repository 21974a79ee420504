"""The point head: a hand-worked MLP, re-concatenation, what an untrained head does."""

import math

import pytest
import torch
from torch import nn

from pointrend.head import PointHead, fourier_code


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
