"""Runs: one holder of a folder's lock; every committed run is still done, on the data as read today."""

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

from vnet.core.config import load_resolved
from vnet.core.errors import InputError
from vnet.core.files import RUN_LOCK, Holder, RunLock, file_lock, process_start, read_table
from vnet.core.runs import KeptRun, RunKey, read_kept_runs
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.folds import all_folds
from vnet.data.phantoms import SheetKind, write_phantoms
from vnet.training.study import study_configs

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


ROOT = Path(__file__).parents[2]
# results/nuclei is a study of detectors, made by scripts of its own, with other columns. It is left out by its name, so
# that a damaged table of any other study is not left out with it.
STUDIES = sorted(path.parent for path in (ROOT / "results").glob("*/runs.csv") if path.parent.name != "nuclei")
FILES = {"config.yaml", "runs.csv", "cases.csv", "refinement.csv", "curves.csv", "splits.json", "properties.csv"}


def runs_on(data_set: str) -> list[KeptRun]:
    runs = [run for study in STUDIES for run in read_kept_runs(study).values()]
    return [run for run in runs if run.info["data_set"] == data_set]


def test_the_studies_are_there() -> None:
    counts = {study.name: len(read_kept_runs(study)) for study in STUDIES}
    wanted = {"ablations": 13, "hippocampus": 6, "study_equal_time": 4}
    wanted |= {"study_hippocampus": 24, "study_phantoms": 15, "study_seeds": 9}
    assert {name: counts[name] for name in wanted} == wanted


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_committed_runs_stay_done(study: Path) -> None:
    """Each run's hash is the one that its config gives today: the kept config, and that of configs/."""
    kept = read_kept_runs(study)
    words = ["--config", str(ROOT / f"configs/{study.name}.yaml")]
    today = {RunKey.of(config): config for config, _ in study_configs(words)}
    assert set(kept) <= set(today)  # none belongs to an arm, fold or seed that the config does not name
    for key, run in kept.items():
        assert load_resolved(run.config).hash(run.info["data_hash"]) == run.config_hash, key
        assert today[key].hash(run.info["data_hash"]) == run.config_hash, f"{key} is no longer done"


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_committed_results_are_whole(study: Path) -> None:
    """A table's runs are those of runs.csv, the cases of a fold those of splits.json, and there is nothing else."""
    assert {path.name for path in study.iterdir()} <= FILES
    kept = read_kept_runs(study)
    folds = load_folds(study)
    for name in ("cases.csv", "refinement.csv", "curves.csv"):
        found: dict[RunKey, set[str]] = {}
        for row in read_table(study / name):
            found.setdefault(RunKey(row["arm"], row["fold"], int(row["seed"])), set()).add(row.get("case", ""))
        assert set(found) <= set(kept), name
        if name == "cases.csv":
            assert found == {key: set(folds[int(key.fold)]) for key in kept}


def load_folds(study: Path) -> list[list[str]]:
    return [fold["val"] for fold in json.loads((study / "splits.json").read_text())["folds"]]


@pytest.mark.decathlon
def test_the_content_hash_of_the_hippocampus_data_stays(hippocampus: Path, tmp_path: Path) -> None:
    """What makes committed runs done: a change of the reader, a new name or key must not touch this hash."""
    dataset = open_dataset(hippocampus)
    found = check_dataset(dataset, tmp_path, progress=False).content_hash
    runs = runs_on("Hippocampus")
    assert len(runs) >= 56
    assert {run.info["data_hash"] for run in runs} == {found}
    for name in ("study_hippocampus", "study_seeds"):
        assert [list(fold.val) for fold in all_folds(dataset)] == load_folds(ROOT / "results" / name)


def test_the_content_hash_of_the_sheets_stays(tmp_path: Path) -> None:
    root = tmp_path / "sheets"
    write_phantoms(root, 180, seed=0, kind=SheetKind())
    found = check_dataset(open_dataset(root), tmp_path, progress=False).content_hash
    assert {run.info["data_hash"] for run in runs_on("Phantoms")} == {found}
