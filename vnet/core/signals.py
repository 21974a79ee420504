"""Signals that ask a run to stop: noted here, obeyed by the loop between two steps, or at once outside of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

PREEMPTED, INTERRUPTED = 75, 130


class Preempted(Exception):
    """A signal asked the run to stop; what it needs to continue is on disk. `exit_code` is the script's."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("stopped on request")
        self.exit_code = exit_code


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """While entered, SIGTERM and SIGUSR1 raise `Preempted(75)` where the program stands.

    For the parts of a run that leave nothing half done: reading and checking data, scoring. A `StopRequest` inside
    takes over, for the training loop.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted(PREEMPTED)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 (as SLURM sends it) ask to stop with exit code 75, Ctrl-C with 130.

    A second Ctrl-C is not held back.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.exit_code == INTERRUPTED:
                raise KeyboardInterrupt
            self.exit_code = INTERRUPTED
        else:
            self.exit_code = PREEMPTED

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
