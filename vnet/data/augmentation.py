"""Augmentation: patches cut, rotated and scaled in one resampling, intensities varied by MONAI's transforms.

A patch of 48x64x48 voxels takes about 5 ms on one core: the data thread shares the cores with training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

AFFINE_PROBABILITY = 0.4
ROTATION_DEGREES = 15.0  # about each axis, either way
SCALE = 1.2  # larger or smaller by up to this
AXES = "zyx"


@dataclass(frozen=True)
class View:
    """Where a patch lies in its volume, and how it is turned.

    Attributes:
        start: (z, y, x) of the patch's first voxel in the volume, negative where the volume is padded.
        matrix: (3, 3) from patch to volume offsets about the patch's middle, in voxels; None leaves the grid as it is.
        flips: axes mirrored.
    """

    start: tuple[int, int, int]
    matrix: np.ndarray | None
    flips: tuple[int, ...]


def draw_matrix(rng: np.random.Generator, spacing_mm: Sequence[float]) -> np.ndarray | None:
    """Rotation and scale as a patch-to-volume matrix in voxels, None with probability 1 - AFFINE_PROBABILITY.

    The rotation happens in mm, so that thick slices are turned, not sheared. All numbers are always drawn.
    """
    chance, *angles = rng.uniform(-1, 1, 4)
    scale = SCALE ** rng.uniform(-1, 1)
    if abs(chance) >= AFFINE_PROBABILITY:
        return None
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(ROTATION_DEGREES) * np.array(angles)):
        turn = turn @ rotation(axis, float(angle))
    spacing = np.asarray(spacing_mm, float)
    return turn * spacing / spacing[:, None] / scale


def rotation(axis: int, angle: float) -> np.ndarray:
    """(3, 3) rotation about one axis, radians."""
    matrix = np.eye(3)
    one, other = (i for i in range(3) if i != axis)
    matrix[one, one] = matrix[other, other] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


def source_box(view: View, patch: Sequence[int], size: Sequence[int]) -> tuple[slice, slice, slice]:
    """The box of a volume of `size` voxels (z, y, x) that the patch of a view reads."""
    half = np.asarray(patch) / 2
    reach = half if view.matrix is None else np.abs(view.matrix) @ half
    middle = np.asarray(view.start) + half
    lower = np.clip(np.floor(middle - reach).astype(int) - (view.matrix is not None), 0, np.asarray(size) - 1)
    upper = np.clip(np.ceil(middle + reach).astype(int) + (view.matrix is not None), lower + 1, size)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(lower, upper, strict=True))
    return z, y, x


def extract_patch(
    image: Tensor, label: Tensor, corner: Sequence[int], view: View, patch: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The patch of a view: image and label.

    Outside the volume the image is 0, which after normalisation is its mean and is what the network's convolutions
    and the padding at prediction use; the label there is 0, background.

    Args:
        image: (C, d, h, w) float32, the box that `source_box` names.
        label: (d, h, w), the same box.
        corner: first voxel of the box in the volume.

    Returns:
        (C, *patch) float32 and (*patch) int64.
    """
    start = [a - b for a, b in zip(view.start, corner, strict=True)]
    if view.matrix is None:
        shown, marked = pad_to_patch(image, start, patch), pad_to_patch(label[None], start, patch)[0].long()
    else:
        grid = view_grid(view.matrix, start, patch, label.shape)
        shown = F.grid_sample(image[None], grid, align_corners=False)[0]
        marked = F.grid_sample(label[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0].long()
    if view.flips:
        shown, marked = shown.flip([axis + 1 for axis in view.flips]), marked.flip(view.flips)
    return shown, marked


def pad_to_patch(box: Tensor, start: Sequence[int], patch: Sequence[int]) -> Tensor:
    """(C, *patch): the box at its place in the patch, zeros elsewhere."""
    out = box.new_zeros((len(box), *patch))
    source, target = [slice(None)], [slice(None)]
    for offset, have, want in zip(start, box.shape[1:], patch, strict=True):
        first, last = max(offset, 0), min(offset + want, have)
        source.append(slice(first, last))
        target.append(slice(first - offset, last - offset))
    out[tuple(target)] = box[tuple(source)]
    return out


def view_grid(matrix: np.ndarray, start: Sequence[int], patch: Sequence[int], box: Sequence[int]) -> Tensor:
    """(1, *patch, 3) sampling grid (x, y, z) in [-1, 1] of a turned patch, for `grid_sample` in a box."""
    wanted, have = np.asarray(patch, float), np.asarray(box, float)
    theta = np.empty((3, 4))
    theta[:, :3] = matrix * wanted / have[:, None]
    theta[:, 3] = (2 * np.asarray(start) + wanted) / have - 1
    flipped = theta[::-1, [2, 1, 0, 3]].astype(np.float32)
    return F.affine_grid(torch.from_numpy(flipped.copy())[None], [1, 1, *patch], align_corners=False)


def vary_intensity(image: Tensor, seed: int) -> Tensor:
    """The image with blur, contrast, brightness, gamma and noise, each now and then; a function of `seed`.

    Args:
        image: (C, d, h, w), normalised; not written to.
    """
    from monai.transforms import (
        Compose,
        RandAdjustContrast,
        RandGaussianNoise,
        RandGaussianSmooth,
        RandScaleIntensity,
        RandShiftIntensity,
    )

    if image[0].numel() < 2:
        return image  # a single voxel has no contrast
    # made anew for each sample: MONAI's transforms keep their draw in themselves, and two threads may ask at once
    blur = (0.4, 0.8)
    vary = Compose(
        [
            RandGaussianSmooth(sigma_x=blur, sigma_y=blur, sigma_z=blur, prob=0.1),
            RandScaleIntensity(factors=0.25, prob=0.2),
            RandShiftIntensity(offsets=0.2, prob=0.2),
            RandAdjustContrast(gamma=(0.7, 1.5), retain_stats=True, prob=0.2),
            RandGaussianNoise(std=0.1, prob=0.2),
        ]
    ).set_random_state(seed)
    varied = vary(image)
    return varied.as_tensor() if hasattr(varied, "as_tensor") else varied
