"""PointRend on torchvision's Mask R-CNN: three lines, the detector's own losses, torchvision's own output format."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pointrend.reading import sample_at

pytestmark = pytest.mark.detection

ROOT = Path(__file__).parents[3]


class Trunk(nn.Module):
    """Two levels of features, of strides 4 and 8."""

    out_channels = 6

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 4, stride=4), nn.Conv2d(6, 6, 2, stride=2)

    def forward(self, x):
        fine = self.first(x)
        return {"0": fine, "1": self.second(fine)}


@pytest.fixture
def detector():
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    return MaskRCNN(
        Trunk(),
        num_classes=3,
        min_size=64,
        max_size=96,
        image_mean=[0.0],
        image_std=[1.0],
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((1.0,),) * 2),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1"], 14, 2),
        box_score_thresh=0.0,
        box_detections_per_img=9,
    )


def targets():
    """Of an image of 60 x 90 pixels with two instances and one of 64 x 64 with none."""
    masks = torch.zeros(2, 60, 90, dtype=torch.uint8)
    masks[0, 10:30, 20:50] = 1
    masks[1, 25:55, 60:80] = 1
    boxes = torch.tensor([[20.0, 10, 50, 30], [60, 25, 80, 55]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        nothing | {"masks": torch.zeros(0, 64, 64, dtype=torch.uint8)},
    ]


def images():
    torch.manual_seed(1)
    return [torch.rand(1, 60, 90), torch.rand(1, 64, 64)]


OPTIONS = [{}, {"coarse_size": 7, "coarse_width": 16}, {"class_agnostic": True}, {"steps": 3, "levels": ("0", "1")}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_trains_with_the_detectors_own_losses(detector, options):
    from pointrend.integrations.torchvision import PointRendRoIHeads

    heads = PointRendRoIHeads.replace(detector, width=8, **options)
    losses = detector(images(), targets())
    boxes = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert set(losses) == boxes | {"loss_mask", "loss_mask_point"}
    sum(losses.values()).backward()
    for part in (heads.point_rend, heads.coarse, detector.backbone):
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())


def test_an_image_in_which_nothing_is_found_has_no_masks(detector):
    from pointrend.integrations.torchvision import PointRendRoIHeads

    PointRendRoIHeads.replace(detector, width=8).score_thresh = 2.0
    for found, size in zip(detector.eval()(images()), [(60, 90), (64, 64)], strict=True):
        assert found["boxes"].shape == (0, 4)
        assert found["masks"].shape == (0, 1, *size)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_predictions_have_torchvisions_own_format(detector, options):
    from pointrend.integrations.torchvision import PointRendRoIHeads

    torch.manual_seed(2)
    before = detector.eval()(images())
    PointRendRoIHeads.replace(detector, width=8, **options)
    after = detector.eval()(images())
    for old, new, size in zip(before, after, [(60, 90), (64, 64)], strict=True):
        assert set(new) == set(old) == {"boxes", "labels", "scores", "masks"}
        for name in ("boxes", "labels", "scores"):  # the boxes are the detector's own
            torch.testing.assert_close(new[name], old[name])
        assert new["masks"].shape == (9, 1, *size)
        assert new["masks"].dtype == old["masks"].dtype == torch.float32
        assert new["masks"].min() >= 0
        assert new["masks"].max() <= 1


def test_the_unrefined_mask_is_the_coarse_one_at_the_pixels_of_the_image(detector):
    """The image is resized to 64 x 96 before the network; boxes, features and pixels still share the unit cube."""
    from pointrend.integrations.torchvision import PointRendRoIHeads

    heads = PointRendRoIHeads.replace(detector, width=8, num_points=0)
    (image, _) = images()
    kept = {}
    heads.coarse.register_forward_hook(lambda _module, _inputs, out: kept.update(coarse=out))
    (found,) = detector.eval()([image])
    rows, columns = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(90) + 0.5, indexing="ij")
    for box, label, mask, logits in zip(
        found["boxes"], found["labels"], found["masks"][:, 0], kept["coarse"], strict=True
    ):
        x1, y1, x2, y2 = box
        at = torch.stack([(rows - y1) / (y2 - y1), (columns - x1) / (x2 - x1)], dim=-1)
        inside = ((at > 0) & (at < 1)).all(-1)
        read = sample_at(logits[None, label, None], at.view(1, -1, 2)).view(60, 90)
        sure = ((at - 0.5).abs() - 0.5).abs().amin(-1) > 1e-3  # not on the edge itself
        torch.testing.assert_close(mask[sure], torch.where(inside, read.sigmoid(), 0.0)[sure], atol=1e-4, rtol=1e-4)


def test_the_losses_of_known_logits_are_those_worked_by_hand(detector):
    """Coarse logits of 0 but for one class's channel; the point head echoes: cross-entropies in closed form."""
    from pointrend.integrations.torchvision import PointRendRoIHeads

    heads = PointRendRoIHeads.replace(detector, width=8)

    class Constant(nn.Module):
        def forward(self, features):
            logits = torch.zeros(len(features), 3, 5, 5)
            logits[:, 1] = 2.0
            return logits

    heads.coarse = Constant()
    heads.point_rend.predict_points = lambda points, coarse, *_args, **_options: coarse
    boxes, labels = targets()[0]["boxes"], targets()[0]["labels"]
    features = {"0": torch.zeros(1, 6, 16, 24), "1": torch.zeros(1, 6, 8, 12)}
    heads.train()
    # the true boxes as proposals: inside, every bin and every point is foreground
    heads._chosen = ([boxes], [torch.tensor([0, 1])], [labels])
    losses = heads._mask_losses(features, [(60, 90)], targets()[:1])
    expected = (F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(0.0))) / 2  # class 1 has 2, class 2 has 0
    torch.testing.assert_close(losses["loss_mask_point"], expected)
    torch.testing.assert_close(
        losses["loss_mask"], expected, atol=0.05, rtol=0
    )  # bins at the edge hold some background
    # no box at all: 0
    heads._chosen = ([boxes[:0]], [labels[:0]], [labels[:0]])
    assert sum(heads._mask_losses(features, [(60, 90)], targets()[:1]).values()) == 0


