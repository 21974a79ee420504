"""PointRend in boxes: coordinates and RoIAlign by hand, the loss, refinement alone and in the whole image."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointrend import PointRend
from pointrend.boxes import Boxes, roi_align, sample_in_boxes, two_logits
from pointrend.coordinates import voxel_centres
from pointrend.reading import best_class, sample_at, uncertainty
from pointrend.sampling import PointSampling, box_training_voxels


class Recorder(PointRend):
    """Keeps what its head was given and gives back the coarse logits."""

    def predict_points(self, points, coarse, features, image=None, *, grid=None):
        fine = torch.cat([sample_at(features[name], points) for name in self.feature_names], dim=1)
        self.seen = [*getattr(self, "seen", []), (points, fine, coarse)]
        return coarse


class Position(PointRend):
    """Class 1 where the axes of the image's point sum to more than half of their number, else class 0."""

    def predict_points(self, points, coarse, features, image=None, *, grid=None):
        above = points.sum(-1) - points.shape[-1] / 2
        return torch.stack([-above, above], dim=1).to(coarse.dtype)


def boxes_of(corners, sample=None, dtype=torch.float32, **options):
    corners = torch.tensor(corners, dtype=dtype)
    sample = torch.zeros(len(corners), dtype=torch.int64) if sample is None else torch.tensor(sample)
    return Boxes(corners=corners, sample=sample, **options)


def a_model(kind=PointRend, ndim=2, classes=2, **options):
    torch.manual_seed(0)
    model = kind(**{"classes": classes, "features": {"fine": 4}, "width": 8, "ndim": ndim, "dice_weight": 0} | options)
    nn.init.normal_(model.head.logits.weight)
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_boxes(corners, sample=None, **options):
    return boxes_of(corners, sample, torch.float64, **options)


# ---- boxes


def test_points_go_to_the_image_and_back():
    boxes = exact_boxes([[0.1, 0.2, 0.5, 0.3, 0.6, 0.75], [0.0, 0.5, 0.25, 1.0, 1.0, 0.5]])
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
    first, stop = exact_boxes([[0.14, 0.13, 0.36, 0.275]]).windows((10, 20))
    assert first.tolist() == [[1, 3]]
    assert stop.tolist() == [[4, 5]]  # 5.5 is the centre of column 5 and not below the edge
    # beyond the image it is cut; a box between two centres has the voxel of its middle
    first, stop = exact_boxes([[-0.5, 0.9, 2.0, 1.5], [0.06, 0.01, 0.14, 0.02]]).windows((10, 20))
    assert first.tolist() == [[0, 18], [1, 0]]
    assert stop.tolist() == [[10, 20], [2, 1]]


def test_windows_of_a_grid_that_fills_a_share_of_the_cube():
    # 8 voxels over the first half of the cube: voxels of 1 / 16
    first, stop = exact_boxes([[0.25, 0.0, 0.375, 1.0]]).windows((8, 4), extent=(0.5, 1.0))
    assert first.tolist() == [[4, 0]]
    assert stop.tolist() == [[6, 4]]


def test_a_linear_ramp_is_read_exactly_in_each_boxs_own_image():
    y, x = torch.meshgrid((torch.arange(12) + 0.5) / 12, (torch.arange(20) + 0.5) / 20, indexing="ij")
    volume = torch.stack([10 * y + x, -3 * y + 7 * x])[:, None]  # two images of one channel
    boxes = exact_boxes([[0.2, 0.3, 0.6, 0.5], [0.1, 0.4, 0.9, 0.8], [0.3, 0.3, 0.4, 0.4]], [1, 0, 1])
    points = boxes.to_image(torch.rand(3, 5, 2, dtype=torch.float64))
    weights = torch.tensor([[-3.0, 7.0], [10.0, 1.0], [-3.0, 7.0]], dtype=torch.float64)
    expected = (points * weights[:, None]).sum(-1)[:, None]
    torch.testing.assert_close(sample_in_boxes(volume.double(), points, boxes), expected)


