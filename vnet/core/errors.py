"""Errors that a user can mend, each printed as one line; every command ends with their exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
