"""A V-Net trainer for NIfTI volumes with a PointRend head; see `configs/` and `scripts/`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vnet.inference.predictor import Predictor
    from vnet.model.network import VNet

_HOMES = {"VNet": "model.network", "Predictor": "inference.predictor"}
__all__ = ["Predictor", "VNet"]


def __getattr__(name: str) -> Any:
    # lazy: importing torch and MONAI takes seconds, `--help` must not
    if name in _HOMES:
        return getattr(import_module(f"vnet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vnet' has no attribute {name!r}")