def test_roi_align_of_a_ramp_is_the_ramp_at_the_bins_centres():
    y, x = torch.meshgrid((torch.arange(12) + 0.5) / 12, (torch.arange(20) + 0.5) / 20, indexing="ij")
    boxes = exact_boxes([[0.2, 0.3, 0.8, 0.5]])
    bins = roi_align((10 * y + x)[None, None].double(), boxes, (3, 2), samples=4)
    rows, columns = torch.tensor([0.3, 0.5, 0.7]), torch.tensor([0.35, 0.45])
    torch.testing.assert_close(bins[0, 0], (10 * rows[:, None] + columns).double())


def test_roi_align_of_the_whole_image_is_average_pooling():
    volume = torch.randn(2, 3, 4, 6, 8, dtype=torch.float64)
    boxes = exact_boxes([[0, 0, 0, 1, 1, 1]] * 2, [1, 0])
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
    boxes = exact_boxes([[0, 0, 1, 1]] * 2, category=torch.tensor([2, 1]))
    assert boxes.mask_logits(logits).tolist() == [[[0, 0], [4, 5]], [[0, 0], [8, 9]]]
    assert exact_boxes([[0, 0, 1, 1]] * 2).mask_logits(logits) is logits


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
        exact_boxes(corners)


def test_rows_of_images_and_labels_are_checked():
    with pytest.raises(ValueError, match=r"sample must be int64 \(1,\), one per box, got torch.int64 \(2,\)"):
        exact_boxes([[0, 0, 1, 1]], [0, 0])
    with pytest.raises(ValueError, match=r"category must be int64 \(1,\), one per box, got torch.float32"):
        exact_boxes([[0, 0, 1, 1]], category=torch.zeros(1))
    boxes = exact_boxes([[0, 0, 1, 1]], [2])
    with pytest.raises(ValueError, match=r"sample must lie in \[0, 2\), got 2 to 2"):
        sample_in_boxes(torch.zeros(2, 1, 4, 4), torch.zeros(1, 3, 2), boxes)


# ---- the head's inputs


def test_the_heads_inputs_are_those_of_the_official_sampling():
    """Values by hand. The official 2D code takes a point (x, y) of a box to the image by x * (x1 - x0) + x0, to the
    feature map of stride 4 by a quarter of that, and reads the coarse logits at the point of the box itself; both with
    centres at i + .5."""
    # a map of 8 x 12 voxels at stride 4 over an image of 32 x 48 pixels: the value at voxel (i, j) is 10 i + j
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    features = {"fine": (10 * rows + columns).expand(1, 4, 8, 12)}
    coarse = torch.arange(4.0).view(1, 1, 2, 2)  # 0 1 / 2 3 in the box
    # pixels x 8 to 24 and y 4 to 20
    boxes = boxes_of([[4 / 32, 8 / 48, 20 / 32, 24 / 48]])
    # the point (.25, .5) of the box, y first: pixel y 8, x 16; voxel y 2 - .5 = 1.5, x 4 - .5 = 3.5: 10 * 1.5 + 3.5
    # the coarse logits there: rows at .25 * 2 - .5 = 0, columns at .5 * 2 - .5 = .5: (0 + 1) / 2
    # the point (.5, .75): pixel y 12, x 20; voxel 2.5, 4.5: 29.5; coarse rows .5, columns 1: (1 + 3) / 2
    points = boxes.to_image(torch.tensor([[[0.25, 0.5], [0.5, 0.75]]]))
    model = a_model(Recorder)
    known = sample_at(two_logits(coarse), boxes.to_box(points))
    from pointrend.roi import _Questions

    _Questions(model, features, None, boxes).ask(list(points), list(known))
    _, fine, seen = model.seen[0]
    torch.testing.assert_close(fine[0, 0], torch.tensor([18.5, 29.5]))
    torch.testing.assert_close(seen[0], torch.tensor([[0.0, 0.0], [0.5, 2.0]]))


def test_training_and_refinement_give_a_pixel_the_same_logits():
    model = a_model(sampling=PointSampling.paper(num_points=300))
    features = {"fine": torch.randn(2, 4, 6, 8)}
    boxes = boxes_of([[0.1, 0.2, 0.7, 0.9], [0.3, 0.0, 1.0, 0.5], [0.5, 0.4, 0.9, 0.8]], [1, 0, 1])
    coarse, size = torch.randn(3, 2, 5, 4), (24, 40)
    labels = torch.zeros(3, *size, dtype=torch.int64)
    points, logits, _ = model.training_logits(coarse, features, None, labels, boxes=boxes, generators=[generator()])
    pasted = model.refine(coarse, features, None, size, boxes=boxes, num_points=10**6).paste(size)
    place = (points * torch.tensor(size)).long()
    for row in range(3):
        assert torch.equal(pasted[row][place[row, :, 0], place[row, :, 1]].long(), logits[row].argmax(0))


