"""Trained runs, or bundles of them, as a function from images to labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vnet.core.config import Config
from vnet.core.errors import InputError
from vnet.core.hardware import find_device
from vnet.data.volumes import Volume, volume_from_array
from vnet.inference.ensemble import Member, predict_together, tile_size
from vnet.inference.prediction import Prediction
from vnet.model.checkpoints import Trained, open_trained

# Folds plan their spacing on their own cases; to a network this much of a difference is a patient of another size.
SPACING_TOLERANCE = 0.05


class Predictor:
    """A trained run, or several whose logits are averaged, as a function from images to labels.

    Args:
        runs: a folder of a run or of a bundle, or several of one task and grid (folds, seeds). The config of the first
            says how to predict: tiles, mirroring, share of refined voxels.
        checkpoint: of runs, `last` or `best`.
        overrides: config keys as on the command line, for example ["--points.refine", "false"].
        device: `auto` (the first GPU where there is one), `cpu`, `cuda` or `cuda:N`; None takes the config's.

    Raises:
        InputError: neither a run nor a bundle, a checkpoint that is missing or of another network, runs that do not fit
            together, or no such device.
    """

    def __init__(
        self,
        runs: str | Path | Sequence[str | Path],
        *,
        checkpoint: str = "last",
        overrides: Sequence[str] = (),
        device: str | None = None,
    ) -> None:
        folders = [runs] if isinstance(runs, str | Path) else list(runs)
        if not folders:
            raise InputError("runs: none given; name at least one run folder")
        opened = [open_trained(folder, overrides, checkpoint) for folder in folders]
        refuse_disagreement(opened)
        self.config, trained = opened[0][1], [one for _, _, one in opened]
        self.device = find_device(device or self.config.device)
        self.members = [Member(one.model.to(self.device), one.preprocessing) for one in trained]
        self.model, self.preprocessing = self.members[0].model, self.members[0].preprocessing
        self.structures, self.in_channels = trained[0].structures, trained[0].in_channels

    def predict(self, volume: Volume, *, keep_logits: bool = False) -> Prediction:
        """Labels of a volume as `vnet.data.volumes.read_image` gives it, with and without refinement.

        Args:
            keep_logits: needed for `Prediction.probability_slabs` after refinement.
        """
        return predict_together(self.members, volume, self.config, keep_logits=keep_logits)

    def __call__(self, image: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Labels of an image in memory.

        Args:
            image: (X, Y, Z) or (X, Y, Z, C) as nibabel gives it.
            affine: (4, 4) voxel to mm, of any orientation.

        Returns:
            (X, Y, Z) uint8 or uint16, voxel for voxel of `image`.
        """
        volume = volume_from_array(image, affine)
        return volume.restore(self.predict(volume).labels)

    def uncertainty(self, image: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """(X, Y, Z) uint8: 255 where two classes tie, 0 where one is sure; arguments as of a call."""
        volume = volume_from_array(image, affine)
        return volume.restore(self.predict(volume).uncertainty_volume())

    def probabilities(self, image: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """(X, Y, Z, K) float32, in the memory of K volumes; arguments as of a call."""
        volume = volume_from_array(image, affine)
        slabs = self.predict(volume, keep_logits=True).probability_slabs()
        classes = np.concatenate([part for _, _, part in slabs], axis=1)
        return np.stack([volume.restore(one) for one in classes], axis=-1)


def refuse_disagreement(runs: Sequence[tuple[Path, Config, Trained]]) -> None:
    """Refuse runs that cannot be averaged, with a line for each property that differs from the first run."""
    kinds: list[tuple[Path, dict[str, list[Any]]]] = [
        (
            folder,
            {
                "structures": list(trained.structures),
                "channels": [channel.rule for channel in trained.preprocessing.channels],
                "network.output_stride": list(trained.model.network.output_stride),
                "training.patch": list(tile_size(config)),
                "data.spacing_mm": [float(f"{mm:.4g}") for mm in trained.preprocessing.spacing_mm],
            },
        )
        for folder, config, trained in runs
    ]
    (first, expected), *others = kinds
    faults = []
    for folder, has in others:
        for key, due in expected.items():
            near = key == "data.spacing_mm" and np.allclose(due, has[key], rtol=SPACING_TOLERANCE)
            if has[key] != due and not near:
                faults.append(f"{folder}: {key} {has[key]} differs from {due} of {first}; name runs of one kind")
    if faults:
        raise InputError(faults)
