"""The built-in arms: named sets of config keys that a study compares."""

from __future__ import annotations

from typing import Any

# The small body: one convolution a stage, two in the deepest ones. The other keys of the network stay.
SMALL_BODY: dict[str, Any] = {"down": [1, 1, 2, 2, 2], "up": [1, 1, 1, 1]}

# An arm sets the stride at which the decoder stops, and whether there is a head.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "dense": {"network": {"output_stride": 1}, "points": {"num_points": 0}},
    "coarse_s2": {"network": {"output_stride": 2}, "points": {"num_points": 0}},
    "coarse_s4": {"network": {"output_stride": 4}, "points": {"num_points": 0}},
    "pointrend_s1": {"network": {"output_stride": 1}},
    "pointrend_s2": {"network": {"output_stride": 2}},
    "pointrend_s4": {"network": {"output_stride": 4}},
    "lean_dense": {"network": {"output_stride": 1, **SMALL_BODY}, "points": {"num_points": 0}},
    "lean_coarse_s4": {"network": {"output_stride": 4, **SMALL_BODY}, "points": {"num_points": 0}},
    "lean_s2": {"network": {"output_stride": 2, **SMALL_BODY}},
    "lean_s4": {"network": {"output_stride": 4, **SMALL_BODY}},
}

# The arms of a study whose config names none.
STUDY_ARMS = ("dense", "coarse_s2", "coarse_s4", "pointrend_s1", "pointrend_s2", "pointrend_s4")
