"""nnU-Net's step from logits to labels without the tensor of classes x voxels, as a drop-in.

    import nnunetv2.inference.export_prediction as export
    from pointrend.integrations.nnunet import convert_predicted_logits_to_segmentation_with_correct_shape as convert
    export.convert_predicted_logits_to_segmentation_with_correct_shape = convert

Needs the `nnunet` extra. Labels equal those of nnU-Net 2.8 up to ties within rounding; nnU-Net rounds the interpolated
logits to the dtype of its input, so half-precision logits tie more often there.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pointrend.render import render_labels


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits: Tensor | NDArray[Any],
    plans_manager: Any,
    configuration_manager: Any,
    label_manager: Any,
    properties_dict: dict[str, Any],
    return_probabilities: bool = False,
    num_threads_torch: int | None = None,
) -> NDArray[Any]:
    """Labels of a case in the geometry of its file, from the logits of the resampled, cropped and transposed case.

    Args:
        predicted_logits: (K, D, H, W) in the network's axis order; float16, bfloat16, float32 or float64.
        plans_manager, configuration_manager, label_manager, properties_dict: as nnU-Net hands them over.
        return_probabilities: must be False; probabilities at full resolution are what this function avoids.
        num_threads_torch: threads; None takes torch's number.

    Returns:
        Labels of shape `shape_before_cropping` in the file's axis order, 0 outside the crop; uint8, or uint16 from
        255 foreground labels on.

    Raises:
        ValueError: region-based labels, a resampling that is not linear, or probabilities asked for.
    """
    if label_manager.has_regions:
        raise ValueError("region-based labels are not mutually exclusive classes: use nnU-Net's own export for them")
    if return_probabilities:
        raise ValueError("return_probabilities=True needs the dense logits: use nnU-Net's own export for it")
    spacing = [properties_dict["spacing"][axis] for axis in plans_manager.transpose_forward]
    size = [int(n) for n in properties_dict["shape_after_cropping_and_before_resampling"]]
    planned = list(configuration_manager.spacing)
    current = planned if len(planned) == len(size) else [spacing[0], *planned]
    axis, rounding = _nearest_axis(configuration_manager.resampling_fn_probabilities, current, spacing)
    if axis is None:
        labels = render_labels(predicted_logits[None], size, threads=num_threads_torch)[0]
        segmentation = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
    else:
        segmentation = _render_slices(predicted_logits, size, axis, rounding, num_threads_torch)
    dtype = np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16
    whole = np.zeros(properties_dict["shape_before_cropping"], dtype)
    _insert(whole, segmentation, properties_dict["bbox_used_for_cropping"])
    return whole.transpose(plans_manager.transpose_backward)


def _nearest_axis(
    resample: Any, current: Sequence[float], new: Sequence[float]
) -> tuple[int | None, type[np.floating]]:
    """The axis along which nnU-Net takes the nearest slice (None: all are linear), and the dtype of its positions.

    Raises:
        ValueError: the planned resampling is not linear in plane and linear or nearest across.
    """
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    function = resample.func if isinstance(resample, partial) else resample
    given = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    given |= resample.keywords if isinstance(resample, partial) else {}
    name = getattr(function, "__name__", str(function))
    if name == "resample_data_or_seg_to_shape":
        linear, across = given["order"] == 1, given["order_z"]
    elif name == "resample_torch_fornnunet":
        linear, across = given["mode"] == "linear", given["aniso_axis_mode"]
    else:
        raise ValueError(f"resampling_fn_probabilities must be one of nnU-Net's linear ones, got {name}")
    separate, axis = determine_do_sep_z_and_axis(
        given["force_separate_z"], current, new, given["separate_z_anisotropy_threshold"]
    )
    if not linear or (separate and across not in (0, 1, "nearest-exact")):
        raise ValueError(
            f"resampling_fn_probabilities must be linear in plane and linear or nearest across, got {name} with {given}"
        )
    # the first computes positions in numpy's float64, the second in torch's float32
    return (int(axis) if separate and across != 1 else None), np.float64 if "order" in given else np.float32


def _render_slices(
    logits: Tensor | NDArray[Any],
    size: Sequence[int],
    axis: int,
    rounding: type[np.floating],
    threads: int | None,
) -> NDArray[Any]:
    """Labels by linear interpolation within the slices across `axis` and the nearest slice along it."""
    source = logits.shape[axis + 1]
    position = rounding(source / size[axis]) * (np.arange(size[axis]) + rounding(0.5))
    nearest = np.clip(np.floor(position), 0, source - 1).astype(np.int64)
    needed, place = np.unique(nearest, return_inverse=True)
    in_plane = [n for i, n in enumerate(size) if i != axis]
    labels = []
    for i in needed:
        plane = logits[(slice(None),) * (axis + 1) + (int(i),)]
        rendered = render_labels(plane[None], in_plane, threads=threads)
        labels.append(rendered.cpu().numpy() if isinstance(rendered, Tensor) else rendered)
    return np.moveaxis(np.concatenate(labels)[place], 0, axis)


def _insert(whole: NDArray[Any], crop: NDArray[Any], box: Sequence[Sequence[int]]) -> None:
    """Write the crop to its half-open box of the whole image; parts outside the image are dropped."""
    inside, part = [], []
    for (start, stop), length in zip(box, whole.shape, strict=True):
        first, last = max(int(start), 0), min(int(stop), length)
        inside.append(slice(first, max(last, first)))
        part.append(slice(first - int(start), max(last, first) - int(start)))
    whole[tuple(inside)] = crop[tuple(part)]
