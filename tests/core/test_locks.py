"""The lock of a run folder: one holder, a stale one told from a live one."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vnet.core.errors import InputError
from vnet.core.locks import RUN_LOCK, Holder, RunLock, file_lock, process_start

SLEEP = [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)"]


@pytest.fixture
def sleeper() -> subprocess.Popen[str]:
    """Another process of this machine."""
    process = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process  # type: ignore[misc]
    process.kill()
    process.communicate()


def hold(folder: Path, **changes: object) -> Path:
    """A lock file as another process leaves it."""
    path = folder / RUN_LOCK
    path.write_text(json.dumps(Holder.here()._asdict() | changes))
    return path


def test_a_lock_is_taken_and_given_back(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    assert Holder(**json.loads((tmp_path / "run" / RUN_LOCK).read_text())) == Holder.here()
    with pytest.raises(InputError, match=f"run: in use by process {os.getpid()}, which makes this run; wait for it"):
        RunLock(tmp_path / "run").acquire()
    lock.release()
    assert not (tmp_path / "run" / RUN_LOCK).exists()
    lock.release()  # nothing to give back
    lock.acquire()


def test_the_lock_of_a_running_process_holds_and_that_of_a_killed_one_does_not(
    tmp_path: Path, sleeper: subprocess.Popen[str]
) -> None:
    hold(tmp_path, process=sleeper.pid, started=process_start(sleeper.pid))
    lock = RunLock(tmp_path)
    with pytest.raises(InputError, match=f"in use by process {sleeper.pid}, which makes this run"):
        lock.acquire()
    lock.release()  # not this process's to give back
    assert (tmp_path / RUN_LOCK).exists()
    sleeper.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped by its parent
    lock.acquire()
    assert Holder(**json.loads((tmp_path / RUN_LOCK).read_text())) == Holder.here()


def test_a_number_that_another_process_has_now_does_not_hold(tmp_path: Path, sleeper: subprocess.Popen[str]) -> None:
    hold(tmp_path, process=sleeper.pid, started="1")
    RunLock(tmp_path).acquire()


def test_a_process_on_another_machine_holds_until_its_lock_is_removed(tmp_path: Path) -> None:
    path = hold(tmp_path, host="elsewhere", process=4711)
    rule = f"{tmp_path}: in use by process 4711 on elsewhere; if it does not run there any more, remove {path}"
    with pytest.raises(InputError, match=f"^{re.escape(rule)}$"):
        RunLock(tmp_path).acquire()
    path.unlink()
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("content", ["", "{", '{"host": 1}', "[1]"])
def test_a_lock_torn_while_it_was_written_does_not_hold(content: str, tmp_path: Path) -> None:
    (tmp_path / RUN_LOCK).write_text(content)
    RunLock(tmp_path).acquire()
    assert Holder(**json.loads((tmp_path / RUN_LOCK).read_text())) == Holder.here()


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / RUN_LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="lock.json"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "mine").read_text() == "mine"


def take(folder: Path, ready: multiprocessing.synchronize.Barrier, won: multiprocessing.Queue[bool]) -> None:
    ready.wait()
    try:
        RunLock(folder).acquire()
    except InputError:
        won.put(False)
    else:
        won.put(True)
    ready.wait()  # nobody ends, and gives the lock up by that, before all have tried


def test_of_several_that_find_a_stale_lock_one_takes_it(tmp_path: Path) -> None:
    hold(tmp_path, process=2**22 + 1)  # beyond the highest number of a process
    context = multiprocessing.get_context("fork")
    ready, won = context.Barrier(5), context.Queue()
    work = [context.Process(target=take, args=(tmp_path, ready, won)) for _ in range(5)]
    for process in work:
        process.start()
    assert sorted(won.get(timeout=60) for _ in work) == [False] * 4 + [True]
    for process in work:
        process.join(60)


def count_up(path: Path, times: int) -> None:
    for _ in range(times):
        with file_lock(path.with_name(".lock")):
            path.write_text(str(int(path.read_text()) + 1))


def test_one_process_is_inside_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    work = [context.Process(target=count_up, args=(path, 50)) for _ in range(4)]
    for process in work:
        process.start()
    for process in work:
        process.join(60)
    assert path.read_text() == "200"
    assert not path.with_name(".lock").exists()
