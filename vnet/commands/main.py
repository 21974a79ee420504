"""`vnet COMMAND ...`: the commands, their parser and exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from vnet.core.distributed import claim_error_report, is_lost_peer, is_rank_zero, peer_exit_code, shutdown
from vnet.core.environment import installed_version
from vnet.core.errors import InputError, RunFault


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


INTERRUPTED = 130
LOST = "another process ended without a word (killed, or out of memory?); the same command continues the run"


def run_and_exit(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Run `main(argv)` and exit with its code.

    Exit codes: 0 done; 2 bad input or config, or a full disk; 3 stopped by a fault while running; 75 preempted and
    resumable; 130 interrupted and resumable. Of several processes only rank 0 writes to stdout, and only one reports a
    fault.
    """
    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the life of the process
    try:
        code = exit_code(main, argv)
    except BaseException:
        shutdown(1)
        raise
    shutdown(code)
    sys.exit(code)


def exit_code(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run `main(argv)`, print its error in one line, return the exit code."""
    try:
        code = main(argv)
        sys.stdout.flush()
    except InputError as error:
        code = fail(error.report(), error.exit_code)
    except KeyboardInterrupt:
        code = fail("interrupted; the same command continues where it stopped", INTERRUPTED)
    except BrokenPipeError:
        # the reader of a pipe (`| head`) has ended: the rest of the output has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno is None:
            raise
        code = fail(system_fault(error).report(), InputError.exit_code)
        close_full_stdout()
    except Exception as error:
        if is_out_of_memory(error):
            code = fail(f"error: out of memory; {LESS_MEMORY}", RunFault.exit_code)
        elif is_lost_peer(error):
            code = peer_exit_code() or fail(f"error: {LOST}", RunFault.exit_code)
        elif claim_error_report():
            raise
        else:
            code = 1
    return code


def system_fault(error: OSError) -> InputError:
    """The error of the operating system as one line that says how to mend it."""
    mend = MENDABLE.get(error.errno or 0, f"{error.strerror}; look at it and run the same command again")
    return InputError(f"{error.filename}: {mend}" if error.filename else mend)


def is_out_of_memory(error: Exception) -> bool:
    """True for a MemoryError, and for the RuntimeError whose text torch uses instead."""
    return isinstance(error, MemoryError) or bool(re.search("can't allocate memory|out of memory", str(error)))


def close_full_stdout() -> None:
    """Drop stdout's buffer: Python would write it once more at exit, to a disk that is full."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


MENDABLE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file size limit is reached; raise it (ulimit -f) and run the same command again",
    errno.EROFS: "the file system is read-only; name another folder (run_root, --output)",
    errno.EACCES: "permission denied; change the permissions or name another folder",
    errno.EPERM: "the system does not permit it; change the permissions or attributes, or name another folder",
    errno.ENOENT: "is not there; restore it and run the same command again",
    errno.ENOTDIR: "a file stands where a folder is needed; name another folder",
    errno.EEXIST: "a file stands where a folder is needed; name another folder",
    errno.EISDIR: "a folder stands where a file is needed; name another",
    errno.ELOOP: "its links lead in a circle; mend them",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n) and run the same command again",
    errno.ENAMETOOLONG: "the name is too long for this file system; shorten it",
}


LESS_MEMORY = "lower training.batch, training.patch or network.width, or give it more, and run the same command again"


def fail(text: str, code: int) -> int:
    """Print `text` on stderr, from one process of several, and return `code`."""
    if text and claim_error_report():
        print(text, file=sys.stderr, flush=True)
    return code


COMMANDS = {
    "experiment": "train all arms, folds and seeds of a study, then compare; finished runs are skipped",
    "train": "train one run, or continue it",
    "predict": "label volumes with a trained run",
    "evaluate": "score a trained run on its validation fold or on another data set",
    "export": "write a trained run as a bundle, which MONAI's command runs too",
    "compare": "tables, paired differences and one HTML page of finished runs",
    "tensorboard": "show the curves and pictures of runs",
    "nnunet": "label images with a model that nnU-Net trained, or train one with a point head",
    "data": "make, fetch or check a data set, or plan a config for it",
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
        print(f"pointrend {installed_version() or '(not installed)'}")
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
