"""Named features of any torch network, by forward hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

SHOWN, PROBE = 8, 64  # modules that an error names, and voxels per axis of the image that finds their channels
COMPARED_VALUES = 4096  # of a feature map without a version counter


class Taps(nn.Module):
    """A network that also returns the outputs of some of its modules; see `taps`."""

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        unknown = [path for path in names.values() if path not in modules]
        if unknown:
            near = _nearest(model, unknown)
            raise ValueError(f"taps must name modules of {type(model).__name__}, got {unknown}; the nearest: {near}")
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


def _nearest(model: nn.Module, wanted: Sequence[str]) -> str:
    """The modules of a network whose paths are most like the wanted ones, with channels and stride of what they give.

    Where the network runs on shapes alone, modules that give no feature map are left out.
    """
    maps = _feature_maps(model)
    names = list(maps) or [name for name, _ in model.named_modules() if name]
    likeness = {name: max(SequenceMatcher(None, path, name).ratio() for path in wanted) for name in names}
    ranked = sorted(names, key=lambda name: -likeness[name])  # of equals the first in the network
    shown = [f"{name} ({maps[name]})" if name in maps else name for name in ranked[:SHOWN]]
    more = len(ranked) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _feature_maps(model: nn.Module) -> dict[str, str]:
    """Path -> channels and stride of each module that gives a feature map; {} where the network does not run so.

    The network runs without values or memory for them, on an image of PROBE voxels an axis.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
    if first is None:
        return {}
    ndim = len(first.kernel_size)
    image = torch.empty(1, first.in_channels, *[PROBE] * ndim, device="meta")
    found: dict[str, str] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == ndim + 2:
                strides = [f"{PROBE / size:.3g}" for size in output.shape[2:]]
                stride = strides[0] if len(set(strides)) == 1 else "x".join(strides)
                found[name] = f"{output.shape[1]} channels, stride {stride}"

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    tensors = {name: value.detach().to("meta") for name, value in [*model.named_parameters(), *model.named_buffers()]}
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            # tie_weights: torch does not give a module back its weights that is registered under two names (DynUNet)
            functional_call(model, tensors, (image,), tie_weights=False)
    except Exception:  # a network that reads values, or wants other inputs: it is named without channels
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


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
        ValueError: a path that is no module of the model; the nearest ones are named, with their channels and strides.
    """
    return Taps(model, names)
