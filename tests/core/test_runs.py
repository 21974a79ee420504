"""Runs and their locks; configs by name, the noted command, the commit, devices and memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from vnet.core import environment
from vnet.core.config import load_config, load_resolved
from vnet.core.distributed import launch_fabric
from vnet.core.environment import checkout, config_file, model_folder, portable_command
from vnet.core.errors import InputError
from vnet.core.files import RUN_LOCK, Holder, RunLock, file_lock, process_start, read_table
from vnet.core.hardware import autocast, describe_device, each_on_one_thread, find_device, memory_limit_bytes
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
    wanted = {"ablations": 13, "hippocampus": 6, "study_equal_time": 4, "controls": 7}
    wanted |= {"study_hippocampus": 24, "study_phantoms": 21, "study_seeds": 9}
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


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkout() == ROOT
    assert config_file("quickstart") == ROOT / "configs" / "quickstart.yaml"
    config = load_config(["--config", "quickstart"])
    assert (config.name, config.training.steps) == ("quickstart", 200)


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("training: {steps: 7}\n")
    assert load_config(["--config", "quickstart"]).training.steps == 7


def test_a_name_that_is_no_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()  # a folder of that name is none either
    assert config_file("quickstart") == ROOT / "configs" / "quickstart.yaml"
    for name in ("quickstar", "configs/quickstart", "../quickstart"):
        with pytest.raises(InputError, match="cannot be read .No such file"):
            load_config(["--config", name])


def test_results_that_a_study_wrote_do_not_mark_the_code_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *own, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    for name in ("vnet/core/environment.py", "results/study/runs.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("first\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "vnet/core/environment.py"))
    head = git("rev-parse", "--short=12", "HEAD").strip()
    assert environment.commit() == head
    (tmp_path / "results/study/runs.csv").write_text("second\n")
    assert environment.commit() == head
    (tmp_path / "vnet/core/environment.py").write_text("second\n")
    assert environment.commit() == head + "+"


def test_a_model_is_found_by_its_name_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_folder("hippocampus") == ROOT / "models" / "hippocampus"
    for name in ("heart", "liver"):
        (tmp_path / "vnet/models" / name).mkdir(parents=True)
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "vnet")
    assert model_folder("liver") == tmp_path / "vnet/models/liver"
    for name in ("livr", "", ".", "../models/liver"):
        with pytest.raises(InputError, match=f"--model {name}: no such model; it is one of heart, liver"):
            model_folder(name)


def test_a_noted_command_holds_no_folder_of_the_machine():
    words = "train --config /home/me/mine.yaml --data.root /scan/Task09_Spleen --run_root=/scratch/x --data.cache /c"
    assert portable_command([*words.split(), "--arm", "dense", "--training.steps=5"]) == (
        "vnet train --config mine.yaml --data.root DATA/Task09_Spleen --arm dense --training.steps=5"
    )
    assert portable_command(["train", "--config", "configs/a.yaml"]) == "vnet train --config configs/a.yaml"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """As many GPUs as the parameter says, by torch's word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_without_a_gpu() -> None:
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match=rf"--device {name}: torch can use no GPU here; take --device auto or cpu"):
            find_device(name)
    with pytest.raises(InputError, match="no GPU here"):
        launch_fabric(device="cuda")


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_with_two_gpus() -> None:
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"--device cuda:2: the GPUs here are cuda:0 to cuda:1; name one of them"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--device must be auto, cpu, cuda or cuda:N, got {name}"):
        find_device(name)
    with pytest.raises(InputError, match=f"device must be auto, cpu, cuda or cuda:N, got {name}"):
        load_config(["--device", name])


def test_the_device_is_not_part_of_a_run() -> None:
    assert load_config(["--device", "cpu"]).hash("d") == load_config([]).hash("d")


def test_tasks_run_side_by_side_on_one_thread_each() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    done: list[tuple[int, int]] = []
    try:
        meeting = threading.Barrier(3, timeout=30)  # broken unless three tasks run at a time

        def work(task: int) -> None:
            meeting.wait()
            done.append((task, torch.get_num_threads()))

        each_on_one_thread(work, iter(range(9)))
        assert sorted(done) == [(task, 1) for task in range(9)]
        assert torch.get_num_threads() == 3
        threads: list[int] = []
        later = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert threads == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_task_that_fails_ends_the_others(threads: int) -> None:
    begun: list[int] = []

    def work(task: int) -> None:
        begun.append(task)
        raise ValueError(f"task {task}")

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(ValueError, match="task 0"):
            each_on_one_thread(work, range(1000))
        assert len(begun) <= 2 * threads + 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_cpu_is_described_with_its_threads() -> None:
    assert describe_device(torch.device("cpu")).startswith("cpu (")


def test_the_arithmetic_of_inference_is_that_of_training_unless_it_is_named() -> None:
    words = ["--training.precision", "bf16-mixed"]
    assert load_config(words).inference.precision == "bf16-mixed"
    exact = load_config([*words, "--inference.precision", "32-true"])
    assert exact.inference.precision == "32-true"
    assert exact.hash("d") != load_config(words).hash("d")
    # as before the key existed, when prediction was always exact
    assert load_config(["--inference.precision", "32-true"]).hash("d") == load_config([]).hash("d")


def test_autocast_changes_the_arithmetic_of_a_product() -> None:
    x, cpu = torch.ones(2, 2), torch.device("cpu")
    kinds = []
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        with autocast(cpu, precision):
            kinds.append((x @ x).dtype)
    assert kinds == [torch.float32, torch.bfloat16, torch.float16]


def test_a_run_is_opened_on_any_device(tmp_path: Path) -> None:
    from vnet.core.runs import Run, open_run

    config = load_config(["--device", "cuda:7"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    Run(tmp_path, "0123").write_info()
    assert open_run(tmp_path)[1].device == "auto"
    assert open_run(tmp_path, ["--device", "cpu"])[1].device == "cpu"


def test_the_memory_limit_is_that_of_the_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    machine = memory_limit_bytes()
    assert machine > 2**28
    low = 2**44 if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_AS, (low, hard))
    try:
        assert memory_limit_bytes() == min(machine, low)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
