"""Devices by name: `auto`, `cpu`, `cuda` (the first GPU) or `cuda:N`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from vnet.core.config.fields import is_device_name
from vnet.core.errors import InputError


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU where torch can use one, else the CPU.

    Raises:
        InputError: no such name, or no such GPU here.
    """
    if not is_device_name(name):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(name.partition(":")[2] or 0)
    if not count:
        raise InputError(f"--device {name}: torch can use no GPU here; take --device auto or cpu")
    if number >= count:
        raise InputError(f"--device {name}: the GPUs here are cuda:0 to cuda:{count - 1}; name one of them")
    return torch.device("cuda", number)


def describe_device(device: torch.device) -> str:
    """The device for a log: the CPU with the threads of torch, a GPU with its model."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' * (threads != 1)})"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Mixed arithmetic where `precision` is `bf16-mixed` or `16-mixed`; nothing where it is `32-true`."""
    kind = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)
