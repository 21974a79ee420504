"""torchvision 0.28.0 of a CUDA build, made usable beside a CPU build of torch.

Python runs this file at start where its folder is on PYTHONPATH. The C++ operators of such a torchvision do not load:
its import ends at the first operator that it gives a fake kernel, its `nms` refuses to run, and its RoIAlign would be
compiled from Python. So the first import of torchvision defines `torchvision::nms` and `torchvision::qnms` by
`torch.library` beforehand, and puts RoIAlign in its place afterwards. An installation whose operators load is left as
it is.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class WithOperators(Loader):
    """Defines the operators, then loads torchvision as its own loader does."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # imported here: torch and numba take seconds, and most programs need no torchvision
        from torchvision_operators import define_operators, roi_align

        module._operators = define_operators()
        self.loader.exec_module(module)
        align = sys.modules["torchvision.ops.roi_align"]
        align._roi_align_in_torch = getattr(align._roi_align, "__wrapped__", align._roi_align)  # for the tests
        align._roi_align = roi_align
        sys.modules["torchvision.ops.boxes"]._assert_has_ops = lambda: None


class Finder(MetaPathFinder):
    """Stands before the others for `torchvision` alone."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.loader is not None and not operators_load(spec):
            spec.loader = WithOperators(spec.loader)
        return spec


def operators_load(spec: ModuleSpec) -> bool:
    """Whether torchvision's own C++ operators load."""
    import torch

    for folder in spec.submodule_search_locations or []:
        try:
            torch.ops.load_library(f"{folder}/_C.so")
        except (ImportError, OSError):
            continue
        return True
    return False


sys.meta_path.insert(0, Finder())