def test_a_mask_that_is_learnt_is_learnt_to_the_pixel(detector):
    """The head alone, on features that say where the instance is, in true boxes: near-perfect masks."""
    from pointrend.integrations.torchvision import PointRendRoIHeads

    heads = PointRendRoIHeads.replace(detector, width=16, coarse_size=7, coarse_width=16)
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    disc = (rows - 31) ** 2 + (columns - 40) ** 2 < 20**2
    signed = 20 - ((rows - 31.0) ** 2 + (columns - 40.0) ** 2).sqrt()
    features = {"0": F.avg_pool2d(signed[None, None] / 8, 4).repeat(1, 6, 1, 1)}
    boxes = [torch.tensor([[20.0, 11, 61, 52]])]
    target = {"boxes": boxes[0], "labels": torch.tensor([1]), "masks": disc[None].byte()}
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
    heads.train()
    for _ in range(60):
        heads._chosen = ([boxes[0]], [torch.tensor([0])], [torch.tensor([1])])
        loss = sum(heads._mask_losses(features, [(64, 96)], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (pending,) = heads.eval().pending_masks(features, boxes, [torch.tensor([1])], [(64, 96)])
    labels = pending.refine((64, 96)).paste((64, 96))[0].bool()
    assert (labels & disc).sum() / (labels | disc).sum() > 0.97


def test_bad_targets_and_detectors_are_named(detector):
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    from pointrend.integrations.torchvision import PointRendRoIHeads

    PointRendRoIHeads.replace(detector, width=8)
    wrong = targets()
    wrong[0]["masks"] = wrong[0]["masks"][:1]
    with pytest.raises(ValueError, match=r"targets\[0\]: masks must be \(2, H, W\), one per box, got \(1, "):
        detector(images(), wrong)
    del wrong[0]["masks"]
    with pytest.raises(ValueError, match=r"targets\[0\]: masks must be \(2, H, W\), one per box, got None"):
        detector(images(), wrong)
    # an image of 60 x 90 is resized to 64 x 96, and the masks with it: those of 30 x 90 to 32 x 96
    wrong = targets()
    wrong[0]["masks"] = wrong[0]["masks"][:, :30]
    with pytest.raises(
        ValueError, match=r"targets\[0\]: masks must have the size of their image, \(64, 96\), got \(32, "
    ):
        detector(images(), wrong)
    wrong = targets()
    wrong[0]["boxes"][1] += 100
    with pytest.raises(ValueError, match=r"targets\[0\]: box 1 lies outside of its image of 96 x 64, got \["):
        detector(images(), wrong)
    plain = FasterRCNN(
        Trunk(),
        3,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((1.0,),) * 2),
        image_mean=[0.0],
        image_std=[1.0],
    )
    with pytest.raises(ValueError, match="the detector has no mask parts to replace; build a Mask R-CNN"):
        PointRendRoIHeads.replace(plain)


def test_the_readmes_snippet_runs():
    """On `maskrcnn_resnet50_fpn` itself, as printed."""
    snippet = next(
        text
        for page in ("README.md", "docs/instances.md")
        for text in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        if "maskrcnn_resnet50_fpn" in text
    )
    names: dict = {}
    exec(snippet, names)
    assert torch.isfinite(names["losses"]["loss_mask_point"])
    found = names["found"][0]
    assert found["masks"].shape == (len(found["boxes"]), 1, 96, 128)


def test_nms_by_hand():
    from torchvision.ops import batched_nms, nms

    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 5.0]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.4])
    # 0 and 1 share 81 of 119 pixels: .68; 1 and 3 share 36 of 114: .32; 0 and 3 half
    assert nms(boxes, scores, 0.6).tolist() == [1, 3, 2]
    assert nms(boxes, scores, 0.7).tolist() == [1, 0, 3, 2]
    assert nms(boxes, scores, 0.3).tolist() == [1, 2]
    assert batched_nms(boxes, scores, torch.tensor([0, 1, 0, 0]), 0.3).tolist() == [1, 0, 2]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [2, -1])
