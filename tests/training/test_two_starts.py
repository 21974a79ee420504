"""Two starts of one run: one trains, the other ends with one line; a killed start does not keep the next one out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.launcher import Launcher
from vnet.core.config import load_config
from vnet.core.files import RUN_LOCK, Holder
from vnet.model.checkpoints import read_checkpoint
from vnet.training.run import train_run
from vnet.training.study import vnet_environment

# `vnet train`, waiting in its third step until the file `go` is there
WAITING = """
import sys, time
from pathlib import Path
from vnet.training.trainer import Trainer
plain = Trainer.step
def wait(self, *args):
    while self.progress.step == 2 and not Path("go").exists():
        time.sleep(0.02)
    return plain(self, *args)
Trainer.step = wait
from vnet.commands.main import start
start()
"""


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-c", WAITING, "train", *words]
    env = vnet_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def files(folder: Path) -> dict[str, object]:
    """What a run leaves, without times and seconds."""
    names = ("cases.csv", "refinement.csv", "splits.json")
    texts: dict[str, object] = {name: (folder / name).read_text() for name in names}
    texts["log.txt"] = [line.split(" ")[:2] for line in (folder / "log.txt").read_text().splitlines()]
    texts["metrics.csv"] = [line.split(",")[:3] for line in (folder / "metrics.csv").read_text().splitlines()]
    texts["names"] = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if "tfevents" not in p.name)
    texts["event files"] = len(list(folder.rglob("*tfevents*")))
    return texts


def require_equal(one: Path, other: Path) -> None:
    assert files(one) == files(other)
    ours, theirs = (read_checkpoint(folder / "checkpoints/last.ckpt")["model"] for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_of_two_simultaneous_starts_one_trains_and_the_other_says_so(tiny: list[str]) -> None:
    words = [*tiny, "--arm", "pointrend_s2"]
    with started(words) as one, started(words) as two:
        while one.poll() is None and two.poll() is None:
            time.sleep(0.02)
        lost, won = (one, two) if one.poll() is not None else (two, one)
        _, said = lost.communicate()
        folder = Path("runs/tiny/pointrend_s2/fold0_seed0")
        assert lost.returncode == 2, said
        assert said == (
            f"error: {folder}: in use by process {won.pid}, which makes this run; wait for it to end, or stop it\n"
        )
        Path("go").touch()
        _, said = won.communicate()
        assert won.returncode == 0, said
    assert not (folder / RUN_LOCK).exists()
    undisturbed = train_run(load_config([*words, "--run_root", "again"])).folder
    require_equal(folder, undisturbed)


def test_a_killed_start_does_not_keep_the_next_one_out(tiny: list[str]) -> None:
    words = [*tiny, "--arm", "dense"]
    folder = Path("runs/tiny/dense/fold0_seed0")
    with started(words) as process:
        wait_for(folder / "checkpoints/last.ckpt")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    holder = json.loads((folder / RUN_LOCK).read_text())
    assert holder["process"] == process.pid
    train_run(load_config(words))
    assert not (folder / RUN_LOCK).exists()
    undisturbed = train_run(load_config([*words, "--run_root", "again"])).folder
    assert (folder / "cases.csv").read_text() == (undisturbed / "cases.csv").read_text()


def test_a_start_that_was_killed_before_it_wrote_anything_counts_as_none(tiny: list[str]) -> None:
    folder = Path("runs/tiny/dense/fold0_seed0")
    folder.mkdir(parents=True)
    (folder / RUN_LOCK).write_text("")
    train_run(load_config([*tiny, "--arm", "dense"]))
    assert (folder / "cases.csv").is_file()


def test_the_processes_of_one_run_share_its_lock(tiny: list[str], tmp_path: Path) -> None:
    launcher = Launcher()
    try:
        words = [*tiny, "--arm", "dense"]
        ended = launcher.run(tmp_path, 2, "train", *words, fault={"rank": "all", "step": 4, "kind": "kill"})
        assert [one.code for one in ended] == [-9, -9]
        folder = Path("runs/tiny/dense/fold0_seed0")
        assert (folder / RUN_LOCK).exists()
        ended = launcher.run(tmp_path, 2, "train", *words)
        assert [one.code for one in ended] == [0, 0], ended
        assert not (folder / RUN_LOCK).exists()
        # another start while two processes train: one line of the four
        (folder / "cases.csv").unlink()
        (folder / RUN_LOCK).write_text(json.dumps(Holder.here()._asdict()))
        ended = launcher.run(tmp_path, 2, "train", *words)
        assert [one.code for one in ended] == [2, 2]
        (line,) = [line for one in ended for line in one.err.splitlines()]
        assert line.startswith(f"error: {folder}: in use by process {os.getpid()}, which makes this run")
    finally:
        launcher.close()
