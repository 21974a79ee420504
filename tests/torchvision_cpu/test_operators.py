"""The operators that stand in for torchvision's own: against its fallback in Python, and by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.detection


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
