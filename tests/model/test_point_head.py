"""The head that convolves its window of the image: against a convolution of the whole image, and in a network."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.head import PointHead
from pointrend.reading import read_window
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.model.point_head import ConvolvingHead
from vnet.model.segmenter import build_model, count_multiply_adds

SIZE = (7, 8, 9)


def head(window: int = 5, features: int = 0) -> ConvolvingHead:
    torch.manual_seed(0)
    made = ConvolvingHead(
        image_channels=2, window=window, convolution=4, features=features + 2 * window**3, classes=3, width=6
    )
    made.convolution.bias.data.normal_()
    return made


@pytest.mark.parametrize("window", [3, 5])
def test_windows_are_convolved_as_the_whole_image(window: int) -> None:
    made, image = head(window), torch.randn(2, 2, *SIZE)
    whole = F.relu(F.conv3d(image, made.convolution.weight.view(4, 2, 3, 3, 3), made.convolution.bias, padding=1))
    index = torch.tensor([[(z * 8 + y) * 9 + x for z, y, x in ((3, 4, 5), (2, 3, 6))]] * 2)  # away from the border
    points = voxel_centres(index, SIZE)
    got = made.convolve(read_window(image, points, window, SIZE))
    torch.testing.assert_close(got, read_window(whole, points, window - 2, SIZE))


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
    ],
)
def test_refusals(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(words)
