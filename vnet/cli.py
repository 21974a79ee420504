"""How every script starts and ends: one line a fault on stderr, an exit code, no traceback for what a user can mend."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vnet.errors import InputError, printable

INTERRUPTED = 130


def finish(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run `main` on the command line and exit.

    Exit codes: 0 done; 2 bad input or config, or a full disk; 3 stopped by a fault while running; 75 preempted and
    resumable; 130 interrupted and resumable.
    """
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        code = fail(error.report(), error.exit_code)
    except KeyboardInterrupt:
        code = fail("interrupted; the same command continues where it stopped", INTERRUPTED)
    except BrokenPipeError:
        # the reader of a pipe (`| head`) has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        code = fail(f"error: {where}{MENDABLE[error.errno]}", InputError.exit_code)
    sys.exit(code)


class Options(argparse.ArgumentParser):
    """Arguments of a script, any fault of theirs as one line; `--help` exits with 0."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; see --help")

    def parse_with_overrides(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The script's own options, and the rest: config keys, checked by whoever reads the config."""
        return self.parse_known_args(list(argv))


MENDABLE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file size limit is reached; raise it (ulimit -f) and run the same command again",
    errno.EROFS: "the file system is read-only; name another folder (run_root, --output)",
    errno.EACCES: "permission denied; change the permissions or name another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; name another folder",
    errno.ENAMETOOLONG: "the name is too long for this file system; shorten it",
}


def fail(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code
