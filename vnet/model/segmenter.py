"""V-Net and point head as one module: what is trained, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pointrend.coordinates import voxel_centres
from pointrend.reading import read_at
from pointrend.refine import PointRend
from pointrend.sampling import PointSampling, training_voxels
from vnet.core.config import Config, PointsConfig
from vnet.core.errors import InputError
from vnet.core.hardware import memory_limit_bytes
from vnet.model.losses import segmentation_terms
from vnet.model.network import VNet, VNetOutput, build_network
from vnet.model.point_head import ConvolvingHead


class Segmenter(nn.Module):
    """A network and, where the arm has one, its point head.

    Args:
        network: gives coarse logits and named features.
        head: refines them at points; None for an arm without.
        points: how training points are drawn.
        point_dice: give the Dice loss at those points as well.
        ignore: label value that is neither sampled nor counted.
        top_k_share: share of the voxels whose cross-entropy of the network's logits counts.

    Attributes:
        max_margin: the calibrated margin of `points.max_margin: auto`; None before it is measured.
    """

    def __init__(
        self,
        network: VNet,
        head: PointRend | None,
        *,
        points: PointsConfig,
        point_dice: bool = False,
        ignore: int | None = None,
        top_k_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.points = points
        self.point_dice = point_dice
        self.ignore = ignore
        self.top_k_share = top_k_share
        self.max_margin: float | None = None

    def forward(self, image: Tensor, labels: Tensor, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Unweighted loss terms of a batch: `dice`, `cross_entropy`, with points `point` (the cross-entropy there) and,
        with `point_dice`, the Dice loss there; of the head's logits, or of the network's with `points.logits: network`.

        Args:
            image: (B, C_in, D, H, W), sizes that the output stride divides.
            labels: (B, D, H, W) int64.
            generators: one per sample, from which its points are drawn.
        """
        logits, features = self.network(image)
        terms = segmentation_terms(logits, labels, self.ignore, self.top_k_share)
        found = self.logits_at_points(logits.float(), features, image, labels, generators)
        if found is not None:
            at_points = segmentation_terms(*found, self.ignore)
            terms["point"] = at_points["cross_entropy"]
            if self.point_dice:
                terms["point_dice"] = at_points["dice"]
        return terms

    def logits_at_points(
        self,
        logits: Tensor,
        features: Mapping[str, Tensor],
        image: Tensor,
        labels: Tensor,
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor] | None:
        """Logits (B, K, N) with gradient and labels (B, N) at the training points; None where none are drawn.

        Head and network draw by the same rule from the same generators: equal logits give equal points.

        Args:
            logits: (B, K, d, h, w) of the network; the others as in `forward`.
        """
        if self.head is not None:
            inputs = self.head_features(features)
            return self.head.training_logits(logits, inputs, image, labels, generators=generators)[1:]
        if self.points.logits == "head" or not self.points.num_points:
            return None
        size, sampling = labels.shape[1:], point_sampling(self.points, self.ignore)
        index = training_voxels(logits.detach(), size, sampling, labels=labels, generators=generators)
        return read_at(logits, voxel_centres(index, size), size), labels.flatten(1).gather(1, index)

    @torch.inference_mode()
    def draw_points(self, image: Tensor, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """(B, N) flat voxels of the labels' grid: the training points that the network as it stands would draw.

        Arguments as in `forward`. In evaluation mode no state changes.
        """
        logits = self.network(image).logits.float()
        sampling = point_sampling(self.points, self.ignore)
        return training_voxels(logits, labels.shape[1:], sampling, labels=labels, generators=generators)

    def predict(self, image: Tensor) -> VNetOutput:
        """Coarse logits in float32 and the features that the head reads."""
        logits, features = self.network(image)
        return VNetOutput(logits.float(), self.head_features(features))

    def head_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features that the head reads; none without a head."""
        return {name: features[name] for name in self.points.features} if self.head is not None else {}


def point_sampling(points: PointsConfig, ignore: int | None) -> PointSampling:
    """How a config draws its training points; voxels of the ignored label are never drawn."""
    return PointSampling(
        num_points=points.num_points,
        oversample_ratio=points.oversample_ratio,
        importance_ratio=points.importance_ratio,
        quotas=points.quotas,
        ignore=ignore,
    )


def build_model(config: Config, *, in_channels: int, classes: int, ignore: int | None = None) -> Segmenter:
    """The model of a config, with weights that are a function of `config.seed` alone.

    Raises:
        InputError: quotas of points for another number of labels.
    """
    quotas = config.points.quotas
    if config.points.num_points and quotas is not None and len(quotas) != classes:
        raise InputError(f"points.quotas must hold one share a label, {classes} here, got {list(quotas)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build_network(config.network, in_channels=in_channels, classes=classes)
        head = build_head(config, network, in_channels, classes, ignore) if config.has_head else None
    return Segmenter(
        network,
        head,
        points=config.points,
        point_dice=config.training.point_dice_weight > 0,
        ignore=ignore,
        top_k_share=config.training.top_k_share,
    )


def build_head(config: Config, network: VNet, in_channels: int, classes: int, ignore: int | None) -> PointRend:
    """The point head of a config, reading features of `network`."""
    points = config.points
    on_the_image_grid = [name for name in points.features if name == "encoder1"]
    on_the_image_grid += ["image"] if points.image else []
    head = PointRend(
        classes=classes,
        features={name: network.feature_channels[name] for name in points.features},
        image_channels=in_channels if points.image else 0,
        width=points.width,
        layers=points.layers,
        windows=dict.fromkeys(on_the_image_grid, points.window),
        sampling=point_sampling(points, ignore),
        dice_weight=config.training.point_dice_weight,
    )
    if points.image_convolution:
        head.head = ConvolvingHead(
            image_channels=in_channels,
            window=points.window,
            convolution=points.image_convolution,
            features=head.inputs.width(3),
            classes=classes,
            width=points.width,
            layers=points.layers,
        )
    return head


def refuse_beyond_memory(config: Config, *, in_channels: int, classes: int) -> None:
    """Count the network's parameters before any memory is taken for them.

    Raises:
        InputError: weights, gradients and the optimiser's two moments are more than the memory of this machine.
    """
    with torch.device("meta"):
        model = build_model(config, in_channels=in_channels, classes=classes)
    needed = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())
    have = memory_limit_bytes()
    if needed > have:
        raise InputError(
            f"network.width: the network needs about {needed / 2**30:.3g} GiB of memory and this machine has "
            f"{have / 2**30:.3g}; lower network.width"
        )


def count_multiply_adds(model: Segmenter, image: Tensor, num_points: int | None = None) -> int:
    """Multiply-adds of a forward pass, the head at its points included (convolutions and matrix products;
    interpolation is not counted).

    Args:
        image: (1, C, D, H, W).
        num_points: at which the head is asked; None takes those of a training step.
    """
    drawn = model.points.num_points
    counted = _count_multiply_adds(model, image, drawn)
    if num_points is None or model.head is None:
        return counted
    # each point takes as many: those of a whole volume are not computed
    further = _count_multiply_adds(model, image, 2 * drawn) - counted
    return counted + further * (num_points - drawn) // drawn


def _count_multiply_adds(model: Segmenter, image: Tensor, num_points: int) -> int:
    training = model.training
    image = image.expand(2, *image.shape[1:])  # of a lone sample, `vnet.model.layers` may convolve overlapping halves
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        coarse, features = model.network(image)
        if model.head is not None:
            points = torch.rand(2, num_points, image.ndim - 2, device=image.device)
            at_points = coarse.new_zeros(2, coarse.shape[1], num_points)
            with torch.enable_grad():  # as training reads, at every point; `pointrend.first_layer` may need less
                model.head.predict_points(points, at_points, model.head_features(features), image)
    model.train(training)
    return int(counter.get_total_flops()) // 4  # two operations each, two samples


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
