"""How a command ends: its exit code, and one line on stderr for a fault that the user can mend."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from vnet.core.distributed import claim_error_report, is_lost_peer, is_rank_zero, peer_exit_code, shutdown
from vnet.core.errors import InputError, RunFault

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
