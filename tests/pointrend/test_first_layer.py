"""The head's first layer by voxel, against the layer of windows that are read at the points themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointrend import PointRend
from pointrend import first_layer as by_voxel
from pointrend._kernels.first_layer import find_corners
from pointrend.coordinates import voxel_centres
from pointrend.head import PointHead

SIZES = {2: [(7, 5), (3, 2)], 3: [(6, 5, 7), (3, 2, 4)]}


def a_head(ndim: int, windows: dict[str, int]) -> tuple[PointRend, dict[str, torch.Tensor], torch.Tensor]:
    """A head whose answers are far from its coarse logits, with a fine and a deep map and an image of two samples."""
    torch.manual_seed(0)
    head = PointRend(classes=3, features={"fine": 3, "deep": 5}, image_channels=2, width=16, windows=windows, ndim=ndim)
    torch.nn.init.normal_(head.head.logits.weight)
    fine, deep = SIZES[ndim]
    return head, {"fine": torch.randn(2, 3, *fine), "deep": torch.randn(2, 5, *deep)}, torch.randn(2, 2, *fine)


def both_ways(head, points, coarse, features, image, grid=None):
    """Logits with every window read at its point (wanting gradients), and as prediction makes them."""
    wanted = head.predict_points(points, coarse, features, image, grid=grid).detach()
    with torch.no_grad():
        return wanted, head.predict_points(points, coarse, features, image, grid=grid)


@settings(deadline=None)
@given(
    ndim=st.sampled_from([2, 3]),
    windows=st.fixed_dictionaries({name: st.sampled_from([1, 3, 5]) for name in ("fine", "deep", "image")}),
    count=st.sampled_from([1, 40, 5000]),
    low=st.floats(0, 0.9),
    share=st.floats(0.01, 1),
)
def test_it_is_the_layer_of_windows_read_at_the_points(ndim, windows, count, low, share):
    head, features, image = a_head(ndim, windows)
    points = (low + torch.rand(2, count, ndim) * share).clamp(0, 1)
    points[:, : count // 4] = points[:, : count // 4].round()  # on the faces of the cube
    wanted, found = both_ways(head, points, torch.randn(2, 3, count), features, image)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_voxel_centres_read_their_own_voxel_alone(ndim):
    """NaN next to a voxel does not reach it where the grid is known."""
    head, features, image = a_head(ndim, {"fine": 1, "deep": 1, "image": 1})
    size = SIZES[ndim][0]
    index = torch.arange(image[0, 0].numel())[None].expand(2, -1)
    features["fine"].view(2, 3, -1)[:, :, 1::2] = torch.nan
    points, coarse = voxel_centres(index, size), torch.randn(2, 3, index.shape[1])
    with torch.no_grad():
        logits = head.predict_points(points, coarse, features, image, grid=size)
    assert torch.equal(logits.isnan().any(1), (index % 2).bool())


def test_voxels_around_the_points_are_found_once_each():
    """Two points between the voxels 1 and 2, 0 and 1, 2 and 3 of (z, y, x); the border counts one voxel."""
    points = np.tile(np.array([[2 / 5, 1 / 4, 3 / 6]], np.float32), (20, 1))
    corners = find_corners(points, np.array([5, 4, 6]))
    wide = (7, 6, 8)
    expected = [np.ravel_multi_index((z, y, x), wide) for z in (2, 3) for y in (1, 2) for x in (3, 4)]
    assert corners.index.tolist() == expected
    assert corners.first.tolist() == [2, 1, 3]
    assert corners.rows.ravel().tolist() == list(range(8))


@pytest.mark.parametrize(("count", "share"), [(30, 1.0), (7, 1e-4)], ids=["scattered", "fewer than the voxels around"])
def test_points_that_share_no_voxels_read_their_own_windows(count, share):
    points = 0.501 + share * (np.random.default_rng(0).random((count, 3), dtype=np.float32) - 0.5) * 0.99
    assert find_corners(points.astype(np.float32), np.array([50, 40, 60])) is None
    assert find_corners(np.full((9, 3), 0.501, np.float32), np.array([50, 40, 60])) is not None


def test_a_head_that_changes_its_inputs_is_asked_itself():
    """A subclass may do something before the first layer, which must not be passed over."""

    class Doubling(PointHead):
        def forward(self, fine, coarse, points=None):
            return super().forward(2 * fine, coarse, points)

    head, features, image = a_head(3, {"fine": 3, "image": 3})
    head.head = Doubling(classes=3, features=head.inputs.width(3), width=16)
    torch.nn.init.normal_(head.head.logits.weight)
    wanted, found = both_ways(head, torch.rand(2, 5000, 3), torch.randn(2, 3, 5000), features, image)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_many_points_between_few_voxels_read_no_window_of_their_own(monkeypatch):
    head, features, image = a_head(3, {"fine": 3, "image": 3})
    points = torch.rand(2, 5000, 3)

    def refused(*arguments):
        raise AssertionError("a window was read at the points")

    monkeypatch.setattr(by_voxel, "read_window", refused)
    with torch.no_grad():
        head.predict_points(points, torch.randn(2, 3, 5000), features, image)


def test_half_precision_maps_are_read_in_float32():
    head, features, image = a_head(3, {"fine": 3, "image": 3})
    points, coarse = torch.rand(2, 500, 3), torch.randn(2, 3, 500)
    low = {name: volume.bfloat16() for name, volume in features.items()}
    wanted, _ = both_ways(head, points, coarse, {name: volume.float() for name, volume in low.items()}, image)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.predict_points(points, coarse, low, image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("frequencies", "dtype"), [(2, torch.float32), (0, torch.float64)], ids=["Fourier code", "float64"]
)
def test_other_heads_read_at_the_points(frequencies, dtype):
    head = PointRend(classes=2, features={"fine": 3}, frequencies=frequencies).to(dtype)
    torch.nn.init.normal_(head.head.logits.weight)
    features = {"fine": torch.randn(1, 3, 3, 4, 5, dtype=dtype)}
    points, coarse = torch.rand(1, 700, 3, dtype=dtype), torch.randn(1, 2, 700, dtype=dtype)
    wanted, found = both_ways(head, points, coarse, features, None)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