def test_the_loss_is_the_mean_cross_entropy_and_reaches_head_coarse_logits_and_features():
    model = a_model(sampling=PointSampling.paper(num_points=50))
    features = {"fine": torch.randn(2, 4, 6, 8, requires_grad=True)}
    coarse = torch.randn(3, 2, 5, 4, requires_grad=True)
    boxes = boxes_of([[0.1, 0.2, 0.7, 0.9], [0.3, 0.0, 1.0, 0.5], [0.5, 0.4, 0.9, 0.8]], [1, 0, 1])
    labels = torch.randint(0, 2, (3, 24, 40))
    _, logits, truth = model.training_logits(coarse, features, None, labels, boxes=boxes, generators=[generator()])
    loss = model.loss(coarse, features, None, labels, boxes=boxes, generators=[generator()])
    torch.testing.assert_close(loss, F.cross_entropy(logits, truth))
    loss.backward()
    assert all(part.grad.abs().sum() > 0 for part in (coarse, features["fine"], *model.parameters()))


def test_labels_are_read_at_the_row_of_the_target():
    model = a_model(sampling=PointSampling.paper(num_points=40))
    labels = torch.stack([torch.full((24, 40), value) for value in (0, 1)])
    boxes = boxes_of([[0.1, 0.2, 0.7, 0.9]] * 3, target=torch.tensor([1, 0, 1]))
    features = {"fine": torch.randn(1, 4, 6, 8)}
    _, _, truth = model.training_logits(torch.randn(3, 2, 5, 4), features, None, labels, boxes=boxes)
    assert [row.unique().tolist() for row in truth] == [[1], [0], [1]]
    with pytest.raises(ValueError, match=r"target must lie in \[0, 1\), got 0 to 1"):
        model.training_logits(torch.randn(3, 2, 5, 4), features, None, labels[:1], boxes=boxes)


# ---- the draw


