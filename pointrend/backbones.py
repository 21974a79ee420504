"""Named features of any torch network, by forward hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Taps(nn.Module):
    """A network that also returns the outputs of some of its modules; see `taps`."""

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        unknown = [path for path in names.values() if path not in modules]
        if unknown:
            known = [name for name in modules if name]
            raise ValueError(f"taps must name modules of {type(model).__name__}, got {unknown}; it has {known}")
        self.model = model
        self.names = dict(names)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The network's own output and the features by name."""
        caught: dict[str, Tensor] = {}
        modules = dict(self.model.named_modules())
        # Hooks live for one call: a model may be copied, pickled or tapped twice, and keeps no tensors alive.
        handles = [
            modules[path].register_forward_hook(lambda _m, _i, out, name=name: caught.__setitem__(name, out))
            for name, path in self.names.items()
        ]
        try:
            output = self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for name, path in self.names.items():
            if not isinstance(caught.get(name), Tensor):
                what = type(caught[name]).__name__ if name in caught else "nothing: it was not called"
                raise TypeError(f"module {path!r} must return a tensor to be tapped, it gave {what}")
        return output, caught


def taps(model: nn.Module, names: Mapping[str, str]) -> Taps:
    """Collect features of a network without changing it.

    Args:
        model: any network; its parameters are shared, not copied.
        names: module path as in `model.named_modules()` by the name that the features shall have, as in
            {"fine": "encoder1"}.

    Returns:
        A module whose forward returns (output of the model, features by name, each (B, C, *spatial)). A module that
        is called several times gives its last output.

    Raises:
        ValueError: a path that is no module of the model.
    """
    return Taps(model, names)
