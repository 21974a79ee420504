"""The configuration: frozen dataclasses, read from YAML and the command line, checked on construction.

Modules: `schema` holds the keys, `arms` the built-in arms, `hashing` the hash of a run, `loading` joins defaults,
file, arm and command line. Neither torch nor MONAI is imported here, so that `--help` answers at once.
"""

from vnet.core.config.arms import ARMS, STUDY_ARMS
from vnet.core.config.axes import Axes, cumulative_strides, per_axis
from vnet.core.config.fields import key, require
from vnet.core.config.hashing import differing_keys, hash_defaults
from vnet.core.config.keys import flatten, known_keys, merge, unflatten
from vnet.core.config.loading import load_config, load_resolved
from vnet.core.config.schema import (
    Config,
    DataConfig,
    InferenceConfig,
    MetricsConfig,
    NetworkConfig,
    PointsConfig,
    StudyConfig,
    TrainingConfig,
)

__all__ = [
    "ARMS",
    "STUDY_ARMS",
    "Axes",
    "Config",
    "DataConfig",
    "InferenceConfig",
    "MetricsConfig",
    "NetworkConfig",
    "PointsConfig",
    "StudyConfig",
    "TrainingConfig",
    "cumulative_strides",
    "differing_keys",
    "flatten",
    "hash_defaults",
    "key",
    "known_keys",
    "load_config",
    "load_resolved",
    "merge",
    "per_axis",
    "require",
    "unflatten",
]