def test_roi_align_equals_torchvisions_own_python(samples, aligned):
    """For boxes within a voxel of the image: beyond, the fallback counts the border on and the C++ operator 0."""
    from torchvision.ops.roi_align import roi_align

    reference = getattr(sys.modules["torchvision.ops.roi_align"], "_roi_align_in_torch", None)
    if reference is None:
        pytest.skip("torchvision's own operators load here")
    torch.manual_seed(0)
    volume = torch.randn(2, 3, 11, 13, requires_grad=True)
    rois = torch.tensor([[0, 1.3, 2.2, 17.9, 11.4], [1, -1, -1, 9.1, 22], [0, 5.5, 5.5, 5.6, 5.7], [1, 20, 0, 26, 21]])
    weights = torch.randn(4, 3, 4, 5)
    results = []
    for align in (roi_align, reference):
        read = align(volume, rois, (4, 5), 0.5, samples, aligned) if align is roi_align else align(
            volume, rois, 0.5, 4, 5, samples, aligned
        )  # fmt: skip
        (gradient,) = torch.autograd.grad((read * weights).sum(), volume)
        results.append((read.detach(), gradient))
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_roi_align_is_0_beyond_a_voxel_outside_as_in_c():
    from torchvision.ops import roi_align

    volume = torch.ones(1, 1, 4, 4)
    # bins of 1 voxel at -3.5 -2.5 -1.5 -.5 .5 of each axis, centres at integers: 0 up to the third, then 1
    bins = roi_align(volume, torch.tensor([[0, -4.0, 0, 1, 4]]), (4, 5), 1.0, 1, False)
    assert bins[0, 0, 0].tolist() == [0, 0, 0, 1, 1]


def test_pointrends_roi_align_is_torchvisions():
    from torchvision.ops import roi_align

    from pointrend.boxes import Boxes
    from pointrend.boxes import roi_align as ours

    volume = torch.randn(2, 3, 11, 13)
    rois = torch.tensor([[0, 1.3, 2.2, 12.1, 9.4], [1, 1.0, 0.5, 9.1, 10.2], [0, 5.5, 5.5, 5.6, 5.7]])
    corners = rois[:, [2, 1, 4, 3]] / torch.tensor([11, 13, 11, 13])
    boxes = Boxes(corners=corners, sample=rois[:, 0].long())
    torch.testing.assert_close(
        ours(volume, boxes, (4, 5)), roi_align(volume, rois, (4, 5), 1.0, 2, True), atol=5e-6, rtol=0
    )


def test_python_starts_without_torch_where_torchvision_is_not_imported():
    code = "import sys; sys.exit(sorted({'torch', 'numba', 'torchvision'} & set(sys.modules)) or None)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
