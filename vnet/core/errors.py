"""Errors that a user can mend, each printed as one line, and signals that ask a run to stop.

Every command ends with the exit code of its error. On a signal, the training loop's handler sets a flag, which the loop
reads after each step; elsewhere a handler raises at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType

SHOWN_FAULTS = 20


class InputError(ValueError):
    """Bad input or configuration: one or more faults, each one line saying what, where, and how to mend it.

    Commands end with exit code 2.
    """

    exit_code = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        # file names and headers may hold line breaks; a fault is one line
        lines = [faults] if isinstance(faults, str) else list(faults)
        self.faults = [" ".join(printable(line).split()) for line in lines]
        super().__init__("\n".join(self.faults))

    def report(self) -> str:
        """The text for stderr: at most `SHOWN_FAULTS` faults and the count of the rest."""
        rest = len(self.faults) - SHOWN_FAULTS
        more = [f"... and {rest} more faults of this data set or command"] if rest > 0 else []
        return "\n".join(f"error: {line}" for line in self.faults[:SHOWN_FAULTS]) + "".join(
            f"\n{line}" for line in more
        )


class RunFault(InputError):
    """An error while running, such as a vanished file or too many non-finite steps; exit code 3."""

    exit_code = 3


def raise_case_faults(faults: Sequence[str], *, done: int) -> None:
    """Raise the faults of single cases once all other cases are done; nothing where there are none.

    Args:
        faults: a line each.
        done: cases without a fault.

    Raises:
        RunFault: some cases are done (exit code 3).
        InputError: none is (exit code 2).
    """
    if faults:
        raise (RunFault if done else InputError)(faults)


def printable(text: str) -> str:
    """`text` with control characters as escapes, so that no file name can control the terminal."""
    return "".join(char if char.isprintable() or char.isspace() else repr(char)[1:-1] for char in text)


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
