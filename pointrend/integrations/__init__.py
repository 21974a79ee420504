"""Bridges to other packages; each module imports the package that it is named after."""

from pathlib import Path

NNUNET_TRAINERS = Path(__file__).with_name("nnunet_trainers")  # for nnU-Net's variable nnUNet_extTrainer
