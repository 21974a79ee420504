"""Small heads with known logits, and batches for them."""

import torch
from torch import nn
from torch.nn import functional as F

from pointrend import PointRend

MODES = {2: "bilinear", 3: "trilinear"}


class Echo(PointRend):
    """Gives back the coarse logits: refinement must then be plain up-sampling."""

    def predict_points(self, points, coarse, features, image=None, *, grid=None):
        assert points.shape[:2] == (coarse.shape[0], coarse.shape[2])
        return coarse


class Position(PointRend):
    """Class 1 where z + y + x of the point is above a half of the axes, else class 0, whatever the logits."""

    def predict_points(self, points, coarse, features, image=None, *, grid=None):
        above = points.sum(-1) - points.shape[-1] / 2
        return torch.stack([-above, above, torch.full_like(above, -99.0)], dim=1)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def upsample(logits, size):
    return F.interpolate(logits, size=size, mode=MODES[len(size)], align_corners=False)


def a_model(ndim=3, **options):
    torch.manual_seed(0)
    usual = {
        "classes": 3,
        "features": {"fine": 4, "deep": 5},
        "image_channels": 2,
        "width": 8,
        "windows": {},
        "ndim": ndim,
    }
    model = PointRend(**usual | options)
    nn.init.normal_(model.head.logits.weight)
    return model


def a_batch(batch=2, coarse=(3, 4, 5), stride=2):
    torch.manual_seed(1)
    size = [n * stride for n in coarse]
    features = {"fine": torch.randn(batch, 4, *size), "deep": torch.randn(batch, 5, *coarse)}
    return torch.randn(batch, 3, *coarse), features, torch.randn(batch, 2, *size)
