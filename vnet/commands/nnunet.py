"""nnU-Net with pointrend: label images with a trained model, or train with a point head.

vnet nnunet predict -m MODEL_FOLDER -i IN -o OUT     options as of nnUNetv2_predict_from_modelfolder
export nnUNet_extTrainer=$(vnet nnunet trainer)      then nnUNetv2_train ... -tr nnUNetTrainerPointRend
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vnet.commands.main import CommandParser
from vnet.core.errors import InputError


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="vnet nnunet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="predict|trainer")
    add_predict(commands.add_parser("predict", help="label images with a trained nnU-Net"))
    commands.add_parser("trainer", help="print the folder in which nnU-Net finds nnUNetTrainerPointRend")
    chosen = parser.parse_args(argv)
    if find_spec("nnunetv2") is None:
        raise InputError("vnet nnunet needs nnU-Net, which this Python lacks: pip install 'pointrend[vnet,nnunet]'")
    if chosen.command == "trainer":
        from pointrend.integrations.nnunet_trainers import FOLDER

        print(FOLDER)
        return 0
    return predict(chosen)


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", metavar="IN", type=Path, required=True, help="folder of images, NAME_0000.nii.gz, ...")
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="folder of the label files")
    parser.add_argument("-m", metavar="MODEL", type=Path, required=True, help="folder that holds plans.json and fold_*")
    parser.add_argument("-f", metavar="FOLD", nargs="+", help="folds whose mean counts: 0 1 2, or all (those there)")
    parser.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="(checkpoint_final.pth)")
    parser.add_argument("-step_size", type=float, default=0.5, help="of the tiles, as a share of their size (0.5)")
    parser.add_argument("-npp", type=int, default=3, help="processes that preprocess (3); 0: none but this one")
    parser.add_argument("-nps", type=int, default=3, help="threads that write files (3); 0: none but this one")
    parser.add_argument("-prev_stage_predictions", metavar="FOLDER", type=Path, help="of a cascade's first stage")
    parser.add_argument("-device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(auto)")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring")
    parser.add_argument("--continue_prediction", action="store_true", help="skip images whose label file is there")
    parser.add_argument("--disable_progress_bar", action="store_true")
    parser.add_argument("--verbose", action="store_true")


def predict(chosen: argparse.Namespace) -> int:
    """Predict a folder of images.

    Raises:
        InputError: the model or the images are not there, or the model's labels cannot be rendered.
    """
    folds = folds_of(chosen.m, chosen.f, chosen.chk)
    require_images(chosen)
    import torch

    from pointrend.integrations.nnunet import Predictor

    device = torch.device(device_name(chosen.device))
    predictor = Predictor(
        tile_step_size=chosen.step_size,
        use_mirroring=not chosen.disable_tta,
        perform_everything_on_device=device.type == "cuda",
        device=device,
        verbose=chosen.verbose,
        verbose_preprocessing=chosen.verbose,
        allow_tqdm=not chosen.disable_progress_bar,
    )
    previous = str(chosen.prev_stage_predictions) if chosen.prev_stage_predictions else None
    try:
        predictor.initialize_from_trained_model_folder(str(chosen.m), folds, chosen.chk)
        stage = predictor.configuration_manager.previous_stage_name
        if stage is not None and previous is None:
            raise InputError(
                f"{chosen.m}: the model is the second stage of a cascade; name the labels of {stage} with "
                "-prev_stage_predictions"
            )
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{chosen.m}: {error}") from None
    predictor.predict_from_files(
        str(chosen.i),
        str(chosen.o),
        overwrite=not chosen.continue_prediction,
        num_processes_preprocessing=chosen.npp,
        num_processes_segmentation_export=chosen.nps,
        folder_with_segs_from_prev_stage=previous,
    )
    return 0


def folds_of(model: Path, wanted: Sequence[str] | None, checkpoint: str) -> list[int | str]:
    """The folds to use: those wanted, else all numbered ones of the model folder, else `all`.

    Raises:
        InputError: no model folder, or no checkpoint of a fold.
    """
    for name in ("plans.json", "dataset.json"):
        if not (model / name).is_file():
            raise InputError(f"-m {model}: no {name} there; name the folder that holds it and fold_0, fold_1, ...")
    there = sorted(path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    missing = [fold for fold in wanted or [] if fold not in there]
    if missing or not there:
        found = f"there are {', '.join(there)}" if there else "there is none"
        raise InputError(f"-f {' '.join(wanted or ['0'])}: no {checkpoint} of fold {(missing or ['0'])[0]}; {found}")
    numbered = [fold for fold in there if fold != "all"]
    return [fold if fold == "all" else int(fold) for fold in wanted or numbered or ["all"]]


def require_images(chosen: argparse.Namespace) -> None:
    """
    Raises:
        InputError: no image is there, or the output would stand among the inputs.
    """
    import json

    if not 0 < chosen.step_size <= 1:
        raise InputError(f"-step_size must lie in (0, 1], got {chosen.step_size}")
    ending = json.loads((chosen.m / "dataset.json").read_text())["file_ending"]
    if not chosen.i.is_dir() or not any(chosen.i.glob(f"*_0000{ending}")):
        raise InputError(f"-i {chosen.i}: no image *_0000{ending} there; nnU-Net's names end in the channel's number")
    for name in ("i", "m"):
        if chosen.o.resolve() == getattr(chosen, name).resolve():
            raise InputError(f"-o {chosen.o}: is the folder of -{name}, whose dataset.json would be written over")


def device_name(wanted: str) -> str:
    """The device to use.

    Raises:
        InputError: `cuda` where torch finds no GPU.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("-device cuda: torch finds no CUDA GPU here; use -device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
