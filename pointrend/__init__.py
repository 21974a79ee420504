"""PointRend for 2D and 3D: select uncertain points, re-predict them, render labels on any grid.

Letters in all docstrings: B batch, K classes, C feature channels, N points, D x H x W voxels; *spatial stands for
(D, H, W) or (H, W). Axes are in array order, (z, y, x). Points are in the unit cube of the image: voxel i of an axis
of n voxels has its centre at (i + 0.5) / n.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Not lazy: module and function share a name, and a later import of the module would replace the function. It needs
# numpy alone.
from pointrend.getpoint import getpoint

if TYPE_CHECKING:
    from pointrend.backbones import taps
    from pointrend.head import PointHead
    from pointrend.reading import sample_at
    from pointrend.refine import PointRend
    from pointrend.render import render_labels

_HOMES = {
    "sample_at": "reading",
    "render_labels": "render",
    "PointHead": "head",
    "PointRend": "refine",
    "taps": "backbones",
}
__all__ = ["PointHead", "PointRend", "getpoint", "render_labels", "sample_at", "taps"]


def __getattr__(name: str) -> Any:
    # lazy: torch and numba are imported by the first use, not by `import pointrend`
    if name in _HOMES:
        return getattr(import_module(f"pointrend.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pointrend' has no attribute {name!r}")
