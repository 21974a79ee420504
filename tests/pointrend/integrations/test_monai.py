"""The MONAI transforms equal resampling followed by argmax, and keep the geometry."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscrete, Compose, Resize

from pointrend.integrations.monai import RenderLabels, RenderLabelsd

LOGITS = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
SIZE = (11, 9, 16)


@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_resize_then_argmax(align_corners):
    dense = Compose([Resize(SIZE, mode="trilinear", align_corners=align_corners), AsDiscrete(argmax=True)])
    labels = RenderLabels(SIZE, align_corners=align_corners)(LOGITS)
    assert labels.shape == (1, *SIZE)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), dense(LOGITS).as_tensor().long())


def test_arrays_and_two_axes():
    labels = RenderLabels((9, 13))(LOGITS[:, 2].numpy())
    assert isinstance(labels, np.ndarray)
    np.testing.assert_array_equal(labels, RenderLabels((9, 13))(LOGITS[:, 2]).numpy())


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_affine_follows_the_grid(align_corners):
    affine = torch.tensor(
        [[0.0, -3.0, 0.0, 5.0], [2.0, 0.0, 0.0, -7.0], [0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    ).double()
    labels = RenderLabels(SIZE, align_corners=align_corners)(MetaTensor(LOGITS, affine=affine, meta={"name": "case"}))
    assert labels.meta["name"] == "case"
    for corner in ((0, 0, 0), (1, 1, 1), (1, 0, 1)):
        # corners of the field of view (or outermost centres) stay where they are in the world
        share, inset = torch.tensor([*corner, 1.0]).double(), 0.0 if align_corners else 0.5
        old, new = (
            torch.cat([share[:3] * (torch.tensor(size) - 1 + 2 * inset) - inset, share[3:]])
            for size in (LOGITS.shape[1:], SIZE)
        )
        torch.testing.assert_close(labels.affine @ new, affine @ old)


def test_dictionary_form_takes_the_grid_of_an_image():
    image = MetaTensor(torch.zeros(1, *SIZE), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    data = {"image": image, "pred": MetaTensor(LOGITS), "other": 3}
    result = RenderLabelsd("pred", like="image")(data)
    assert torch.equal(result["pred"].as_tensor(), RenderLabels(SIZE)(LOGITS))
    assert torch.equal(result["pred"].affine, image.affine)
    assert result["other"] == 3
    assert data["pred"].shape == LOGITS.shape


def test_dictionary_form_with_a_size():
    result = RenderLabelsd(["pred", "absent"], SIZE, allow_missing_keys=True)({"pred": LOGITS})
    assert torch.equal(result["pred"], RenderLabels(SIZE)(LOGITS))
    with pytest.raises(KeyError, match="absent"):
        RenderLabelsd(["pred", "absent"], SIZE)({"pred": LOGITS})


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="needs a spatial_size or an image to be like, got neither"):
        RenderLabels()(LOGITS)
    with pytest.raises(ValueError, match="size must be 3 whole numbers"):
        RenderLabels((4, 5))(LOGITS)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.full((2, 4, 5), float("nan")), "logits must be finite"),
        (torch.zeros(4, 5), "size must be 1 whole numbers|logits must be"),
        (torch.zeros(0, 4, 5), "1 to 65536 classes"),
    ],
)
def test_the_transform_refuses(logits, message):
    with pytest.raises(ValueError, match=message):
        RenderLabels((8, 9))(logits)
