"""nnUNetTrainerPointRend: its network, its loss, and nnU-Net's own commands with it.

Also a small nnU-Net model folder with random weights, images that it labels, and a raw data set to train on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from tests.fixtures import run_vnet

pytestmark = [
    pytest.mark.nnunet,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # acvl_utils and batchgenerators, on import
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),  # nnU-Net and what it imports, while it runs
]

ROOT = Path(__file__).parents[3]
LABELS = {"background": 0, "near": 1, "far": 2}


def resampling(order: int, kind: str, is_seg: bool = False) -> dict[str, Any]:
    """The part of a configuration that says how data are resampled: nnU-Net's default or its torch function."""
    if kind == "torch":
        return {"is_seg": is_seg, "force_separate_z": None}
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


def configuration(kind: str = "default", stages: int = 2, dims: int = 3, **changes: Any) -> dict[str, Any]:
    """A configuration of a few stages, as nnU-Net plans them."""
    name = {"default": "resample_data_or_seg_to_shape", "torch": "resample_torch_fornnunet"}[kind]
    planned = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * dims,
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
                "n_stages": stages,
                "features_per_stage": [4, 8, 12][:stages],
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": [[3] * dims] * stages,
                "strides": [[1] * dims, [2] * dims, [1, 2, 2][:dims]][:stages],
                "n_conv_per_stage": [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
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


def write_raw_data(folder: Path, names: str = "abcde", size: tuple[int, int, int] = (34, 36, 38)) -> Path:
    """nnU-Net's raw data set 1: noisy images of a ball that holds a smaller one; sizes (z, y, x) in voxels of 1 mm."""
    root = folder / "Dataset001_Balls"
    rng = np.random.default_rng(0)
    z, y, x = np.indices(size)
    for name in names:
        centre = np.array(size) / 2 + rng.uniform(-4, 4, 3)
        distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        labels = (distance < 10).astype(np.uint8) + (distance < 5)
        image = labels + rng.normal(scale=0.3, size=size)
        for part, values in ((f"imagesTr/{name}_0000", image.astype(np.float32)), (f"labelsTr/{name}", labels)):
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(root / f"{part}.nii.gz"))
    dataset = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": len(names), "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(dataset))
    return root


def read_labels(path: Path) -> np.ndarray:
    """Labels (z, y, x) of a file."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


SHORT = """
import torch
from pointrend.integrations.nnunet_trainers.pointrend_trainer import nnUNetTrainerPointRend


class ThreeSteps(nnUNetTrainerPointRend):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
"""


def point_unet(stages: int = 3, dims: int = 3, refine_fraction: float = 0.1, deep: bool = True) -> Any:
    """The trainer's network for three classes, with weights that do not depend on the caller."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    from pointrend.integrations.nnunet_trainers.pointrend_trainer import nnUNetTrainerPointRend

    planned = ConfigurationManager(configuration(stages=stages, dims=dims))
    trainer = type("Trainer", (nnUNetTrainerPointRend,), {"refine_fraction": refine_fraction})
    torch.manual_seed(0)
    network = trainer.build_network_architecture(None, planned, 1, 3, deep)
    torch.nn.init.normal_(network.head.head.logits.weight)  # untrained it would repeat the coarse logits
    return network


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_has_nnunets_scales_and_the_head_in_place_of_the_finest_stage(dims: int) -> None:
    network = point_unet(dims=dims)
    size = (8, 12, 16)[:dims]
    image = torch.randn(2, 1, *size)
    finest, coarse, inputs = network.train()(image)
    assert coarse.shape == (2, 3, *(n // 2 for n in size))
    assert inputs.fine.shape == (2, 4, *size)
    assert inputs.coarse is coarse
    assert inputs.image is image
    mode = "trilinear" if dims == 3 else "bilinear"
    torch.testing.assert_close(finest, torch.nn.functional.interpolate(coarse, size, mode=mode))
    refined, same = network.eval()(image)
    torch.testing.assert_close(same, coarse)
    # the head's logits at every voxel, one sample at a time
    grid = torch.stack(torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in size), indexing="ij"), dim=-1)
    points = grid.flatten(0, -2)[None].expand(2, -1, -1)
    everywhere = network.head.predict_points(points, finest.flatten(2), {"encoder stage 0": inputs.fine}, image)
    best, second = finest.flatten(2).topk(2, dim=1).values.unbind(1)
    for sample in range(2):
        asked = (best - second)[sample].topk(round(0.1 * points.shape[1]), largest=False).indices
        expected = finest[sample].flatten(1).clone()
        expected[:, asked] = everywhere[sample][:, asked]
        torch.testing.assert_close(refined[sample].flatten(1), expected, rtol=1e-4, atol=1e-4)
    network.decoder.deep_supervision = False  # as nnU-Net does before it predicts
    torch.testing.assert_close(network(image), refined)


