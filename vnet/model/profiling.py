"""What a model costs: multiply-adds and parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vnet.model.segmenter import Segmenter


def count_multiply_adds(model: Segmenter, image: Tensor) -> int:
    """Multiply-adds of a forward pass, the head at its training points included (convolutions and matrix products;
    interpolation is not counted).

    Args:
        image: (1, C, D, H, W).
    """
    training = model.training
    image = image.expand(2, *image.shape[1:])  # of a lone sample, `vnet.model.layers` may convolve overlapping halves
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        coarse, features = model.network(image)
        if model.head is not None:
            points = torch.rand(2, model.points.num_points, image.ndim - 2, device=image.device)
            at_points = coarse.new_zeros(2, coarse.shape[1], points.shape[1])
            model.head.predict_points(points, at_points, model.head_features(features), image)
    model.train(training)
    return int(counter.get_total_flops()) // 4  # two operations each, two samples


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
