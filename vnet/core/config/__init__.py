"""The configuration: frozen dataclasses, read from YAML and the command line, checked on construction.

Modules: `keys` holds their fields, the built-in arms and the hash of a run, `schema` the keys themselves; `loading`
joins defaults, file, arm and command line. Neither torch nor MONAI is imported here, so that `--help` answers at once.
"""

from vnet.core.config.keys import (
    ARMS,
    STUDY_ARMS,
    Axes,
    cumulative_strides,
    differing_keys,
    flatten,
    hash_defaults,
    key,
    known_keys,
    merge,
    per_axis,
    require,
    unflatten,
)
from vnet.core.config.loading import load_config, load_resolved, refuse_keys_of_arms
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
    "refuse_keys_of_arms",
    "require",
    "unflatten",
]