def test_one_generator_serves_all_boxes_and_says_all():
    boxes, draw = boxes_of([[0.2, 0.1, 0.8, 0.5], [0.5, 0.6, 0.9, 0.9]]), PointSampling.paper(num_points=20)
    draws = [
        box_training_voxels(torch.zeros(2, 2, 3, 3), (30, 50), boxes, draw, generator=generator(seed)).tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    model = a_model()
    with pytest.raises(ValueError, match="generators must be one for all boxes, got 2"):
        model.loss(
            torch.zeros(2, 2, 3, 3),
            {"fine": torch.zeros(1, 4, 6, 8)},
            None,
            torch.zeros(2, 30, 50, dtype=torch.int64),
            boxes=boxes,
            generators=[generator(), generator()],
        )


# ---- refinement


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_box_of_the_whole_image_is_the_whole_image(ndim):
    model = a_model(ndim=ndim, classes=3)
    coarse_size, size = (3, 4, 5)[:ndim], (9, 16, 10)[:ndim]
    features = {"fine": torch.randn(1, 4, *(2 * n for n in coarse_size))}
    coarse = torch.randn(1, 3, *coarse_size)
    whole = model.refine(coarse, features, None, size, num_points=40)
    boxes = boxes_of([[0.0] * ndim + [1.0] * ndim])
    alone = model.refine(coarse, features, None, size, num_points=40, boxes=boxes)
    assert torch.equal(alone.index[0], whole.index[0])
    assert torch.equal(alone.paste(size), whole.labels)
    assert alone.log_odds is None  # three classes compete


def test_boxes_of_a_volume_refined_alone_equal_the_same_voxels_of_the_whole():
    """3D: coarse logits at stride 4, boxes that cut the coarse grid between voxels. Half a coarse voxel from its edge a
    box interpolates what the whole volume does; within, its border counts on."""
    model = a_model(ndim=3)
    coarse, size = torch.randn(2, 2, 6, 8, 10), (24, 32, 40)
    features = {"fine": torch.randn(2, 4, 12, 16, 20)}
    whole = model.refine(coarse, features, None, size, max_margin=0.8)
    cuts = [(0, (1, 2, 3), (5, 6, 9)), (1, (0, 3, 4), (4, 8, 7)), (1, (2, 2, 2), (5, 5, 5))]
    grid = torch.tensor(coarse.shape[2:])
    for sample, low, high in cuts:
        corners = torch.cat([torch.tensor(edge) / grid for edge in (low, high)])
        box = boxes_of([corners.tolist()], [sample])
        own = coarse[sample, None][(..., *(slice(a, b) for a, b in zip(low, high, strict=True)))]
        alone = model.refine(own, features, None, size, max_margin=0.8, boxes=box)
        assert alone.first.tolist() == [[4 * a for a in low]]
        assert alone.labels[0].shape == tuple(4 * (b - a) for a, b in zip(low, high, strict=True))
        inner = tuple(slice(4 * a + 2, 4 * b - 2) for a, b in zip(low, high, strict=True))
        window = tuple(slice(2, -2) for _ in low)
        assert torch.equal(alone.labels[0][window], whole.labels[sample][inner])
        assert (whole.labels[sample][inner] != whole.unrefined[sample][inner]).any()


def test_the_echo_of_coarse_logits_is_their_interpolation():
    model, size = a_model(Recorder), (40, 60)
    boxes = boxes_of([[0.25, 0.1, 0.75, 0.4]])  # rows 10 to 30, columns 6 to 24
    coarse = torch.randn(1, 2, 5, 6)
    refined = model.refine(coarse, {"fine": torch.zeros(1, 4, 3, 3)}, None, size, num_points=50, boxes=boxes)
    expected = F.interpolate(coarse, (20, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(refined.log_odds[0], expected[0, 1] - expected[0, 0])
    assert torch.equal(refined.labels[0].long(), expected[0].argmax(0))
    assert refined.first.tolist() == [[10, 6]]
    # the 50 most uncertain were asked about
    margin = (expected[0, 1] - expected[0, 0]).abs().flatten()
    assert set(refined.index[0].tolist()) == set(margin.topk(50, largest=False).indices.tolist())


def test_the_pixels_are_the_images_own_and_no_corner_is_rounded():
    """The true edge runs through the box at an angle: labels asked of the head are right at every pixel."""
    model, size = a_model(Position), (37, 53)
    boxes = boxes_of([[0.213, 0.187, 0.911, 0.777]])
    refined = model.refine(torch.zeros(1, 2, 7, 7), {}, None, size, num_points=10**6, boxes=boxes)
    rows, columns = (torch.arange(37) + 0.5) / 37, (torch.arange(53) + 0.5) / 53
    truth = (rows[:, None] + columns > 1).long()
    inside = ((rows > 0.213) & (rows < 0.911))[:, None] & (columns > 0.187) & (columns < 0.777)
    assert torch.equal(refined.paste(size)[0].long(), truth * inside)
    soft = refined.probabilities(size)[0]
    torch.testing.assert_close(soft, torch.where(inside, (2 * (rows[:, None] + columns - 1)).sigmoid(), 0.0))


def test_a_target_grid_that_fills_a_share_of_the_cube():
    model, boxes = a_model(Position), boxes_of([[0.1, 0.1, 0.9, 0.7]])
    coarse = torch.randn(1, 2, 7, 7)
    whole = model.refine(coarse, {}, None, (40, 60), num_points=10**6, boxes=boxes).paste((40, 60))
    part = model.refine(coarse, {}, None, (30, 45), num_points=10**6, boxes=boxes, extent=(0.75, 0.75)).paste((30, 45))
    assert torch.equal(part, whole[:, :30, :45])


def test_the_papers_subdivision_doubles_the_boxs_own_grid():
    """28 -> 56 -> 112 -> 224 by hand: interpolate, ask about the most uncertain, put in place; then read the pixels."""
    model, size = a_model(), (45, 60)
    features = {"fine": torch.randn(1, 4, 12, 15)}
    boxes = boxes_of([[0.2, 0.1, 0.8, 0.6]])
    coarse = torch.randn(1, 2, 28, 28)
    logits = coarse
    for n in (56, 112, 224):
        logits = F.interpolate(logits, (n, n), mode="bilinear", align_corners=False)
        margin = (logits[:, 1] - logits[:, 0]).abs().flatten(1)
        index = margin.topk(100, largest=False).indices
        at = boxes.to_image(voxel_centres(index, (n, n)))
        asked = model.predict_points(at, sample_at(coarse, boxes.to_box(at)), features)
        logits = logits.flatten(2).scatter(2, index[:, None].expand(-1, 2, -1), asked).view_as(logits)
    refined = model.refine(coarse, features, None, size, num_points=100, steps=4, boxes=boxes)
    first, shape = refined.first[0], refined.labels[0].shape
    assert (first.tolist(), shape) == ([9, 6], (27, 30))  # rows 9 to 36, columns 6 to 36
    expected = F.interpolate(logits, shape, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(refined.log_odds[0], (expected[1] - expected[0]).detach(), atol=1e-4, rtol=1e-4)
    assert len(refined.index[0]) == 0


def test_categories_pick_the_logit_that_competes():
    model = a_model(Recorder, classes=3)
    coarse = torch.randn(2, 3, 4, 4)
    boxes = boxes_of([[0.0, 0.0, 1.0, 1.0]] * 2, category=torch.tensor([2, 1]))
    refined = model.refine(coarse, {"fine": torch.zeros(1, 4, 3, 3)}, None, (8, 8), num_points=10, boxes=boxes)
    fine = F.interpolate(coarse, (8, 8), mode="bilinear", align_corners=False)
    for row, channel in enumerate((2, 1)):
        torch.testing.assert_close(refined.log_odds[row], fine[row, channel])
        assert torch.equal(refined.labels[row].bool(), fine[row, channel] > 0)


def test_no_boxes_and_no_points():
    model = a_model(sampling=PointSampling.paper(num_points=7))
    features = {"fine": torch.randn(2, 4, 6, 8)}
    none = Boxes(corners=torch.zeros(0, 4), sample=torch.zeros(0, dtype=torch.int64))
    empty = torch.zeros(0, 2, 5, 5)
    assert model.refine(empty, features, None, (9, 9), num_points=5, boxes=none).paste((9, 9)).shape == (0, 9, 9)
    labels = torch.zeros(0, 9, 9, dtype=torch.int64)
    points, logits, truth = model.training_logits(empty, features, None, labels, boxes=none)
    assert (points.shape, logits.shape, truth.shape) == ((0, 7, 2), (0, 2, 7), (0, 7))
    assert model.loss(empty, features, None, labels, boxes=none) == 0
    box = boxes_of([[0.1, 0.1, 0.6, 0.6]])
    coarse = torch.randn(1, 2, 5, 5)
    unrefined = model.refine(coarse, features, None, (9, 9), num_points=0, boxes=box)
    assert len(unrefined.index[0]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "num_points or max_margin must be given, got neither"),
        ({"num_points": -1}, "num_points must be at least 0, got -1"),
        ({"max_margin": math.nan}, "max_margin must be at least 0, got nan"),
        ({"num_points": 1, "steps": 0}, "steps and chunk must be at least 1, got 0 and"),
        ({"num_points": 1, "check": True}, "check=True asks about whole images"),
    ],
)
def test_numbers_are_checked(options, message):
    model, boxes = a_model(), boxes_of([[0.1, 0.1, 0.6, 0.6]])
    with pytest.raises(ValueError, match=message):
        model.refine(torch.zeros(1, 2, 5, 5), {"fine": torch.zeros(1, 4, 6, 8)}, None, (9, 9), boxes=boxes, **options)


def test_coarse_logits_are_one_row_a_box():
    model, boxes = a_model(), boxes_of([[0.1, 0.1, 0.6, 0.6]])
    for shape in [(2, 2, 5, 5), (1, 1, 5, 5), (1, 2, 5, 5, 5)]:
        with pytest.raises(ValueError, match=r"coarse must be \(1, K, ...\) with K >= 2 and 2 spatial axes, got"):
            model.refine(torch.zeros(shape), {}, None, (9, 9), boxes=boxes, num_points=3)
