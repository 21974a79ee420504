"""The argument parser of every command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from vnet.core.errors import InputError


class CommandParser(argparse.ArgumentParser):
    """Parses a command's arguments; a fault is an `InputError` of one line, `--help` exits with 0."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see --help")

    def parse_with_overrides(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The command's own options, and the rest: config keys, checked by whoever reads the config."""
        return self.parse_known_args(list(argv))


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, which `vnet.core.hardware.find_device` reads."""
    help_text = "auto (the first GPU where there is one), cpu, cuda or cuda:N (default: auto)"
    parser.add_argument("--device", default="auto", help=help_text)
