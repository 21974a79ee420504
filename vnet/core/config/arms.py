"""The built-in arms: named sets of config keys that a study compares."""

from __future__ import annotations

# The six arms of the comparison: what differs from the file is where the decoder stops and whether there is a head.
ARMS: dict[str, dict[str, dict[str, int]]] = {
    "dense": {"network": {"output_stride": 1}, "points": {"num_points": 0}},
    "coarse_s2": {"network": {"output_stride": 2}, "points": {"num_points": 0}},
    "coarse_s4": {"network": {"output_stride": 4}, "points": {"num_points": 0}},
    "pointrend_s1": {"network": {"output_stride": 1}},
    "pointrend_s2": {"network": {"output_stride": 2}},
    "pointrend_s4": {"network": {"output_stride": 4}},
}
