"""What a config builds."""

from __future__ import annotations

import pytest
import torch

from pointrend.head import soft_dice_loss
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.model.segmenter import build_model

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


def test_without_a_weight_there_is_no_dice_at_points() -> None:
    model = build_model(load_config([*WORDS, "--training.point_dice_weight", "0"]), in_channels=1, classes=2)
    image, labels = torch.randn(1, 1, 16, 16, 32), torch.randint(2, (1, 16, 16, 32))
    assert "point_dice" not in model(image, labels, [torch.Generator()])


def test_quotas_are_one_a_label() -> None:
    config = load_config([*WORDS, "--points.quotas", "[0,0.5]"])
    assert build_model(config, in_channels=1, classes=2).head.sampling.quotas == (0.0, 0.5)
    with pytest.raises(InputError, match=r"points.quotas must hold one share a label, 3 here, got \[0.0, 0.5\]"):
        build_model(config, in_channels=1, classes=3)
