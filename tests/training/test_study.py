"""A study: its runs, what it skips and keeps, and how it stops."""

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

import pytest
import torch

from tests.launcher import Launcher
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.core.files import RUN_LOCK, Holder
from vnet.core.runs import RunKey, read_kept_runs
from vnet.model.checkpoints import read_checkpoint
from vnet.training.run import train_run
from vnet.training.study import (
    StudyStopped,
    run_forwarding_signals,
    run_study,
    study_configs,
    time_left,
    vnet_environment,
)


def test_every_arm_fold_and_seed_is_a_run(tiny: list[str]) -> None:
    runs = [config for config, _ in study_configs([*tiny, "--study.folds", "[0,2]", "--study.seeds", "[0,1,2]"])]
    assert len(runs) == 2 * 2 * 3
    assert len({config.run_folder for config in runs}) == len(runs)
    assert {config.arm for config in runs} == {"dense", "pointrend_s2"}
    # a study that is stopped holds every arm on every fold of its first seeds
    order = [(config.seed, config.data.fold, config.arm) for config in runs]
    assert order == [(s, f, arm) for s in (0, 1, 2) for f in (0, 2) for arm in ("dense", "pointrend_s2")]


def test_a_bad_arm_is_named_before_the_first_run(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "--study.arms", "{dense: {}, pointrend_s2: {network: {width: -1}}}"]
    with pytest.raises(InputError, match="network.width must be 1 or more, got -1"):
        run_study(words)
    assert not (tmp_path / "runs").exists()


def test_a_study_without_data_ends_before_its_first_run(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for root, message in (
        ("", "data.root: no data set named"),
        ("nowhere", "nowhere: no such folder; name the folder"),
    ):
        with pytest.raises(InputError, match=message):
            run_study([*tiny, "--data.root", root])
    assert capsys.readouterr().out == ""
    assert not Path("runs").exists()


def test_the_time_left_follows_from_the_runs_that_were_trained() -> None:
    start = time.monotonic() - 120
    assert time_left(start, 0, 5) == ""
    assert time_left(start, 2, 3) == ", about 3.0 min left"
    assert time_left(start, 4, 1) == ", about 30 s left"


@pytest.mark.slow
def test_a_study_runs_keeps_and_skips(tiny: list[str], phantoms: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*tiny, "--study.keep", "true"]
    configs = run_study(words)
    assert capfd.readouterr().out.count(f"kept in {Path('results/tiny').absolute()}\n") == 2
    assert sorted(path.name for path in Path("results").rglob("*.*")) == sorted(
        ["config.yaml", "runs.csv", "cases.csv", "refinement.csv", "curves.csv", "splits.json"]
    )
    for path in Path("results/tiny").iterdir():
        assert str(phantoms.parent).encode() not in path.read_bytes(), path  # no machine path in what gets committed
    assert "root: DATA/phantoms\n" in Path("results/tiny/config.yaml").read_text()
    assert list(read_kept_runs(Path("results/tiny"))) == [RunKey("dense", "0", 0), RunKey("pointrend_s2", "0", 0)]
    run_study([*words, "--run_root", "fresh"])
    assert capfd.readouterr().out.count("done;") == 2
    assert not list(Path("fresh").rglob("*.ckpt"))
    assert [config.arm for config in configs] == ["dense", "pointrend_s2"]


@pytest.mark.slow
def test_a_run_that_fails_stops_the_study_with_its_exit_code(tiny: list[str]) -> None:
    with pytest.raises(StudyStopped, match="ended with exit code 2; the same command goes on") as stop:
        run_study([*tiny, "--data.root", "nowhere"])
    assert stop.value.exit_code == 2


def test_a_signal_reaches_the_run_once() -> None:
    child = (
        "import signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('ready', flush=True)\n"
        "while not seen: time.sleep(0.05)\n"
        "time.sleep(0.3)\n"
        "sys.exit(40 + len(seen))\n"
    )
    parent = (
        "import sys\n"
        "from vnet.training.study import run_forwarding_signals\n"
        f"sys.exit(run_forwarding_signals([sys.executable, '-c', {child!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(30) == 41
    process.stdout.close()


def test_exit_codes_pass_through() -> None:
    assert run_forwarding_signals([sys.executable, "-c", "raise SystemExit(75)"]) == 75


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
