"""A small nnU-Net model folder with random weights, and images that it labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch

LABELS = {"background": 0, "near": 1, "far": 2}


def resampling(order: int, kind: str, is_seg: bool = False) -> dict[str, Any]:
    """The part of a configuration that says how data are resampled: nnU-Net's default or its torch function."""
    if kind == "torch":
        return {"is_seg": is_seg, "force_separate_z": None}
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


def configuration(kind: str = "default", **changes: Any) -> dict[str, Any]:
    """A 3D configuration of two stages, as nnU-Net plans them."""
    name = {"default": "resample_data_or_seg_to_shape", "torch": "resample_torch_fornnunet"}[kind]
    planned = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [20.0, 20.0, 20.0],
        "spacing": [1.5, 1.5, 1.5],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": name,
        "resampling_fn_data_kwargs": resampling(3, "default"),
        "resampling_fn_seg_kwargs": resampling(1, "default", is_seg=True),
        "resampling_fn_probabilities_kwargs": resampling(1, kind),
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * 2,
                "strides": [[1, 1, 1], [2, 2, 2]],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return planned | changes


def write_model(folder: Path, folds: int = 1, labels: dict[str, Any] = LABELS, **changes: Any) -> Path:
    """plans.json, dataset.json and fold_*/checkpoint_final.pth of untrained networks.

    Args:
        changes: to the configuration (`kind`, `previous_stage`, `spacing`, ...).
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = {
        "dataset_name": "Dataset001_World",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [30, 30, 30],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [1, 2, 0],
        "transpose_backward": [2, 0, 1],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration(**changes)},
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):
        dataset["regions_class_order"] = [1, 2]
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(plans)
    planned = manager.get_configuration("3d_fullres")
    classes = manager.get_label_manager(dataset).num_segmentation_heads
    for fold in range(folds):
        torch.manual_seed(fold)
        network = nnUNetTrainer.build_network_architecture(
            manager, planned, determine_num_input_channels(manager, planned, dataset), classes, False
        )
        last = network.decoder.seg_layers[-1]
        with torch.no_grad():  # every class wins somewhere
            last.weight.normal_()
            last.weight -= last.weight.mean(1, keepdim=True)
            last.bias.zero_()
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "network_weights": network.state_dict(),
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_images(folder: Path, names: str = "ab", size: tuple[int, int, int] = (24, 22, 20)) -> Path:
    """Smooth random images of `size` (z, y, x) at 1.0 x 0.9 x 1.1 mm, with a border of zeros that nnU-Net crops."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        coarse = torch.from_numpy(rng.normal(size=(1, 1, 5, 5, 5)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, size, mode="trilinear")[0, 0].numpy()
        smooth[:2], smooth[:, -3:] = 0, 0
        image = SimpleITK.GetImageFromArray(smooth)
        image.SetSpacing((1.1, 0.9, 1.0))
        image.SetOrigin((3.0, -4.0, 5.0))
        SimpleITK.WriteImage(image, str(folder / f"{name}_0000.nii.gz"))
    return folder


def read_labels(path: Path) -> np.ndarray:
    """Labels (z, y, x) of a file."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


if __name__ == "__main__":  # python nnunet_model.py FOLDER, for .ci/check_wheel
    write_model(Path(sys.argv[1]) / "model")
    write_images(Path(sys.argv[1]) / "images")
