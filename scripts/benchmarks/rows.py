"""Rows of a benchmark: their choice, sides that take turns, functions with a clock."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vnet.core.errors import InputError

Row = dict[str, Any]


def chosen_names(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted names in the order of the known ones; all names where none is wanted.

    Raises:
        InputError: a name that is not known.
    """
    strange = [name for name in wanted if name not in known]
    if strange:
        raise InputError([f"--case {name}: no such row; one of {'; '.join(known)}" for name in strange])
    return [name for name in known if not wanted or name in wanted]


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side by turn, after one uncounted turn; a change of the machine's speed meets all sides."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """`function` with a clock: the seconds of each call, also of one that raises, are appended to `seconds`."""

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    return measured


def paired(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median over the turns of the ratio within a turn: a machine that slows down slows both sides."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))
