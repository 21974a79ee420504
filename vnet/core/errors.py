"""The faults a user can mend, and how every script ends on one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHOWN_FAULTS = 20


class InputError(ValueError):
    """Bad input or configuration: one or more faults, each one line saying what, where, and how to mend it.

    Scripts end with exit code 2 on it.
    """

    exit_code = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        # one line a fault, whatever a file name or a header holds
        lines = [faults] if isinstance(faults, str) else list(faults)
        self.faults = [" ".join(printable(line).split()) for line in lines]
        super().__init__("\n".join(self.faults))

    def report(self) -> str:
        """At most `SHOWN_FAULTS` lines and the count of the rest."""
        rest = len(self.faults) - SHOWN_FAULTS
        more = [f"... and {rest} more faults of this data set or command"] if rest > 0 else []
        return "\n".join(f"error: {line}" for line in self.faults[:SHOWN_FAULTS]) + "".join(
            f"\n{line}" for line in more
        )


class RunFault(InputError):
    """A fault met while running (a vanished file, too many non-finite steps): exit code 3."""

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
    """`text` with control characters made visible, so that a hostile file name cannot move the cursor."""
    return "".join(char if char.isprintable() or char.isspace() else repr(char)[1:-1] for char in text)
