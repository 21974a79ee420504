"""Progress of long work on stdout: a live bar on a terminal, else a line every 20 seconds; notes on what takes long."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vnet.core.errors import printable

SECONDS_BETWEEN_LINES = 20.0


def duration(seconds: float) -> str:
    """`0.4 s`, `24 s`, `3.2 min` or `5.1 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5940 else f"{seconds / 3600:.1f} h"


def announce_compiling() -> None:
    """Print a line when numba begins to compile `pointrend`'s loops, which it does once after each installation.

    Only the commands of `vnet` call this: a library prints nothing unasked.
    """
    from numba.core import event

    class Announcer(event.Listener):
        def on_start(self, started: Any) -> None:
            compiled = started.data["dispatcher"].py_func.__module__
            if not _announced and compiled.startswith("pointrend."):
                _announced.append(True)
                print("compiling loops, once after each installation: about half a minute in all", flush=True)

        def on_end(self, ended: Any) -> None:
            pass

    if not _listeners:
        _listeners.append(Announcer())
        event.register("numba:compile", _listeners[0])


_listeners: list[Any] = []
_announced: list[bool] = []


class ProgressBar:
    """Progress over `total` units, `done` of which were done before.

    Args:
        title: what is counted.
        total: units in all.
        done: units done by an earlier start.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.first = title, total, done, done
        self.console = Console(file=sys.stdout)
        self.live = self.console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(title, total=total, completed=done, note="")
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, note: str = "", *, done: int | None = None) -> None:
        """Count one more unit, or set the count.

        Args:
            note: shown beside the count.
            done: units done in all; None adds one.
        """
        self.done = self.done + 1 if done is None else done
        note = printable(note)
        self.bar.update(self.task, completed=self.done, note=note)
        now = time.monotonic()
        if not self.live and (now - self.printed >= SECONDS_BETWEEN_LINES or self.done == self.total):
            self.printed = now
            rate = (now - self.started) / max(self.done - self.first, 1)
            left = rate * (self.total - self.done)
            end = f"{duration(left)} left" if left else f"in {duration(now - self.started)}"
            print(f"{self.title} {self.done}/{self.total} {note} {end}", flush=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
