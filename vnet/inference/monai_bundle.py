"""What a bundle's inference.json names, for `python -m monai.bundle run`: images read, labelled by a `Predictor`.

Files are grouped and headers read by the rules of `vnet predict`, so that both commands give the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from vnet.core.errors import InputError
from vnet.data.case_files import list_inputs
from vnet.data.header_affine import print_findings
from vnet.data.nifti import is_nifti
from vnet.data.volumes import Volume, read_image
from vnet.inference.predictor import Predictor


def list_images(folder: str, channels: int) -> list[dict[str, list[str]]]:
    """The images of a folder (or the one in a file) as items of a MONAI data set, {"image": files of its channels}.

    Raises:
        InputError: nothing there that can be read, or a case whose files are not those that are due.
    """
    inputs = list_inputs(Path(folder), channels)
    print_findings(inputs.findings, notes=True)
    if inputs.faults:
        raise InputError(inputs.faults)
    return [{"image": [str(file) for file in files]} for files in inputs.cases.values()]


class VolumeReader(ImageReader):
    """A reader for MONAI's `LoadImage` with our rules for headers: units, disagreeing forms, missing codes."""

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether all files are NIfTI by their names."""
        files = filename if isinstance(filename, Sequence) and not isinstance(filename, str) else [filename]
        return all(is_nifti(Path(file).name) for file in files)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Volume:
        """The image in a file of all channels, or in one file a channel.

        Raises:
            InputError: a file that is missing, damaged or hostile, or channels on different grids.
        """
        return read_image([data] if isinstance(data, str | Path) else list(data))

    def get_data(self, img: Volume) -> tuple[np.ndarray, dict[str, Any]]:
        """(C, X, Y, Z) float32 along the file's own axes, and what MONAI wants to know of them."""
        channels = np.stack([img.restore(channel) for channel in img.array])
        spatial = np.asarray(img.shape)
        known = {"affine": img.affine, "original_affine": img.affine.copy(), "spatial_shape": spatial}
        return channels, known | {"space": "RAS", "original_channel_dim": 0}


class LabelInferer(Inferer):
    """Labels of images as `vnet predict` gives them: tiles, rendering and refinement on the image's own grid.

    Args:
        predictor: of the bundle.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Label a batch.

        Args:
            inputs: (B, C, X, Y, Z) `MetaTensor` along the files' axes, not normalised.
            network: the predictor's own; MONAI's evaluator hands it over.

        Returns:
            (B, 1, X, Y, Z) uint8, int32 above 256 classes, a `MetaTensor` with the affines of `inputs`.

        Raises:
            ValueError: another network, or images without an affine.
        """
        if network is not self.predictor.model:
            raise ValueError("network must be predictor.model: the predictor tiles, renders and refines with its own")
        if not isinstance(inputs, MetaTensor):
            raise ValueError(f"inputs must be a MetaTensor, which has an affine, got {type(inputs).__name__}")
        images = inputs.as_tensor().cpu().movedim(1, -1).numpy()
        affines = torch.as_tensor(inputs.affine, dtype=torch.float64).expand(len(images), 4, 4).cpu().numpy()
        labels = np.stack([self.predictor(image, affine) for image, affine in zip(images, affines, strict=True)])
        whole = labels if labels.dtype == np.uint8 else labels.astype(np.int32)  # torch has few operations on uint16
        found = MetaTensor(torch.from_numpy(whole[:, None]), meta=inputs.meta)
        found.is_batch = inputs.is_batch
        return found
