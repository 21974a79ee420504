"""Named features of any torch network, by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COMPARED_VALUES = 4096  # of a feature map without a version counter


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
        """The network's own output, and the features (B, C, *spatial) by name.

        Raises:
            TypeError: a tapped module was not called or does not return a tensor.
            RuntimeError: features were overwritten in place by something else than a module with `inplace=True`.
        """
        caught: dict[str, _Caught] = {}
        with self._hooks(caught):
            output = self.model(*args, **kwargs)
        for name, path in self.names.items():
            if name not in caught or not isinstance(caught[name].value, Tensor):
                what = type(caught[name].value).__name__ if name in caught else "nothing: it was not called"
                raise TypeError(f"module {path!r} must return a tensor to be tapped, it gave {what}")
            if caught[name].overwritten():
                raise RuntimeError(
                    f"the output of module {path!r} was overwritten in place after the module returned it; "
                    "tap a later module, or give that operation a new tensor"
                )
        return output, {name: caught[name].value for name in self.names}

    @contextmanager
    def _hooks(self, caught: dict[str, _Caught]) -> Iterator[None]:
        """Catch the outputs, and keep them from modules that work in place.

        The hooks live for one call: a model may be copied, pickled or tapped twice, and keeps no tensors alive.
        """

        def catch(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, inputs, output: caught.__setitem__(name, _Caught.of(output))

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            for name, one in caught.items():
                if any(one.shares_memory(value) for value in inputs):
                    caught[name] = _Caught.of(one.value.clone())  # copied before it is overwritten

        modules = dict(self.model.named_modules())
        handles = [modules[path].register_forward_hook(catch(name)) for name, path in self.names.items()]
        in_place = [module for module in modules.values() if getattr(module, "inplace", False) is True]
        handles += [module.register_forward_pre_hook(keep) for module in in_place]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _Caught:
    """An output as it was when its module returned it.

    Attributes:
        value: the output.
        version: torch's count of in-place changes; None where it has none.
        sample: some of the values, in place of the version that inference tensors lack.
    """

    value: Any
    version: int | None = None
    sample: Tensor | None = None

    @classmethod
    def of(cls, value: Any) -> _Caught:
        if not isinstance(value, Tensor):
            return cls(value)
        return cls(value, sample=_sample(value)) if value.is_inference() else cls(value, version=value._version)

    def overwritten(self) -> bool:
        if self.sample is None:
            return isinstance(self.value, Tensor) and self.value._version != self.version
        return not torch.allclose(_sample(self.value), self.sample, rtol=0, atol=0, equal_nan=True)

    def shares_memory(self, other: Any) -> bool:
        """Whether another tensor, perhaps a view, has the memory of this output."""
        if not isinstance(self.value, Tensor) or not isinstance(other, Tensor):
            return False
        return self.value.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _sample(value: Tensor) -> Tensor:
    """A copy of at most COMPARED_VALUES values, evenly spread."""
    flat = value.detach().flatten()  # a copy where the layout is not contiguous
    return flat[:: max(flat.numel() // COMPARED_VALUES, 1)].clone()


def taps(model: nn.Module, names: Mapping[str, str]) -> Taps:
    """A network with named features, itself unchanged.

    Features are what a module returned, even where a later module works in place (`nn.ReLU(inplace=True)`): they are
    copied before it. Other in-place operations on them are refused when the network runs.

    Args:
        model: any network; its parameters are shared, not copied.
        names: for each name that features shall have, the path of the module, as in `model.named_modules()`:
            {"fine": "encoder1"}.

    Returns:
        A module whose forward returns the model's output and the features by name, (B, C, *spatial) each. Of a module
        that is called several times they are the last output.

    Raises:
        ValueError: a path that is no module of the model.
    """
    return Taps(model, names)
