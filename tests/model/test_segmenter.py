"""What a config builds: network, head and losses; the head that convolves its window of the image."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.head import PointHead, soft_dice_loss
from pointrend.reading import read_window
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.core.hardware import peak_memory_mib, reset_peak_memory
from vnet.model.losses import negative_log_likelihood, segmentation_terms
from vnet.model.point_head import ConvolvingHead
from vnet.model.segmenter import build_model, count_multiply_adds

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
