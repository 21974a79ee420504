"""A V-Net trainer for NIfTI volumes with a PointRend head; see `configs/` and `scripts/`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vnet.network import VNet
    from vnet.predictor import Predictor

_HOMES = {"VNet": "network", "Predictor": "predictor"}
__all__ = ["Predictor", "VNet"]


def __getattr__(name: str) -> Any:
    # lazy: importing torch and MONAI takes seconds, `--help` must not
    if name in _HOMES:
        return getattr(import_module(f"vnet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vnet' has no attribute {name!r}")
