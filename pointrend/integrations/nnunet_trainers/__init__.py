"""Trainers for nnU-Net, which imports every module of this folder when its variable `nnUNet_extTrainer` names it."""

from pathlib import Path

FOLDER = Path(__file__).parent
