"""nnU-Net's trainer with PointRend: the U-Net without its full-resolution decoder stage, and a head in its place.

nnU-Net finds it by its environment variable for trainers of others:

    export nnUNet_extTrainer=$(vnet nnunet trainer)
    nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPointRend

Planning, data, augmentation, optimiser, deep supervision, tiles, mirroring, validation and export are nnU-Net's own
(2.8; the `nnunet` extra).
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.head import WINDOW
from pointrend.integrations.nnunet import require_classes
from pointrend.reading import interpolate_at
from pointrend.refine import PointRend
from pointrend.sampling import PointSampling
from pointrend.uncertain import uncertain_voxels

FINE = "encoder stage 0"
VOXELS_AT_ONCE = 65536  # that the head is asked about
HOME = "pointrend.integrations.nnunet_trainers.pointrend_trainer"


class PointInputs(NamedTuple):
    """What the head's loss needs of a training step.

    Attributes:
        coarse: (B, K, *coarse) logits of the last decoder stage that is left.
        fine: (B, C, *size), the output of the first encoder stage.
        image: (B, C_in, *size).
    """

    coarse: Tensor
    fine: Tensor
    image: Tensor


class PointRendUNet(nn.Module):
    """A U-Net of nnU-Net without its last decoder stage, and a head that refines its up-sampled logits.

    Args:
        unet: with `encoder` and `decoder`, as nnU-Net plans it; it loses its last decoder stage.
        image_channels: C_in.
        classes: K.
        refine_fraction: share of an image's voxels, the most uncertain, that the head decides in evaluation mode.

    Raises:
        ValueError: a network of another kind, or with fewer than two decoder stages.
    """

    def __init__(self, unet: Any, *, image_channels: int, classes: int, refine_fraction: float) -> None:
        super().__init__()
        drop_finest_stage(unet)
        encoder = unet.encoder
        self.encoder, self.decoder = encoder, unet.decoder  # nnU-Net switches deep supervision by these names
        self.refine_fraction = refine_fraction
        self.head = PointRend(
            classes=classes,
            features={FINE: encoder.output_channels[0]},
            image_channels=image_channels,
            windows={FINE: WINDOW, "image": WINDOW},
            ndim=len(encoder.strides[0]),
        )

    def forward(self, image: Tensor) -> Any:
        """Logits of nnU-Net's scales, the finest on the image's grid; last, in training, a `PointInputs`.

        Args:
            image: (B, C_in, *size).

        Returns:
            In training a list: (B, K, *size), the up-sampled logits of the last decoder stage; with deep supervision
            the logits of every decoder stage, finest first; `PointInputs`. In evaluation mode the finest logits are
            refined, without deep supervision they come alone, with it in a list as nnU-Net's own.
        """
        skips = self.encoder(image)
        found = self.decoder(skips)
        scales = list(found) if self.decoder.deep_supervision else []
        inputs = PointInputs(scales[0] if scales else found, skips[0], image)
        linear = "trilinear" if image.ndim == 5 else "bilinear"
        finest = F.interpolate(inputs.coarse, image.shape[2:], mode=linear)
        if self.training:
            return [finest, *scales, inputs]
        self._refine(finest, inputs)
        return [finest, *scales] if scales else finest

    @torch.compiler.disable
    @torch.no_grad()
    def _refine(self, finest: Tensor, inputs: PointInputs) -> None:
        """Write the head's logits into the up-sampled ones (B, K, *size) at the most uncertain voxels."""
        size = finest.shape[2:]
        count = round(self.refine_fraction * math.prod(size))
        for sample, logits in enumerate(finest.flatten(2)):
            coarse, fine, image = (part[sample, None] for part in inputs)
            coarse = coarse.float()
            index, _ = uncertain_voxels(coarse[0], size, num_points=count)
            for some in index.split(VOXELS_AT_ONCE):
                points = voxel_centres(some, size)[None]
                at_points = interpolate_at(coarse, points)
                refined = self.head.predict_points(points, at_points, {FINE: fine}, image, grid=size)
                logits[:, some] = refined[0].to(logits.dtype)


def drop_finest_stage(unet: Any) -> None:
    """Remove the last decoder stage of a U-Net of nnU-Net.

    Raises:
        ValueError: a network without nnU-Net's encoder and decoder, or with fewer than two decoder stages.
    """
    decoder = getattr(unet, "decoder", None)
    parts: list[Any] = [getattr(decoder, name, None) for name in ("stages", "transpconvs", "seg_layers")]
    if not hasattr(unet, "encoder") or not all(isinstance(part, nn.ModuleList) for part in parts):
        raise ValueError(
            f"{type(unet).__name__} has not the encoder and decoder of nnU-Net's U-Nets: plan with one of them"
        )
    if len(parts[0]) < 2:
        raise ValueError("the plan has one decoder stage, of which none would be left: plan with larger patches")
    for part in parts:
        del part[-1]


class PointLoss(nn.Module):
    """nnU-Net's loss of the logits of all scales plus the head's loss at training points.

    Args:
        scales: nnU-Net's loss, of the finest logits or, as a `DeepSupervisionWrapper`, of all.
        head: the network's, whose `sampling` draws the points.
    """

    def __init__(self, scales: nn.Module, head: PointRend) -> None:
        super().__init__()
        self.scales, self.head = scales, head

    def forward(self, output: Any, target: Any) -> Tensor:
        """A scalar; in evaluation mode, where the network gives no `PointInputs`, nnU-Net's loss alone.

        Args:
            output: of `PointRendUNet`.
            target: (B, 1, *size) labels, or a list of them by scale, the finest first.
        """
        if not isinstance(output, list) or not isinstance(output[-1], PointInputs):
            loss: Tensor = self.scales(output, target)
            return loss
        *logits, inputs = output
        deep = isinstance(self.scales, DeepSupervisionWrapper)
        labels = target[0][:, 0] if deep else target[:, 0]
        points = self.head.loss(inputs.coarse.float(), {FINE: inputs.fine}, inputs.image, labels.long())
        return points + self.scales(logits if deep else logits[0], target)


class nnUNetTrainerPointRend(nnUNetTrainer):
    """nnU-Net's trainer of a `PointRendUNet`; the numbers are those of the arms of `vnet`.

    It has nnU-Net's own constructor, which reads its arguments back by name.

    Attributes:
        num_points: points a sample at which the head is trained, drawn by `PointSampling`.
        refine_fraction: share of a tile's voxels that the head decides in validation and prediction.

    Raises:
        ValueError: on initialisation, a model of regions or a planned network that is no U-Net of two decoder stages.
    """

    num_points: ClassVar[int] = 2048
    refine_fraction: ClassVar[float] = 0.06

    def initialize(self) -> None:
        require_classes(self.label_manager)
        super().initialize()

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        # nnU-Net imports this file under another name and forgets it again: torch.compile could not find its classes
        network: nn.Module = import_module(HOME).PointRendUNet(
            unet,
            image_channels=num_input_channels,
            classes=num_output_channels,
            refine_fraction=cls.refine_fraction,
        )
        return network

    def _build_loss(self) -> nn.Module:
        network = self.network.module if self.is_ddp else self.network
        head = getattr(network, "_orig_mod", network).head
        head.sampling = PointSampling(num_points=self.num_points, ignore=self.label_manager.ignore_label)
        loss: nn.Module = import_module(HOME).PointLoss(super()._build_loss(), head)
        return loss
