"""What a config builds."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from pointrend.head import soft_dice_loss
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.core.hardware import peak_memory_mib, reset_peak_memory
from vnet.model.losses import negative_log_likelihood, segmentation_terms
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
