"""Starts commands as several processes, quickly: what takes seconds to import is imported once, then forked.

Run as a program it answers jobs, one JSON line each: {"argv": [...], "world": n, "fault": {...} or null}. The answer is
a list of [exit code, stdout, stderr], one a process.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a process ended; a signal is a negative code."""

    code: int
    out: str
    err: str


class Launcher:
    """A process that has imported everything and forks itself for each job."""

    def __init__(self) -> None:
        words = [sys.executable, __file__]
        env = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
        self.server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(
        self, folder: Path, world: int, command: str, *argv: str, fault: dict[str, Any] | None = None
    ) -> list[Ended]:
        """Run `vnet COMMAND ARGV` in `folder` as `world` processes of one machine.

        Args:
            fault: {"rank": r, "step": s, "kind": name of a function below}: what befalls a process in a step.
        """
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        job = {"argv": [command, *argv], "world": world, "fault": fault, "cwd": str(folder)}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return [Ended(*one) for one in json.loads(self.server.stdout.readline())]

    def close(self) -> None:
        self.server.communicate()


def answer(job: dict[str, Any]) -> list[tuple[int, str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for rank in range(job["world"]):
            if not (child := os.fork()):
                become(job, rank, port, Path(folder))
            children[rank] = child
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children.values()]
        texts = [[Path(folder, f"{rank}.{kind}").read_text() for kind in ("out", "err")] for rank in children]
    return [(code, out, err) for code, (out, err) in zip(codes, texts, strict=True)]


def become(job: dict[str, Any], rank: int, port: int, folder: Path) -> None:
    """Be the process `rank` of a job, and end with it."""
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{kind}", os.O_CREAT | os.O_WRONLY), number)
    world = job["world"]
    if world > 1:
        names = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank}
        names |= {"WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        os.environ |= {name: str(value) for name, value in names.items()}
    sys.argv = ["vnet", *job["argv"]]
    os.chdir(job["cwd"])
    code: object = 1
    from vnet.commands.main import start

    try:
        if job["fault"] and job["fault"]["rank"] in (rank, "all"):
            prepare(**job["fault"])
        start()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def prepare(rank: object, step: int, kind: str) -> None:
    """Let `kind` befall this process when `step` steps are done."""
    from vnet.training.trainer import Trainer

    plain = Trainer.step

    def faulty(self: Trainer, *args: Any) -> Any:
        if self.progress.step == step:
            FAULTS[kind](self)
        return plain(self, *args)

    Trainer.step = faulty  # type: ignore[method-assign]


def vanish(trainer: Any) -> None:
    from vnet.core.errors import RunFault

    raise RunFault("case phantom_001: its files vanished")


def poison(trainer: Any) -> None:
    """One loss that is not finite, in this process alone."""
    plain = trainer.plain.forward

    def once(*args: Any) -> Any:
        trainer.plain.forward = plain
        return {name: term * float("nan") for name, term in plain(*args).items()}

    trainer.plain.forward = once


def stumble(trainer: Any) -> None:
    raise KeyError("a mistake of the program")


FAULTS = {
    "vanish": vanish,
    "poison": poison,
    "stumble": stumble,
    "kill": lambda trainer: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda trainer: os.kill(os.getpid(), signal.SIGTERM),
    "interrupt": lambda trainer: os.kill(os.getpid(), signal.SIGINT),
}


if __name__ == "__main__":
    # also what a run imports when it first needs it; nothing is computed, for threads do not survive a fork
    for name in "commands.main training.run inference.label_files report.report report.pictures".split():
        importlib.import_module(f"vnet.{name}")
    for name in "matplotlib.backends.backend_agg matplotlib.figure monai.transforms skimage.morphology".split():
        importlib.import_module(name)

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
