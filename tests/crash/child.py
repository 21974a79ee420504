"""A training process that kills itself (SIGKILL) at a dangerous place: in the middle of writing a file.

python -m tests.crash.child record LOG SCRIPT WORDS...   runs to its end, writes how often each place was passed
python -m tests.crash.child MOMENT NAME COUNT SCRIPT WORDS...   dies when it passes the place for the COUNTth time

The training's own code is untouched: `open`, `os.fsync` and `os.replace` are wrapped before it is loaded.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import runpy
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

MOMENTS = ("half of it is written", "before it is flushed", "before it is renamed", "after it is renamed")
# a file's part in the run, by its name; names of files being written begin with a dot
NAMES = {
    "last.ckpt": r"\.?last\.ckpt",
    "best.ckpt": r"\.?best\.ckpt",
    "metrics.csv": r"\.?metrics\.csv",
    "cases.csv": r"\.?cases\.csv",
    "refinement.csv": r"\.?refinement\.csv",
    "run.json": r"\.?run\.json",
    "config.yaml": r"\.?config\.yaml",
    "data check": r"\.?checked_",
    "volume": r".*\.npy|\..*_(image|label|class_locations)\.",
    "event file": r"events\.out\.tfevents",
}

Place = tuple[str, str]  # a moment and a name


def part_of(path: object) -> str | None:
    """Which of `NAMES` a path is."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return None
    name = Path(os.fsdecode(path)).name
    return next((part for part, pattern in NAMES.items() if re.match(pattern, name)), None)


class Watch:
    """Counts the places that the process passes, and ends it at the chosen one.

    Args:
        fatal: the place to die at.
        count: at which passing, from 1.
    """

    def __init__(self, fatal: Place | None = None, count: int = 0) -> None:
        self.fatal, self.count = fatal, count
        self.passed: Counter[Place] = Counter()
        self.lock = Lock()  # event files are written by a thread
        self.open, self.fsync, self.replace = io.open, os.fsync, os.replace
        self.descriptors: dict[int, str] = {}

    def install(self) -> None:
        io.open = builtins.open = self.opened  # type: ignore[assignment]
        os.fsync, os.replace = self.flushed, self.renamed  # type: ignore[assignment]

    def passes(self, moment: str, name: str, last_deed: Callable[[], object] = lambda: None) -> None:
        with self.lock:
            self.passed[moment, name] += 1
            if (moment, name) == self.fatal and self.passed[self.fatal] == self.count:
                last_deed()
                os.kill(os.getpid(), signal.SIGKILL)

    def opened(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = self.open(path, mode, *args, **kwargs)
        name = part_of(path)
        return file if name is None or "b" not in mode or not set(mode) & set("wxa") else Writing(file, name, self)

    def flushed(self, descriptor: int) -> None:
        self.passes(MOMENTS[1], self.descriptors.get(descriptor, ""))
        self.fsync(descriptor)

    def renamed(self, source: Any, target: Any, **kwargs: Any) -> None:
        name = part_of(target) or ""
        self.passes(MOMENTS[2], name)
        self.replace(source, target, **kwargs)
        self.passes(MOMENTS[3], name)


class Writing:
    """A file that is watched while it is written."""

    def __init__(self, file: Any, name: str, watch: Watch) -> None:
        self.file, self.name, self.watch = file, name, watch

    def write(self, data: Any) -> int:
        def write_half() -> None:
            view = memoryview(data).cast("B")
            self.file.write(view[: len(view) // 2])
            self.file.flush()

        self.watch.passes(MOMENTS[0], self.name, write_half)
        return int(self.file.write(data))

    def fileno(self) -> int:
        descriptor: int = self.file.fileno()
        self.watch.descriptors[descriptor] = self.name
        return descriptor

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def main(argv: list[str]) -> None:
    if argv[0] == "record":
        log, script, words = Path(argv[1]), argv[2], argv[3:]
        watch = Watch()
    else:
        moment, name, count, script = argv[:4]
        log, words = None, argv[4:]
        watch = Watch((moment, name), int(count))
    watch.install()
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        if log is not None:
            log.write_text(json.dumps([[*place, count] for place, count in sorted(watch.passed.items()) if place[1]]))


if __name__ == "__main__":
    main(sys.argv[1:])
