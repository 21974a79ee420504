"""The configuration: frozen dataclasses, read from YAML and the command line, checked on construction.

Neither torch nor MONAI is imported here, so that `--help` answers at once.
"""

from vnet.core.config.arms import ARMS
from vnet.core.config.loading import load_config
from vnet.core.config.schema import (
    Axes,
    Config,
    NetworkConfig,
    PointsConfig,
    TrainingConfig,
    cumulative_strides,
    per_axis,
)

__all__ = [
    "ARMS",
    "Axes",
    "Config",
    "NetworkConfig",
    "PointsConfig",
    "TrainingConfig",
    "cumulative_strides",
    "load_config",
    "per_axis",
]
