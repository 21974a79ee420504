"""nnU-Net's predictor with labels rendered on the image's grid, without the tensor of classes x voxels.

    from pointrend.integrations.nnunet import Predictor

    predictor = Predictor(device=torch.device("cuda"))
    predictor.initialize_from_trained_model_folder(model_folder, use_folds=(0, 1))
    predictor.predict_from_files(input_folder, output_folder)

Reading, preprocessing, network, tiling, mirroring, folds and writing are nnU-Net's own (2.8; the `nnunet` extra). Only
the step from logits to labels differs: nnU-Net resamples every class to the image's grid and takes the argmax; here
`render_labels` gives the same labels. They differ only where nnU-Net rounds two classes to one value: its logits are in
half precision, and so is its resampled tensor.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.data_iterators import PreprocessAdapter, PreprocessAdapterFromNpy
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from numpy.typing import NDArray
from torch import Tensor

from pointrend.integrations.nnunet_trainers import FOLDER
from pointrend.render import render_labels

VARIABLE = "nnUNet_extTrainer"  # nnU-Net's, of folders with trainers of others


class Predictor(nnUNetPredictor):
    """nnU-Net's predictor; the constructor and the methods are its own, but for how labels are made and written.

    Labels are made in this process and written by threads, so no logits are sent to other processes. Without processes
    for preprocessing (`num_processes_preprocessing=0`) nothing is spawned at all.

    Raises:
        ValueError: on initialisation, a model of regions or one whose resampling is not linear; later, probabilities
            are asked for.
    """

    def initialize_from_trained_model_folder(self, *args: Any, **kwargs: Any) -> None:
        with _own_trainers():
            super().initialize_from_trained_model_folder(*args, **kwargs)
        self._require_rendering()

    def manual_initialization(self, *args: Any, **kwargs: Any) -> None:
        super().manual_initialization(*args, **kwargs)
        self._require_rendering()

    def _require_rendering(self) -> None:
        require_classes(self.label_manager)
        linear_resampling(self.configuration_manager.resampling_fn_probabilities)

    def labels(self, logits: Tensor | NDArray[Any], properties: dict[str, Any]) -> NDArray[Any]:
        """Labels in the geometry of a case's file, from its logits (K, D, H, W) on the network's grid."""
        return labels_on_native_grid(
            logits, self.plans_manager, self.configuration_manager, self.label_manager, properties
        )

    def predict_from_data_iterator(
        self,
        data_iterator: Iterable[dict[str, Any]],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list[NDArray[Any] | None]:
        """Predict cases one after the other.

        Args:
            data_iterator: cases as dicts of `data`, `data_properties` and `ofile` (without ending, or None).
            save_probabilities: must be False.
            num_processes_segmentation_export: threads that write files; 0 writes in this one.

        Returns:
            A case's labels where its `ofile` is None, else None.
        """
        _refuse_probabilities(save_probabilities)
        results: list[NDArray[Any] | None] = []
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(max(num_processes_segmentation_export, 1)) as pool:
            for case in data_iterator:
                logits = self.predict_logits_from_preprocessed_data(_tensor(case["data"]))
                labels = self.labels(logits, case["data_properties"])
                del logits
                results.append(labels if case["ofile"] is None else None)
                if case["ofile"] is not None:
                    waiting.append(pool.submit(self._write, labels, case["ofile"], case["data_properties"]))
                while len(waiting) > num_processes_segmentation_export:  # labels wait in memory, a few volumes at most
                    waiting.popleft().result()
            for written in waiting:
                written.result()
        return results

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
    ) -> list[NDArray[Any] | None] | None:
        """`predict_from_files` in this process alone."""
        return super().predict_from_files(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities,
            overwrite,
            num_processes_preprocessing=0,
            num_processes_segmentation_export=0,
            folder_with_segs_from_prev_stage=folder_with_segs_from_prev_stage,
        )

    def predict_single_npy_array(
        self,
        input_image: NDArray[Any],
        image_properties: dict[str, Any],
        segmentation_previous_stage: NDArray[Any] | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> NDArray[Any] | None:
        """Predict one image (channels, D, H, W); labels are returned, or written where a file is named."""
        cases = PreprocessAdapterFromNpy(
            [input_image],
            [segmentation_previous_stage],
            [image_properties],
            [output_file_truncated],
            self.plans_manager,
            self.dataset_json,
            self.configuration_manager,
        )
        return self.predict_from_data_iterator(cases, save_or_return_probabilities, 0)[0]

    def _internal_get_data_iterator_from_lists_of_filenames(
        self,
        input_list_of_lists: list[list[str]],
        seg_from_prev_stage_files: list[str] | None,
        output_filenames_truncated: list[str] | None,
        num_processes: int,
    ) -> Iterator[dict[str, Any]]:
        files = (input_list_of_lists, seg_from_prev_stage_files, output_filenames_truncated)
        if num_processes > 0:
            cases = super()._internal_get_data_iterator_from_lists_of_filenames(*files, num_processes)
        else:
            inputs, previous, outputs = files
            preprocessor = self.configuration_manager.preprocessor_class(verbose=self.verbose_preprocessing)
            parts = (self.plans_manager, self.dataset_json, self.configuration_manager)
            cases = PreprocessAdapter(inputs, previous, preprocessor, outputs, *parts)
        return iter(cases)

    def _write(self, labels: NDArray[Any], file: str, properties: dict[str, Any]) -> None:
        writer = self.plans_manager.image_reader_writer_class()
        writer.write_seg(labels, file + self.dataset_json["file_ending"], properties)


@contextmanager
def _own_trainers() -> Iterator[None]:
    """While entered, nnU-Net finds `nnUNetTrainerPointRend` too, after the trainers that the user has named."""
    named = os.environ.get(VARIABLE)
    folders = [folder for folder in (named, str(FOLDER)) if folder]
    os.environ[VARIABLE] = os.pathsep.join(folders)
    try:
        yield
    finally:
        if named is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = named


def labels_on_native_grid(
    logits: Tensor | NDArray[Any],
    plans_manager: Any,
    configuration_manager: Any,
    label_manager: Any,
    properties: dict[str, Any],
    threads: int | None = None,
) -> NDArray[Any]:
    """Labels of a case in the geometry of its file, from the logits of the resampled, cropped and transposed case.

    Args:
        logits: (K, D, H, W) in the network's axis order; float16, bfloat16, float32 or float64.
        plans_manager, configuration_manager, label_manager, properties: nnU-Net's, of the model and the case.
        threads: None takes torch's number.

    Returns:
        Labels of shape `shape_before_cropping` in the file's axis order, 0 outside the crop; uint8, or uint16 from
        255 foreground labels on.

    Raises:
        ValueError: a model of regions, or a resampling that is not linear.
    """
    require_classes(label_manager)
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    size = [int(n) for n in properties["shape_after_cropping_and_before_resampling"]]
    planned = list(configuration_manager.spacing)
    current = planned if len(planned) == len(size) else [spacing[0], *planned]
    axis, rounding = _nearest_axis(configuration_manager.resampling_fn_probabilities, current, spacing)
    if axis is None:
        segmentation = _rendered(logits, size, threads)
    else:
        segmentation = _render_slices(logits, size, axis, rounding, threads)
    dtype = np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16
    whole = np.zeros(properties["shape_before_cropping"], dtype)
    _insert(whole, segmentation, properties["bbox_used_for_cropping"])
    return whole.transpose(plans_manager.transpose_backward)


def require_classes(label_manager: Any) -> None:
    """
    Raises:
        ValueError: the model predicts regions, which overlap; the message names them.
    """
    if label_manager.has_regions:
        names = [name for name, value in label_manager.label_dict.items() if isinstance(value, (list, tuple))]
        raise ValueError(
            f"the model predicts regions ({', '.join(names)}), which overlap and have no single best class: use "
            "nnU-Net's own trainer and prediction for it"
        )


def linear_resampling(resample: Any) -> dict[str, Any]:
    """The options of a resampling function of nnU-Net's plans, its defaults included.

    Raises:
        ValueError: it is not linear in plane.
    """
    function = resample.func if isinstance(resample, partial) else resample
    options = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    options |= resample.keywords if isinstance(resample, partial) else {}
    name = getattr(function, "__name__", str(function))
    linear = {"resample_data_or_seg_to_shape": ("order", 1), "resample_torch_fornnunet": ("mode", "linear")}
    if name not in linear:
        raise ValueError(f"resampling_fn_probabilities must be one of nnU-Net's linear ones, got {name}")
    option, value = linear[name]
    if options[option] != value:
        found = f"{name} with {option}={options[option]}"
        raise ValueError(f"resampling_fn_probabilities must be linear in plane, got {found}")
    return options


def _nearest_axis(
    resample: Any, current: Sequence[float], new: Sequence[float]
) -> tuple[int | None, type[np.floating]]:
    """The axis along which nnU-Net takes the nearest slice (None: all are linear), and the dtype of its positions.

    Raises:
        ValueError: the planned resampling is not linear in plane and linear or nearest across.
    """
    options = linear_resampling(resample)
    across = options["order_z"] if "order_z" in options else options["aniso_axis_mode"]
    separate, axis = determine_do_sep_z_and_axis(
        options["force_separate_z"], current, new, options["separate_z_anisotropy_threshold"]
    )
    if separate and across not in (0, 1, "nearest-exact"):
        raise ValueError(f"resampling_fn_probabilities must be linear or nearest across the slices, got {across}")
    # the first computes positions in numpy's float64, the second in torch's float32
    return (int(axis) if separate and across != 1 else None), np.float64 if "order" in options else np.float32


def _rendered(logits: Tensor | NDArray[Any], size: Sequence[int], threads: int | None) -> NDArray[Any]:
    labels = render_labels(logits[None], size, threads=threads)[0]
    return labels.cpu().numpy() if isinstance(labels, Tensor) else labels


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
    planes = (logits[(slice(None),) * (axis + 1) + (int(i),)] for i in needed)
    labels = np.stack([_rendered(plane, in_plane, threads) for plane in planes])
    return np.moveaxis(labels[place], 0, axis)


def _insert(whole: NDArray[Any], crop: NDArray[Any], box: Sequence[Sequence[int]]) -> None:
    """Write the crop to its half-open box of the whole image; parts outside the image are dropped."""
    inside, part = [], []
    for (start, stop), length in zip(box, whole.shape, strict=True):
        first, last = max(int(start), 0), min(int(stop), length)
        inside.append(slice(first, max(last, first)))
        part.append(slice(first - int(start), max(last, first) - int(start)))
    whole[tuple(inside)] = crop[tuple(part)]


def _tensor(data: Any) -> Tensor:
    """A case's image: a tensor, an array, or the file of one that nnU-Net asks to be removed when read."""
    if isinstance(data, str):
        image = np.load(data)
        Path(data).unlink()
        data = image
    return data if isinstance(data, Tensor) else torch.from_numpy(data)


def _refuse_probabilities(wanted: bool) -> None:
    if wanted:
        raise ValueError(
            "probabilities need the dense tensor of classes x voxels, which this predictor avoids: use nnU-Net's own "
            "prediction for them"
        )