def test_the_loss_is_nnunets_and_the_heads() -> None:
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

    from pointrend.integrations.nnunet_trainers.pointrend_trainer import PointLoss
    from pointrend.sampling import PointSampling

    network = point_unet()
    network.head.sampling = PointSampling(num_points=50, ignore=3)
    scales = DeepSupervisionWrapper(lambda logits, labels: logits.square().mean() + labels.mean(), (0.75, 0.25))
    loss = PointLoss(scales, network.head)
    labels = torch.randint(4, (2, 1, 8, 12, 16)).float()
    target = [labels, labels[:, :, ::2, ::2, ::2]]
    image = torch.randn(2, 1, 8, 12, 16)
    output = network.train()(image)
    torch.manual_seed(1)
    found = loss(output, target)
    found.backward()
    assert all(p.grad is not None for p in network.head.parameters())
    torch.manual_seed(1)
    at_points = network.head.loss(output[1], {"encoder stage 0": output[-1].fine}, image, labels[:, 0].long())
    torch.testing.assert_close(found, scales(output[:2], target) + at_points)
    evaluated = network.eval()(image)
    torch.testing.assert_close(loss(evaluated, target), scales(evaluated, target))
    # without deep supervision: one output, one target
    single = PointLoss(torch.nn.MSELoss(), network.head)
    alone = point_unet(deep=False).train()(image)
    assert len(alone) == 2
    torch.manual_seed(1)
    both_parts = single(alone, labels.expand(-1, 3, -1, -1, -1))
    torch.manual_seed(1)
    points = network.head.loss(alone[1].coarse, {"encoder stage 0": alone[1].fine}, image, labels[:, 0].long())
    torch.testing.assert_close(
        both_parts, torch.nn.functional.mse_loss(alone[0], labels.expand(-1, 3, -1, -1, -1)) + points
    )


def test_a_compiled_network_gives_the_same() -> None:
    network = point_unet()
    image = torch.randn(1, 1, 8, 12, 16)
    compiled = torch.compile(network, backend="eager")
    for mode in (True, False):
        for one, other in zip(compiled.train(mode)(image)[:2], network.train(mode)(image)[:2], strict=True):
            torch.testing.assert_close(one, other)


def test_networks_without_a_stage_to_leave_out_are_refused_in_one_line() -> None:
    from pointrend.integrations.nnunet_trainers.pointrend_trainer import drop_finest_stage

    with pytest.raises(
        ValueError, match="Linear has not the encoder and decoder of nnU-Net's U-Nets: plan with one of them"
    ):
        drop_finest_stage(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="the plan has one decoder stage, of which none would be left"):
        point_unet(stages=2)


def python(code: str, *words: str) -> str:
    """The stdout of a program in a Python of its own, with the packages of this checkout."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.detection  # nnU-Net's search for trainers imports torchvision
@pytest.mark.slow
def test_nnunets_commands_train_validate_and_predict(tmp_path: Path, monkeypatch, capsys) -> None:
    data = write_raw_data(tmp_path / "raw")
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "three_steps.py").write_text(SHORT)
    code, folder, err = run_vnet("nnunet", ["trainer"], capsys)
    assert (code, err) == (0, "")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for name in ("n_proc_DA", "def_n_proc"):
        monkeypatch.setenv(f"nnUNet_{name}", "1")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([folder.strip(), str(tmp_path / "trainers")]))
    plan = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as run"
    python(f"{plan}; run()", *"-d 1 -c 3d_fullres -np 1 -npfp 1".split())
    plans_file = tmp_path / "preprocessed" / data.name / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_fullres"] |= {
        "batch_size": 2,
        "patch_size": [16, 24, 24],
        "architecture": configuration(stages=3)["architecture"],
    }
    plans_file.write_text(json.dumps(plans))
    train = "from nnunetv2.run.run_training import run_training_entry as run"
    assert "Mean Validation Dice" in python(f"{train}; run()", *"1 3d_fullres 0 -tr ThreeSteps -device cpu".split())
    model = tmp_path / "results" / data.name / "ThreeSteps__nnUNetPlans__3d_fullres"
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "ThreeSteps"
    assert sorted(checkpoint["init_args"]) == ["configuration", "dataset_json", "device", "fold", "plans"]
    assert any(name.startswith("head.") for name in checkpoint["network_weights"])
    # our labels of the validation case, from its file, are those that nnU-Net exported
    checkpoint["trainer_name"] = "nnUNetTrainerPointRend"  # found without the variable
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    monkeypatch.delenv("nnUNet_extTrainer")
    words = f"predict -m {model} -i {data / 'imagesTr'} -o {tmp_path / 'ours'} -npp 0 -nps 0 -device cpu".split()
    code, _, err = run_vnet("nnunet", [*words, "--disable_progress_bar"], capsys)
    assert (code, err) == (0, "")
    assert "nnUNet_extTrainer" not in os.environ
    (validated,) = (model / "fold_0" / "validation").glob("*.nii.gz")
    labels, expected = read_labels(tmp_path / "ours" / validated.name), read_labels(validated)
    assert len(np.unique(labels)) > 1
    assert (labels != expected).sum() < 0.002 * labels.size  # ties of half precision


def test_the_trainer_refuses_regions_in_one_line() -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from pointrend.integrations.nnunet_trainers.pointrend_trainer import nnUNetTrainerPointRend

    trainer = nnUNetTrainerPointRend.__new__(nnUNetTrainerPointRend)
    trainer.label_manager = LabelManager({"background": 0, "whole": (1, 2), "core": (2,)}, [1, 2])
    with pytest.raises(
        ValueError, match=r"the model predicts regions \(whole, core\), which overlap and have no single best class"
    ):
        trainer.initialize()


if __name__ == "__main__":  # python -m tests.pointrend.integrations.test_nnunet_trainer FOLDER, for .ci/check_wheel
    write_model(Path(sys.argv[1]) / "model")
    write_images(Path(sys.argv[1]) / "images")
