"""What callers get wrong across the library: the rule and what came, or the right answer."""

import numpy as np
import pytest
import torch

from pointrend import PointRend, getpoint, render_labels

COARSE = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
FINE = {"fine": torch.randn(1, 2, 8, 10, 12, generator=torch.Generator().manual_seed(1))}


def refine(**change):
    model = PointRend(classes=3, features={"fine": 2})
    arguments = {"coarse": COARSE, "features": FINE, "image": None, "size": (8, 10, 12), "num_points": 9} | change
    return model.refine(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"coarse": COARSE.clone().fill_(float("nan"))}, ValueError, "logits must be finite .* got NaN or infinity"),
        ({"coarse": COARSE.int()}, TypeError, "logits must be float16, .* got torch.int32"),
        ({"coarse": COARSE[0, 0]}, ValueError, "size must be 1 whole numbers"),
        ({"coarse": COARSE[:, :2]}, ValueError, r"coarse must have 3 classes, got \(1, 2, 9\)"),
        (
            {"features": {"fine": FINE["fine"][:, :, 0]}},
            ValueError,
            r"features\['fine'\] must have 2 channels, .*, got \(1, 2, 10, 12\)",
        ),
        ({"features": {}}, ValueError, r"\['fine'\] missing from \[\]"),
        ({"size": (8, 10)}, ValueError, r"size must be 3 whole numbers of at least 1, got \(8, 10\)"),
        ({"size": (8, 10, 0)}, ValueError, r"size must be 3 whole numbers of at least 1, got \(8, 10, 0\)"),
    ],
)
def test_refinement_refuses(change, error, message):
    with pytest.raises(error, match=message):
        refine(**change)


def test_one_class_has_nothing_to_refine():
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        PointRend(classes=1, features={"fine": 2})


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 1), (1, 20, 3)])
def test_axes_of_one_voxel_and_targets_smaller_than_the_source(size):
    coarse, fine = COARSE[:, :, :1], {"fine": FINE["fine"][:, :, :1]}
    refined = refine(coarse=coarse, features=fine, size=size)
    dense = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")
    assert torch.equal(refined.unrefined.long(), dense.argmax(1))
    assert refined.labels.shape == (1, *size)


def test_empty_masks_have_uniform_points_alone():
    mask = np.zeros((6, 7), bool)
    assert len(getpoint(mask, 2, 0.75, rng=0)) == int(0.25 * 2 * 42)
    assert getpoint(mask, 2, 0.75, training=False).shape == (0, 2)


def test_an_infinite_class_is_refused_and_a_very_low_one_is_not():
    logits = COARSE.clone()
    logits[:, 2] = -1e30
    assert set(render_labels(logits, (8, 9, 10)).unique().tolist()) <= {0, 1}
    logits[:, 2] = -torch.inf
    with pytest.raises(ValueError, match="logits must be finite"):
        render_labels(logits, (8, 9, 10))
