"""`vnet COMMAND ...`: train, predict, evaluate, compare, experiment, data, nnunet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from vnet.commands.exit_codes import run_and_exit
from vnet.core.errors import InputError

COMMANDS = {
    "experiment": "train all arms, folds and seeds of a study, then compare; finished runs are skipped",
    "train": "train one run, or continue it",
    "predict": "label volumes with a trained run",
    "evaluate": "score a trained run on its validation fold or on another data set",
    "compare": "tables, paired differences and one HTML page of finished runs",
    "data": "make, fetch or check a data set",
    "nnunet": "label images with a model that nnU-Net trained",
}


def start(command: str | None = None) -> NoReturn:
    """Run the program's command line and exit; `command` stands before its arguments (the scripts give theirs)."""
    run_and_exit(main, [*([command] if command else []), *sys.argv[1:]])


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Raises:
        InputError: no such command, or the command's own faults.
    """
    if not argv:
        raise InputError(f"command line: name a command, one of {', '.join(COMMANDS)}; see vnet --help")
    command, *rest = argv
    if command in ("-h", "--help"):
        print(help_text())
    elif command == "--version":
        print(f"pointrend {installed_version()}")
    elif command in COMMANDS:
        # imported here, so that no command waits for the libraries of another
        return int(import_module(f"vnet.commands.{command}").main(rest))
    else:
        near = get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(COMMANDS)}"
        raise InputError(f"command line: unknown command {command}; {hint}")
    return 0


def help_text() -> str:
    """Usage and one line for each command."""
    lines = [f"  {name:<12} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(["usage: vnet COMMAND ...", "", *lines, "", "vnet COMMAND --help tells its options."])


def installed_version() -> str:
    try:
        return version("pointrend")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "(not installed)"
