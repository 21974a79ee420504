"""Signals that ask a run to stop.

In the training loop a handler sets a flag, which the loop reads after each step. Elsewhere a handler raises at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

PREEMPTED, INTERRUPTED = 75, 130


class Preempted(Exception):
    """A signal asked the run to stop; the run can continue from what is on disk.

    Attributes:
        exit_code: of the command.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("stopped on request")
        self.exit_code = exit_code


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 raise `Preempted(75)` at once.

    Reading and checking data and scoring may be interrupted anywhere. The training loop may not, and enters a
    `StopRequest`, whose handlers replace these.
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
    """Inside, signals set `exit_code`: 75 for SIGTERM and SIGUSR1 (which SLURM sends), 130 for Ctrl-C.

    A second Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self.before[number] = signal.signal(number, self.handle)
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
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
