"""Boxes: their coordinates, the voxels inside, and RoIAlign against values worked by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from pointrend.boxes import Boxes, roi_align, sample_in_boxes, two_logits
from pointrend.reading import best_class, uncertainty


def boxes_of(corners, sample=None, **options):
    corners = torch.tensor(corners, dtype=torch.float64)
    sample = torch.zeros(len(corners), dtype=torch.int64) if sample is None else torch.tensor(sample)
    return Boxes(corners=corners, sample=sample, **options)


def test_points_go_to_the_image_and_back():
    boxes = boxes_of([[0.1, 0.2, 0.5, 0.3, 0.6, 0.75], [0.0, 0.5, 0.25, 1.0, 1.0, 0.5]])
    points = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.25, 0.8]]] * 2, dtype=torch.float64)
    expected = torch.tensor(
        [
            [[0.1, 0.2, 0.5], [0.3, 0.6, 0.75], [0.2, 0.3, 0.7]],
            [[0.0, 0.5, 0.25], [1.0, 1.0, 0.5], [0.5, 0.625, 0.45]],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(boxes.to_image(points), expected)
    torch.testing.assert_close(boxes.to_box(expected), points)


def test_windows_hold_the_voxels_whose_centres_lie_inside():
    # of 10 rows and 20 columns: centres .5 1.5 ...; the box spans rows 1.4 to 3.6 and columns 2.6 to 5.5
    first, stop = boxes_of([[0.14, 0.13, 0.36, 0.275]]).windows((10, 20))
    assert first.tolist() == [[1, 3]]
    assert stop.tolist() == [[4, 5]]  # 5.5 is the centre of column 5 and not below the edge
    # beyond the image it is cut; a box between two centres has the voxel of its middle
    first, stop = boxes_of([[-0.5, 0.9, 2.0, 1.5], [0.06, 0.01, 0.14, 0.02]]).windows((10, 20))
    assert first.tolist() == [[0, 18], [1, 0]]
    assert stop.tolist() == [[10, 20], [2, 1]]


def test_windows_of_a_grid_that_fills_a_share_of_the_cube():
    # 8 voxels over the first half of the cube: voxels of 1 / 16
    first, stop = boxes_of([[0.25, 0.0, 0.375, 1.0]]).windows((8, 4), extent=(0.5, 1.0))
    assert first.tolist() == [[4, 0]]
    assert stop.tolist() == [[6, 4]]


def test_a_linear_ramp_is_read_exactly_in_each_boxs_own_image():
    y, x = torch.meshgrid((torch.arange(12) + 0.5) / 12, (torch.arange(20) + 0.5) / 20, indexing="ij")
    volume = torch.stack([10 * y + x, -3 * y + 7 * x])[:, None]  # two images of one channel
    boxes = boxes_of([[0.2, 0.3, 0.6, 0.5], [0.1, 0.4, 0.9, 0.8], [0.3, 0.3, 0.4, 0.4]], [1, 0, 1])
    points = boxes.to_image(torch.rand(3, 5, 2, dtype=torch.float64))
    weights = torch.tensor([[-3.0, 7.0], [10.0, 1.0], [-3.0, 7.0]], dtype=torch.float64)
    expected = (points * weights[:, None]).sum(-1)[:, None]
    torch.testing.assert_close(sample_in_boxes(volume.double(), points, boxes), expected)


def test_roi_align_of_a_ramp_is_the_ramp_at_the_bins_centres():
    y, x = torch.meshgrid((torch.arange(12) + 0.5) / 12, (torch.arange(20) + 0.5) / 20, indexing="ij")
    boxes = boxes_of([[0.2, 0.3, 0.8, 0.5]])
    bins = roi_align((10 * y + x)[None, None].double(), boxes, (3, 2), samples=4)
    rows, columns = torch.tensor([0.3, 0.5, 0.7]), torch.tensor([0.35, 0.45])
    torch.testing.assert_close(bins[0, 0], (10 * rows[:, None] + columns).double())


def test_roi_align_of_the_whole_image_is_average_pooling():
    volume = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64)
    boxes = boxes_of([[0, 0, 0, 1, 1, 1]] * 2, [1, 0])
    expected = F.avg_pool3d(volume, 2)[[1, 0]]
    torch.testing.assert_close(roi_align(volume, boxes, (2, 3, 4), samples=2), expected)


def test_no_boxes_give_empty_tensors_of_the_right_shape():
    none = Boxes(corners=torch.zeros(0, 4), sample=torch.zeros(0, dtype=torch.int64))
    volume = torch.randn(2, 3, 8, 8)
    assert sample_in_boxes(volume, torch.zeros(0, 5, 2), none).shape == (0, 3, 5)
    assert roi_align(volume, none, (7, 7)).shape == (0, 3, 7, 7)
    assert none.windows((8, 8))[0].shape == (0, 2)


def test_one_logit_against_zero_is_the_binary_case():
    logit = torch.tensor([[[-2.0, 0.5, 3.0]]])
    pair = two_logits(logit)
    torch.testing.assert_close(pair.softmax(1)[:, 1:], logit.sigmoid())
    torch.testing.assert_close(uncertainty(pair), -logit[:, 0].abs())
    assert best_class(pair).tolist() == [[0, 1, 1]]


def test_the_categorys_logit_is_the_one_that_competes():
    logits = torch.arange(12.0).view(2, 3, 2)
    boxes = boxes_of([[0, 0, 1, 1]] * 2, category=torch.tensor([2, 1]))
    assert boxes.mask_logits(logits).tolist() == [[[0, 0], [4, 5]], [[0, 0], [8, 9]]]
    assert boxes_of([[0, 0, 1, 1]] * 2).mask_logits(logits) is logits


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([[0.0, 0.0, 1.0]], r"corners must be floating point \(R, 4\) or \(R, 6\), got torch.float64 \(1, 3\)"),
        ([[0.0, 0.5, 1.0, 0.5]], "corners must be finite, low below high, got .* for box 0"),
        ([[0, 0, 1, 1], [0.0, 0.0, math.nan, 1.0]], "corners must be finite, low below high, got .* for box 1"),
        ([[0, 0, 1, 1], [0.0, 1.0, 0.5, 1.5]], "boxes must overlap the unit cube, got .* for box 1"),
    ],
)
def test_corners_are_checked(corners, message):
    with pytest.raises(ValueError, match=message):
        boxes_of(corners)


def test_rows_of_images_and_labels_are_checked():
    with pytest.raises(ValueError, match=r"sample must be int64 \(1,\), one per box, got torch.int64 \(2,\)"):
        boxes_of([[0, 0, 1, 1]], [0, 0])
    with pytest.raises(ValueError, match=r"category must be int64 \(1,\), one per box, got torch.float32"):
        boxes_of([[0, 0, 1, 1]], category=torch.zeros(1))
    boxes = boxes_of([[0, 0, 1, 1]], [2])
    with pytest.raises(ValueError, match=r"sample must lie in \[0, 2\), got 2 to 2"):
        sample_in_boxes(torch.zeros(2, 1, 4, 4), torch.zeros(1, 3, 2), boxes)
