"""Losses at points against hand-worked values."""

import math

import pytest
import torch
from torch.nn import functional as F

from pointrend.losses import point_losses, soft_dice_loss


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
