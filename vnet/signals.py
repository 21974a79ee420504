"""Signals that ask a run to stop: noted here, obeyed by the loop between two steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

PREEMPTED, INTERRUPTED = 75, 130


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
